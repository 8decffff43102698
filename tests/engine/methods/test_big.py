"""BIG: its attacks against plain loops and geometry, what it costs, what it says of failure, and what it refuses."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import toys
from conformance.methods.adversarial import boundary_of
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.drive import GRADIENT, LOGITS, Usage, drive
from onnxplain.engine.methods import BIG, Attack, IntegratedGradients, Rule
from onnxplain.engine.methods.big import drawn_in_ball
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space
from onnxplain.errors import NonFinite, UsageError

LABEL = int(toys.TOY_T.logits(toys.X).argmax())


def test_the_boundary_of_an_affine_model() -> None:
    """z_0 - z_1 falls by |w|_1 a unit of the steps, so the boundary lies where the margin is used up."""
    w = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    x = np.array([0.6, 0.1, 0.5])
    margin, slope = 0.65, 3.5
    end, answer = boundary_of(BIG(eta=0.001, attack_steps=1000), toys.affine(w), x, 0)
    steps = int(np.floor(margin / (slope * 0.001))) + 1
    assert answer.diagnostics["iteration"] == steps
    assert end == pytest.approx(x - 0.001 * steps * np.sign(w[0]))
    halved, closer = boundary_of(BIG(eta=0.3, bisection=40), toys.affine(w), x, 0)
    assert halved == pytest.approx(x - margin / slope * np.sign(w[0]), abs=1e-9)
    assert w[0] @ halved <= 1e-12
    assert closer.diagnostics["success"]
    assert closer.values == pytest.approx(w[0] * (x - halved), abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1))
def test_bisection_comes_closer_and_keeps_the_other_class(seed: int) -> None:
    x = np.random.default_rng(seed).random(6)
    label = int(toys.TOY_T.logits(x).argmax())
    (far, plain), (near, halved) = (
        boundary_of(BIG(eta=0.02, bisection=count), toys.TOY_T, x, label) for count in (0, 10)
    )
    assert halved.diagnostics["success"] == plain.diagnostics["success"]
    if plain.diagnostics["success"]:
        assert toys.TOY_T.logits(near).argmax() == halved.diagnostics["label"] != label
        assert halved.diagnostics["distance"] <= plain.diagnostics["distance"]
    else:
        assert (near == far).all()


def test_a_walk_that_never_crosses_says_so() -> None:
    end, answer = boundary_of(BIG(eta=1e-5), toys.TOY_T, toys.X, LABEL)
    assert answer.diagnostics["success"] is False
    assert (answer.diagnostics["label"], answer.diagnostics["iteration"]) == (LABEL, 50)
    assert np.abs(end - toys.X) == pytest.approx(np.full(6, 5e-4))  # the last point
    same = toys.explain(IntegratedGradients(baseline=end), toys.TOY_T, toys.X, LABEL)
    assert (answer.values == same.values).all()


def test_an_image_of_another_class_is_its_own_boundary() -> None:
    other = (LABEL + 1) % 3
    answer = toys.explain(BIG(), toys.TOY_T, toys.X, other)
    assert not answer.values.any()
    assert answer.diagnostics["success"]
    assert (answer.diagnostics["iteration"], answer.diagnostics["label"]) == (0, LABEL)
    assert answer.diagnostics["distance"] == 0


def test_points_stay_in_the_range() -> None:
    corner = np.array([0.0, 1.0, 0.0, 1.0, 0.5, 1.0])
    label = int(toys.TOY_T.logits(corner).argmax())
    for method in (BIG(eta=0.1, earliest=False), BIG.reference(radii=(2.0,)), BIG.isa(eta=0.1)):
        end, _ = boundary_of(method, toys.TOY_T, corner, label)
        assert 0 <= end.min() <= end.max() <= 1


def test_the_attack_in_model_space() -> None:
    """The ball and the steps are in units of the normalised input; the random start is drawn anew for each radius."""
    space = Space.pixels((0.4,), (0.25,), rank=1)
    for seed in range(5):
        end, answer = boundary_of(BIG.reference(radii=(0.05, 0.1, 2.0)), toys.TOY_T, toys.X, LABEL, seed)
        method = BIG.reference(radii=(0.05, 0.1, 2.0))
        expected = naive.l2_attack(
            toys.TOY_T,
            toys.X,
            LABEL,
            np.random.default_rng(seed),
            radii=method.radii,
            steps=40,
            mean=float(space.zero[0]),
            std=0.25,
        )
        values = toys.explain(method, toys.TOY_T, toys.X, LABEL, space=space, seed=seed).values
        rule = naive.captum_trapezoid(10)
        assert values == pytest.approx(
            naive.integrated(toys.TOY_T, toys.X, expected, LABEL, naive.LOGIT, *rule), abs=1e-6
        )
        assert answer.diagnostics["attacks"] > 1
        assert not np.allclose(end, expected)  # another space, another ball


@pytest.mark.parametrize("size", [1, 2, 150])
def test_starts_fill_the_ball_evenly(size: int) -> None:
    draw = np.random.default_rng(0)
    radii = np.array([np.linalg.norm(drawn_in_ball((size,), 3.0, draw)) for _ in range(2000)]) / 3
    assert radii.max() <= 1 + 1e-6
    # the share of the ball within r is r^n, which then is uniform
    assert np.quantile(radii**size, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.05)


def test_without_a_range_the_attack_in_model_space_still_works() -> None:
    answer = toys.explain(BIG.reference(), toys.TOY_T, toys.X, LABEL, space=Space.model())
    assert answer.diagnostics["success"]
    for method in (BIG(), BIG.isa()):
        with pytest.raises(UsageError, match="BIG works in pixel units"):
            toys.explain(method, toys.TOY_T, toys.X, space=Space.model())


def test_rows_and_calls() -> None:
    def spent(method: BIG) -> tuple[Any, dict[str, int], dict[str, int]]:
        usage = Usage()
        program = method(toys.X, toys.task(toys.TOY_T, LABEL))
        (outcome,) = drive([program], toys.model_of(toys.TOY_T, batch_size=64), usage=usage)
        assert sum(usage.rows.values()) <= method.rows((6,))
        return outcome.unwrap().diagnostics, dict(usage.rows), dict(usage.calls)

    said, rows, calls = spent(BIG(eta=0.01, bisection=10))
    assert rows == {GRADIENT: said["iteration"] + 1 + 50, LOGITS: 10 + 2}
    assert calls == {GRADIENT: said["iteration"] + 1 + 1, LOGITS: 10 + 1}
    assert spent(BIG(eta=1e-6))[1:] == ({GRADIENT: 50 + 50, LOGITS: 1 + 2}, {GRADIENT: 51, LOGITS: 2})
    assert spent(BIG.isa())[1] == {GRADIENT: 50 + 50, LOGITS: 1 + 2}
    said, rows, _ = spent(BIG.reference())
    assert said["attacks"] < 7  # the first radius that succeeds is the last that is tried
    assert rows == {GRADIENT: 40 * said["attacks"] + 10, LOGITS: said["attacks"] + 2}
    said, rows, _ = spent(BIG.reference(radii=(1e-6, 2e-6)))
    assert (said["success"], said["attacks"]) == (False, 2)
    assert sum(rows.values()) == BIG.reference(radii=(1e-6, 2e-6)).rows((6,))


def test_the_seven_attacks_of_the_comparison_are_one() -> None:
    """50 steps of 0.001 come no further than 0.05, which is less than the least of its radii, 36/255."""
    end, _ = boundary_of(BIG.isa(), toys.TOY_T, toys.X, LABEL)
    assert np.abs(end - toys.X).max() <= 0.05 + 1e-15 < 36 / 255


@pytest.mark.parametrize("method", [BIG(eta=0.01, steps=5), BIG.isa(eta=0.01, steps=5)])
def test_pixel_units_follow_the_range(method: BIG) -> None:
    in_levels = toys.tanh_net(toys.W / 255, toys.B, toys.V)
    levels = Space(*(np.array([v], np.float64) for v in (0, 255, 0, 1)))
    expected = toys.explain(method, toys.TOY_T, toys.X, LABEL).values
    got = toys.explain(method, in_levels, 255 * toys.X, LABEL, space=levels).values
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("attack", Attack)
@pytest.mark.parametrize("scale", [0, 1e4], ids=["no gradient", "saturated"])
def test_extreme_models_give_numbers(attack: Attack, scale: float) -> None:
    model = toys.affine(scale * toys.W)
    label = int(model.logits(toys.X).argmax())
    answer = toys.explain(BIG(attack=attack, radii=(0.01,)), model, toys.X, label)
    assert np.isfinite(answer.values).all()
    assert answer.diagnostics["success"] is False


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="BIG walks to another class, but this model has one output only"):
        toys.explain(BIG(), toys.affine(np.ones((1, 6))), toys.X)
    with pytest.raises(UsageError, match="BIG walks from one class to another"):
        toys.explain(BIG(), toys.TOY_T, toys.X, np.array([0.5, 0.5, 0], np.float32))
    with pytest.raises(NonFinite):
        toys.explain(BIG(), toys.affine(np.nan * toys.W), toys.X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "steps of the rule midpoint: expected"),
        ({"rule": "midpoint"}, "rule: expected one of midpoint"),
        ({"objective": Kind.LOGIT_L2}, "objective"),
        ({"attack": "sign"}, r"BIG: attack: expected one of sign, l2_pgd \(Attack\)"),
        ({"attack_steps": 0}, "BIG: attack_steps: expected a whole number from 1 to 10000"),
        ({"attack_objective": Kind.LOGIT}, "BIG: attack_objective: expected one of ce, ce_on_probs"),
        ({"eta": -0.1}, "BIG: eta: expected a positive number"),
        ({"radii": ()}, "BIG: radii: expected positive numbers"),
        ({"radii": (0.1, float("nan"))}, "BIG: radii: expected positive numbers"),
        ({"bisection": -1}, "BIG: bisection: expected a whole number from 0 to 100"),
        ({"steps": 1, "rule": Rule.TRAPEZOID}, "steps of the rule trapezoid: expected a whole number from 2"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BIG(**parameters)
