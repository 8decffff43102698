"""Normalisations."""

from __future__ import annotations

from conformance.samples.sample import Const, between, node, normal, other, weights

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
    node("LayerNormalization", normal(2, 3, 8), weights(8), Const(normal(8))),
    node("LayerNormalization", normal(2, 3, 8), other(8), normal(8), label="parameters"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), epsilon=0.5),
    node("LayerNormalization", normal(2, 3, 4, 5), other(4, 5), normal(4, 5), axis=2),
    node("LayerNormalization", normal(2, 3, 4, 5), other(5), normal(5), axis=-2, label="broadcast scale"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), Const(normal(8)), axis=1, label="scale of the last axis"),
]
