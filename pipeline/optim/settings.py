"""Settings of the optimizer and the loss."""

from typing import Literal

from pydantic import Field

from pipeline.spec import Spec


class RmspropSpec(Spec):
    """RMSProp with TensorFlow's semantics; defaults of google/automl's efficientnetv2."""

    kind: Literal["rmsprop_tf"] = "rmsprop_tf"
    decay: float = Field(default=0.9, ge=0, lt=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    eps: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)


class LossSpec(Spec):
    """`softmax`: cross entropy with soft targets. `sigmoid_mean` and `sigmoid_sum`: binary cross
    entropy, its mean or its sum over classes (the released code's 'sigmoid' and 'custom')."""

    kind: Literal["softmax", "sigmoid_mean", "sigmoid_sum"] = "softmax"
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
