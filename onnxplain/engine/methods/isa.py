"""ISA: iterative search attribution."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from onnxplain.engine.methods.method import (
    CLASS_KINDS,
    MOST_ETA,
    MOST_WALK,
    Array,
    Task,
    require,
    require_one_of,
    require_positive,
    require_whole,
)
from onnxplain.engine.methods.walk import sign_step
from onnxplain.engine.requests import Attribution, Kind, Logits, Points, Program, Request, Walk
from onnxplain.errors import UsageError

TINY = 1e-12  # the least |change of the loss| that is divided by
MOST_K = 10**9  # more than any image has features
MOST_SPREAD = 1000
MOST_LAMBDA = 1e6


class DeltaLoss(Enum):
    """What a walk's path sum is divided by: the change of the loss from where to where."""

    ENDS = "ends"  # L(x_T) - L(x_0) without noise and penalty: two more forward rows a round
    EVALUATED = "evaluated"  # between the first and the last loss that the walk met: T - 1 of its T steps, all included


class Way(NamedTuple):
    """One sign-gradient chain: +1 up or -1 down, its step in pixel units, and how many steps it takes."""

    sign: int
    eta: float
    steps: int


class Round(NamedTuple):
    """The outcome of one round's walks: a score for every feature, the changes of the loss, how many were guarded."""

    score: Array
    changes: list[float]
    guarded: int


