"""Memory of a node: the loader's slots of all its ranks, and /dev/shm for nccl's own segments."""

from launch.answer import Node
from launch.preflight.findings import Findings
from launch.target import Training

SHM_BYTES = 64 << 20
"""Of each rank: nccl's segments have 10 MB each, DeepSpeed's collectives on the CPU some more."""
PIECE = 16
"""Images that a worker makes at a time (`loader.prefetch` counts pieces)."""


def slot_bytes(target: Training, world: int) -> int:
    """Return the most that the loader of one of `world` ranks holds of images, in bytes.

    A step's micro-batches are in use, those of the next one and what the workers are ahead wait.
    """
    recipe = target.recipe
    largest = 0
    for stage in target.plan.stages:
        images = recipe.batch.global_size // stage.settings.micro_batches
        ahead = recipe.loader.workers * recipe.loader.prefetch * PIECE
        held = 2 * images * max(1, stage.settings.micro_batches // world) + ahead
        largest = max(largest, held * 3 * stage.settings.px**2)
    return largest


def check_memory(
    target: Training, node: Node, host: str, ranks: tuple[int, int], found: Findings
) -> None:
    """The slots of a node's ranks must fit into its memory, and /dev/shm must be there.

    `ranks`: of all nodes, and of this one.
    """
    total, ranks_per_node = ranks
    need = slot_bytes(target, target.largest_world(total)) * ranks_per_node
    text = (
        f"{need / 1e9:.2f} GB for the images of {ranks_per_node} ranks, "
        f"{node.memory_bytes / 1e9:.1f} GB free on {host}"
    )
    if node.memory_bytes and need > node.memory_bytes:
        found.warnings.append(
            f"memory   {text}: ask for more (--mem), or lower loader.workers or loader.prefetch"
        )
    else:
        found.good.append(f"memory   {text}")
    least = SHM_BYTES * ranks_per_node + (0 if node.has_memfd else need)
    shm = f"/dev/shm of {host} has {node.shm_bytes / 1e6:.0f} MB free"
    if node.shm_bytes < least:
        found.warnings.append(
            f"shm      {shm}, {least / 1e6:.0f} MB are advisable for {ranks_per_node} ranks: mount "
            "a larger one (in a container: --shm-size, or bind the host's /dev/shm)"
        )
    else:
        found.good.append(f"shm      {shm}")
