"""ISA: iterative search attribution."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
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
from onnxplain.engine.requests import Attribution, Kind, Logits, Objective, Points, Program, Request

TINY = 1e-12  # the least |change of the loss| that is divided by
MOST_K = 10**9  # more than any image has features
MOST_SPREAD = 1000


class Walk(NamedTuple):
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
    equal gets A = s + r, so that it does not fall below the round before it. `literal` keeps the paper's formula for
    both: the sign of the change, and A = r.

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

    def __post_init__(self) -> None:
        require_whole("ISA: k", self.k, 1, MOST_K)
        require_whole("ISA: t1", self.t1, 0, MOST_WALK)
        require_whole("ISA: t2", self.t2, 0, MOST_WALK)
        require(self.t1 + self.t2 > 0, "ISA: t1 and t2", "at least one of them above 0", (self.t1, self.t2))
        require_positive("ISA: eta1", self.eta1, MOST_ETA)
        require_positive("ISA: eta2", self.eta2, MOST_ETA)
        require_positive("ISA: s", self.s, MOST_SPREAD)
        require_one_of("ISA: objective", self.objective, CLASS_KINDS)

    @property
    def walks(self) -> list[Walk]:
        """The walks that take any step, the longer one first."""
        both = Walk(+1, self.eta1, self.t1), Walk(-1, self.eta2, self.t2)
        return sorted((walk for walk in both if walk.steps), key=lambda walk: -walk.steps)

    def rounds(self, features: int) -> int:
        return -(-features // self.k)

    def rows(self, shape: tuple[int, ...]) -> int:
        # a walk of T steps: T - 1 gradients of its own and its end point
        a_round = 1 + sum(walk.steps for walk in self.walks)
        return self.rounds(int(np.prod(shape))) * a_round

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        space = task.space
        space.require_range("ISA")
        objective = task.objective(self.objective)
        black, span = space.low.astype(x.dtype), space.span.astype(x.dtype)
        attribution = np.zeros(x.shape, x.dtype)
        alive = np.ones(x.shape, bool)
        history: list[Round] = []
        rounds = self.rounds(x.size)
        for r in range(rounds):
            this = yield from self.round(np.where(alive, x, black), alive, objective, span)
            survivors = np.flatnonzero(alive)
            scores = this.score.reshape(-1)[survivors]
            lowest = np.argsort(scores, kind="stable")[: self.k]
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
            },
        )

    def round(self, x0: Array, alive: Array, objective: Objective, span: Array) -> Generator[Request, Any, Round]:
        """Walk both ways from `x0` and score every feature; those not `alive` neither move nor score."""
        walks = self.walks
        step = span * column([walk.sign * walk.eta for walk in walks], x0)
        x = np.repeat(x0[None], len(walks), axis=0)
        path_sum = np.zeros_like(x)

        start = yield Points(x0[None], objective)
        gradient = start.gradient
        for t in range(walks[0].steps):
            on = sum(walk.steps > t for walk in walks)  # the longer walk is first: those still on are x[:on]
            if t > 0:
                gradient = (yield Points(x[:on], objective)).gradient
            sign_step(x[:on], gradient * alive, step[:on], path_sum[:on])

        changes = objective.value((yield Logits(x))) - objective.value(start.logits[0])
        signs = [walk.sign for walk in walks]
        divisors = [self.divisor(float(change), sign) for change, sign in zip(changes, signs, strict=True)]
        guarded = sum(sign * change < TINY for change, sign in zip(changes, signs, strict=True))
        return Round((path_sum / column(divisors, x0)).sum(axis=0), changes.tolist(), int(guarded))

    def divisor(self, change: float, sign: int) -> float:
        """What a path sum, whose sign is `sign`, is divided by: never zero, and of its sign unless `literal`."""
        kept = change if self.literal and change else sign
        return float(np.copysign(max(abs(change), TINY), kept))

    def share(self, scores: Array, *, last: bool) -> Array:
        """Scores of the features to retire, mapped to [0, 1]."""
        low, high = scores.min(), scores.max()
        if low < high:
            return np.asarray((scores - low) / (high - low))
        return np.full_like(scores, 1 if last and not self.literal else 0)


def column(numbers: list[float], x: Array) -> Array:
    """One number for each row of a batch of images like `x`, in its dtype."""
    return np.array(numbers, x.dtype).reshape(-1, *(1,) * x.ndim)
