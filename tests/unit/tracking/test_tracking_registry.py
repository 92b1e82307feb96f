"""Packages go into the registry read back, and come out verified or not at all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse
from pipeline.tracking import registry
from pipeline.tracking.client import Unreachable, connect
from pipeline.tracking.digests import Altered, check_seal, seal
from pipeline.tracking.registry import (
    fetch,
    lineage,
    promote,
    register,
    register_package,
    resolve,
)
from pipeline.tracking.sender import sync
from pipeline.tracking.settings import TrackingSpec
from pipeline.tracking.spool import Spool

TAGS = {"data.digest": "d1", "metric.top1": "0.98"}


def stored_weights(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "mlartifacts").rglob("model.safetensors"))


def another(package: Path, tmp_path: Path, content: bytes = b"other") -> Path:
    folder = tmp_path / f"another-{content.decode()}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    seal(folder)
    return folder


def test_a_package_comes_back_as_it_went_in(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    version = register_package(package, spec, None, TAGS)
    assert (version.name, version.version, version.uri) == ("net", 1, "models:/net/1")
    assert version.digest == check_seal(package) and version.tags["metric.top1"] == "0.98"
    for uri in ("models:/net/1", "models:/net@candidate"):
        assert resolve(uri, spec) == version
    got = fetch("models:/net@candidate", spec, tmp_path / "got")
    assert {p.name: p.read_bytes() for p in got.iterdir()} == {
        p.name: p.read_bytes() for p in package.iterdir()
    }
    assert fetch("models:/net/1", spec, tmp_path / "got") == got  # there already


def test_the_same_package_is_the_same_version(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    first = register_package(package, spec, None, TAGS)
    assert spec.uri is not None
    connect(spec.uri).delete_registered_model_alias("net", "candidate")  # killed before it was set
    assert register_package(package, spec, None, {}) == first
    assert resolve("models:/net@candidate", spec) == first
    second = register_package(another(package, tmp_path), spec, None, {})
    assert register_package(package, spec, None, {}) == first
    assert resolve("models:/net@candidate", spec) == second


def test_a_new_package_takes_the_candidate_alias_along(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    register_package(package, spec, None, {})
    second = register_package(another(package, tmp_path), spec, None, {})
    assert second.version == 2 and resolve("models:/net@candidate", spec) == second


def test_a_run_registers_among_its_own_artifacts(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "runs" / "demo")
    Spool(run.spool).metrics(1, {"loss": 1.0})
    sync(run, spec)
    package.rename(run.package)
    version = register(run, spec, TAGS)
    (file,) = stored_weights(tmp_path)
    assert version.run_id is not None and version.run_id in str(file)
    assert spec.uri is not None
    assert connect(spec.uri).get_run(version.run_id).info.run_name == "demo"


def test_promotion_is_idempotent_and_moves_one_alias(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    register_package(package, spec, None, {})
    register_package(another(package, tmp_path), spec, None, {})
    for number in (1, 1, 2, 2, 1):
        assert promote("net", number, spec).version == number
        assert resolve("models:/net@champion", spec).version == number
    assert resolve("models:/net@candidate", spec).version == 2


def test_lineage_follows_the_parents(package: Path, spec: TrackingSpec, tmp_path: Path) -> None:
    register_package(package, spec, None, {})
    register_package(another(package, tmp_path, b"b"), spec, None, {"parent": "models:/net/1"})
    last = another(package, tmp_path, b"c")
    third = register_package(last, spec, None, {"parent": "models:/net/2"})
    assert [v.version for v in lineage(third, spec)] == [2, 1]


def test_what_there_is_not_is_answered_with_what_there_is(
    package: Path, spec: TrackingSpec
) -> None:
    with pytest.raises(Misuse, match="no such model.*there are: none"):
        resolve("models:/net/1", spec)
    register_package(package, spec, None, {})
    for uri, answer in {
        "models:/ned/1": "no such model.*there are: net",
        "models:/net@champion": r"no such alias.*there are: candidate \(version 1\)",
        "models:/net/7": "no such version.*there are: 1$",
        "models:/net": "expected models:/NAME/VERSION",
        "models:/net/latest": "expected models:/NAME/VERSION",
        "../net": "expected models:/NAME/VERSION",
    }.items():
        with pytest.raises(Misuse, match=answer):
            resolve(uri, spec)
    with pytest.raises(Misuse, match="no such version"):
        promote("net", 3, spec)
    with pytest.raises(Misuse, match="register_as: is not set"):
        register_package(package, spec.model_copy(update={"register_as": None}), None, {})


def test_an_altered_file_in_the_store_is_refused_and_leaves_nothing(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    register_package(package, spec, None, {})
    (stored,) = stored_weights(tmp_path)
    data = bytearray(stored.read_bytes())
    data[100] ^= 1
    stored.write_bytes(data)
    with pytest.raises(Altered, match=r"model\.safetensors: sha256 is .* altered or damaged"):
        fetch("models:/net/1", spec, tmp_path / "got")
    assert not (tmp_path / "got").exists() and not list(tmp_path.glob(".fetch*"))
    with pytest.raises(Altered):
        promote("net", 1, spec)
    with pytest.raises(Altered):
        register_package(package, spec, None, {})


def test_a_swapped_package_with_its_own_seal_is_refused(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    register_package(package, spec, None, {})
    (stored,) = stored_weights(tmp_path)
    stored.write_bytes(b"evil")
    seal(stored.parent)
    with pytest.raises(Altered, match="has digest .* expected"):
        fetch("models:/net/1", spec, tmp_path / "got")


def test_an_altered_package_is_not_registered(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    (package / "config.json").write_text("{}")
    with pytest.raises(Altered, match=r"config\.json"):
        register_package(package, spec, None, {})
    assert stored_weights(tmp_path) == []


def test_a_damaged_upload_makes_no_version(
    package: Path, spec: TrackingSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry._download

    def damaged(source: str, uri: str, into: Path) -> Path:
        got = real(source, uri, into)
        (got / "config.json").write_text("")
        return got

    monkeypatch.setattr(registry, "_download", damaged)
    with pytest.raises(Altered):
        register_package(package, spec, None, {})
    monkeypatch.undo()
    with pytest.raises(Misuse, match="no such model"):
        resolve("models:/net/1", spec)


def test_a_version_without_a_digest_is_refused(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    version = register_package(package, spec, None, {})
    assert spec.uri is not None
    connect(spec.uri).delete_model_version_tag("net", str(version.version), "sha256")
    with pytest.raises(Altered, match="no tag 'sha256'"):
        fetch("models:/net/1", spec, tmp_path / "got")


def test_fetch_does_not_write_into_a_used_folder(
    package: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    register_package(package, spec, None, {})
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    with pytest.raises(Misuse, match="holds something else"):
        fetch("models:/net/1", spec, used)
    with pytest.raises(Altered):
        fetch("models:/net/1", spec, another(package, tmp_path))
    assert (used / "thesis.txt").read_text() == "mine"


PARALLEL = """
import sys, time
from pathlib import Path
from pipeline.tracking.client import connect
from pipeline.tracking.registry import register_package
from pipeline.tracking.settings import TrackingSpec
package, uri, gate = sys.argv[1:]
spec = TrackingSpec(uri=uri, register_as="net")
connect(uri)
print("ready", flush=True)
while not Path(gate).exists():
    time.sleep(0.002)
