"""SmoothGrad and its kin: statistics of the gradient at noisy copies of the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from onnxplain.engine.methods.method import (
    AT_ONCE,
    CLASS_KINDS,
    MOST_STEPS,
    Array,
    Task,
    require,
    require_one_of,
    require_whole,
)
from onnxplain.engine.requests import Attribution, Kind, Points, Program

MOST_NOISE = 1e6


class Statistic(Enum):
    """What is made of the gradients g_i of all copies, feature by feature."""

    MEAN = "mean"  # SmoothGrad
    MEAN_SQUARE = "mean_square"  # SmoothGrad-squared
    VARIANCE = "variance"  # VarGrad: mean_i (g_i - mean g)^2


@dataclass(frozen=True, kw_only=True)
class SmoothGrad:
    """A = statistic_i of grad F(x + e_i), e_i ~ N(0, s^2), i = 1 ... N: N = `samples` gradient rows.

    s is `noise`, times max x - min x if it is `relative` (so a constant image gets no noise), otherwise in the units of
    the model's input; the diagnostic `noise_std` tells. Noisy copies are not clipped to the valid range. F is
    `objective` of the class, by default its logit. Units: F per unit of the input, squared if the statistic is.

    Source: Smilkov, Thorat, Kim, Viegas and Wattenberg, SmoothGrad: removing noise by adding noise, 2017, section 3
    (50 copies, noise of 10 to 20 %). Squares: Hooker et al., NeurIPS 2019. Variance: Adebayo et al., NeurIPS 2018.
    """

    id: str = "smoothgrad"
    samples: int = 50
    noise: float = 0.15
    relative: bool = True
    statistic: Statistic = Statistic.MEAN
    objective: Kind = Kind.LOGIT

    @classmethod
    def squared(cls, **changes: Any) -> SmoothGrad:
        """The mean of squares."""
        return replace(cls(id="smoothgrad-squared", statistic=Statistic.MEAN_SQUARE), **changes)

    @classmethod
    def variance(cls, **changes: Any) -> SmoothGrad:
        """VarGrad: the variance."""
        return replace(cls(id="vargrad", statistic=Statistic.VARIANCE), **changes)

    @classmethod
    def pair(cls, **changes: Any) -> SmoothGrad:
        """As PAIR saliency does unless told otherwise: 25 copies, and squares."""
        return replace(cls(id="smoothgrad-pair", samples=25, statistic=Statistic.MEAN_SQUARE), **changes)

    @classmethod
    def captum(cls, **changes: Any) -> SmoothGrad:
        """As Captum does unless told otherwise: 5 copies, and noise of 1 unit of the input."""
        return replace(cls(id="smoothgrad-captum", samples=5, noise=1.0, relative=False), **changes)

    def __post_init__(self) -> None:
        require_whole("SmoothGrad: samples", self.samples, 1, MOST_STEPS)
        require(0 <= self.noise <= MOST_NOISE, "SmoothGrad: noise", f"a number from 0 to {MOST_NOISE:g}", self.noise)
        require_one_of("SmoothGrad: statistic", self.statistic, Statistic)
        require_one_of("SmoothGrad: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.samples

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        std = self.noise * (float(x.max()) - float(x.min())) if self.relative else self.noise
        # float64, where the squares of float32 gradients are exact and their sums do not cancel
        total, squares = np.zeros(x.shape), np.zeros(x.shape)
        for first in range(0, self.samples, AT_ONCE):
            count = min(AT_ONCE, self.samples - first)
            noise = (std * task.rng.normal(size=(count, *x.shape))).astype(x.dtype)
            gradients = (yield Points(x + noise, task.objective(self.objective))).gradient.astype(np.float64)
            total += gradients.sum(axis=0)
            squares += (gradients**2).sum(axis=0)
        mean, mean_square = total / self.samples, squares / self.samples
        match self.statistic:
            case Statistic.MEAN:
                values = mean
            case Statistic.MEAN_SQUARE:
                values = mean_square
            case Statistic.VARIANCE:
                values = np.maximum(mean_square - mean**2, 0)
        return Attribution(values.astype(x.dtype), {"noise_std": std})
