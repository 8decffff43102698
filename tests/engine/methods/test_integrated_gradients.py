"""IG against golden numbers, and the axioms that it is known for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.drive import GRADIENT, LOGITS, Usage, drive
from onnxplain.engine.methods import METHODS, Baseline, IntegratedGradients, Rule
from onnxplain.engine.methods.quadrature import quadrature
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

SEEDS = st.integers(0, 2**32 - 1)
COMPLETE = [rule for rule in Rule if rule is not Rule.CAPTUM_TRAPEZOID]
SYMMETRIC = [rule for rule in Rule if rule is not Rule.RIGHT]


@pytest.mark.parametrize(
    ("toy", "target", "values", "total", "change"),
    [
        (toys.TOY_L, 1, [0.45, 0.2, -0.6, 0, 1.4, -0.05], 1.4, 1.4),
        (toys.TOY_T, 0, [0.147866, -0.287577, 0.549159, 0.666645, -0.846411, 0.058191], 0.287872, 0.287882),
    ],
)
def test_golden_midpoint(toy: toys.Toy, target: int, values: list[float], total: float, change: float) -> None:
    answer = toys.explain(IntegratedGradients(), toy, toys.X, target)
    assert answer.values == pytest.approx(values, abs=1e-5)
    assert [answer.diagnostics["sum"], answer.diagnostics["change"]] == pytest.approx([total, change], abs=1e-5)


@pytest.mark.parametrize(("toy", "target", "total"), [(toys.TOY_L, 1, 1.372), (toys.TOY_T, 0, 0.282144)])
def test_golden_captum_trapezoid(toy: toys.Toy, target: int, total: float) -> None:
    answer = toys.explain(IntegratedGradients(rule=Rule.CAPTUM_TRAPEZOID), toy, toys.X, target)
    assert answer.diagnostics["sum"] == pytest.approx(total, abs=1e-5)
    assert answer.diagnostics["completeness_gap"] == pytest.approx(0.02, abs=1e-4)


@pytest.mark.parametrize("steps", [2, 3, 25, 50, 150])
@pytest.mark.parametrize("rule", Rule)
def test_weights_sum_to_one_except_captums(rule: Rule, steps: int) -> None:
    t, w = quadrature(rule, steps)
    assert w.sum() == pytest.approx(1 - 1 / steps if rule is Rule.CAPTUM_TRAPEZOID else 1, abs=1e-14)
    assert 0 <= t.min() <= t.max() <= 1
    assert (np.diff(t) > 0).all()
    assert len(t) == len(w) == steps


@pytest.mark.parametrize(
    ("rule", "degree"), [(Rule.MIDPOINT, 1), (Rule.TRAPEZOID, 1), (Rule.GAUSS_LEGENDRE, 9), (Rule.RIGHT, 0)]
)
def test_degree_of_exactness(rule: Rule, degree: int) -> None:
    t, w = quadrature(rule, 5)
    for power in range(degree + 1):
        assert w @ t**power == pytest.approx(1 / (power + 1), abs=1e-14)
    assert abs(w @ t ** (degree + 1) - 1 / (degree + 2)) > 1e-6


@given(seed=SEEDS, rule=st.sampled_from(COMPLETE))
def test_affine_models_are_exact(seed: int, rule: Rule) -> None:
    draw = np.random.default_rng(seed)
    toy, x, start = toys.affine(draw.normal(size=(3, 6)), draw.normal()), draw.random(6), draw.random(6)
    answer = toys.explain(IntegratedGradients(steps=3, rule=rule, baseline=start), toy, x, 2)
    assert answer.values == pytest.approx(toy.pull_back(x, np.eye(3)[2]) * (x - start), abs=1e-12)


@given(seed=SEEDS, rule=st.sampled_from([Rule.MIDPOINT, Rule.TRAPEZOID, Rule.GAUSS_LEGENDRE]))
def test_complete_on_quadratics(seed: int, rule: Rule) -> None:
    """Along a line the gradient of a quadratic is linear, which these rules integrate exactly."""
    toy, x = toys.quadratic(seed), np.random.default_rng(seed).random(6)
    answer = toys.explain(IntegratedGradients(steps=4, rule=rule), toy, x, 1)
    change = (toy.logits(x) - toy.logits(np.zeros(6)))[1]
    assert answer.values.sum() == pytest.approx(change, abs=1e-11)
    assert answer.diagnostics["change"] == pytest.approx(change, abs=1e-11)
    assert answer.diagnostics["completeness_gap"] * max(abs(change), 1e-6) < 1e-11


@given(seed=SEEDS, rule=st.sampled_from(SYMMETRIC))
def test_antisymmetric_under_exchange_of_image_and_baseline(seed: int, rule: Rule) -> None:
    toy, (x, start) = toys.quadratic(seed), np.random.default_rng(seed).random((2, 6))
    there = toys.explain(IntegratedGradients(steps=4, rule=rule, baseline=start), toy, x, 1).values
    back = toys.explain(IntegratedGradients(steps=4, rule=rule, baseline=x), toy, start, 1).values
    assert there == pytest.approx(-back, abs=1e-12)


def test_the_paths_of_different_pieces_add_up() -> None:
    """F = x1 + 3 x2 up to the diagonal point (1, 1), 3 x1 + x2 beyond: IG is (4, 4) at (2, 2), (10, 6) at (4, 4)."""

    def slope(x: toys.Array, v: toys.Array) -> toys.Array:
        return np.asarray(v[0] * np.array([1.0, 3.0] if x[0] <= 1 else [3.0, 1.0]))

    toy = toys.Toy(lambda x: np.array([slope(x, np.ones(1)) @ x]), slope, (2,), 1)
    for point, expected in ((2, [4, 4]), (4, [10, 6])):
        answer = toys.explain(IntegratedGradients(steps=100), toy, np.full(2, float(point)))
        assert answer.values == pytest.approx(expected, abs=1e-12)
        assert answer.diagnostics["completeness_gap"] < 1e-12


def test_the_image_itself_as_baseline_gives_exactly_nothing() -> None:
    answer = toys.explain(IntegratedGradients(baseline=toys.X), toys.TOY_T, toys.X)
    assert (answer.values == 0).all()
    assert answer.diagnostics["completeness_gap"] == 0


def test_black_features_get_exactly_nothing() -> None:
    x = toys.X * [1, 0, 1, 0, 1, 1]
    assert ((toys.explain(IntegratedGradients(), toys.TOY_T, x).values == 0) == (x == 0)).all()


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5, 3)], ids=["channels first", "channels last"])
@pytest.mark.parametrize("facts", [1, 3], ids=["one fact", "three facts"])
def test_the_average_pixel(shape: tuple[int, ...], facts: int) -> None:
    toy, x = toys.picture_net(1, shape), np.random.default_rng(1).random(shape)
    channel = shape.index(3)
    axes = tuple(axis for axis in range(3) if axis != channel)
    space = Space(*(np.full(np.where(np.arange(3) == channel, facts, 1), v) for v in (0.0, 1.0, 0.0, 1.0)))
    answer = toys.explain(IntegratedGradients(baseline=Baseline.AVERAGE), toy, x, space=space)
    same = toys.explain(IntegratedGradients(baseline=x.mean(axes, keepdims=True)), toy, x)
    assert (answer.values == same.values).all()


def test_presets_name_their_baseline() -> None:
    assert METHODS["ig-average"] == IntegratedGradients(id="ig-average", baseline=Baseline.AVERAGE)
    assert METHODS["ig-gaussian"] == IntegratedGradients(id="ig-gaussian", baseline=Baseline.GAUSSIAN)
    assert IntegratedGradients.average(steps=3) == IntegratedGradients(
        id="ig-average", baseline=Baseline.AVERAGE, steps=3
    )


def test_a_constant_image_is_its_own_average() -> None:
    x = np.full((3, 8, 8), 0.25)
    assert not toys.explain(IntegratedGradients(baseline=Baseline.AVERAGE), toys.picture_net(), x).values.any()


def test_black_is_the_low_end_of_the_range() -> None:
    space = Space.model((-2.0, 3.0))
    there = toys.explain(IntegratedGradients(), toys.TOY_T, toys.X, space=space).values
    same = toys.explain(IntegratedGradients(baseline=np.full(6, -2.0)), toys.TOY_T, toys.X).values
    assert (there == same).all()


def test_a_saturated_softmax_gives_numbers() -> None:
    answer = toys.explain(IntegratedGradients(objective=Kind.PROB), toys.affine(1e4 * toys.W), toys.X, 1)
    assert np.isfinite(answer.values).all()


def test_rows_and_calls() -> None:
    usage, method = Usage(), IntegratedGradients(steps=50)
    program = method(toys.X, toys.task(toys.TOY_T))
    (outcome,) = drive([program], toys.model_of(toys.TOY_T, batch_size=16), usage=usage)
    assert outcome.rows == usage.rows == {GRADIENT: 50, LOGITS: 2}
    assert usage.calls == {GRADIENT: 4, LOGITS: 1}
    assert method.rows((6,)) == 52


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "steps of the rule midpoint: expected a whole number from 1 to 100000, got 0"),
        ({"steps": 100_001}, "from 1 to 100000, got 100001"),
        ({"steps": 1001, "rule": Rule.GAUSS_LEGENDRE}, "from 1 to 1000, got 1001"),
        ({"steps": 1, "rule": Rule.TRAPEZOID}, "steps of the rule trapezoid: .* from 2 to"),
        ({"rule": "left"}, "IG: rule: expected one of midpoint, right"),
        ({"baseline": "white"}, "IG: baseline: expected Baseline.BLACK"),
        ({"objective": Kind.SOFT_CE}, "IG: objective"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        IntegratedGradients(**parameters)


def test_a_baseline_of_another_shape() -> None:
    with pytest.raises(UsageError, match=r"baseline of shape \[5\] does not fit an image of shape \[6\]"):
        toys.explain(IntegratedGradients(baseline=np.zeros(5)), toys.TOY_T, toys.X)
