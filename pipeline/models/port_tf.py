"""Weights of the official TensorFlow checkpoints under our names, every variable accounted for.

Names are those of google/automl efficientnetv2 (`effnetv2_model.py`: Stem, MBConvBlock,
FusedMBConvBlock, SE, Head), which its V1 models share with those of tensorflow/tpu; they stand
under the model's name, as in `efficientnetv2-s/blocks_0/conv2d/kernel`. Within a block the
convolutions are numbered in the order they are made, and so are the norms; the depthwise one has
a name of its own. As in the official `get_ckpt_var_map` averaged values are preferred.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from pipeline.models.efficientnet import EfficientNet
from pipeline.models.layout import Block
from pipeline.models.port import Shape, refuse_misfits
from pipeline.models.table import ModelSpec
from pipeline.models.tf_bundle import Bundle
from pipeline.spec import Misuse

PADDING, BN_EPS = "same", 1e-3
"""How the official models compute, whatever their size (`hparams.py`)."""
AVERAGED = "/ExponentialMovingAverage"
_SLOTS = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")
_STEM = "/stem/conv2d/kernel"
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_NORM = {
    "weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
    "running_var": "moving_variance",
}  # fmt: skip
# Where each dimension of ours lies in theirs.
_ORDER = {"kernel": (3, 2, 0, 1), "depthwise_kernel": (2, 3, 0, 1), "dense": (1, 0), "vector": (0,)}


class TfVariables(NamedTuple):
    """The model in a checkpoint: variables by their name under `root`, averages where there are.

    The values of `stored` are names in the bundle.
    """

    bundle: Bundle
    root: str
    stored: Mapping[str, str]

    @property
    def num_classes(self) -> int:
        """Return the width of the head.

        Raises:
            Misuse: there is no head.
        """
        name = self.stored.get("head/dense/bias")
        shape = () if name is None else self.bundle.entries[name].shape
        if len(shape) != 1:
            raise Misuse(
                f"{self.bundle.prefix}: holds no '{self.root}/head/dense/bias'; name a checkpoint "
                "with its head"
            )
        return shape[0]


def official_spec(root: str) -> ModelSpec | None:
    """Return the settings of the official model `root` (`efficientnetv2-s`), None if unknown."""
    family, _, size = root.partition("-")
    row = {"efficientnet": "v1_", "efficientnetv2": "v2_"}.get(family, "") + size
    try:
        return ModelSpec(name=row, padding=PADDING, bn_eps=BN_EPS)
    except ValueError:
        return None


def find_variables(bundle: Bundle) -> TfVariables:
    """Sort out which variables are the model's; slots of optimizers and the step are dropped.

    Raises:
        Misuse: there is not just one model in it, or only some of its values are averaged.
    """
    names, source = bundle.entries.keys(), str(bundle.prefix)
    if _OBJECTS in names:
        raise Misuse(
            f"{source}: a checkpoint of Keras objects, which names no variables; take the one that "
            "the official main.py wrote, or save the variables with tf.compat.v1.train.Saver"
        )
    roots = [name.removesuffix(_STEM) for name in _bases(names) if name.endswith(_STEM)]
    if len(roots) != 1:
        raise Misuse(
            f"{source}: holds {len(roots)} official EfficientNets (variables NAME{_STEM}); its "
            f"{len(names)} variables begin with {', '.join(sorted(names)[:3])}"
        )
    bases = _bases(names) - {"global_step"}
    averaged = {base for base in bases if base + AVERAGED in names}
    if averaged and averaged != bases:
        lacking = sorted(bases - averaged)
        raise Misuse(
            f"{source}: {len(lacking)} of {len(bases)} variables have no averaged value, the first "
            f"is {lacking[0]}; weights of two ages make no model, save all of them or none"
        )
    prefix, suffix = f"{roots[0]}/", AVERAGED if averaged else ""
    stored = {base.removeprefix(prefix): base + suffix for base in bases}
    return TfVariables(bundle, roots[0], stored)


def translate_tf(found: TfVariables, model: EfficientNet) -> dict[str, torch.Tensor]:
    """Read the variables in the names and layout of `model.load_state_dict`.

    Raises:
        Misuse: variables are missing, left over or of another shape; each is named.
        BrokenCheckpoint: the checkpoint is damaged.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs_by_ours = dict(tf_names(model))
    assert theirs_by_ours.keys() == wanted.keys()
    expected = {
        theirs: official_shape(wanted[ours], theirs) for ours, theirs in theirs_by_ours.items()
    }
    shapes = {name: found.bundle.entries[stored].shape for name, stored in found.stored.items()}
    source = f"{found.bundle.prefix} ({found.root})"
    refuse_misfits(shapes, expected, "official TensorFlow", model, source)
    return {
        ours: torch.from_numpy(found.bundle.read(found.stored[theirs]))
        .permute(_order(theirs))
        .float()
        .contiguous()
        for ours, theirs in theirs_by_ours.items()
    }


def tf_names(model: EfficientNet) -> Iterator[tuple[str, str]]:
    """Yield (our name, official name under the model's) of every tensor."""
    for end in ("stem", "head"):
        yield from _conv_norm(end, f"{end}/conv2d/kernel", f"{end}/tpu_batch_normalization")
    for index, block in enumerate(model.layout.blocks):
        yield from _block_names(block, f"blocks.{index}", f"blocks_{index}")
    yield "classifier.weight", "head/dense/kernel"
    yield "classifier.bias", "head/dense/bias"


def official_shape(shape: Shape, name: str) -> Shape:
    """Return the shape of one of our tensors as its variable `name` has it."""
    theirs = [0] * len(shape)
    for ours, place in enumerate(_order(name)):
        theirs[place] = shape[ours]
    return tuple(theirs)


def _block_names(block: Block, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    first = ["expand"] if block.expand != 1 or block.op == "fused" else []
    middle = ["depthwise"] if block.op == "mb" else []
    last = ["project"] if block.expand != 1 or block.op == "mb" else []
    numbers = iter(("", "_1"))
    for place, part in enumerate([*first, *middle, *last]):
        kernel = (
            "depthwise_conv2d/depthwise_kernel"
            if part == "depthwise"
            else f"conv2d{next(numbers)}/kernel"
        )
        norm = "tpu_batch_normalization" + (f"_{place}" if place else "")
        yield from _conv_norm(f"{ours}.{part}", f"{theirs}/{kernel}", f"{theirs}/{norm}")
    if block.squeezed:
        for part, name in (("reduce", "conv2d"), ("expand", "conv2d_1")):
            yield f"{ours}.se.{part}.weight", f"{theirs}/se/{name}/kernel"
            yield f"{ours}.se.{part}.bias", f"{theirs}/se/{name}/bias"


def _conv_norm(ours: str, kernel: str, norm: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.conv.weight", kernel
    for name, official in _NORM.items():
        yield f"{ours}.norm.{name}", f"{norm}/{official}"


def _bases(names: Iterable[str]) -> set[str]:
    """Return the variables without their averages and slots."""
    known = set(names)
    endings = (AVERAGED, *_SLOTS)
    found: set[str] = set()
    for name in known:
        ending = next((ending for ending in endings if name.endswith(ending)), "")
        base = name.removesuffix(ending)
        # An average may stand alone; a slot without its variable is no slot.
        found.add(base if ending == AVERAGED or base in known else name)
    return found


def _order(name: str) -> tuple[int, ...]:
    if name == "head/dense/kernel":
        return _ORDER["dense"]
    return _ORDER.get(name.rpartition("/")[2], _ORDER["vector"])
