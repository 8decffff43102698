"""Integrals of gradients along paths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import toys
from conformance.methods.laws import VECTORS, Make, Row, Wrong, answers, row

from onnxplain.engine.methods import IntegratedGradients, Task
from onnxplain.engine.requests import Attribution, Line, Program


def complete(make: Make) -> None:
    """sum A = F(x) - F(x') on quadratics, and the diagnostics say so."""
    for seed, x in enumerate(VECTORS):
        toy = toys.quadratic(seed)
        answer = toys.explain(make(baseline=x[::-1].copy()), toy, x, 1)
        assert answer.values.sum() == pytest.approx((toy.logits(x) - toy.logits(x[::-1]))[1], abs=1e-11)
        assert answer.diagnostics["completeness_gap"] < 1e-9


def exact_on_affine(make: Make) -> None:
    """A = w * (x - x') on affine models."""
    for x in VECTORS:
        values = toys.explain(make(baseline=x[::-1].copy()), toys.TOY_L, x, 2).values
        assert values == pytest.approx(toys.W[2] * (x - x[::-1]), abs=1e-13)


def nothing_from_itself(make: Make) -> None:
    """x = x' gives exactly zero."""
    for x in VECTORS:
        assert not toys.explain(make(baseline=x), toys.TOY_T, x).values.any()


ROWS: dict[str, Row] = {
    "ig": row(partial(IntegratedGradients, steps=7), complete, exact_on_affine, nothing_from_itself),
}


class Halved(IntegratedGradients):
    """Weights that do not sum to 1."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        program = super().__call__(x, task)
        line = next(program)
        assert isinstance(line, Line)
        path = yield replace(line, weights=line.weights / 2)
        forward = program.send(path)
        try:
            program.send((yield forward))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise AssertionError


WRONG: Wrong = [
    ("IG with half the weight", Halved, complete),
    ("IG with half the weight", Halved, exact_on_affine),
    ("IG of the gradient alone", answers(IntegratedGradients, lambda a, x: a / x), complete),
    ("IG with an offset", answers(IntegratedGradients, lambda a, x: a + 1e-9), nothing_from_itself),
]
