"""Saliency is the gradient."""

from __future__ import annotations

import pytest
import toys

from onnxplain.engine.drive import GRADIENT, LOGITS, drive
from onnxplain.engine.methods import METHODS, Saliency
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError


def test_saliency_is_the_magnitude_of_the_gradient() -> None:
    answer = toys.explain(Saliency(), toys.TOY_L, toys.X, 1, space=Space.model())
    assert answer.values == pytest.approx([0.5, 1, 1, 0, 2, 0.5], abs=1e-15)
    assert answer.diagnostics == {"value": pytest.approx(1.4)}
    signed = toys.explain(Saliency(signed=True), toys.TOY_L, toys.X, 1)
    assert signed.values == pytest.approx([0.5, 1, -1, 0, 2, -0.5], abs=1e-15)


def test_golden_cross_entropy_gradient() -> None:
    answer = toys.explain(Saliency(objective=Kind.CE, signed=True), toys.TOY_T, toys.X, 0)
    assert answer.values == pytest.approx([0.277485, 0.364296, -0.621529, -0.311003, 0.417588, -0.475859], abs=1e-5)


def test_the_comparison_of_isa_is_of_the_probability() -> None:
    assert METHODS["saliency-isa"] == Saliency(id="saliency-isa", objective=Kind.PROB)


def test_a_saturated_probability_has_no_gradient() -> None:
    saturated = toys.affine(1e4 * toys.W)
    assert not toys.explain(Saliency(objective=Kind.PROB), saturated, toys.X, 1).values.any()
    assert toys.explain(Saliency(), saturated, toys.X, 1).values.any()


def test_one_row() -> None:
    program = Saliency()(toys.X, toys.task(toys.TOY_T, space=Space.model()))
    (outcome,) = drive([program], toys.model_of(toys.TOY_T))
    assert outcome.rows == {GRADIENT: 1, LOGITS: 0}
    assert Saliency().rows((6,)) == 1


def test_parameters_out_of_range() -> None:
    with pytest.raises(UsageError, match=r"Saliency: objective: expected one of logit, prob, .* got 'soft_ce'"):
        Saliency(objective=Kind.SOFT_CE)
