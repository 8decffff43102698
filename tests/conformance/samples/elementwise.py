"""Elementwise operators."""

from __future__ import annotations

import numpy as np
import onnx
from conformance.samples.sample import Const, away_from, between, ints, node, normal, other, scalar, weights

SMOOTH = [
    node("Identity", normal(3, 4)),
    node("Neg", normal(3, 4)),
    node("Exp", normal(3, 4)),
    node("Log", between(1, 2, 3, 4)),
    node("Sqrt", between(1, 2, 3, 4)),
    node("Reciprocal", np.concatenate([between(1, 2, 3, 4), -between(1, 2, 3, 5)], axis=1)),
    node("Tanh", normal(3, 4)),
    node("Sigmoid", normal(3, 4)),
    node("Softplus", normal(3, 4)),
    node("Erf", normal(3, 4)),
    node("Cast", normal(3, 4), to=onnx.TensorProto.DOUBLE),
    node("Dropout", normal(3, 4), label="inference"),
    node("Dropout", normal(3, 4), scalar(0.3), np.asarray(False), label="explicit"),
    node("Dropout", normal(3, 4), scalar(0.3), outputs=2, label="mask"),
]

KINKED = [
    node("Relu", away_from([0], 3, 8)),
    node("Abs", away_from([0], 3, 8)),
    node("LeakyRelu", away_from([0], 3, 8)),
    node("LeakyRelu", away_from([0], 3, 8), alpha=-0.3),
    # The evaluator reads the defaults 0.2 and 1/6 as float32, which is 1.5e-8 and 3e-8 of the slope.
    node("HardSigmoid", away_from([-2.5, 2.5], 3, 8, reach=4), tolerance=2e-8),
    node("HardSigmoid", away_from([-1.5, 2.5], 3, 8, reach=4), alpha=0.25, beta=0.375),
    node("HardSwish", away_from([-3, 3], 3, 16, reach=5), tolerance=4e-8),
    node("Clip", away_from([0, 2], 3, 8), scalar(0), scalar(2)),
    node("Clip", away_from([0, 2], 3, 8), Const(np.zeros(1)), Const(np.full(1, 2.0)), label="bounds of one element"),
    node("Clip", away_from([-1], 3, 8), scalar(-1), label="low"),
    node("Clip", away_from([1], 3, 8), None, scalar(1), label="high"),
    node("Clip", normal(3, 8), label="open"),
    node("Where", np.random.default_rng(0).integers(0, 2, (3, 4)).astype(bool), normal(3, 4), other(3, 4), free=()),
    node("Where", np.asarray([True, False, True, False]), normal(3, 4), other(2, 1, 4), free=()),
    node("Where", np.random.default_rng(0).integers(0, 2, (2, 3, 4)).astype(bool), normal(3, 1), scalar(0.0), free=()),
]

ARITHMETIC = [
    node("Add", normal(3, 4), other(3, 4), free=(0, 1)),
    node("Add", normal(3, 4), other(4)),
    node("Add", normal(3, 1, 4), other(2, 1), free=(0,)),
    node("Add", normal(4), other(2, 3, 4), free=(1,)),
    node("Add", normal(2, 3, 4), other(), label="scalar"),
    node("Sub", normal(3, 4), other(3, 4), free=(0, 1)),
    node("Sub", normal(1, 4), other(2, 3, 1), free=(1,)),
    node("Sub", weights(3, 4), normal(2, 3, 4), free=(1,)),
    node("Mul", normal(3, 4), other(3, 4), free=(0, 1)),
    node("Mul", normal(2, 3, 4, 5), other(2, 3, 1, 1), free=(0, 1), label="gate"),
    node("Mul", normal(3, 4), other(2, 1, 1, 4), free=()),
    node("Mul", normal(3, 4), weights(4)),
    node("Div", normal(3, 4), between(1, 2, 3, 4), free=(0, 1)),
    node("Div", normal(3, 4), -between(1, 2, 4)),
    node("Div", normal(3, 1), between(1, 2, 2, 1, 4), free=()),
    node("Div", Const(other(4)), between(1, 2, 3, 4), free=(1,)),
    node("Sum", normal(3, 4), other(3, 4), other(4), free=(0, 1)),
    node("Sum", normal(3, 4)),
    node("Expand", normal(3, 1, 4), ints(3, 5, 4), free=()),
    node("Expand", normal(3, 1), ints(2, 3, 4), free=()),
    node("Expand", normal(3, 4), ints(1, 1), free=()),
    node("Expand", normal(3, 1), ints(1, 4)),
]

SAMPLES = [*SMOOTH, *KINKED, *ARITHMETIC]
