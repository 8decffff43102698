"""Weak dependence: does an attribution depend on the image through its linear region alone?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxplain.engine.methods.method import (
    AT_ONCE,
    CLASS_KINDS,
    MOST_STEPS,
    Array,
    require_one_of,
    require_positive,
    require_whole,
    word,
)
from onnxplain.engine.metrics.measured import Measured, class_of, require_attribution
from onnxplain.engine.requests import Head, Kind, Objective, Points, Program


@dataclass(frozen=True, kw_only=True)
class WeakDependence:
    """max_i |A_i / (x_i - x'_i) - w_i| / max_j |w_j|, lower is better; 0 for a method that is weakly dependent.

    It holds where F(y) = w^T y + b all the way from x' to x. That is taken to be so if the gradients at x', x and
    `points` points evenly between them are equal: no two differ by more than `tolerance` of the largest magnitude.
    Otherwise, and where w is 0, the metric does not apply: the value is NaN, `undefined` says why. Features with
    x_i = x'_i have no ratio, and are left out; `skipped` counts them. Costs `points` + 2 gradient rows.

    Source: Srinivas and Fleuret, Full-Gradient Representation for Neural Network Visualization, NeurIPS 2019,
    definition 2, for methods with a baseline.
    """

    id: str = "weak_dependence"
    points: int = 8
    tolerance: float = 1e-6
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        require_whole("WeakDependence: points", self.points, 8, MOST_STEPS)
        require_positive("WeakDependence: tolerance", self.tolerance, 1.0)
        require_one_of("WeakDependence: objective", self.objective, CLASS_KINDS)

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        start: Array,
        target: int | Array,
        head: Head = Head.SOFTMAX,
        name: str = "heatmap",
    ) -> Program[Measured]:
        """The deviation of an attribution in the shape of `x`; see `CompletenessGap` for what is given.

        Raises `InputError` for a map that is not in the shape of the image, or holds NaN or Inf.
        """
        require_attribution(x, heatmap, name)
        objective = Objective(self.objective, target, head)
        t = np.linspace(0, 1, self.points + 2).reshape(-1, *[1] * x.ndim)
        low, high = np.full(x.shape, np.inf), np.full(x.shape, -np.inf)
        for first in range(0, len(t), AT_ONCE):
            at = t[first : first + AT_ONCE]
            path = np.where(at == 1, x, start + at * (x - start)).astype(x.dtype)  # x itself, not x rounded
            gradient = (yield Points(path, objective)).gradient
            low, high = np.minimum(low, gradient.min(axis=0)), np.maximum(high, gradient.max(axis=0))

        w = (low + high) / 2  # in an affine region, the gradient; to within half the tolerance
        scale = float(np.maximum(abs(low), abs(high)).max())
        spread = float((high - low).max())
        step = np.asarray(x - start, np.float64)
        moved = step != 0
        value, undefined = math.nan, None
        if spread > self.tolerance * scale:
            undefined = "x and x' are not in one affine region"
        elif scale == 0:
            undefined = "the gradient is 0"
        elif not moved.any():
            undefined = "x equals x'"
        else:
            value = float(abs(heatmap[moved] / step[moved] - w[moved]).max()) / scale
        return Measured(
            metric="weak_dependence",
            value=value,
            direction="lower",
            protocol=f"objective={word(self.objective)}, points={self.points}, tolerance={self.tolerance:g}",
            target=class_of(target),
            undefined=undefined,
            facts={"gradient_spread": spread, "skipped": int((~moved).sum())},
        )
