"""Numbers and rows as text: columns that line up, and units that fit their size."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def size_text(num_bytes: float) -> str:
    """Return bytes in the decimal unit that fits: 950 MB, 1.2 TB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def gib_text(num_bytes: float) -> str:
    """Return bytes of a card's memory: 10.7 GiB."""
    return f"{num_bytes / 2**30:.1f} GiB"


def time_text(seconds: float) -> str:
    """Return a duration: 35 s, 12 min, 6.6 h, 12 days."""
    for unit, size, least in (("days", 86400.0, 2.0), ("h", 3600.0, 1.0), ("min", 60.0, 2.0)):
        if seconds >= least * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
