"""The number of ranks: all should have work, and whatever an elastic job comes back with."""

from launch.preflight.findings import Findings
from launch.requests import Request
from launch.target import Training


def check_world(
    target: Training, request: Request | None, ranks: int | None, found: Findings
) -> None:
    """All ranks should have work: every stage's micro-batches divisible by their number."""
    if ranks is None and request is None:
        found.warnings.append(
            "ranks    not checked: no launch script has this name; give --ranks N"
        )
        return
    number = ranks or (request.ranks if request else 1)
    note = target.idle_note(number)
    if note:
        found.warnings.append(f"ranks    {note}")
    else:
        found.good.append(f"ranks    {number}, all with work")
    if ranks is None and request is not None and request.fewest_ranks < number:
        sizes = range(request.fewest_ranks, number, request.ntasks_per_node or 1)
        worlds = ", ".join(f"{target.largest_world(size)} of {size}" for size in sizes)
        found.good.append(f"ranks    with fewer nodes: {worlds}")
