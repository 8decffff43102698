"""Guided IG against the cases that its authors publish with their code, and at the edges of its algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import GRADIENT, LOGITS, drive
from onnxplain.engine.methods import METHODS, Baseline, Bound, GuidedIG
from onnxplain.engine.methods.guided_ig import lower_quantile
from onnxplain.engine.requests import Kind
from onnxplain.errors import UsageError

PLANE = toys.affine(np.array([[2.0, 1.0]]))
# z = (2a + b)^2
BOWL = toys.Toy(
    lambda x: np.array([(2 * x[0] + x[1]) ** 2]),
    lambda x, v: v[0] * 2 * (2 * x[0] + x[1]) * np.array([2.0, 1.0]),
    (2,),
    1,
)


def attribute(toy: toys.Toy, x: tuple[float, float], baseline: tuple[float, float], **more: Any) -> toys.Array:
    method = GuidedIG(baseline=np.array(baseline), objective=Kind.LOGIT, **more)
    return toys.explain(method, toy, np.array(x, np.float64)).values


def test_published_case_linear() -> None:
    """2a + b from (-1, -3) to (10, 5): every path gives weight times displacement."""
    for more in ({}, {"max_dist": 1.0}, {"fraction": 1.0}, {"bound": Bound.ANCHORS}):
        assert attribute(PLANE, (10, 5), (-1, -3), **more) == pytest.approx([22, 8], abs=1e-9)


@pytest.mark.parametrize("more", [{"max_dist": 0.0}, {"fraction": 1.0, "max_dist": 1.0}])
def test_published_case_straight(more: dict[str, float]) -> None:
    """Without room, or with all features moved at once, it is IG: (54, 27) up to 1000 left sums."""
    assert attribute(BOWL, (3, 3), (0, 0), steps=1000, **more) == pytest.approx([53.946, 26.973], abs=1e-3)


def test_published_case_free() -> None:
    """Without bound b, whose gradient is the smaller one, goes all the way first: (72, 9)."""
    values = attribute(BOWL, (3, 3), (0, 0), steps=1000, max_dist=1.0, fraction=0.1)
    assert values == pytest.approx([71.892, 9.018], abs=1e-3)


def test_published_case_bounded() -> None:
    """Between the two: the sum is F(x) - F(x') = 81, and a has more than in IG and less than on the free path."""
    values = attribute(BOWL, (3, 3), (0, 0), steps=1000, max_dist=0.2)
    assert values == pytest.approx([65.444, 15.471], abs=1e-3)
    assert values.sum() == pytest.approx(81, abs=0.1)


def test_many_anchors_lead_back_to_the_straight_line() -> None:
    few, many = (attribute(BOWL, (3, 3), (0, 0), steps=4000, bound=Bound.ANCHORS, anchors=count) for count in (1, 199))
    straight = np.array([54, 27])
    assert np.abs(many - straight).max() < 0.2 < 4 < np.abs(few - straight).max()


def test_steps_are_shared_by_the_segments() -> None:
    method = GuidedIG(steps=200, bound=Bound.ANCHORS, anchors=20, objective=Kind.LOGIT)
    (outcome,) = drive([method(toys.X, toys.task(toys.TOY_T))], toys.model_of(toys.TOY_T))
    assert outcome.rows == {GRADIENT: 21 * 9, LOGITS: 2}


def test_the_image_itself_as_baseline_asks_for_no_gradient() -> None:
    (outcome,) = drive([GuidedIG(baseline=toys.X)(toys.X, toys.task(toys.TOY_T))], toys.model_of(toys.TOY_T))
    assert not outcome.unwrap().values.any()
    assert outcome.rows == {GRADIENT: 0, LOGITS: 2}


def test_features_that_equal_the_baseline_get_exactly_nothing() -> None:
    x = toys.X * [1, 0, 1, 0, 1, 1]
    values = toys.explain(GuidedIG(objective=Kind.LOGIT), toys.TOY_T, x).values
    assert ((values == 0) == (x == 0)).all()


def test_steps_cover_their_distance_even_where_no_gradient_is() -> None:
    """Constant model, ties of all gradients, a free path: nothing loops, and nothing falls short."""
    dead = toys.affine(0 * toys.W)
    for more in ({}, {"max_dist": 1.0}, {"max_dist": 0.0}, {"fraction": 1e-3}, {"bound": Bound.ANCHORS}):
        answer = toys.explain(GuidedIG(**more), dead, toys.X)
        assert not answer.values.any()
        assert answer.diagnostics["steps_short"] == 0
        assert answer.diagnostics["completeness_gap"] == 0


def test_the_smallest_fraction_moves_one_feature_at_a_time_and_arrives() -> None:
    toy, x = toys.picture_net(0, (3, 18, 18)), np.random.default_rng(0).random((3, 18, 18))
    answer = toys.explain(GuidedIG(steps=2, fraction=1e-3, max_dist=1.0, objective=Kind.LOGIT), toy, x)
    assert answer.diagnostics["steps_short"] == 0


def test_the_last_point_is_the_image() -> None:
    """The path arrives, so that small steps are complete, from a baseline on either side."""
    for seed in range(5):
        toy, (x, start) = toys.quadratic(seed), np.random.default_rng(seed).random((2, 6))
        answer = toys.explain(GuidedIG(steps=2000, baseline=start, objective=Kind.LOGIT), toy, x)
        assert answer.diagnostics["steps_short"] == 0
        assert answer.values.sum() == pytest.approx(answer.diagnostics["change"], abs=5e-3)


def test_a_saturated_probability_gives_numbers() -> None:
    answer = toys.explain(GuidedIG(steps=20), toys.affine(1e4 * toys.W), toys.X, 1)
    assert np.isfinite(answer.values).all()


def test_the_path_is_float64_and_the_points_are_the_models() -> None:
    x = toys.X.astype(np.float32)
    assert toys.explain(GuidedIG(objective=Kind.LOGIT), toys.TOY_T, x).values.dtype == np.float32


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.25, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_quantile_is_numpys_lower_one(fraction: float, size: int) -> None:
    values = np.random.default_rng(size).random(size)
    values[: size // 2] = np.inf
    assert lower_quantile(values, fraction) == np.quantile(values, fraction, method="lower")


def test_the_comparison_of_isa() -> None:
    method = GuidedIG.isa()
    assert METHODS["gig-isa"] == method
    assert (method.steps, method.objective, method.baseline) == (15, Kind.PROB, Baseline.BLACK)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "GuidedIG: steps: expected a whole number from 1"),
        ({"steps": 20, "bound": Bound.ANCHORS}, "GuidedIG: steps: expected a whole number from 21"),
        ({"fraction": 0.0}, "GuidedIG: fraction: expected a number from 0.001 to 1"),
        ({"max_dist": -0.1}, "GuidedIG: max_dist"),
        ({"anchors": 0}, "GuidedIG: anchors"),
        ({"bound": "free"}, "GuidedIG: bound: expected one of max_dist, anchors"),
        ({"objective": Kind.SOFT_CE}, "GuidedIG: objective"),
        ({"baseline": 0.0}, "GuidedIG: baseline"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GuidedIG(**parameters)
