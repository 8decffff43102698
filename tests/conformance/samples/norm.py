"""Normalisations."""

from __future__ import annotations

from conformance.samples.sample import Const, away_from, between, node, normal, other, weights

SAMPLES = [
    node(
        "BatchNormalization", normal(2, 3, 4, 4), weights(3), Const(normal(3)), Const(other(3)), Const(between(1, 2, 3))
    ),
    node("BatchNormalization", normal(2, 3), weights(3), Const(normal(3)), Const(other(3)), Const(between(1, 2, 3))),
    node(
        "BatchNormalization",
        *(normal(2, 3, 4), weights(3), Const(normal(3)), Const(other(3)), Const(between(0.1, 0.2, 3))),
        epsilon=0.5,
    ),
    node("BatchNormalization", normal(2, 3, 4), *(between(1, 2, 3) for _ in range(4)), wrt=(0,), label="run-time"),
    node("BatchNormalization", normal(2, 3, 4), *(between(1, 2, 3) for _ in range(4)), label="parameters"),
    node("BatchNormalization", normal(2, 3), *(between(1, 2, 3) for _ in range(4)), epsilon=0.5, label="parameters"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), Const(normal(8))),
    node("LayerNormalization", normal(2, 3, 8), other(8), normal(8), label="parameters"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), epsilon=0.5),
    node("LayerNormalization", normal(2, 3, 4, 5), other(4, 5), normal(4, 5), axis=2),
    node("LayerNormalization", normal(2, 3, 4, 5), other(5), normal(5), axis=-2, label="broadcast scale"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), Const(normal(8)), axis=1, label="scale of the last axis"),
    node("RMSNormalization", normal(2, 3, 8), other(8), opset=23),
    node("RMSNormalization", normal(2, 3, 4, 5), weights(4, 5), opset=23, axis=2),
    node("RMSNormalization", normal(2, 3, 8), weights(8), opset=23, epsilon=0.5),
    node("InstanceNormalization", normal(2, 3, 4, 5), weights(3), Const(normal(3))),
    node("InstanceNormalization", normal(2, 3, 8), other(3), normal(3), label="parameters"),
    node("InstanceNormalization", normal(2, 3, 8), weights(3), Const(normal(3)), epsilon=0.5),
    node("GroupNormalization", normal(2, 6, 4, 5), weights(6), Const(normal(6)), num_groups=3, opset=21),
    node("GroupNormalization", normal(2, 6, 4), other(6), normal(6), num_groups=2, opset=21, label="parameters"),
    node("GroupNormalization", normal(2, 6, 4), weights(6), Const(normal(6)), num_groups=2, opset=21, epsilon=0.5),
    node("GroupNormalization", normal(2, 6, 4), other(6), normal(6), num_groups=6, opset=21, label="single"),
    node("LpNormalization", normal(2, 3, 4)),
    node("LpNormalization", away_from([0], 2, 3, 4), p=1, axis=1),
    node("LpNormalization", away_from([0], 2, 3, 4), p=1, axis=0),
    node("LpNormalization", normal(2, 3, 4), axis=0),
    # ONNX Runtime takes odd sizes and four axes only; others are among the properties.
    *(node("LRN", normal(2, 5, 3, 4), size=size, alpha=0.5, beta=0.75, bias=2.0) for size in (1, 3, 5, 11)),
    node("LRN", normal(2, 5, 3, 4), size=3, alpha=1.5, beta=0.5),
]
