"""Blur integrated gradients: along the path on which the image comes out of a blur."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from onnxplain.engine.methods.completeness import completeness
from onnxplain.engine.methods.method import (
    AT_ONCE,
    CLASS_KINDS,
    MOST_STEPS,
    Array,
    Task,
    channel_axis,
    require,
    require_one_of,
    require_positive,
    require_whole,
)
from onnxplain.engine.requests import Attribution, Kind, Points, Program
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

MOST_SIGMA = 1000.0
TRUNCATE = 4  # sigmas: where the taps of a blur end, as in scipy.ndimage


class Grid(Enum):
    """The K + 1 blurs, i = 0 ... K, between which the path is cut."""

    LINEAR = "linear"  # sigma_i = max_sigma * i / K
    SQRT = "sqrt"  # sigma_i = sqrt(max_sigma * i / K), which ends at sqrt(max_sigma): PAIR saliency's sqrt=True


@dataclass(frozen=True, kw_only=True)
class BlurIG:
    """A = -sum_i (sigma_(i+1) - sigma_i) * dL/dsigma (sigma_i) * grad F(L(sigma_i)), i = 0 ... K - 1.

    Costs K = `steps` gradient rows and two forward rows. L(sigma) is the image under a Gaussian blur of sigma pixels,
    each channel alone; outside the image it is zero (in pixel space: black). dL/dsigma is (L(sigma + grad_step) -
    L(sigma)) / grad_step. `grid` says how the K intervals lie between no blur and `max_sigma`. F is `objective` of the
    class, by default its probability. A has the units of F and sums to F(x) - F(L(sigma_K)) up to the error of the
    steps, which is large where little blur changes much: see the diagnostic `completeness_gap`.

    Source: Xu, Venugopalan and Sundararajan, Attribution in scale and space, CVPR 2020, with the
    discretisation of its authors' code (PAIR saliency).
    """

    id: str = "blur-ig"
    steps: int = 100
    max_sigma: float = 50.0
    grid: Grid = Grid.LINEAR
    grad_step: float = 0.01
    objective: Kind = Kind.PROB

    def __post_init__(self) -> None:
        require_whole("BlurIG: steps", self.steps, 1, MOST_STEPS)
        require_positive("BlurIG: max_sigma", self.max_sigma, MOST_SIGMA)
        require_one_of("BlurIG: grid", self.grid, Grid)
        require(0 < self.grad_step <= 1, "BlurIG: grad_step", "a number above 0, at most 1", self.grad_step)
        require_one_of("BlurIG: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.steps + 2

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        objective = task.objective(self.objective)
        sigmas = self.max_sigma * np.arange(self.steps + 1) / self.steps
        if self.grid is Grid.SQRT:
            sigmas = np.sqrt(sigmas)
        values = np.zeros(x.shape)
        for first in range(0, self.steps, AT_ONCE):
            now = range(first, min(first + AT_ONCE, self.steps))
            blurred = [blur(x, sigmas[i], task.space) for i in now]
            answer = yield Points(np.stack(blurred).astype(x.dtype), objective)
            for i, image, gradient in zip(now, blurred, answer.gradient, strict=True):
                slope = (blur(x, sigmas[i] + self.grad_step, task.space) - image) / self.grad_step
                values -= (sigmas[i + 1] - sigmas[i]) * slope * gradient
        values = values.astype(x.dtype)
        most = blur(x, sigmas[-1], task.space).astype(x.dtype)
        return Attribution(values, (yield from completeness(values, x, most, objective)))


def blur(x: Array, sigma: float, space: Space) -> Array:
    """The image under a Gaussian of `sigma` pixels, each channel alone, zero outside; float64.

    Taps exp(-k^2 / (2 sigma^2)), |k| <= 4 sigma rounded, that sum to 1: those of scipy.ndimage.gaussian_filter with
    mode="constant". One matrix for each of the two directions, since there may be more taps than pixels.
    """
    channel = channel_axis(x, space)
    if channel is None or x.ndim != 3:
        raise UsageError(f"BlurIG needs an image of shape (C,H,W) or (H,W,C), got {list(x.shape)}")
    planes = np.moveaxis(x.astype(np.float64), channel, 0)
    height, width = planes.shape[1:]
    return np.moveaxis(smoothing(sigma, height) @ planes @ smoothing(sigma, width), 0, channel)


def smoothing(sigma: float, size: int) -> Array:
    """The symmetric matrix that blurs a line of `size` pixels."""
    radius = int(TRUNCATE * sigma + 0.5)
    k = np.arange(radius + 1)
    taps = np.exp(-0.5 * (k / sigma) ** 2) if radius else np.ones(1)
    taps /= taps[0] + 2 * taps[1:].sum()
    away = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return np.where(away <= radius, taps[np.minimum(away, radius)], 0)
