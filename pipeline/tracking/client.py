"""The connection to MLflow: bounded waits, one experiment, one run per training.

MLflow's own patience (7 retries of 120 s: 247 s for one dead call) is cut down before it is
imported; whoever calls decides how often to try again.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.spec import Failure
from pipeline.tracking.settings import SQLITE, artifact_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY_TAG = "pipeline.run_key"
PERMANENT = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST"})


class Unreachable(Failure):
    """MLflow does not answer, or not as it should; trying again later may help."""


class Refused(Failure):
    """MLflow answered that it will not take this; trying again does not help."""


def connect(uri: str, timeout_s: int = 30, retries: int = 2) -> "MlflowClient":
    """Return a client for `uri`; a dead server costs about `retries` + 1 times `timeout_s`.

    Raises:
        Unreachable: the sqlite file cannot be opened (a server is first asked by the first call).
    """
    os.environ |= {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    from mlflow import MlflowClient

    for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("urllib3", "ERROR")):
        logging.getLogger(name).setLevel(level)  # tables are made, a connection is tried again
    with _alone(uri), answers(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if uri.startswith(SQLITE):
            client.search_experiments(max_results=1)  # makes the tables
        return client


@contextlib.contextmanager
def answers(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into `Refused` (for good) or `Unreachable` (for now)."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = str(error).splitlines()[0][:400]
        if error.error_code in PERMANENT:
            raise Refused(f"MLflow at {uri} refuses: {text}") from error
        if "Invalid Host header" in str(error):
            text = f"it wants to be started with --allowed-hosts {uri.partition('//')[2]}"
        raise Unreachable(f"MLflow at {uri} does not answer: {text}") from error
    except OSError as error:  # requests' errors too
        raise Unreachable(f"MLflow at {uri} does not answer: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy"):
            raise Unreachable(f"{uri}: {str(error).splitlines()[0]}") from error
        raise


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the experiment's id; it is made where missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_root(uri))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another job was faster
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise Refused(
            f"MLflow at {uri}: experiment '{name}' was deleted; restore it with "
            f"`mlflow experiments restore`, or choose another tracking.experiment"
        )
    return found.experiment_id


def find_run(client: "MlflowClient", experiment: str, key: str, known: str | None) -> "Run | None":
    """Return the run of the training with `key`: the `known` one if it is, else by its tag."""
    from mlflow.exceptions import MlflowException

    if known:
        try:
            run = client.get_run(known)
            if run.data.tags.get(KEY_TAG) == key:
                return run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0] if found else None


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time make the tables of a new sqlite file."""
    if not uri.startswith(SQLITE):
        yield
        return
    database = Path(uri.removeprefix(SQLITE))
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        guard = open(database.with_name(database.name + ".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise Unreachable(f"{database}: cannot be made: {error}") from error
    with guard:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield
