"""Any model of the timm library as one of ours, for comparisons on equal terms.

The trunk is timm's, the classifier and all randomness are ours: so a baseline resumes, changes
worlds, is packaged and finetuned like any other model.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from pipeline.models.baseline_trial import examine
from pipeline.models.baseline_trunk import head_name, make_trunk
from pipeline.models.network import Network
from pipeline.models.noise import Noise
from pipeline.models.table import ModelSpec
from pipeline.spec import Misuse


class TimmNetwork(Network):
    """The timm model that `spec` names, with a new head for `num_classes`; `trunk` is timm's."""

    def __init__(self, spec: ModelSpec, num_classes: int) -> None:
        super().__init__()
        facts = examine(spec)
        self.spec = spec
        self.drop_rates = facts.drop_rates
        self.trunk, self._masks = make_trunk(spec.name, spec.drop_path, spec.bn_momentum)
        self.classifier = nn.Linear(facts.width, num_classes)

    def features(self, images: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        """Return the pooled features (B, width) that the classifier works on."""
        masks = self._masks
        masks.rows = noise.drop_path if noise is not None and self.training else None
        masks.taken = 0
        features = self.trunk(images)
        masks.rows = None
        return features


def build_baseline(
    spec: ModelSpec, num_classes: int, rng: np.random.Generator | None
) -> TimmNetwork:
    """Build the model on the CPU in fp32 with timm's own first weights, drawn from `rng`.

    Without `rng` they are the same each time. No global random state is changed.

    Raises:
        Misuse: timm is not installed, has no such model, or it cannot be trained here.
    """
    seed = 0 if rng is None else int(rng.integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TimmNetwork(spec, num_classes)


def translate_baseline(
    state: Mapping[str, torch.Tensor], network: TimmNetwork, source: str
) -> dict[str, torch.Tensor]:
    """Rename timm's state dict for `network.load_state_dict`; BatchNorm's counters are dropped.

    `source` (a file or model name) is named in errors.

    Raises:
        Misuse: tensors are missing, left over or of another shape; the first is named.
    """
    head = f"{head_name(network.trunk)}."
    wanted = network.state_dict()
    found = {
        f"classifier.{name[len(head) :]}" if name.startswith(head) else f"trunk.{name}": tensor
        for name, tensor in state.items()
        if not name.endswith(".num_batches_tracked")
    }
    wrong = sorted(found.keys() ^ wanted.keys()) or [
        name for name, tensor in wanted.items() if found[name].shape != tensor.shape
    ]
    if wrong:
        raise Misuse(
            f"{source}: not the weights of '{network.spec.name}' with "
            f"{network.classifier.out_features} classes: {len(wrong)} tensors differ, the first "
            f"is {wrong[0]}; choose the model and the number of classes they were made for"
        )
    return found
