"""The sorted table in which TensorFlow keeps the index of a checkpoint, read without TensorFlow.

It is LevelDB's table: blocks of entries whose keys share prefixes, each block with a crc32c, and a
footer that says where the block of block addresses lies. The file may come from anywhere, so each
length is checked against what is there before it is believed, and the whole is bounded.
Source: `doc/table_format.md` of LevelDB, `core/lib/io/format.cc` and `block.cc` of TensorFlow.
"""

from collections.abc import Iterator

import google_crc32c

from pipeline.spec import Failure

MAX_BYTES = 16 * 2**20
MAX_ENTRIES = 65_536
MAX_KEY_BYTES = 1_024
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")


class BrokenCheckpoint(Failure):
    """A file of a checkpoint is damaged, cut off or hostile."""


def read_table(data: bytes, source: str) -> dict[str, bytes]:
    """Return all entries of a table in the order of their keys; `source` is named in errors.

    Raises:
        BrokenCheckpoint: `data` is no table, fails a checksum or contradicts itself.
    """
    if not _FOOTER_BYTES <= len(data) <= MAX_BYTES or not data.endswith(_MAGIC):
        raise BrokenCheckpoint(
            f"{source}: its {len(data):,} bytes are no index of a TensorFlow checkpoint (of "
            f"{_FOOTER_BYTES} to {MAX_BYTES:,} bytes, with its magic number at the end)"
        )
    footer = data[-_FOOTER_BYTES:-8]
    _block(data, footer, 0, source)  # of statistics, which are none; its checksum counts
    at = varint(footer, varint(footer, 0, source)[1], source)[1]
    table: dict[str, bytes] = {}
    last, end = b"", 0
    for _, address in _entries(_block(data, footer[at:], 0, source)[0], source):
        block, end = _block(data, address, end, source)
        for key, value in _entries(block, source):
            if (table and key <= last) or len(table) == MAX_ENTRIES:
                raise BrokenCheckpoint(
                    f"{source}: its names are out of order, or more than {MAX_ENTRIES:,}"
                )
            table[_text(key, source)] = value
            last = key
    return table


def varint(data: bytes, at: int, source: str) -> tuple[int, int]:
    """Return the number of 7 bits a byte that starts at `at`, under 2**64, and where it ends.

    Raises:
        BrokenCheckpoint: it does not end.
    """
    number = 0
    for shift, byte in zip(range(0, 64, 7), data[at : at + 10], strict=False):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 2**64 - 1, at + shift // 7 + 1
    raise BrokenCheckpoint(f"{source}: a number is cut off")


def crc_fits(data: bytes, masked: int) -> bool:
    """Return whether `masked` is the crc32c of `data` in the disguise that LevelDB stores it in."""
    crc = google_crc32c.value(data)
    return masked == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _block(data: bytes, address: bytes, earliest: int, source: str) -> tuple[bytes, int]:
    """Return a block's content, and where the next one may start at the earliest."""
    start, at = varint(address, 0, source)
    size, _ = varint(address, at, source)
    end = start + size + _TRAILER_BYTES
    # Blocks follow each other: else a small file could name one of them any number of times.
    if not earliest <= start < end <= len(data) - _FOOTER_BYTES:
        raise BrokenCheckpoint(f"{source}: a block of it is said to lie at {start:,} to {end:,}")
    kind = data[end - _TRAILER_BYTES]
    masked = int.from_bytes(data[end - 4 : end], "little")
    if not crc_fits(data[start : end - 4], masked):
        raise BrokenCheckpoint(f"{source}: checksum of the block at {start:,} is wrong")
    if kind != 0:
        raise BrokenCheckpoint(
            f"{source}: is compressed, which TensorFlow from 1.2 on does not write; read and save "
            "the checkpoint with a newer TensorFlow"
        )
    return data[start : start + size], end


def _entries(block: bytes, source: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield a block's keys and values; the list of restart points at its end is not needed."""
    restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else len(block)
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise BrokenCheckpoint(f"{source}: a block of {len(block):,} bytes has no room for itself")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at, source)
        fresh, at = varint(block, at, source)
        length, at = varint(block, at, source)
        if shared > len(key) or shared + fresh > MAX_KEY_BYTES or at + fresh + length > end:
            raise BrokenCheckpoint(f"{source}: an entry does not fit into its block")
        key = key[:shared] + block[at : at + fresh]
        at += fresh + length
        yield key, block[at - length : at]


def _text(key: bytes, source: str) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise BrokenCheckpoint(f"{source}: a name in it is no text: {key[:40]!r}") from None
