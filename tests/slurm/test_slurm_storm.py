"""A small storm: killed, asked, requeued, preempted, out of disk, and the same weights as in peace.

`make soak` is the large one.
"""

import random
from pathlib import Path

import pytest

from tests.soak.soak import Soak
from tests.soak.storm import Manners, Throw
from tests.soak.training import Training

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SEED, STEPS, SAVE_EVERY, LONGEST_S = 8, 280, 20, 600.0
KINDS = ("kill", "usr2", "preempt", "requeue")


def test_a_training_in_a_storm_is_the_training_in_peace(
    needs_slurm: None, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    training = Training(tmp_path / "storm", digits, STEPS, SAVE_EVERY)
    soak = Soak(training, tmp_path / "quiet", num_nodes=3, rng=rng, num_written=1)
    throws = [Throw(rng.uniform(0.0, 1.5), kind) for kind in KINDS]
    # Two checkpoints lie between two faults, so that none hits a job that has not begun again.
    outcome = soak.run(throws, LONGEST_S, Manners(patience=0, apart_steps=2 * SAVE_EVERY))
    log = (training.base / "storm.log").read_text()[-6000:]
    assert not outcome.problems, f"{outcome.problems}\n{capfd.readouterr().out}\n{log}"
    assert outcome.course.thrown == {**dict.fromkeys(KINDS, 1), "nospace": 1}, log
    assert outcome.course.requeues == 3
    assert 0 < outcome.course.ettr < 1
