"""Rank correlation, and what explanations are ranked by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxplain.engine.heatmap import reduce_channels
from onnxplain.engine.methods.method import Array, channel_axis
from onnxplain.engine.space import Space

CONSTANT = "a map is constant, and ranks nothing"
ROUNDING = 1e-12  # relative: what varies by no more is constant


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation of all values of two arrays, in [-1, 1]; NaN if one of them is constant."""
    return pearson(average_ranks(a), average_ranks(b))


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's correlation of two samples, in [-1, 1]; NaN if one does not vary, beyond the rounding of sums."""
    deviations = []
    for values in (np.asarray(v, np.float64) for v in (a, b)):
        deviation = values - values.mean()
        most = np.abs(deviation).max()
        if most <= ROUNDING * np.abs(values).max():
            return math.nan
        deviations.append(deviation / most)  # so that no square under- or overflows
    da, db = deviations
    return float(np.clip((da @ db) / math.sqrt((da @ da) * (db @ db)), -1, 1))


def average_ranks(values: Array) -> Array:
    """The rank of each value, from 1 on and flattened; equal values share the mean of their ranks."""
    _, which, count = np.unique(values.reshape(-1), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[which])


def as_ranked(values: Array, x: Array, space: Space, reduce: str) -> Array:
    """An attribution as it is ranked: reduced over its channels, or every feature by itself ("none")."""
    axis = channel_axis(x, space)
    return values if reduce == "none" or axis is None else reduce_channels(values, reduce, axis)


def reduced_how(x: Array, space: Space, reduce: str) -> dict[str, Any]:
    """The `reduction` of a result: "none" where there are no channels."""
    return {"reduction": "none" if channel_axis(x, space) is None else reduce}
