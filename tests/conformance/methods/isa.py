"""ISA in its modes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import naive
import numpy as np
import pytest
import toys
from conformance.methods.laws import VECTORS, Make, Row, Wrong, answers, row

from onnxplain.engine.methods import ISA, DeltaLoss, Task
from onnxplain.engine.requests import Attribution, Kind, Points, Program


def ranks_affine_by_weight(make: Make) -> None:
    """On affine models the order of importance is that of |w|, round by round or at once."""
    for x in VECTORS:
        values = toys.explain(make(objective=Kind.LOGIT), toys.TOY_L, x, 0).values
        assert (np.argsort(values) == np.argsort(np.abs(toys.W[0]))).all()


def scores_add_up(make: Make) -> None:
    """The scores of a round sum to 1 for each walk, to first order in the step."""
    for x in VECTORS:
        answer = toys.explain(make(k=2, eta1=1e-5, eta2=1e-5), toys.TOY_T, x)
        assert answer.diagnostics["score_sums"] == pytest.approx([2] * 3, rel=1e-4)


def fills_its_rounds(make: Make) -> None:
    """k features to a round, the rest to the last, from r to r + s; the highest of all is in the last round."""
    for x in VECTORS:
        values = np.sort(toys.explain(make(k=4, s=0.9), toys.TOY_T, x).values)
        assert values[[0, 3, 4, 5]] == pytest.approx([0, 0.9, 1, 1.9])


def up_and_down_are_alike(make: Make) -> None:
    """Up psi and down psi are walked from the same point, so -psi gives the same attribution."""
    for x in VECTORS:
        one, other = (toys.explain(make(k=2, objective=kind), toys.TOY_T, x) for kind in (Kind.CE, Kind.LOGPROB))
        assert (one.values == other.values).all()
        assert one.diagnostics["score_sums"] == pytest.approx(other.diagnostics["score_sums"], abs=1e-13)


def is_the_released_code(make: Make, *, drop_tail: bool = False, **more: Any) -> None:
    """Number by number the loops of `naive.released_isa`, which draws the same noise."""
    for seed, x in enumerate(VECTORS):
        x = x * (x > 0.2)  # with black features, which count for nothing there
        for k, walks in ((2, {}), (4, {}), (4, {"t1": 0}), (4, {"t2": 0})):
            expected = naive.released_isa(
                toys.TOY_T,
                x,
                2,
                np.random.default_rng(seed),
                k=k,
                drop_tail=drop_tail,
                up="t1" not in walks,
                down="t2" not in walks,
                **more,
            )
            got = toys.explain(make(k=k, **walks), toys.TOY_T, x, 2, seed=seed).values
            assert got == pytest.approx(expected, abs=1e-7)


def is_the_published_table(make: Make) -> None:
    """The same with the parameters of the paper's table 1; the tail keeps 0."""
    is_the_released_code(make, drop_tail=True, step=0.002, spread=1.1)


ROWS: dict[str, Row] = {
    "isa": row(partial(ISA, k=50), ranks_affine_by_weight, scores_add_up, fills_its_rounds, up_and_down_are_alike),
    "isa-repo": row(partial(ISA.repo, k=50), is_the_released_code),
    "isa-table1": row(partial(ISA.table1, k=50), is_the_published_table),
}


class NeverRestarts(ISA):
    """Walks down from where the walk up has ended."""

    def round(self, x0: toys.Array, alive: toys.Array, task: Task) -> Any:
        objective, span = task.objective(self.objective), task.space.span
        x, score, changes = x0.copy(), 0 * x0, []
        for sign, eta, steps in ((1, self.eta1, self.t1), (-1, self.eta2, self.t2)):
            path_sum = 0 * x0
            first = yield Points(x[None], objective)
            for _ in range(steps):
                gradient = (yield Points(x[None], objective)).gradient[0] * alive
                x = x + sign * eta * span * np.sign(gradient)
                path_sum = path_sum + sign * eta * span * np.abs(gradient)
            last = yield Points(x[None], objective)
            changes.append(float(last.value[0] - first.value[0]))
            score = score + path_sum / changes[-1]
        right = yield from super().round(x0, alive, task)
        return right._replace(score=score, changes=changes)


class OneWay(ISA):
    """Forgets one of the walks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "t2", 0)


class Forgets(ISA):
    """Gives the last round, and so the most important features, the least importance: the bug of released code."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        answer = yield from super().__call__(x, task)
        return replace(answer, values=np.where(answer.values >= answer.diagnostics["rounds"] - 1, 0, answer.values))


# What the released code does beside the paper, taken back one by one.
SWITCHES: dict[str, dict[str, Any]] = {
    "objective": {"objective": Kind.CE},
    "noise": {"noise_std": 0.0},
    "penalty": {"reg_lambda": 0.0},
    "change of the loss": {"delta_loss": DeltaLoss.ENDS},
    "drift": {"mask_ascent": True},
    "sums of one walk": {"divide_one": True},
    "factor x": {"times_input": False},
    "eps": {"eps": 0.0},
    "signs": {"literal": False},
    "step": {"eta1": 0.002},
    "spread": {"s": 1.1},
}

WRONG: Wrong = [
    ("ISA that does not restart", NeverRestarts, up_and_down_are_alike),
    ("ISA that walks one way", OneWay, scores_add_up),
    ("ISA that drops its tail", Forgets, fills_its_rounds),
    ("ISA turned over", answers(partial(ISA, k=50), lambda a, x: -a), ranks_affine_by_weight),
    *(
        (f"ISA of the repository without its {name}", partial(ISA.repo, **paper), is_the_released_code)
        for name, paper in SWITCHES.items()
    ),
    ("ISA of table 1 with its tail", partial(ISA.table1, drop_tail=False), is_the_published_table),
]
