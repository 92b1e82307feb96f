"""The model registry: packages go in read back, and come out verified or not at all.

A version of a registered model is a package folder (pipeline/export/package.py) among the
artifacts of an MLflow run, with the package's digest as the tag `sha256`. Names for versions:
`candidate` is the newest that was registered, `champion` the one that was promoted.
"""

import contextlib
import random
import re
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse
from pipeline.tracking.client import answers, connect, experiment_id
from pipeline.tracking.delivery import mlflow_run_id
from pipeline.tracking.digests import MANIFEST, Altered, check_seal
from pipeline.tracking.settings import TrackingSpec, resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE, CHAMPION, DIGEST, PARENT = "candidate", "champion", "sha256", "parent"
_URI = re.compile(r"models:/([^/@:]+)(?:/([0-9]+)|@([\w.-]+))")


@dataclass(frozen=True)
class Version:
    """One registered version; `uri` is models:/NAME/VERSION and never moves."""

    name: str
    version: int
    uri: str
    digest: str
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def register(run: RunFolder, spec: TrackingSpec, tags: Mapping[str, str]) -> Version:
    """Register the package of a finished run among the artifacts of its MLflow run.

    Raises:
        as `register_package`.
    """
    return register_package(run.package, spec, mlflow_run_id(run.spool), tags)


def register_package(
    package: Path, spec: TrackingSpec, run_id: str | None, tags: Mapping[str, str]
) -> Version:
    """Register the sealed folder `package` as a version of `spec.register_as`.

    The upload is downloaded again and compared before a version exists; then the version gets
    the alias `candidate`. A package that is registered already (same digest) is that version.
    `run_id` None makes a small run to hold the files.

    Raises:
        Misuse: `register_as` is not set. Altered: the package, or what came back, differs.
        Unreachable, Refused: MLflow is away, or does not take it.
    """
    if spec.register_as is None:
        raise Misuse("tracking.register_as: is not set; give the registered model a name")
    digest = check_seal(package)
    uri, client = _open(spec)
    with answers(uri):
        _make_model(client, spec.register_as)
        known = _with_digest(client, spec.register_as, digest)
        if known:
            _read_back(client, uri, _source(client, known[0]), digest)
            _announce(client, known[0])
            return _as_version(known[0])
        run_id = run_id or _holder_run(client, uri, spec)
        folder = f"package-{digest[:12]}-{uuid.uuid4().hex[:8]}"
        client.log_artifacts(run_id, str(package), folder)
        source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
        _read_back(client, uri, source, digest)
        made = client.create_model_version(
            spec.register_as, source, run_id, tags={**tags, DIGEST: digest}
        )
        first = _with_digest(client, spec.register_as, digest)[0]
        if int(first.version) != int(made.version):  # another process was faster: one version
            client.delete_model_version(made.name, made.version)
            _delete_upload(source, uri)
            _read_back(client, uri, _source(client, first), digest)
        _announce(client, first)
        return _as_version(first)


