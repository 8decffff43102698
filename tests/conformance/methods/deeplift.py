"""DeepLIFT."""

from __future__ import annotations

import numpy as np
import pytest
import toys
from conformance.methods.laws import VECTORS, Make, Row, Wrong, answers, row

from onnxplain.engine.methods import DeepLift, IntegratedGradients, Rule, Task
from onnxplain.engine.requests import Attribution, Kind, Multipliers, Points, Program


def keeps_the_change(make: Make) -> None:
    """sum A = F(x) - F(x') on nets of tanh and of ReLU, and the diagnostics say so."""
    for seed, x in enumerate(VECTORS):
        for toy in (toys.TOY_T, toys.relu_net(seed)):
            answer = toys.explain(make(baseline=x[::-1].copy()), toy, x, 1)
            assert answer.values.sum() == pytest.approx((toy.logits(x) - toy.logits(x[::-1]))[1], abs=1e-12)
            assert answer.diagnostics["completeness_gap"] < 1e-9


def linear_rule(make: Make) -> None:
    """A = w * (x - x') on affine models."""
    for x in VECTORS:
        values = toys.explain(make(baseline=x[::-1].copy()), toys.TOY_L, x, 2).values
        assert values == pytest.approx(toys.W[2] * (x - x[::-1]), abs=1e-13)


def ig_of_one_layer(make: Make) -> None:
    """With one layer of functions, each of one value, it is integrated gradients without error."""
    for x in VECTORS:
        start = x[::-1].copy()
        same = toys.explain(IntegratedGradients(steps=60, rule=Rule.GAUSS_LEGENDRE, baseline=start), toys.TOY_T, x, 1)
        assert toys.explain(make(baseline=start), toys.TOY_T, x, 1).values == pytest.approx(same.values, abs=1e-9)


def nothing_from_itself(make: Make) -> None:
    """x = x' gives exactly zero."""
    for x in VECTORS:
        assert not toys.explain(make(baseline=x), toys.TOY_T, x).values.any()


ROWS: dict[str, Row] = {"deeplift": row(DeepLift, keeps_the_change, linear_rule, ig_of_one_layer, nothing_from_itself)}


class Gradient(DeepLift):
    """The gradient at the image in place of the multipliers."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        program = super().__call__(x, task)
        request = next(program)
        assert isinstance(request, Multipliers)
        forward = program.send((yield Points(request.x, request.objective)))
        try:
            program.send((yield forward))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise AssertionError


class TurnedRound(DeepLift):
    """From the image to the reference."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        assert isinstance(self.baseline, np.ndarray)
        answer = yield Multipliers(x[None], self.baseline[None], task.objective(Kind.LOGIT))
        return Attribution((self.baseline - x) * answer.gradient[0])


WRONG: Wrong = [
    ("DeepLIFT with the gradient", Gradient, keeps_the_change),
    ("DeepLIFT with the gradient", Gradient, ig_of_one_layer),
    ("DeepLIFT, turned round", TurnedRound, linear_rule),
    ("DeepLIFT with an offset", answers(DeepLift, lambda a, x: a + 1e-9), nothing_from_itself),
]
