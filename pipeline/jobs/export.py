"""`pipeline export`: copy a finished model out, as a folder that needs neither MLflow nor runs."""

import shutil
import tempfile
from pathlib import Path

from pipeline.export.package import load_package
from pipeline.jobs.disk import naming_disk
from pipeline.run.folder import DONE
from pipeline.spec import Misuse
from pipeline.tracking.registry import fetch
from pipeline.tracking.settings import TrackingSpec


def export(model: str, target: Path) -> int:
    """Write the verified package of `model` to the new folder `target`.

    Raises:
        Misuse: `target` exists, or there is no such model.
        Altered: a file of the model is not what was sealed. Failure: the disk does not take it.
    """
    if target.exists():
        raise Misuse(f"{target}: exists already; choose a new folder")
    if model.startswith("models:/"):
        with naming_disk(target):
            fetch(model, TrackingSpec(), target)
        load_package(target)
    else:
        source = Path(model)
        _copy(source / "package" if (source / "package").is_dir() else source, target)
    print(f"{model} is in {target}: model.safetensors, config, labels, preprocessing, digests")
    return DONE


def _copy(source: Path, target: Path) -> None:
    """Copy beside `target`, verify, then rename: a full disk leaves nothing behind."""
    load_package(source)
    beside = target.absolute().parent
    with naming_disk(target):
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=beside) as scratch:
            draft = Path(scratch) / target.name
            draft.mkdir()
            for path in source.iterdir():
                shutil.copy(path, draft / path.name)
            load_package(draft)
            draft.rename(target)
