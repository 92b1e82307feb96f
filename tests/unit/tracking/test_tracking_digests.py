"""Seals: what they cover, and hostile ones."""

import subprocess
from pathlib import Path

import pytest

from pipeline.tracking.digests import MANIFEST, Altered, check_seal, read_sealed, seal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.bin").write_bytes(b"\0" * 5000)
    seal(tmp_path)
    return tmp_path


def test_a_seal_is_the_same_for_the_same_content_and_coreutils_agree(
    folder: Path, tmp_path: Path
) -> None:
    digest = check_seal(folder)
    assert seal(folder) == digest
    done = subprocess.run(
        ["sha256sum", "-c", MANIFEST], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.count("OK") == 2


def test_read_sealed_returns_the_bytes_that_it_checked(folder: Path) -> None:
    contents, digest = read_sealed(folder)
    assert contents["a.json"] == b"{}" and len(contents["b.bin"]) == 5000
    assert digest == check_seal(folder)


@pytest.mark.parametrize("read", [check_seal, read_sealed])
def test_missing_changed_and_unexpected_are_refused(folder: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(Altered, match=r"expected 0000"):
        read(folder, "0" * 64)
    (folder / "a.json").write_text("{ }")
    with pytest.raises(Altered, match=r"a\.json: sha256"):
        read(folder)
    (folder / "a.json").unlink()
    with pytest.raises(Altered, match=r"a\.json"):
        read(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(Altered, match="no manifest"):
        read(folder)


@pytest.mark.parametrize(
    "line",
    [
        f"{'0' * 64}  ../../etc/passwd",
        f"{'0' * 64}  /etc/passwd",
        f"{'0' * 64}  .hidden",
        f"{'0' * 63}  short",
        f"{'0' * 64} one-space",
        "",
    ],
)
def test_hostile_manifests_are_refused(folder: Path, line: str) -> None:
    (folder / MANIFEST).write_text(line + "\n")
    with pytest.raises(Altered, match="expected 1 to 64 lines"):
        check_seal(folder)


def test_a_manifest_without_end_or_with_doubles_is_refused(folder: Path) -> None:
    good = f"{'0' * 64}  a.json\n"
    for text in (good * 2, good * 100_000, ""):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(Altered, match="expected 1 to 64 lines"):
            check_seal(folder)