@dataclass(frozen=True, kw_only=True)
class ISA:
    """Backward elimination: each round retires the `k` features that carry the loss least; late is important.

    Round r = 0 ... ceil(n/k) - 1, with removed features black:
        from x0, t1 steps of +eta1 * sign(g) and, again from x0, t2 steps of -eta2 * sign(g), g = grad L on survivors
        score = sum over both walks of (sum_t step_t * g_t) / (L(x_T) - L(x0))           (about 2 in all)
        R = the k lowest scores;  A[R] = s * (score[R] - min) / (max - min) + r;  remove R

    A feature is one number of the image (n of them); A lies in [0, ceil(n/k) - 1 + s]. `eta1`, `eta2` are in pixel
    units (1 = black to white). L is `objective` of the class. Per round t1 + t2 - 1 gradient rows, for the first
    gradient serves both walks, and 2 forward rows for the losses at the end points.

    A loss that did not move, or moved the wrong way, would turn scores over or blow them up: the magnitude of its
    change is then used, at least 1e-12, and counted in the diagnostic `guarded`. A last round whose scores are all
    equal gets A = s + r, so that it does not fall below the round before it. `literal` keeps the formula for both: the
    sign of the change (though nothing is divided by less than 1e-12), and A = r.

    What the released code does beside, each thing by itself; `repo()` is all of it but the last, `table1()` all of it
    with the step and the spread of the paper:
        `noise_std`   every gradient is taken at x_t + noise, N(0, noise_std^2) in pixel units, drawn anew for each of
                      them; so both walks need a first gradient of their own (t1 + t2 rows)
        `reg_lambda`  L is L - reg_lambda * |x| on the way up, L + reg_lambda * |x| on the way down: the norm is
                      Euclidean, that of x_t without its noise, in pixel units
        `delta_loss`  `evaluated`: the change of the loss is that from the first to the last of the losses met on the
                      way, noise and penalty included, hence over T - 1 steps; no forward rows
        `mask_ascent` false: removed features too take the steps up; they are scored no more
        `divide_one`  false: a walk without the other one (t1 or t2 = 0) is not divided by its change of the loss
        `times_input` the score becomes |(score + min) * x|, x the image in pixel units, min over survivors
        `eps`         is added to the denominator max - min
        `drop_tail`   floor(n/k) rounds: the n mod k features that survive them all, the most important ones, get A = 0

    Source: Zhu et al., Iterative Search Attribution for Deep Neural Networks, ICML 2024, section 4 and algorithm 1;
    parameters of its table 1.
    """

    id: str = "isa"
    k: int = 5000
    t1: int = 8
    t2: int = 8
    eta1: float = 0.002
    eta2: float = 0.002
    s: float = 1.1
    objective: Kind = Kind.CE
    literal: bool = False
    noise_std: float = 0.0
    reg_lambda: float = 0.0
    delta_loss: DeltaLoss = DeltaLoss.ENDS
    mask_ascent: bool = True
    divide_one: bool = True
    times_input: bool = False
    eps: float = 0.0
    drop_tail: bool = False

    def __post_init__(self) -> None:
        require_whole("ISA: k", self.k, 1, MOST_K)
        require_whole("ISA: t1", self.t1, 0, MOST_WALK)
        require_whole("ISA: t2", self.t2, 0, MOST_WALK)
        require(self.t1 + self.t2 > 0, "ISA: t1 and t2", "at least one of them above 0", (self.t1, self.t2))
        require_positive("ISA: eta1", self.eta1, MOST_ETA)
        require_positive("ISA: eta2", self.eta2, MOST_ETA)
        require_positive("ISA: s", self.s, MOST_SPREAD)
        require_one_of("ISA: objective", self.objective, CLASS_KINDS)
        require(0 <= self.noise_std <= MOST_ETA, "ISA: noise_std", f"a number from 0 to {MOST_ETA:g}", self.noise_std)
        known = 0 <= self.reg_lambda <= MOST_LAMBDA
        require(known, "ISA: reg_lambda", f"a number from 0 to {MOST_LAMBDA:g}", self.reg_lambda)
        require_one_of("ISA: delta_loss", self.delta_loss, DeltaLoss)
        require(0 <= self.eps <= MOST_SPREAD, "ISA: eps", f"a number from 0 to {MOST_SPREAD}", self.eps)

    @classmethod
    def repo(cls, **changes: Any) -> ISA:
        """The released code with its default parameters, image by image; all features are ranked."""
        released = cls(
            id="isa-repo",
            eta1=0.004,
            eta2=0.004,
            s=1.3,
            objective=Kind.CE_ON_PROBS,
            literal=True,
            noise_std=0.05,
            reg_lambda=0.01,
            delta_loss=DeltaLoss.EVALUATED,
            mask_ascent=False,
            divide_one=False,
            times_input=True,
            eps=1e-6,
        )
        return replace(released, **changes)

    @classmethod
    def table1(cls, **changes: Any) -> ISA:
        """The released code with the parameters of the paper's table 1, and the tail that it drops."""
        return replace(cls.repo(id="isa-table1", eta1=0.002, eta2=0.002, s=1.1, drop_tail=True), **changes)

    @property
    def walks(self) -> list[Way]:
        """The walks that take any step, the longer one first."""
        both = Way(+1, self.eta1, self.t1), Way(-1, self.eta2, self.t2)
        return sorted((walk for walk in both if walk.steps), key=lambda walk: -walk.steps)

    @property
    def plain(self) -> bool:
        """Whether the losses that a walk meets are L itself."""
        return not self.noise_std and not self.reg_lambda

    def rounds(self, features: int) -> int:
        return features // self.k if self.drop_tail else -(-features // self.k)

    def rows(self, shape: tuple[int, ...]) -> int:
        walks = len(self.walks)
        gradients = self.t1 + self.t2 - (0 if self.noise_std else walks - 1)
        forward = 0
        if self.delta_loss is DeltaLoss.ENDS:
            forward = walks if self.plain else walks + 1
        return self.rounds(int(np.prod(shape))) * (gradients + forward)

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        task.space.require_range("ISA")
        black = task.space.low.astype(x.dtype)
        rounds = self.rounds(x.size)
        if not rounds:
            raise UsageError(
                f"ISA: drop_tail with k={self.k} would leave all {x.size} features of this image at 0; "
                f"next: set k to {x.size} or less"
            )
        attribution = np.zeros(x.shape, x.dtype)
        alive = np.ones(x.shape, bool)
        history: list[Round] = []
        for r in range(rounds):
            this = yield from self.round(np.where(alive, x, black), alive, task)
            survivors = np.flatnonzero(alive)
            scores = this.score.reshape(-1)[survivors]
            if self.times_input:
                scores = np.abs((scores + scores.min()) * pixel_units(x, task).reshape(-1)[survivors])
            lowest = least(scores, self.k)
            share = self.share(scores[lowest], last=r == rounds - 1)
            attribution.reshape(-1)[survivors[lowest]] = self.s * share + r
            alive.reshape(-1)[survivors[lowest]] = False
            history.append(this)
        return Attribution(
            attribution,
            {
                "rounds": rounds,
                "score_sums": [float(this.score.sum(dtype=np.float64)) for this in history],
                "loss_changes": [this.changes for this in history],
                "guarded": sum(this.guarded for this in history),
                "dropped": int(alive.sum()),
            },
        )

    def round(self, x0: Array, alive: Array, task: Task) -> Generator[Request, Any, Round]:
        """Walk both ways from `x0` and score every feature; those not `alive` do not score, nor move while masked."""
        walks = self.walks
        signs = [walk.sign for walk in walks]
        step = task.space.span.astype(x0.dtype) * column([walk.sign * walk.eta for walk in walks], x0)
        moving = np.stack([alive | (sign > 0 and not self.mask_ascent) for sign in signs])
        if self.plain:
            objective = task.objective(self.objective)
            steps = np.array([walk.steps for walk in walks])
            walked = yield Walk(x0, step, steps, objective, moving=moving)
            x, path_sum = walked.point, walked.path_sum
            first, last = objective.value(walked.first), objective.value(walked.last)
        else:
            x, path_sum, first, last = yield from self.stray(x0, step, moving, task)
        changes = last - first
        if self.delta_loss is DeltaLoss.ENDS:
            changes = yield from self.change(x0, x, first, task)

        divided = len(walks) > 1 or self.divide_one
        divisors = [self.divisor(float(c), sign) if divided else sign for c, sign in zip(changes, signs, strict=True)]
        guarded = sum(sign * change < TINY for change, sign in zip(changes, signs, strict=True)) if divided else 0
        score = (path_sum / column(divisors, x0)).sum(axis=0)
        return Round(np.where(alive, score, 0), changes.tolist(), int(guarded))

    def stray(
        self, x0: Array, step: Array, moving: Array, task: Task
    ) -> Generator[Request, Any, tuple[Array, Array, Array, Array]]:
        """The walks of a round with noise or penalty: end points, path sums, and first and last loss that each met."""
        walks = self.walks
        signs = [walk.sign for walk in walks]
        x = np.repeat(x0[None], len(walks), axis=0)
        path_sum = np.zeros_like(x)
        first = np.zeros(len(walks))
        last = np.zeros(len(walks))
        for t in range(walks[0].steps):
            on = sum(walk.steps > t for walk in walks)  # the longer walk is first: those still on are x[:on]
            last[:on], gradient = yield from self.look(x[:on], signs[:on], t, task)
            if t == 0:
                first[:] = last
            sign_step(x[:on], gradient * moving[:on], step[:on], path_sum[:on])
        return x, path_sum, first, last

    def look(self, x: Array, signs: list[int], t: int, task: Task) -> Generator[Request, Any, tuple[Array, Array]]:
        """The loss and its gradient where each walk is, with noise and penalty; at t = 0 both are in one place."""
        objective = task.objective(self.objective)
        if self.noise_std:
            noise = task.rng.standard_normal(x.shape, np.float32).astype(x.dtype)
            answer = yield Points(x + self.noise_std * task.space.span.astype(x.dtype) * noise, objective)
        else:
            answer = yield Points(x[:1] if t == 0 else x, objective)
        loss, gradient = objective.value(answer.logits), answer.gradient
        if self.reg_lambda:
            norm, slope = norms(x, task)
            towards = [-sign * self.reg_lambda for sign in signs]
            loss, gradient = loss + towards * norm, gradient + column(towards, x[0]) * slope
        return loss, gradient

    def change(self, x0: Array, ends: Array, first: Array, task: Task) -> Generator[Request, Any, Array]:
        """L where each walk ended less L at `x0`, without noise and penalty; `first` are the losses met at `x0`."""
        objective = task.objective(self.objective)
        if self.plain:
            return np.asarray(objective.value((yield Logits(ends))) - first)
        values = objective.value((yield Logits(np.concatenate([x0[None], ends]))))
        return np.asarray(values[1:] - values[0])

    def divisor(self, change: float, sign: int) -> float:
        """What a path sum, whose sign is `sign`, is divided by: never zero, and of its sign unless `literal`."""
        kept = change if self.literal and change else sign
        return float(np.copysign(max(abs(change), TINY), kept))

    def share(self, scores: Array, *, last: bool) -> Array:
        """Scores of the features to retire, mapped to [0, 1]."""
        low, high = scores.min(), scores.max()
        if low < high:
            return np.asarray((scores - low) / (high - low + self.eps))
        return np.full_like(scores, 1 if last and not self.literal else 0)


