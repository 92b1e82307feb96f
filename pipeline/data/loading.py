"""Settings of the loader. Workers, prefetch and timeouts may change between attempts of a run;
lanes and window define the order of the samples and may not."""

from typing import Literal

from pydantic import Field

from pipeline.data.bad import BadSpec
from pipeline.spec import Spec


class LoaderSpec(Spec):
    """How samples are ordered, and by how many processes a rank reads them."""

    workers: int = Field(default=4, ge=0)
    """Processes of each rank; 0 reads in the training process itself."""
    prefetch: int = Field(default=2, ge=1)
    """Pieces of micro-batches (16 images) that each worker is ahead; a step is always ahead."""
    timeout_s: int = Field(default=300, ge=1)
    """A micro-batch that takes longer ends the attempt with an error instead of a hang."""
    start_method: Literal["fork", "forkserver", "spawn"] = "fork"
    lanes: int = Field(default=256, ge=1)
    """V: ranges of ids that are read side by side; a multiple of the micro-batches of a step."""
    window: int = Field(default=1024, ge=0)
    """Samples shuffled together inside a lane (about a shard); 0 shuffles whole lanes, which is
    right for tars whose samples are sorted by class."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """gpu sends the files as they are, for the GPU to decode; its pixels differ by rounding."""
    bad: BadSpec = BadSpec()
    """What happens with samples that cannot be used."""
