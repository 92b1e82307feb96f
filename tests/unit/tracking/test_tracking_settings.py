"""Which MLflow a run goes to, and what is refused."""

from pathlib import Path

import pytest

from pipeline.spec import Misuse
from pipeline.tracking import settings
from pipeline.tracking.settings import TrackingSpec, artifact_root, file_system, resolve_uri

LOCAL = "29 1 8:1 / / rw - ext4 /dev/sda rw\n"


def test_default_is_sqlite_in_the_working_folder_with_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(TrackingSpec()) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri(TrackingSpec(uri="sqlite:///a/b.db")) == f"sqlite:///{tmp_path}/a/b.db"


def test_config_wins_over_environment_over_record_over_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolve_uri(TrackingSpec(), recorded="http://old:1") == "http://old:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:2/")
    assert resolve_uri(TrackingSpec(), recorded="http://old:1") == "http://env:2"
    assert resolve_uri(TrackingSpec(uri="http://config:3"), "http://old:1") == "http://config:3"


def test_artifacts_lie_beside_the_database_and_a_server_decides_itself() -> None:
    assert artifact_root("sqlite:////data/x/mlflow.db") == "file:///data/x/mlartifacts"
    assert artifact_root("http://host:5000") is None


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "sqlite:///", "http://", "ftp://h/x"])
def test_other_stores_are_refused(uri: str) -> None:
    with pytest.raises(Misuse, match="tracking.yaml: field 'uri'.*expected http"):
        TrackingSpec.parse({"uri": uri}, "tracking.yaml")


def test_a_password_in_the_address_is_refused_and_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    with pytest.raises(Misuse, match="MLFLOW_TRACKING_PASSWORD") as caught:
        resolve_uri(TrackingSpec())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a@b", "x" * 101])
def test_model_names_that_a_uri_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(Misuse, match="register_as"):
        TrackingSpec.parse({"register_as": name}, "x.yaml")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "lustre"])
def test_sqlite_on_a_network_disk_is_refused_with_the_remedy(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(LOCAL + f"30 29 0:44 / /project\\040x rw shared:1 - {kind} srv:/p rw\n")
    monkeypatch.setattr(settings, "_MOUNTS", mounts)
    assert file_system(Path("/project x/runs")) == kind
    assert file_system(Path("/project xy/runs")) == "ext4"
    with pytest.raises(Misuse, match=rf"\({kind}\).*MLFLOW_TRACKING_URI"):
        resolve_uri(TrackingSpec(uri="sqlite:////project x/mlflow.db"))
    assert resolve_uri(TrackingSpec(uri="sqlite:////local/m.db")) == "sqlite:////local/m.db"