print(register_package(Path(package), spec, None, {}).uri)
"""


def register_in_parallel(package: Path, uri: str, tmp_path: Path, repo: Path, num: int) -> set[str]:
    command = [sys.executable, "-c", PARALLEL, str(package), uri, str(tmp_path / "gate")]
    jobs = [
        subprocess.Popen(
            command, cwd=repo, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(num)
    ]
    for job in jobs:
        assert job.stdout is not None and job.stdout.readline() == "ready\n"
    (tmp_path / "gate").touch()
    answers = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * num, [error for _, error in answers]
    return {out.strip() for out, _ in answers}


def test_parallel_registrations_give_one_version(
    package: Path, spec: TrackingSpec, tmp_path: Path, repo: Path
) -> None:
    assert spec.uri is not None
    uris = register_in_parallel(package, spec.uri, tmp_path, repo, 3)
    assert len(uris) == 1
    client = connect(spec.uri)
    (version,) = client.search_model_versions("name = 'net'")
    assert uris == {f"models:/net/{version.version}"}
    assert client.get_registered_model("net").aliases == {"candidate": int(version.version)}
    assert len(stored_weights(tmp_path)) == 1


def test_a_real_server_registers_fetches_promotes_and_its_death_is_named(
    package: Path, server: Any, tmp_path: Path, repo: Path
) -> None:
    server.serve()
    spec = TrackingSpec(uri=server.uri, register_as="net")
    (uri,) = register_in_parallel(package, server.uri, tmp_path, repo, 2)
    got = fetch("models:/net@candidate", spec, tmp_path / "got")
    assert check_seal(got) == check_seal(package)
    promote("net", int(uri.rpartition("/")[2]), spec)
    assert resolve("models:/net@champion", spec).uri == uri
    (stored,) = (tmp_path / "server-artifacts").rglob("model.safetensors")
    stored.write_bytes(b"x")
    with pytest.raises(Altered):
        fetch("models:/net@champion", spec, tmp_path / "again")
    other_name = spec.model_copy(update={"uri": server.uri.replace("127.0.0.1", "127.0.0.2")})
    with pytest.raises(Unreachable, match=r"--allowed-hosts 127\.0\.0\.2:[0-9]+"):
        resolve("models:/net/1", other_name)
    server.kill()
    with pytest.raises(Unreachable, match=f"MLflow at {server.uri} does not answer"):
        resolve("models:/net/1", spec)
