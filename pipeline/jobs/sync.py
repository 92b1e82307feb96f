"""`pipeline sync`: send the events of a run that MLflow could not take when they happened."""

from pathlib import Path

from pipeline.recipe import load_recorded
from pipeline.run.folder import DONE, FAILED, RunFolder
from pipeline.tracking.sender import sync as send_rest


def sync(path: Path) -> int:
    """Send what is left in a run's spool; exit code 1 where something still is."""
    folder = RunFolder(path.resolve())
    recipe = load_recorded(folder)
    unsent = send_rest(folder, recipe.tracking)
    if unsent:
        print(f"{unsent} events of {folder.path} are still not sent; is the MLflow server up?")
        return FAILED
    print(f"all events of {folder.path} are in MLflow")
    return DONE
