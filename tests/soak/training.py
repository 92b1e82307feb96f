"""The training that is thrown at: the demo made long, once in peace and once as a job.

What it did in peace is kept for the next storm, under a digest of the settings and of the code.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.run.folder import RunFolder
from pipeline.tracking.events import history
from tests.soak.cluster import REPO, Cluster

CONFIG = "configs/demo.yaml"
BATCH, NODES = 64, 2
CALIBRATION_STEPS = 200
EFFECTIVE = 0.7
"""Share of a storm's time that is expected to count, for the length of the training."""
HANG = (
    "watch={setup_s: 90, compile_s: 90, data_s: 20, step_s: 20, evaluate_s: 60, "
    "checkpoint_s: 40, beat_every_s: 1}",
    "compute.collective_timeout_s=120",
)
"""A stopped rank is found within seconds, not after the ten minutes of a real training."""
CHECKPOINT_S = 4.0
"""Seconds of peace between two checkpoints: a storm with a fault a minute restarts in 10 to 20."""


@dataclass(frozen=True)
class Training:
    """A training of `steps` steps in `base`/runs, its ids in `base`/ids; `ranks` on two nodes.

    As a job each step rests for `rest_s`, as the host does while a GPU computes.
    """

    base: Path
    data: Path
    steps: int
    save_every: int
    rest_s: float = 0.0
    ranks: int = 2
    strategy: str = "ddp"

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides that quiet run and storm share."""
        return (
            f"strategy={self.strategy}",
            f"length={{steps: {self.steps}}}",
            "lr.peak=0.01",
            "lr.warmup_epochs=null",
            "lr.warmup_steps=20",
            "stages.px=[16, 24]",
            "stages.mixup=[0.1, 0.2]",
            "stages.dropout=[0.1, 0.2]",
            f"checkpoint={{every_steps: {self.save_every}, keep: 3}}",
            f"evaluate={{every_steps: {max(1, self.steps // 4)}}}",
            *HANG,
            "tracking.register_as=null",
            "tracking.system_every_s=0",
        )

    @property
    def last(self) -> str:
        """The final checkpoint, below a run's folder."""
        return f"checkpoints/step-{self.steps:09d}"

    def folder(self, name: str) -> RunFolder:
        """Return the folder of the run `name`."""
        return RunFolder(self.base / "runs" / name)

    def ids(self, name: str) -> Path:
        """Return the folder in which the ranks of `name` note their samples."""
        return self.base / "ids" / name

    def command(self, name: str, *more: str) -> list[str]:
        """Return `train CONFIG ...` for a run."""
        where = (f"name={name}", f"runs={self.base}/runs", f"data={self.data}")
        return ["train", CONFIG, *where, *self.settings, *more]

    def env(self, name: str) -> dict[str, str]:
        """Return what makes the ranks of `name` note their samples."""
        recorder = f"{sys.executable} {REPO}/tests/soak/recording_rank.py {self.ids(name)}"
        return {"RANK_PREFIX": recorder, "OMP_NUM_THREADS": "1"}

    def rests(self) -> list[dict]:
        """Return what has the ranks rest in each step, as entries of PIPELINE_FAULTS."""
        rest = {"kind": "sleep", "step": 1, "every": True, "seconds": self.rest_s}
        return [{**rest, "rank": rank} for rank in range(self.ranks)] if self.rest_s else []

    def run_quietly(self, name: str, timeout_s: float = 3600, rests: bool = False) -> RunFolder:
        """Train in peace, without SLURM and MLflow, and without rest where it is not asked for.

        Raises:
            RuntimeError: it failed; names its log.
        """
        launch = [sys.executable, "-m", "launch", "local", "--ranks", str(self.ranks)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        env |= {"PIPELINE_FAULTS": json.dumps(self.rests())} if rests else {}
        self.base.mkdir(parents=True, exist_ok=True)
        with open(self.base / f"{name}.log", "wb") as log:
            done = subprocess.run(
                [*launch, *self.command(name, "tracking.enabled=false")],
                cwd=REPO,
                env={**env, **self.env(name)},
                stdout=log,
                stderr=log,
                timeout=timeout_s,
            )
        if done.returncode:
            raise RuntimeError(f"the quiet run ended with {done.returncode}; see {log.name}")
        return self.folder(name)

    def submit(self, cluster: Cluster, name: str, *more: str, faults: Sequence[dict] = ()) -> str:
        """Hand the training to SLURM as a user would; returns the job's id."""
        words = [f"'{word}'" for word in self.command(name, *more)]
        places = (f"--nodes={NODES}", f"--ntasks-per-node={self.ranks // NODES}")
        options = (*places, "--requeue", "--signal=B:USR2@60")
        self.base.mkdir(parents=True, exist_ok=True)
        env = {**cluster.env, **self.env(name), "SUPERVISOR_PYTHON": sys.executable}
        env |= {"LEAST_WORLD": "1"}  # or weights would be equal to within rounding alone
        if planned := [*faults, *self.rests()]:
            env["PIPELINE_FAULTS"] = json.dumps(planned)
        return cluster.ask(
            *("sbatch", "--parsable", *options, f"--job-name={name}", "--open-mode=append"),
            f"--output={self.base}/{name}.log",
            f"--wrap=exec bash {REPO}/slurm/job.sh {' '.join(words)}",
            env=env,
        )


def make_data(base: Path) -> Path:
    """Make shards of the digits, or find those of an earlier storm."""
    shards = base / "digits" / "shards"
    if not (shards / "manifest.json").is_file():
        shutil.rmtree(base / "digits", ignore_errors=True)
        for words in (
            ["synthetic", "digits", f"{base}/digits/raw"],
            ["build", f"{base}/digits/raw", str(shards), "--holdout", "0.2"],
        ):
            subprocess.run(
                [sys.executable, "-m", "data_prep", *words], cwd=REPO, check=True, timeout=300
            )
    return shards


def quiet_steps_per_s(base: Path, data: Path, rest_s: float) -> float:
    """Measure how fast this machine trains in peace, with a rest in each step."""
    shutil.rmtree(base, ignore_errors=True)
    trial = Training(base, data, CALIBRATION_STEPS, CALIBRATION_STEPS, rest_s)
    folder = trial.run_quietly("calibration", rests=True)
    return 1 / statistics.median(step_seconds(folder).values())


def sized(base: Path, data: Path, seconds: float, rate: float, rest_s: float) -> Training:
    """Return the training that a storm of `seconds` lasts for, `rate` its steps per second."""
    every = max(5, round(CHECKPOINT_S * rate))
    steps = every * max(2, round(seconds * rate * EFFECTIVE / every))
    return Training(base, data, steps, every, rest_s)


def step_seconds(folder: RunFolder) -> dict[int, float]:
    """Return how long each step took; of one computed twice, the time that counted."""
    points = history(folder.spool)["speed/images_per_s"]
    return {point.step: BATCH / point.value for point in points}


def quiet_twin(storm: Training, cache: Path) -> Training:
    """Return the same training done in peace, from the cache where it is there."""
    code = hashlib.sha256(repr((storm.ranks, storm.settings)).encode())
    for room in ("pipeline", "launch", "configs"):
        for path in sorted((REPO / room).rglob("*")):
            if path.suffix in (".py", ".c", ".h", ".yaml", ".so"):
                code.update(path.read_bytes())
    twin = replace(storm, base=cache / code.hexdigest()[:16])
    if not (twin.base / "complete").is_file():
        shutil.rmtree(twin.base, ignore_errors=True)
        twin.run_quietly("quiet")
        (twin.base / "complete").touch()
    return twin
