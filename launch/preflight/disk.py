"""The disk of the run's folder: room, files, and the time that a checkpoint takes to be safe."""

import os
import shutil

from launch.answer import Node, existing
from launch.limits import limit_s
from launch.preflight.findings import Findings
from launch.target import Training
from pipeline.jobs.prepare import num_classes
from pipeline.models.count import model_params

BYTES_PER_WEIGHT = 16
"""fp32 weights, their average, and the optimizer's two moments (facts of pipeline.checkpoint)."""
FILES = 10_000
"""Inodes for checkpoints, spool and attempts, with much to spare."""
REMEDY = "make room, choose another runs=, or lower checkpoint.keep"


def checkpoint_bytes(target: Training) -> int:
    """Return about how large one checkpoint is."""
    classes = num_classes(target.recipe, target.found.manifest)
    return model_params(target.recipe.model, classes) * BYTES_PER_WEIGHT


def check_room(target: Training, found: Findings) -> None:
    """Checkpoints must fit: those that are kept, the best one and the one being written."""
    place = existing(target.folder.path)
    need = checkpoint_bytes(target) * (target.recipe.checkpoint.keep + 2)
    free = shutil.disk_usage(place).free
    text = f"{need / 1e9:.1f} GB for checkpoints, {free / 1e9:.1f} GB free on {place}"
    files = os.statvfs(place)
    if not os.access(place, os.W_OK | os.X_OK):
        found.mistakes.append(f"field 'runs': {place} may not be written; choose another runs=")
    elif free < need:
        found.mistakes.append(f"field 'runs': needs {text}: {REMEDY}")
    elif files.f_files and files.f_favail < FILES:  # 0: a file system without such a limit
        found.mistakes.append(
            f"field 'runs': {files.f_favail} files (inodes) are left on {place}, {FILES} are "
            "asked for: remove files, ask for a larger quota, or choose another runs="
        )
    else:
        found.good.append(f"disk     {text}")


def check_speed(target: Training, node: Node, host: str, found: Findings) -> None:
    """A checkpoint must be written and synced in the time that ranks get to save."""
    where = f"{target.folder.path} from {host}"
    if node.disk_error:
        found.mistakes.append(f"field 'runs': {where}: {node.disk_error}; choose another runs=")
        return
    seconds = checkpoint_bytes(target) / 1e6 / max(node.write_mb_s, 1e-3)
    text = (
        f"{node.write_mb_s:.0f} MB/s written and synced, a rename in {node.rename_ms:.0f} ms: "
        f"{seconds:.1f} s for a checkpoint in {where}"
    )
    most_s = limit_s("SAVE_S", os.environ)
    if seconds > most_s:
        found.warnings.append(
            f"disk     {text}, but ranks get {most_s:.0f} s to save (SAVE_S in slurm/site.env): "
            "choose a faster runs=, or raise SAVE_S and --signal=B:USR2@ of the script together"
        )
    else:
        found.good.append(f"speed    {text}")
