"""The tracking store: it should answer, and training goes on without it."""

import urllib.error
import urllib.request

from launch.preflight.findings import Findings
from launch.target import Training
from pipeline.spec import Misuse
from pipeline.tracking.settings import resolve_uri

MLFLOW_S = 5.0


def check_mlflow(target: Training, found: Findings) -> None:
    """The tracking store should answer; training goes on without it."""
    try:
        uri = resolve_uri(target.recipe.tracking)
    except Misuse as error:
        found.mistakes.append(str(error))
        return
    if not uri.startswith("http"):
        found.good.append(f"mlflow   {uri}")
        return
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=MLFLOW_S).close()
        found.good.append(f"mlflow   {uri}")
    except urllib.error.HTTPError as error:
        found.good.append(f"mlflow   {uri} (answers with {error.code})")
    except (OSError, ValueError) as error:
        found.warnings.append(
            f"mlflow   field 'tracking.uri': {uri} does not answer in {MLFLOW_S:.0f} s: {error}; "
            "the run keeps its figures and `python -m pipeline sync RUN` sends them later"
        )
