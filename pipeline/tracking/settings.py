"""Where MLflow is: an address in the recipe, in the environment, or a file in the project folder.

The default is sqlite beside the project, which needs no server. SQLite trusts the locks of the
file system, and those of network file systems do not hold, so such a place is refused with the
remedy.
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipeline.spec import Misuse, Spec

SQLITE = "sqlite:///"
ENVIRONMENT = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "lustre", "cifs", "smb3", "beegfs", "fuse.sshfs", "fuse.glusterfs", "ceph")
)
_MOUNTS = Path("/proc/self/mountinfo")


class TrackingSpec(Spec):
    """The `tracking:` part of a config.

    `uri` is http(s)://... or sqlite:///FILE; None means MLFLOW_TRACKING_URI where it is set, else
    sqlite:///mlflow.db in the working folder. `enabled: false` keeps everything in the run's
    folder until `sync` sends it. `register_as` names the registered model. `every_steps` thins
    the training's points out; `system_every_s` is the interval of the machine's own figures, 0
    leaves them out.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = Field(default="efficientnet", min_length=1, max_length=250)
    register_as: str | None = None
    every_steps: int = Field(default=1, ge=1)
    system_every_s: float = Field(default=30.0, ge=0)

    @field_validator("uri")
    @classmethod
    def _known_kind(cls, uri: str | None) -> str | None:
        if uri is not None:
            check_uri(uri)
        return uri

    @field_validator("register_as")
    @classmethod
    def _model_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[\w.-][\w. -]{0,99}", name):
            raise ValueError("use 1 to 100 letters, digits, dots, dashes and underscores")
        return name


def check_uri(uri: str) -> None:
    """Raise ValueError where `uri` is no address that the sender can use."""
    if uri.startswith(SQLITE) and len(uri) > len(SQLITE):
        return
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            "expected http://HOST:PORT, https://... or sqlite:///FILE "
            "(MLflow no longer keeps runs in plain folders)"
        )
    if parts.username or parts.password:
        raise ValueError(
            "a password does not belong here, where it is recorded; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def resolve_uri(spec: TrackingSpec, recorded: str | None = None) -> str:
    """Return the absolute address: the config's, the environment's, `recorded`, or the default.

    Raises:
        Misuse: the environment's address is no address, or sqlite would lie on a network disk.
    """
    uri = spec.uri or os.environ.get(ENVIRONMENT) or recorded or f"{SQLITE}{DATABASE}"
    try:
        check_uri(uri)
    except ValueError as error:
        source = "tracking.uri" if spec.uri else ENVIRONMENT
        shown = uri.rpartition("@")[2]  # never print a password
        raise Misuse(f"{source}: value '{shown}': {error}") from None
    if not uri.startswith(SQLITE):
        return uri.rstrip("/")
    database = Path(uri.removeprefix(SQLITE)).absolute()
    _refuse_network_disk(database)
    return f"{SQLITE}{database}"


def artifact_root(uri: str) -> str | None:
    """Return where artifacts of a sqlite store go (beside it); None: the server decides."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri()


def file_system(path: Path) -> str:
    """Return the kind of file system that `path` is (or would be) on; '' where unknown."""
    best, kind = "", ""
    resolved = str(path.resolve())
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left.split()[4])
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # later mounts cover earlier ones
            best, kind = mount, right.split()[0]
    return kind


def _refuse_network_disk(database: Path) -> None:
    kind = file_system(database)
    if kind in NETWORK_FILE_SYSTEMS:
        raise Misuse(
            f"tracking.uri: sqlite file {database} is on a network file system ({kind}), whose "
            f"locks do not protect it; start `mlflow server` on one machine and set {ENVIRONMENT}="
            f"http://HOST:PORT, or give tracking.uri=sqlite:////LOCAL/DISK/mlflow.db, or "
            f"tracking.enabled=false and send later with `python -m pipeline sync`"
        )
