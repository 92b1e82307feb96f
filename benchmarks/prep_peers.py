"""What `prep.py` compares a build with: webdataset's ShardWriter fed by the same files.

python benchmarks/prep_peers.py images.tar OUT              # or a folder CLASS/name.jpg
python benchmarks/prep_peers.py images.tar OUT --decode     # each image decoded by Pillow first
"""

import argparse
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

os.environ["WDS_SECURE"] = "1"
from webdataset.writer import ShardWriter

SHARD_BYTES = 256_000_000


def main() -> None:
    """Write all images of the source into shards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--decode", action="store_true")
    options = parser.parse_args()
    options.out.mkdir()
    pattern = str(options.out / "shard-%06d.tar")
    classes: dict[str, int] = {}
    with ShardWriter(pattern, 10**9, SHARD_BYTES, verbose=0, opener=create) as writer:
        read = from_folder if options.source.is_dir() else from_tar
        for number, (name, data) in enumerate(read(options.source)):
            if options.decode:
                Image.open(io.BytesIO(data)).convert("RGB")
            label = classes.setdefault(name.split("/")[0], len(classes))
            writer.write({"__key__": f"{number:08d}", "jpg": data, "cls": label})


def create(path: str) -> IO[bytes]:
    """Open a shard; under WDS_SECURE the writer opens none by itself."""
    return open(path, "wb")


def from_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of all files, sorted."""
    for path in sorted(folder.glob("*/*")):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def from_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of all members, in their order."""
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


if __name__ == "__main__":
    main()
