"""Pools, and max pools where many elements are equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from conformance.samples.sample import Array, Sample, away_from, distinct, node, normal

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.registry import DEFAULT, Rules
from onnxplain.engine.executors.reference import ReferenceExecutor


def max_pool(*x: int, **more: Any) -> Sample:
    return node("MaxPool", distinct(*x), **more)


def average_pool(*x: int, **more: Any) -> Sample:
    return node("AveragePool", normal(*x), **more)


def lp_pool(*x: int, **more: Any) -> Sample:
    return node("LpPool", away_from([0], *x), **more)


SAMPLES = [
    max_pool(2, 3, 8, kernel_shape=[2], strides=[2]),
    max_pool(2, 3, 8, kernel_shape=[3]),
    max_pool(1, 2, 6, 6, kernel_shape=[2, 2], strides=[2, 2]),
    max_pool(1, 2, 7, 7, kernel_shape=[2, 2], strides=[2, 2], label="left over"),
    max_pool(1, 2, 7, 7, kernel_shape=[3, 3], strides=[2, 2], label="overlap"),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 2], strides=[1, 2], pads=[0, 1, 2, 0]),
    max_pool(1, 2, 8, 8, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    max_pool(1, 2, 8, 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    max_pool(1, 2, 9, 9, kernel_shape=[2, 3], dilations=[3, 2], strides=[1, 2], pads=[1, 2, 1, 1]),
    max_pool(1, 2, 9, 9, kernel_shape=[2, 2], dilations=[2, 2], strides=[3, 3], ceil_mode=1),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    max_pool(1, 2, 7, 8, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID"),
    max_pool(1, 2, 7, 8, kernel_shape=[1, 1], strides=[3, 2], label="gaps"),
    max_pool(1, 2, 7, 8, kernel_shape=[1, 1], label="identity"),
    max_pool(1, 2, 4, 4, 5, kernel_shape=[2, 2, 3], strides=[2, 1, 2], pads=[0, 1, 1, 0, 0, 1]),
    max_pool(1, 2, 7, 7, kernel_shape=[3, 3], strides=[2, 2], outputs=2, label="with indices"),
    average_pool(2, 3, 8, kernel_shape=[2], strides=[2]),
    average_pool(1, 2, 6, 6, kernel_shape=[2, 2], strides=[2, 2]),
    average_pool(1, 2, 7, 7, kernel_shape=[3, 3], strides=[2, 2], label="overlap"),
    average_pool(1, 2, 7, 7, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    average_pool(1, 2, 7, 7, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 2, 0]),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 2, 0], count_include_pad=1),
    average_pool(1, 2, 8, 8, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    average_pool(1, 2, 8, 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    average_pool(1, 2, 8, 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1),
    average_pool(1, 2, 9, 9, kernel_shape=[2, 3], dilations=[3, 2], strides=[1, 2], pads=[1, 2, 1, 1], opset=19),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    average_pool(1, 2, 7, 8, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID"),
    average_pool(1, 2, 7, 8, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER", ceil_mode=1),
    average_pool(1, 2, 7, 8, kernel_shape=[1, 1], strides=[3, 2], label="gaps"),
    average_pool(1, 2, 4, 4, 5, kernel_shape=[2, 2, 3], strides=[2, 1, 2], pads=[0, 1, 1, 0, 0, 1]),
    lp_pool(1, 2, 6, 6, kernel_shape=[2, 2], strides=[2, 2]),
    lp_pool(1, 2, 7, 8, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 2, 0]),
    lp_pool(1, 2, 7, 8, kernel_shape=[3, 2], p=1, label="overlap"),
    lp_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], p=3, pads=[1, 1, 1, 1]),
    lp_pool(1, 2, 9, 9, kernel_shape=[2, 3], dilations=[3, 2], strides=[1, 2], pads=[1, 2, 1, 1]),
    lp_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    lp_pool(1, 2, 7, 8, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    lp_pool(1, 2, 7, 8, kernel_shape=[1, 1], label="absolute value"),
    node("GlobalLpPool", away_from([0], 2, 3, 4, 5)),
    node("GlobalLpPool", away_from([0], 2, 3, 4, 5), p=1),
    node("GlobalLpPool", away_from([0], 2, 3, 4), p=3),
    node("GlobalMaxPool", distinct(2, 3, 4, 5)),
    node("GlobalMaxPool", distinct(2, 3, 4)),
    node("GlobalMaxPool", distinct(2, 2, 3, 2, 3)),
    node("GlobalAveragePool", normal(2, 3, 4, 5)),
    node("GlobalAveragePool", normal(2, 16, 4, 5), label="blocked"),
    node("GlobalAveragePool", normal(2, 3, 4)),
    node("GlobalAveragePool", normal(2, 3, 4, 2, 3)),
]

# MaxPool where many elements are equal: the adjoint law says nothing at a kink, so the choice is written out.


TIED = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2]},
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 0, 2]},
    {"kernel_shape": [3, 3], "strides": [3, 2], "dilations": [2, 1], "pads": [1, 1, 1, 1]},
]


def sparse(*shape: int) -> Array:
    """What comes out of a Relu: half of it is 0, and many of the others are equal."""
    return np.maximum(np.random.default_rng([6, *shape]).integers(-3, 4, shape), 0).astype(np.float64)


def first_maxima(x: Array, g: Array, attributes: Mapping[str, Any]) -> Array:
    """ȳ of each window to its first maximum in row-major order, one window after the other."""
    kernel, pads = attributes["kernel_shape"], attributes.get("pads", [0, 0, 0, 0])
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    out = np.zeros_like(x)
    for n, c, i, j in np.ndindex(*g.shape):
        best = None
        for a, b in np.ndindex(*kernel):
            row = i * strides[0] + a * dilations[0] - pads[0]
            column = j * strides[1] + b * dilations[1] - pads[1]
            inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
            if inside and (best is None or x[n, c, row, column] > x[n, c, *best]):
                best = (row, column)
        assert best is not None
        out[n, c, *best] += g[n, c, i, j]
    return out


def tie_gap(attributes: Mapping[str, Any], rules: Rules = DEFAULT) -> float:
    """How far the gradient of a MaxPool over sparse data is from that of the first maxima; 0 if it is right."""
    x = sparse(2, 3, 8, 9)
    sample = node("MaxPool", x, **attributes)
    backward = ReferenceExecutor(differentiate(sample.model(), rules=rules))
    shape = [d if isinstance(d, int) else 2 for d in backward.outputs["y0"].shape]
    g = np.random.default_rng(8).integers(1, 100, shape).astype(np.float64)  # integers: sums are exact in any order
    return float(np.abs(backward({"x0": x, "grad_y0": g})["grad_x0"] - first_maxima(x, g, attributes)).max())
