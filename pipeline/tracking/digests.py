"""Sealing a folder of files with sha256, and refusing one that was altered.

The seal is `manifest.sha256` in the form of `sha256sum` (so `sha256sum -c manifest.sha256` checks
it without this program). The digest of a package is the sha256 of that file: one name for all.
"""

import hashlib
import re
from pathlib import Path

from pipeline.run.files import write_atomically
from pipeline.spec import Failure

MANIFEST = "manifest.sha256"
MAX_MANIFEST_BYTES, MAX_FILES = 64 * 1024, 64
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9._-]{0,99})")


class Altered(Failure):
    """A file is not what its digest says, so nothing of its folder is used."""


def seal(folder: Path) -> str:
    """Write manifest.sha256 over all plain files of `folder`; return the package digest."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != MANIFEST)
    lines = [f"{file_digest(folder / name)}  {name}\n" for name in names]
    assert all(_LINE.fullmatch(line.rstrip("\n")) for line in lines), names
    write_atomically(folder / MANIFEST, "".join(lines))
    return file_digest(folder / MANIFEST)


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_seal(folder: Path, expected: str | None = None) -> str:
    """Check every sealed file of `folder`; return the package digest.

    Raises:
        Altered: names the file that is missing or differs; or the package is not `expected`.
    """
    listed, digest = _read_manifest(folder, expected)
    for name, right in listed.items():
        path = folder / name
        if not path.is_file():
            raise Altered(f"{path}: is missing; the package is not complete, fetch it again")
        _compare(path, file_digest(path), right)
    return digest


def read_sealed(folder: Path, expected: str | None = None) -> tuple[dict[str, bytes], str]:
    """Read all sealed files and check the very bytes that are returned; with the digest.

    Raises:
        Altered: as `check_seal`.
    """
    listed, digest = _read_manifest(folder, expected)
    contents: dict[str, bytes] = {}
    for name, right in listed.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise Altered(f"{folder / name}: cannot be read: {error}; fetch it again") from None
        _compare(folder / name, hashlib.sha256(contents[name]).hexdigest(), right)
    return contents, digest


def _read_manifest(folder: Path, expected: str | None) -> tuple[dict[str, str], str]:
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError:
        raise Altered(f"{folder}: has no {MANIFEST}, so it is no package that was sealed") from None
    lines = data.decode("ascii", "replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    listed = {match[2]: match[1] for match in matches if match}
    if len(data) > MAX_MANIFEST_BYTES or not 0 < len(listed) == len(lines) <= MAX_FILES:
        raise Altered(f"{path}: expected 1 to {MAX_FILES} lines 'SHA256  NAME', each name once")
    digest = hashlib.sha256(data).hexdigest()
    if expected is not None and digest != expected:
        raise Altered(
            f"{folder}: has digest {digest[:16]}..., expected {expected[:16]}...; it was altered "
            f"or is another package; fetch it again from where it was registered"
        )
    return listed, digest


def _compare(path: Path, found: str, right: str) -> None:
    if found != right:
        raise Altered(
            f"{path}: sha256 is {found[:16]}..., the manifest says {right[:16]}...; the file was "
            f"altered or damaged; fetch the package again"
        )
