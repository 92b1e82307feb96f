"""The data set: every shard there and of its size, and the bytes of some samples as indexed."""

import time

import numpy as np

from launch.preflight.findings import Findings
from launch.target import Training
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest
from pipeline.data.places import is_url
from pipeline.data.reader import BrokenSample, ShardReader
from pipeline.jobs.shards import check_shards
from pipeline.spec import Failure, Misuse

SHARDS, SAMPLES_EACH = 4, 4
SPOT_S = 20.0
"""A slow file system gets fewer samples looked at, not a longer preflight."""


def check_data(target: Training, found: Findings) -> None:
    """The shards must be there, whole and with both splits; a URL must give their manifest."""
    try:
        manifest = target.check_data()
        check_shards(
            target.recipe, manifest, lambda text: found.warnings.append(f"data     {text}")
        )
        found.good.append(f"data     {target.shards or target.recipe.data.path}")
    except (Misuse, Failure) as error:
        found.mistakes.append(f"field 'data': {error}")


def check_samples(target: Training, found: Findings, limit_s: float = SPOT_S) -> None:
    """Samples spread over the training split must have the bytes that their index says.

    Shards at a URL are checked sample by sample as they come.
    """
    manifest = target.found.manifest
    if manifest is None or target.shards is None or is_url(target.recipe.data.path):
        return
    try:
        checked, wrong = _spot(target, manifest, time.monotonic() + limit_s)
    except (Misuse, Failure) as error:
        found.mistakes.append(f"field 'data': {error}")
        return
    if wrong and target.recipe.loader.bad.policy == "strict":
        found.mistakes += [f"field 'data': {text}" for text in wrong]
    elif wrong:
        found.warnings += [f"samples  {text}" for text in wrong]
    else:
        found.good.append(f"samples  {checked} read, with the checksums of their index")


def _spot(target: Training, manifest: Manifest, deadline: float) -> tuple[int, list[str]]:
    """Read first and last samples and some between of some shards: (number read, what is wrong)."""
    assert target.shards is not None
    split = target.recipe.data.train
    reader = ShardReader(SplitIndex(target.shards, manifest, split))
    starts, shards = reader.index.starts, reader.index.shards
    checked, wrong = 0, []
    try:
        for shard in _spread(len(shards), SHARDS):
            for row in _spread(shards[shard].num_samples, SAMPLES_EACH):
                if time.monotonic() > deadline:
                    return checked, wrong
                try:
                    reader.read(int(starts[shard]) + row)
                    checked += 1
                except BrokenSample as error:
                    wrong.append(str(error))
    finally:
        reader.close()
    return checked, wrong


def _spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` numbers below `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted), dtype=int)).tolist()
