"""`pipeline export`: copy a finished model out, as a folder that needs neither MLflow nor runs."""

import shutil
from pathlib import Path

from pipeline.export.package import load_package
from pipeline.run.folder import DONE
from pipeline.spec import Misuse
from pipeline.tracking.registry import fetch
from pipeline.tracking.settings import TrackingSpec


def export(model: str, target: Path) -> int:
    """Write the verified package of `model` to the new folder `target`.

    Raises:
        Misuse: `target` exists, or there is no such model.
    """
    if target.exists():
        raise Misuse(f"{target}: exists already; choose a new folder")
    if model.startswith("models:/"):
        fetch(model, TrackingSpec(), target)
    else:
        source = Path(model)
        source = source / "package" if (source / "package").is_dir() else source
        load_package(source)
        shutil.copytree(source, target)
    load_package(target)
    print(f"{model} is in {target}: model.safetensors, config, labels, preprocessing, digests")
    return DONE
