"""Writes the checkpoint `micro` beside this file, with TensorFlow itself, and what it computes.

    python tests/unit/models/files/write_checkpoint.py        # needs tensorflow-cpu, tests do not

A network of a few thousand weights, with every kind of block and the variable names of
google/automl efficientnetv2, is trained for three steps by TensorFlow's RMSProp with averaged
weights, and saved by TensorFlow's Saver. `micro.json` holds its logits with the averaged weights.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingModuleSource, reportMissingImports]

v1 = tf.compat.v1
ROOT = "efficientnetv2-micro"
BLOCKS = (
    # op, expand, kernel, stride, inputs, outputs
    ("fused", 1, 3, 1, 8, 8),
    ("fused", 2, 3, 2, 8, 8),
    ("mb", 1, 3, 1, 8, 8),
    ("mb", 2, 5, 2, 8, 16),
    ("mb", 2, 3, 1, 16, 16),
)
CLASSES = 3
MOVING: list[Any] = []


def variable(
    name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0, train: bool = True
) -> Any:
    first = v1.initializers.random_normal(mean, scale, seed=len(v1.global_variables()))
    return v1.get_variable(f"{ROOT}/{name}", shape, initializer=first, trainable=train)


def norm(maps: Any, scope: str, training: bool) -> Any:
    width = maps.shape[-1]
    gamma = variable(f"{scope}/gamma", (width,), 0.2, 1.0)
    beta = variable(f"{scope}/beta", (width,), 0.2)
    mean = variable(f"{scope}/moving_mean", (width,), 0.1, train=False)
    var = variable(f"{scope}/moving_variance", (width,), 0.05, 1.0, train=False)
    if training:
        now_mean, now_var = tf.nn.moments(maps, (0, 1, 2))
        MOVING.extend(v1.assign_sub(old, 0.1 * (old - now)) for old, now in
                      ((mean, now_mean), (var, now_var)))  # fmt: skip
        return tf.nn.batch_normalization(maps, now_mean, now_var, beta, gamma, 1e-3)
    return tf.nn.batch_normalization(maps, mean, var, beta, gamma, 1e-3)


def conv(maps: Any, scope: str, kernel: int, stride: int, width: int, bias: bool = False) -> Any:
    inputs = maps.shape[-1]
    scale = (2 / (kernel * kernel * inputs)) ** 0.5
    weight = variable(f"{scope}/kernel", (kernel, kernel, inputs, width), scale)
    maps = tf.nn.conv2d(maps, weight, stride, "SAME")
    return maps + variable(f"{scope}/bias", (width,), 0.2) if bias else maps


def block(maps: Any, index: int, training: bool) -> Any:
    op, expand, kernel, stride, inputs, outputs = BLOCKS[index]
    scope, before, norms = f"blocks_{index}", maps, iter(("", "_1", "_2"))

    def normed(maps: Any) -> Any:
        return norm(maps, f"{scope}/tpu_batch_normalization{next(norms)}", training)

    convs = iter(("", "_1"))
    wide = inputs * expand
    if op == "fused" and expand == 1:
        maps = tf.nn.silu(normed(conv(maps, f"{scope}/conv2d", kernel, stride, outputs)))
    else:
        if expand != 1:
            size, step = (kernel, stride) if op == "fused" else (1, 1)
            maps = tf.nn.silu(normed(conv(maps, f"{scope}/conv2d{next(convs)}", size, step, wide)))
        if op == "mb":
            name = f"{scope}/depthwise_conv2d/depthwise_kernel"
            weight = variable(name, (kernel, kernel, wide, 1), 2**0.5 / kernel)
            strides = (1, stride, stride, 1)
            maps = tf.nn.silu(normed(tf.nn.depthwise_conv2d(maps, weight, strides, "SAME")))
            gate = tf.reduce_mean(maps, (1, 2), keepdims=True)
            gate = tf.nn.silu(conv(gate, f"{scope}/se/conv2d", 1, 1, max(1, inputs // 4), True))
            maps = maps * tf.sigmoid(conv(gate, f"{scope}/se/conv2d_1", 1, 1, wide, True))
        maps = normed(conv(maps, f"{scope}/conv2d{next(convs)}", 1, 1, outputs))
    return maps + before if stride == 1 and inputs == outputs else maps


def network(images: Any, training: bool) -> Any:
    with v1.variable_scope("", reuse=not training):
        maps = conv(images, "stem/conv2d", 3, 2, 8)
        maps = tf.nn.silu(norm(maps, "stem/tpu_batch_normalization", training))
        for index in range(len(BLOCKS)):
            maps = block(maps, index, training)
        maps = conv(maps, "head/conv2d", 1, 1, 16)
        maps = tf.nn.silu(norm(maps, "head/tpu_batch_normalization", training))
        features = tf.reduce_mean(maps, (1, 2))
        weight = variable("head/dense/kernel", (16, CLASSES), 0.5)
        return tf.matmul(features, weight) + variable("head/dense/bias", (CLASSES,), 0.2)


def waves(px: int) -> np.ndarray:
    """Two images (2, px, px, 3) by a formula that the test repeats."""
    return np.sin(np.arange(2 * px * px * 3) * 0.37).reshape(2, px, px, 3).astype(np.float32)


def main() -> None:
    folder = Path(__file__).parent
    v1.disable_eager_execution()
    v1.set_random_seed(0)
    step = v1.train.get_or_create_global_step()
    logits = network(tf.constant(waves(20)), training=True)
    loss = tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[0, 2], logits=logits)
    )
    train = v1.train.RMSPropOptimizer(0.01, 0.9, 0.9, 1e-3).minimize(loss, step)
    averages = tf.train.ExponentialMovingAverage(0.5, step)
    with v1.control_dependencies([train, *MOVING]):
        averaged = [v for v in v1.global_variables() if "RMSProp" not in v.name and v is not step]
        update = averages.apply(averaged)
    scores = {px: network(tf.constant(waves(px)), training=False) for px in (20, 27)}
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run(update)
        v1.train.Saver().save(session, str(folder / "micro"), write_meta_graph=False,
                              write_state=False)  # fmt: skip
        v1.train.Saver({averages.average_name(v): v for v in averaged}).restore(
            session, str(folder / "micro")
        )
        found = {px: session.run(score).tolist() for px, score in scores.items()}
    (folder / "micro.json").write_text(json.dumps(found) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