def resolve(uri: str, spec: TrackingSpec) -> Version:
    """Find the version that models:/NAME/3 or models:/NAME@alias means.

    Raises:
        Misuse: there is none such; the message lists what there is.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise Misuse(f"'{uri}': expected models:/NAME/VERSION or models:/NAME@ALIAS")
    store, client = _open(spec)
    with answers(store):
        return _as_version(_find(client, store, *match.groups()))


def fetch(uri: str, spec: TrackingSpec, into: Path) -> Path:
    """Download the package of `uri` and verify it; it becomes the folder `into`, returned.

    `into` may be there if it is empty, or holds that very package already (nothing is downloaded).

    Raises:
        Altered: what came is not what was registered; nothing is left behind.
        Misuse: no such model, or `into` holds something else. Unreachable, Refused: see `register`.
    """
    version = resolve(uri, spec)
    if not version.digest:
        raise Altered(f"{version.uri}: has no tag '{DIGEST}', so it cannot be verified; refused")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        if (into / MANIFEST).is_file():
            check_seal(into, version.digest)
            return into
        raise Misuse(f"{into}: exists and holds something else; name a new or empty folder")
    beside = into.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    store, client = _open(spec)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=beside) as scratch, answers(store):
        source = client.get_model_version_download_uri(version.name, str(version.version))
        got = _download(source, store, Path(scratch))
        check_seal(got, version.digest)
        got.rename(into)
    return into


def promote(name: str, version: int, spec: TrackingSpec) -> Version:
    """Make version `version` the `champion` of `name`; doing it twice changes nothing.

    Raises:
        Misuse: no such version. Altered: its files are not what was registered.
    """
    store, client = _open(spec)
    with answers(store):
        found = _find(client, store, name, str(version), None)
        _read_back(client, store, _source(client, found), _as_version(found).digest)
        _set_alias(client, name, CHAMPION, str(version))
        return _as_version(found)


def lineage(version: Version, spec: TrackingSpec) -> list[Version]:
    """Return the versions that `version` was finetuned from, nearest first."""
    found: list[Version] = []
    parent = version.tags.get(PARENT, "")
    while _URI.fullmatch(parent) and len(found) < 20:
        try:
            found.append(resolve(parent, spec))
        except Misuse:  # deleted meanwhile
            break
        parent = found[-1].tags.get(PARENT, "")
    return found


def _set_alias(client: "MlflowClient", name: str, alias: str, version: str) -> None:
    """Point `alias` to a version. MLflow reads and then inserts, so that of two processes that
    set a new alias at once one fails; its second try finds the alias and moves it."""
    from mlflow.exceptions import MlflowException

    for last in (False, False, True):
        try:
            client.set_registered_model_alias(name, alias, version)
            return
        except MlflowException:
            if last:
                raise
            time.sleep(random.uniform(0.05, 0.3))


def _open(spec: TrackingSpec) -> "tuple[str, MlflowClient]":
    uri = resolve_uri(spec)
    return uri, connect(uri)


def _make_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _announce(client: "MlflowClient", version: "ModelVersion") -> None:
    """Give `version` the alias `candidate`, unless a newer one is there."""
    if int(version.version) == max(int(v.version) for v in _versions(client, version.name)):
        client.set_registered_model_alias(version.name, CANDIDATE, str(version.version))


def _holder_run(client: "MlflowClient", uri: str, spec: TrackingSpec) -> str:
    experiment = experiment_id(client, uri, spec.experiment)
    run = client.create_run(experiment, run_name=f"register {spec.register_as}")
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def _with_digest(client: "MlflowClient", name: str, digest: str) -> "list[ModelVersion]":
    """Return the versions of `name` that hold the package `digest`, lowest first."""
    same = [v for v in _versions(client, name) if v.tags.get(DIGEST) == digest]
    return sorted(same, key=lambda v: int(v.version))


def _versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    quoted = name.replace("'", "")
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{quoted}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _find(
    client: "MlflowClient", store: str, name: str, number: str | None, alias: str | None
) -> "ModelVersion":
    versions = _versions(client, name)
    if not versions:
        names = ", ".join(sorted(m.name for m in client.search_registered_models())) or "none"
        raise Misuse(f"models:/{name}: no such model at {store}; there are: {names}")
    if alias is not None:
        aliases = client.get_registered_model(name).aliases
        if alias not in aliases:
            there = ", ".join(f"{a} (version {v})" for a, v in sorted(aliases.items())) or "none"
            raise Misuse(f"models:/{name}@{alias}: no such alias at {store}; there are: {there}")
        number = str(aliases[alias])
    for version in versions:
        if str(version.version) == number:
            return version
    there = ", ".join(sorted((str(v.version) for v in versions), key=int))
    raise Misuse(f"models:/{name}/{number}: no such version at {store}; there are: {there}")


def _source(client: "MlflowClient", version: "ModelVersion") -> str:
    return client.get_model_version_download_uri(version.name, str(version.version))


def _read_back(client: "MlflowClient", uri: str, source: str, digest: str) -> None:
    """Download what is stored at `source` and raise Altered where it is not `digest`."""
    with tempfile.TemporaryDirectory(prefix="read-back-") as scratch:
        check_seal(_download(source, uri, Path(scratch)), digest)


def _download(source: str, uri: str, into: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    got = download_artifacts(
        artifact_uri=source, dst_path=str(into), tracking_uri=uri, registry_uri=uri
    )
    return Path(got)


def _delete_upload(source: str, uri: str) -> None:
    """Remove the files of a registration that lost the race; leaving them would only cost disk."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with contextlib.suppress(Exception):
        get_artifact_repository(source, tracking_uri=uri, registry_uri=uri).delete_artifacts()


def _as_version(found: "ModelVersion") -> Version:
    number = int(found.version)
    tags = dict(found.tags)
    uri = f"models:/{found.name}/{number}"
    return Version(found.name, number, uri, tags.get(DIGEST, ""), found.run_id or None, tags)
