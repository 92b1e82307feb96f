"""Files that are either whole or absent: written beside, synced, then renamed."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` in one step; a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # write and fsync do not name the file
        raise
    sync_folder(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, atomically."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def overwrite(path: Path, text: str) -> None:
    """Write over a file's own bytes, which a full disk allows; blanks fill what was longer.

    A reader may find half of it: for signs of life, that are read and written again.

    Raises:
        OSError: there is no such file, or it cannot be written.
    """
    with path.open("r+b") as file:
        file.write(text.encode().ljust(os.fstat(file.fileno()).st_size))


def read_json(path: Path) -> Any | None:
    """Read JSON; None where there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def sync_folder(path: Path) -> None:
    """Make a rename inside `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