def least(scores: Array, k: int) -> Array:
    """The places of the k lowest scores (all, if there are no more); of equal ones the first."""
    if k >= len(scores):
        return np.arange(len(scores))
    bound = np.partition(scores, k - 1)[k - 1]  # sorting them all would take half of the method's own time
    below = np.flatnonzero(scores < bound)
    return np.concatenate([below, np.flatnonzero(scores == bound)[: k - len(below)]])


def pixel_units(x: Array, task: Task) -> Array:
    """Images with black at 0 and white at 1."""
    low, span = (fact.astype(x.dtype) for fact in (task.space.low, task.space.span))
    return np.asarray((x - low) / span)


def norms(x: Array, task: Task) -> tuple[Array, Array]:
    """|u| of each image u in pixel units, float64, and its gradient with respect to x; of black both are 0."""
    pixels = pixel_units(x, task)
    norm = np.sqrt(np.square(pixels, dtype=np.float64).reshape(len(x), -1).sum(axis=1))
    return norm, pixels / (column(np.maximum(norm, TINY).tolist(), x[0]) * task.space.span.astype(x.dtype))


def column(numbers: list[float], x: Array) -> Array:
    """One number for each row of a batch of images like `x`, in its dtype."""
    return np.array(numbers, x.dtype).reshape(-1, *(1,) * x.ndim)
