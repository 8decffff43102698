"""Expected gradients: integrated gradients from images of a data set, in one sum over images and points."""

from __future__ import annotations

from dataclasses import dataclass

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
from onnxplain.engine.methods.quadrature import Alphas, positions
from onnxplain.engine.requests import Attribution, Kind, Line, Program
from onnxplain.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ExpectedGradients:
    """A = (1/R) sum_r (x - x'_r) * (1/M) sum_m grad F(x'_r + t_rm (x - x'_r)): R * M gradient rows.

    The R = `references` images x' come from `background` (images like x, (n, ...), of the distribution that x is from)
    in random order; each of them is used before any is used again. An entry that equals x is left out. The M =
    `points` positions t on each path are placed by `alphas`: `uniform` draws, `stratified` draws, or `midpoint`. F is
    `objective` of the class, by default its logit. A has the units of F, and its sum is F(x) - mean F(x') on average
    over the draws.

    Source: Erion et al., Improving performance of deep learning models with axiomatic attribution priors and expected
    gradients, Nature Machine Intelligence 2021, where M = 1 and R is 100 to 200. Akhtar and Jalwana (ICML
    2023) use 3 images and 50 points.
    """

    id: str = "eg"
    background: Array | None = None
    references: int = 150
    points: int = 1
    alphas: Alphas = Alphas.UNIFORM
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        given = self.background is None or (isinstance(self.background, np.ndarray) and self.background.ndim > 1)
        require(given, "EG: background", "images (n, ...)", self.background)
        require_whole("EG: references", self.references, 1, MOST_STEPS)
        require_whole("EG: points", self.points, 1, MOST_STEPS)
        require_one_of("EG: alphas", self.alphas, Alphas)
        require_one_of("EG: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.references * self.points

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        background = self.images(x)
        others = np.flatnonzero([(image != x).any() for image in background])
        if not len(others):
            raise UsageError("EG: the background has no image other than the one to explain; next: give more images")
        rounds = -(-self.references // len(others))
        chosen = np.concatenate([task.rng.permutation(others) for _ in range(rounds)])[: self.references]
        t = positions(self.alphas, self.references, self.points, task.rng)
        weights = np.full_like(t, 1 / t.size)
        values = np.zeros_like(x)
        for first in range(0, self.references, AT_ONCE):
            now = slice(first, first + AT_ONCE)
            start = background[chosen[now]].astype(x.dtype)
            step = x - start
            path = yield Line(start, step, t[now], weights[now], task.objective(self.objective))
            values += (step * path.gradient).sum(axis=0)
        return Attribution(values, {"sum": float(values.sum(dtype=np.float64)), "references": len(np.unique(chosen))})

    def images(self, x: Array) -> Array:
        """The background, if there is one that `x` can be compared with."""
        if self.background is None:
            raise UsageError(
                "EG needs images to compare with; next: give them with background=, an array (n, ...), or "
                "--background DIR on the command line"
            )
        if self.background.shape[1:] != x.shape:
            raise UsageError(
                f"EG: background: expected images of shape {list(x.shape)}, got {list(self.background.shape[1:])}"
            )
        return self.background
