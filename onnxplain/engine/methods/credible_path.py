"""Credible path attribution: baselines that the model takes for the image, and only points that may be believed."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from onnxplain.engine.methods.baselines import Baseline, baseline_of, blurred
from onnxplain.engine.methods.method import (
    MOST_ETA,
    MOST_STEPS,
    MOST_WALK,
    Array,
    Task,
    require,
    require_one_of,
    require_positive,
    require_whole,
)
from onnxplain.engine.methods.quadrature import Alphas, positions
from onnxplain.engine.methods.walk import sign_step
from onnxplain.engine.requests import (
    Attribution,
    Head,
    Kind,
    Line,
    Objective,
    Points,
    Program,
    Request,
    Validity,
)
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

MOST_KERNELS = 100
WIDEST_KERNEL = 1001
MOST_EPSILON = 1e6


class Constraint(Enum):
    """How a baseline is kept at least delta away from the image, feature by feature, and in the valid range."""

    PROJECTED = "projected"  # to the nearest value that is both
    LITERAL = "literal"  # pushed away by delta, then clipped, which may undo it: algorithm 1 as printed


@dataclass(eq=False)
class Search:
    """One baseline under way: where it is, and the best place so far."""

    point: Array
    best: Array
    credible: bool = False  # `best` is delta away from the image
    distance: float = np.inf  # of the logits of `best` from those of the image
    iteration: int = -1  # when `best` was found
    iterations: int = 0
    start_distance: float = np.inf
    converged: bool = False


@dataclass(frozen=True, kw_only=True)
class CrediblePath:
    """A = (1/B) sum_b (x - x'_b) * (mean of grad F(x'_b + a (x - x'_b)) over the points a valid for the feature).

    1. Baselines (algorithm 1). Each begins as the image under a blur of size `kernels[b]` (or as `starts[b]`) and takes
       sign steps of `eta` down the loss `baseline_objective`, at least `delta` away from x in every feature and inside
       the valid range, until its logits are within `epsilon` of those of x: relative to where it began, or in logits
       if `epsilon_relative` is false. It looks at `max_iter` points at most; the one nearest in logits wins. The
       paper's loss is `ce`, the cross-entropy with the class that the model predicts for x (of a sigmoid head: with the
       labels that it gives x); it does not minimise that distance. `soft_ce` (with the probabilities of x) and
       `logit_l2` do. `literal` takes algorithm 1 as printed: nothing enforced before the first step, and the last point
       wins. With a `baseline` there is no search, and one path begins there: algorithm 2 alone.
    2. Paths (algorithm 2). `steps // B` points on each straight path, placed by `alphas`, and held against grad F(x) by
       `validity` (None: every point is valid). A feature without a valid point gets 0 from that path. F is `objective`.

    `eta` and `delta` are in pixel units (1 = black to white); A has the units of F. Not complete, by construction.
    Cost: 1 + the iterations of all searches + B * (steps // B) gradient rows.

    Source: Akhtar and Jalwana, Towards credible visual model interpretation with path attribution, ICML 2023,
    arXiv 2305.14395; steps and number of baselines from its section 7. Blur sizes, eta, epsilon and max_iter are ours:
    the paper does not give them.
    """

    id: str = "credible"
    kernels: tuple[int, ...] = (11, 21, 31)
    starts: Array | None = None
    baseline: Baseline | None = None
    steps: int = 150
    max_iter: int = 50
    eta: float = 1 / 255
    delta: float = 5 / 255
    epsilon: float = 0.1
    epsilon_relative: bool = True
    baseline_objective: Kind = Kind.CE
    constraint: Constraint = Constraint.PROJECTED
    literal: bool = False
    validity: Validity | None = Validity.LITERAL
    alphas: Alphas = Alphas.UNIFORM
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        several = 0 < len(self.kernels) <= MOST_KERNELS
        require(several, "CrediblePath: kernels", f"1 to {MOST_KERNELS} sizes", self.kernels)
        odd = all(isinstance(size, int) and 3 <= size <= WIDEST_KERNEL and size % 2 for size in self.kernels)
        require(odd, "CrediblePath: kernels", f"odd sizes from 3 to {WIDEST_KERNEL}", self.kernels)
        if self.baseline is not None:
            require_one_of("CrediblePath: baseline", self.baseline, Baseline)
            require(self.starts is None, "CrediblePath: starts", "none beside a baseline", self.starts)
        require_whole("CrediblePath: steps", self.steps, 1, MOST_STEPS)
        require(
            self.steps >= self.count, "CrediblePath: steps", f"at least one for each of {self.count} paths", self.steps
        )
        require_whole("CrediblePath: max_iter", self.max_iter, 1, MOST_WALK)
        require_positive("CrediblePath: eta", self.eta, MOST_ETA)
        # further than half the range there may be no place on either side of x
        require(0 < self.delta <= 0.5, "CrediblePath: delta", "a number above 0, at most 0.5", self.delta)
        require_positive("CrediblePath: epsilon", self.epsilon, MOST_EPSILON)
        require_one_of(
            "CrediblePath: baseline_objective", self.baseline_objective, (Kind.CE, Kind.SOFT_CE, Kind.LOGIT_L2)
        )
        require_one_of("CrediblePath: constraint", self.constraint, Constraint)
        if self.validity is not None:
            require_one_of("CrediblePath: validity", self.validity, Validity)
        require_one_of("CrediblePath: alphas", self.alphas, Alphas)
        require_one_of("CrediblePath: objective", self.objective, (Kind.LOGIT, Kind.LOGPROB, Kind.PROB))

    @property
    def count(self) -> int:
        """B, the number of baselines."""
        if self.baseline is not None:
            return 1
        return len(self.kernels) if self.starts is None else len(self.starts)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        searches = self.count if self.baseline is None else 0
        return 1 + searches * self.max_iter + self.count * (self.steps // self.count)

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        task.space.require_range("CrediblePath")
        objective = task.objective(self.objective)
        at_x = yield Points(x[None], objective)
        searches: list[Search] = []
        if self.baseline is None:
            searches = yield from self.search(x, at_x.logits[0], task)
            start = np.stack([search.best for search in searches])
        else:
            start = baseline_of(x, self.baseline, task, "CrediblePath")[None]
        step = x - start
        t = positions(self.alphas, self.count, self.steps // self.count, task.rng)
        reference = at_x.gradient[0] if self.validity is not None else None
        path = yield Line(start, step, t, np.ones_like(t), objective, self.validity, reference)
        mean = np.divide(path.gradient, path.count, out=np.zeros_like(step), where=path.count > 0)
        return Attribution(
            (step * mean).mean(axis=0),
            {
                "logit_distance": [search.distance for search in searches],
                "logit_distance_start": [search.start_distance for search in searches],
                "best_iteration": [search.iteration for search in searches],
                "iterations": [search.iterations for search in searches],
                "converged": [search.converged for search in searches],
                "delta_kept": [search.credible for search in searches],
                "fraction_valid": float(path.count.mean(dtype=np.float64)) / t.shape[1],
            },
        )

    def search(self, x: Array, logits: Array, task: Task) -> Generator[Request, Any, list[Search]]:
        """Algorithm 1 for all baselines side by side; one that has arrived asks for nothing more."""
        space = task.space
        low, high, span = (fact.astype(x.dtype) for fact in (space.low, space.high, space.span))
        objective = self.loss(logits, task.head)
        starts = self.begin(x, space)
        fence = Fence(x, low, high, self.delta, self.constraint)
        if not self.literal:
            for start in starts:
                fence.keep_away(start)
        searches = [Search(point=start, best=start.copy()) for start in starts]
        # |x' - x| is a difference of two rounded numbers, so it may miss delta by their last digit
        slack = 2 * np.finfo(x.dtype).eps * np.maximum(np.abs(low), np.abs(high))

        going = searches
        for i in range(self.max_iter):
            answer = yield Points(np.stack([search.point for search in going]), objective)
            distances = np.linalg.norm((answer.logits - logits).astype(np.float64), axis=-1)
            for search, distance, gradient in zip(going, distances.tolist(), answer.gradient, strict=True):
                credible = bool((np.abs(search.point - x) >= self.delta * span - slack).all())
                self.judge(search, i, distance, credible)
                if not search.converged and i + 1 < self.max_iter:
                    sign_step(search.point, gradient, -self.eta * span)
                    fence.keep_away(search.point)
            going = [search for search in going if not search.converged]
            if not going:
                break
        return searches

    def judge(self, search: Search, i: int, distance: float, credible: bool) -> None:
        """Note what has come of point number `i`: whether it is the best one yet, and good enough to stop."""
        if i == 0:
            search.start_distance = distance
        search.iterations = i + 1
        better = (not credible, distance) < (not search.credible, search.distance)
        if better or self.literal:
            search.best = search.point.copy()
            search.credible, search.distance, search.iteration = credible, distance, i
        search.converged = distance <= self.epsilon * (search.start_distance if self.epsilon_relative else 1)

    def loss(self, logits: Array, head: Head) -> Objective:
        """What a baseline descends, from the logits of the image; what is explained has no part in it."""
        match self.baseline_objective:
            case Kind.SOFT_CE:
                return Objective(Kind.SOFT_CE, head.probability(logits), head)
            case Kind.LOGIT_L2:
                return Objective(Kind.LOGIT_L2, logits, head)
            case _ if head is Head.SIGMOID:
                return Objective(Kind.SOFT_CE, (logits > 0).astype(logits.dtype), head)
            case _:
                return Objective(Kind.CE, int(logits.argmax()), head)

    def begin(self, x: Array, space: Space) -> Array:
        """Where the searches begin: (B, ...), for us to write to."""
        if self.starts is None:
            return np.stack([blurred(x, kernel, space) for kernel in self.kernels])
        if self.starts.shape[1:] != x.shape:
            raise UsageError(
                f"CrediblePath: starts: expected images of shape {list(x.shape)}, got {list(self.starts.shape[1:])}"
            )
        return self.starts.astype(x.dtype)


class Fence:
    """What keeps points at least delta away from the image x, feature by feature, as the constraint asks.

    A feature that equals that of the image has no side to be moved to: it goes towards the middle of the range.
    """

    def __init__(self, x: Array, low: Array, high: Array, delta: float, constraint: Constraint) -> None:
        self.x, self.low, self.high, self.constraint = x, low, high, constraint
        self.delta = (high - low) * delta
        self.inward = x <= (low + high) / 2
        up, down = x + self.delta, x - self.delta
        outside = [(moved < low) | (moved > high) for moved in (up, down)]
        self.up, self.down = np.where(outside[0], down, up), np.where(outside[1], up, down)

    def keep_away(self, point: Array) -> None:
        """Move a point, in place."""
        if self.constraint is Constraint.PROJECTED:
            # first, so that only points nearer than delta can be pushed out of the range below
            np.clip(point, self.low, self.high, out=point)
        away = point - self.x
        near = np.abs(away) < self.delta
        upwards = (away > 0) | ((away == 0) & self.inward)
        up, down = near & upwards, near & ~upwards
        if self.constraint is Constraint.PROJECTED:
            np.copyto(point, self.up, where=up)
            np.copyto(point, self.down, where=down)
        else:
            np.add(point, self.delta, out=point, where=up)
            np.subtract(point, self.delta, out=point, where=down)
            np.clip(point, self.low, self.high, out=point)
