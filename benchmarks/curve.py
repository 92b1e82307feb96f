"""Draw one chart of a run's report as an SVG file, for the docs.

python benchmarks/curve.py runs/cifar10 docs/cifar10.svg --chart Accuracy
"""

import argparse
import re
from pathlib import Path

from pipeline.report.collect import read_run
from pipeline.report.curves import charts
from pipeline.report.style import STYLE
from pipeline.run.folder import RunFolder


def main() -> None:
    """Read the run and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("output", type=Path, help="SVG file to write")
    parser.add_argument("--chart", default="Accuracy", help="how the chart's title begins")
    options = parser.parse_args()
    run = read_run(RunFolder(options.run.resolve()))
    drawn = [html for html in charts(run) if f"<b>{options.chart}" in html]
    if not drawn:
        parser.error(f"--chart {options.chart}: this run has no such chart")
    svg = re.search(r"<svg (.*?)>(.*)</svg>", drawn[0], re.DOTALL)
    assert svg is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="640" {svg[1]}>'
    font = "svg { font-family: sans-serif; background: var(--card); }"
    options.output.write_text(f"{head}<style>{STYLE}{font}</style>{svg[2]}</svg>\n")


if __name__ == "__main__":
    main()
