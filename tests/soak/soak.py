"""One soak from end to end: peace, then a cluster, a server and a storm, then the comparison."""

import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.mlflow_server import Server
from tests.soak.cluster import cluster
from tests.soak.compare import differences, different_points, send_the_rest
from tests.soak.storm import Course, Manners, Throw, rage
from tests.soak.throws import Target, written_faults
from tests.soak.training import Training, quiet_twin

NAME = "storm"


@dataclass(frozen=True)
class Outcome:
    """How the storm went, and what is not as in peace."""

    course: Course
    problems: list[str]


@dataclass(frozen=True)
class Soak:
    """A training, where its quiet twins are kept, the cluster's size, the dice.

    `num_written` faults strike the writer of checkpoints, at steps drawn beforehand.
    """

    training: Training
    cache: Path
    num_nodes: int
    rng: random.Random
    num_written: int

    def run(self, throws: Iterable[Throw], seconds: float, manners: Manners) -> Outcome:
        """Train in peace, then in the storm, and compare."""
        training = self.training
        shutil.rmtree(training.base, ignore_errors=True)
        say("the quiet run")
        twin = quiet_twin(training, self.cache)
        quiet = twin.folder("quiet")
        size = sum(path.stat().st_size for path in (quiet.path / training.last).iterdir())
        written = written_faults(self.rng, training.steps, size, self.num_written)
        server = Server(training.base / "mlflow")
        with cluster(self.num_nodes) as bed:
            try:
                server.serve()
                job = training.submit(bed, NAME, f"tracking.uri={server.uri}", faults=written)
                say(f"job {job}; log {training.base}/{NAME}.log; planned {written}")
                target = Target(bed, training, NAME, job, self.rng, server)
                course = rage(target, throws, seconds, manners, say)
                server.wait()
                return Outcome(course, self._problems(course, twin, server))
            finally:
                server.kill()

    def _problems(self, course: Course, twin: Training, server: Server) -> list[str]:
        storm, quiet = self.training.folder(NAME), twin.folder("quiet")
        if course.state != "COMPLETED":
            return [f"the job is {course.state}; see {self.training.base}/{NAME}.log"]
        ids = twin.ids("quiet"), self.training.ids(NAME)
        found = differences(quiet, storm, self.training.last, ids)
        return found + send_the_rest(storm) + different_points(quiet, server.uri)


def say(text: str) -> None:
    """Print a line with the time of day."""
    print(f"soak: {time.strftime('%H:%M:%S')} {text}", flush=True)
