"""Guided integrated gradients: a path that moves the features with the smallest gradients first."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np

from onnxplain.engine.methods.baselines import Baseline, baseline_of, require_baseline
from onnxplain.engine.methods.completeness import completeness
from onnxplain.engine.methods.method import CLASS_KINDS, MOST_WALK, Array, Task, require, require_one_of, require_whole
from onnxplain.engine.requests import Attribution, Kind, Objective, Points, Program, Request

CLOSE = 1e-9  # relative and absolute: when two distances are equal
LEAST_FRACTION = 1e-3
MOST_ROUNDS = 2000  # of moves inside one step: each takes at least `fraction` of the features, and none twice
MOST_ANCHORS = 1000


class Bound(Enum):
    """What keeps the path near the straight line."""

    MAX_DIST = "max_dist"  # every feature within `max_dist` of where the straight line has it: the authors' code
    ANCHORS = "anchors"  # the path meets the straight line at `anchors` points: the paper


@dataclass(frozen=True, kw_only=True)
class GuidedIG:
    """A = sum over a path from x' to x of displacement * grad F: `steps` gradient rows in sequence, two forward rows.

    Every step takes 1/steps of the distance |x - x'|_1. It moves the `fraction` of the features with the smallest
    |grad F| towards x, then the next ones, until that distance is covered; the gradient is that at the beginning of the
    step. `bound` says how the path is kept near the straight line: by `max_dist`, a share of the line (0: the straight
    line itself, IG with the gradient at the start of each step; 1: free), or by `anchors`, points of the line between
    which the path is free, with steps // (anchors + 1) steps from each to the next. F is `objective` of the class, by
    default its probability; x' is `baseline`, as in IG. A has the units of F and sums to F(x) - F(x') up to the error
    of the steps: see the diagnostic `completeness_gap`. The path is computed in float64, the points are asked in the
    dtype of the model.

    Source: Kapishnikov, Venugopalan, Avci, Wedin, Terry and Bolukbasi, Guided integrated gradients, CVPR 2021, with the
    steps, fraction and bound of its authors' code (PAIR saliency).
    """

    id: str = "gig"
    steps: int = 200
    fraction: float = 0.25
    bound: Bound = Bound.MAX_DIST
    max_dist: float = 0.02
    anchors: int = 20
    baseline: Baseline | Array = Baseline.BLACK
    objective: Kind = Kind.PROB

    @classmethod
    def isa(cls, **changes: Any) -> GuidedIG:
        """The comparison in the code of ISA: 15 steps."""
        return replace(cls(id="gig-isa", steps=15), **changes)

    def __post_init__(self) -> None:
        require_one_of("GuidedIG: bound", self.bound, Bound)
        require_whole("GuidedIG: anchors", self.anchors, 1, MOST_ANCHORS)
        require_whole("GuidedIG: steps", self.steps, self.segments, MOST_WALK)
        fits = LEAST_FRACTION <= self.fraction <= 1
        require(fits, "GuidedIG: fraction", f"a number from {LEAST_FRACTION:g} to 1", self.fraction)
        require(0 <= self.max_dist <= 1, "GuidedIG: max_dist", "a number from 0 to 1", self.max_dist)
        require_one_of("GuidedIG: objective", self.objective, CLASS_KINDS)
        require_baseline("GuidedIG", self.baseline)

    @property
    def segments(self) -> int:
        """The parts of the straight line at whose ends the path meets it."""
        return self.anchors + 1 if self.bound is Bound.ANCHORS else 1

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.steps + 2

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        objective = task.objective(self.objective)
        start = baseline_of(x, self.baseline, task, "GuidedIG")
        values, short = np.zeros(x.shape), 0
        for t, after in pairwise(np.linspace(0, 1, self.segments + 1)):
            segment = on_line(t, start, x), on_line(after, start, x)
            part, fell_short = yield from self.walk(*segment, objective, x.dtype)
            values, short = values + part, short + fell_short
        values = values.astype(x.dtype)
        return Attribution(values, {**(yield from completeness(values, x, start, objective)), "steps_short": short})

    def walk(
        self, start: Array, end: Array, objective: Objective, dtype: Any
    ) -> Generator[Request, Any, tuple[Array, int]]:
        """The sum along the path from `start` to `end`, both float64, and how many of its steps ended too early."""
        steps = self.steps // self.segments
        max_dist = self.max_dist if self.bound is Bound.MAX_DIST else 1.0
        values, short = np.zeros_like(start), 0
        distance = np.abs(end - start).sum()
        if distance == 0:
            return values, short
        x = start
        for step in range(steps):
            gradient = (yield Points(x.astype(dtype)[None], objective)).gradient[0]
            t = (step + 1) / steps
            low, high = max(t - max_dist, 0.0), min(t + max_dist, 1.0)
            moved, arrived = self.move(x, start, end, gradient, low, high, distance * (1 - t))
            values += (moved - x) * gradient
            short += not arrived
            x = moved
        return values, short

    def move(
        self, x: Array, start: Array, end: Array, gradient: Array, low: float, high: float, target: float
    ) -> tuple[Array, bool]:
        """`x` moved until |end - x|_1 is `target`, every feature between t = `low` and `high` of the straight line.

        Also whether it got there: rounding may leave a step with nothing that it could move.
        """
        lowest, highest = on_line(low, start, end), on_line(high, start, end)
        line = end - start
        with np.errstate(divide="ignore", invalid="ignore"):
            behind = (x - start) / line < low  # false where nothing moves, for that is 0 / 0
        x = np.where(behind, lowest, x)
        size = np.abs(gradient)
        for _ in range(MOST_ROUNDS):
            now = np.abs(x - end).sum()
            if math.isclose(now, target, rel_tol=CLOSE, abs_tol=CLOSE):
                return x, True
            size = np.where(x == highest, np.inf, size)
            chosen = (size <= lower_quantile(size, self.fraction)) & np.isfinite(size)
            room = np.abs(x - highest)[chosen].sum()
            if room == 0:
                return x, False
            share = (now - target) / room
            if share <= 1:
                return np.where(chosen, on_line(share, x, highest), x), True
            x = np.where(chosen, highest, x)
        return x, False


def on_line(t: float, start: Array, end: Array) -> Array:
    """The point at `t` of the straight line, float64."""
    return start + (end.astype(np.float64) - start) * t


def lower_quantile(values: Array, fraction: float) -> float:
    """The largest of the values that at most `fraction` of them lie below: no interpolation."""
    at = math.floor(fraction * (values.size - 1))
    return float(np.partition(values, at, axis=None)[at])
