"""What a job asks SLURM for: read from a launch script's #SBATCH lines, or from a chain file.

Every value that reaches sbatch matches a pattern without spaces or shell characters.
"""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from pipeline.spec import Misuse, Spec

ROOT = Path(__file__).resolve().parent.parent

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,:&|@\[\]-]{0,199}$")]
Time = Annotated[str, StringConstraints(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")]


NodeRange = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,5}-[1-9]\d{0,5}$")]
"""`2-8`: at least and at most so many nodes."""


class Request(Spec):
    """The part of sbatch's options that chains and launch scripts set; None leaves SLURM's own.

    `time` is minutes, MM:SS, HH:MM:SS or D-HH:MM:SS, as sbatch reads it.
    """

    nodes: Annotated[int, Field(gt=0)] | NodeRange | None = None
    ntasks_per_node: int | None = Field(default=None, gt=0)
    gpus_per_node: int | None = Field(default=None, ge=0)
    cpus_per_task: int | None = Field(default=None, gt=0)
    time: Time | None = None
    mem: Word | None = None
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    exclude: Word | None = None
    nodelist: Word | None = None

    @property
    def ranks(self) -> int:
        """Return the number of ranks this has places for, with all the nodes it may get."""
        return self._nodes[1] * (self.ntasks_per_node or 1)

    @property
    def fewest_ranks(self) -> int:
        """Return the number of ranks this has places for with the fewest nodes it takes."""
        return self._nodes[0] * (self.ntasks_per_node or 1)

    @property
    def _nodes(self) -> tuple[int, int]:
        first, _, last = str(self.nodes or 1).partition("-")
        return int(first), int(last or first)

    def over(self, base: "Request") -> "Request":
        """Return this request with `base`'s values where it says nothing."""
        return Request.model_validate({**base.values(), **self.values()})

    def values(self) -> dict[str, int | str]:
        """Return what is set."""
        return self.model_dump(exclude_none=True)


def script_for(config: Path) -> Path | None:
    """Return the launch script of a config, if it has one."""
    script = ROOT / "launch" / f"{config.stem}.sh"
    return script if script.is_file() else None


def request_of(script: Path) -> Request:
    """Read a launch script's #SBATCH lines; options that `Request` has no name for stay out.

    Raises:
        Misuse: a value is not of the form that sbatch takes.
    """
    lines = script.read_text(encoding="utf-8").splitlines()
    words = [word for line in lines if line.startswith("#SBATCH") for word in shlex.split(line)[1:]]
    options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    known = {key.replace("-", "_"): value for key, value in options.items()}
    return Request.parse(
        {key: value for key, value in known.items() if key in Request.model_fields}, str(script)
    )


def minutes(time: str) -> int:
    """Return sbatch's notation of a time as minutes, rounded up."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:  # D-HH[:MM[:SS]]
        hours, mins, secs = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        hours, mins, secs = 0, parts[0], 0
    else:  # MM:SS or HH:MM:SS
        hours, mins, secs = [0, *parts][-3:]
    return int(days or 0) * 1440 + hours * 60 + mins + (secs > 0)


def check_name(name: str, source: str) -> str:
    """Return `name` where it may be a job's name.

    Raises:
        Misuse: names the place and the rule.
    """
    if not re.fullmatch(NAME, name):
        raise Misuse(
            f"{source} is {name!r}: use 1 to 64 letters, digits, '.', '_' and '-', "
            "and start with a letter or digit"
        )
    return name


def site_settings(env: Mapping[str, str]) -> dict[str, str]:
    """Return the SBATCH_* settings of slurm/site.env; what `env` already has stays.

    Raises:
        Misuse: bash finds a mistake in the file.
    """
    return {key: value for key, value in site_environment(env).items() if key.startswith("SBATCH_")}


def site_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with all settings of slurm/site.env; what `env` already has stays.

    Raises:
        Misuse: bash finds a mistake in the file.
    """
    path = ROOT / "slurm" / "site.env"
    script = 'set -eu; set -a; . "$1"; env -0'
    done = subprocess.run(["bash", "-c", script, "bash", str(path)], capture_output=True, env=env)
    if done.returncode:
        raise Misuse(f"{path}: {done.stderr.decode(errors='replace').strip()}")
    pairs = (item.partition("=") for item in done.stdout.decode(errors="replace").split("\0"))
    return {key: value for key, _, value in pairs if key}
