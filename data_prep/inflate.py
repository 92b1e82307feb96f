"""A gzip as untrusted input: read forward only, under a cap, by positions of what is inside.

Several gzips one behind the other (pigz, bgzip) and zeros behind the last one are allowed, as
gzip(1) allows them; a cut or a wrong checksum is named with its byte.
"""

import sys
import zlib
from dataclasses import dataclass

from data_prep.tar import BLOCK_BYTES, Damaged, ReadAt, is_header

MAX_INFLATION = 100
"""A .tar.gz of images grows 1 to 5 times; one that grows more than this is an attack."""
_FREE_BYTES = 4 << 20  # a tiny archive of zeros may grow more
_INPUT_BYTES = 64 << 10
_OUTPUT_BYTES = 1 << 20
_GZIP = 31  # zlib's word for: a gzip header, the largest window


def is_gzip(first: bytes) -> bool:
    """Tell whether a file that starts with `first` is a gzip."""
    return first.startswith(b"\x1f\x8b")


def holds_tar(first: bytes) -> bool:
    """Tell whether a gzip that starts with `first` (1 kB or more) has a tar inside."""
    try:
        return is_header(zlib.decompressobj(_GZIP).decompress(first, BLOCK_BYTES))
    except zlib.error:
        return False


@dataclass
class Budget:
    """How many bytes may still come out of a gzip and of all that are inside it."""

    left_bytes: int

    @classmethod
    def of(cls, gzip_bytes: int) -> "Budget":
        """Return the budget of a gzip of this size."""
        return cls(MAX_INFLATION * gzip_bytes + _FREE_BYTES)


class Inflater:
    """What is inside the gzip at bytes `start`..`end` of something that is read by `read`.

    Its own `read` is of the same kind, so a gzip inside a gzip is an Inflater over an Inflater;
    both then share the budget of the outer one.
    """

    def __init__(
        self, read: ReadAt, start: int, end: int, shown: str, budget: Budget | None = None
    ) -> None:
        self._read, self._start, self._end, self.shown = read, start, end, shown
        self.budget = budget or Budget.of(end - start)
        self._next, self._input = start, b""
        self._engine, self._is_first = None, True
        self._buffer, self._buffer_start = b"", 0

    @property
    def num_read(self) -> int:
        """How many bytes of the gzip were needed so far."""
        return self._next - self._start - len(self._input)

    @property
    def num_inflated(self) -> int:
        """How many bytes came out so far."""
        return self._buffer_start + len(self._buffer)

    def read(self, position: int, size: int) -> bytes:
        """Return the bytes at a position, fewer at the end; positions must rise.

        Raises:
            Damaged: the gzip is cut off, broken, or grows over the cap.
        """
        assert position >= self._buffer_start, "a gzip is read forward only"
        parts: list[bytes] = []
        while size > 0:
            at = position - self._buffer_start
            part = self._buffer[at : at + size]
            if part:
                parts.append(part)
                position, size = position + len(part), size - len(part)
            elif not self._turn():
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def peek(self, position: int, size: int) -> bytes:
        """Return bytes as `read` does, and keep them to be read again; for small sizes."""
        kept = self.read(position, size)
        behind = self._buffer[position + len(kept) - self._buffer_start :]
        self._buffer, self._buffer_start = kept + behind, position
        return kept

    def drain(self, num_bytes: int = sys.maxsize) -> None:
        """Inflate at least `num_bytes` in all; without a number to the end, for its checksum."""
        while self.num_inflated < num_bytes and self._turn():
            pass

    def _turn(self) -> bool:
        """Replace the buffer by what follows; False at the end."""
        following = self._inflate()
        self._buffer_start += len(self._buffer)
        self._buffer = following
        self.budget.left_bytes -= len(following)
        if self.budget.left_bytes < 0:
            raise self._damaged(f"it grows more than {MAX_INFLATION} times")
        return bool(following)

    def _inflate(self) -> bytes:
        while True:
            if not self._input:
                self._input = self._pull()
            if self._engine is None and not self._begin():
                return b""
            assert self._engine is not None
            try:
                data = self._engine.decompress(self._input, _OUTPUT_BYTES)
            except zlib.error as error:
                raise self._damaged(str(error)) from None
            if not (data or self._input or self._engine.eof):
                raise self._damaged("it ends too early")
            self._input = self._engine.unused_data or self._engine.unconsumed_tail
            if self._engine.eof:
                self._engine = None
            if data:
                return data

    def _begin(self) -> bool:
        """Start with the next gzip; False where there is none."""
        if not self._is_first:  # zeros may follow
            while not (rest := self._input.lstrip(b"\0")) and self._input:
                self._input = self._pull()
            self._input = rest
        if not self._input and not self._is_first:
            return False
        if not self._input.startswith(b"\x1f"):
            raise self._damaged("no gzip starts there")
        self._engine, self._is_first = zlib.decompressobj(_GZIP), False
        return True

    def _pull(self) -> bytes:
        data = self._read(self._next, min(_INPUT_BYTES, self._end - self._next))
        self._next += len(data)
        return data

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(
            f"{self.shown}: truncated or damaged gzip at byte {self._start + self.num_read} "
            f"({reason}; {self.num_inflated} bytes came out of it); get it again"
        )


def estimate_bytes(read: ReadAt, start: int, end: int, shown: str, sample_bytes: int) -> int:
    """Return about how many bytes are inside a gzip, by the ratio of its first `sample_bytes`."""
    inflater = Inflater(read, start, end, shown)
    inflater.drain(sample_bytes)
    return int(inflater.num_inflated * (end - start) / max(inflater.num_read, 1))
