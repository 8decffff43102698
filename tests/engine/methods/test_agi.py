"""AGI against golden numbers; its classes, what it costs, and what it refuses."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.drive import GRADIENT, LOGITS, Usage, drive, run
from onnxplain.engine.methods import AGI, Task
from onnxplain.engine.methods.walk import on_host
from onnxplain.engine.requests import Head, Kind, Points
from onnxplain.engine.space import Space
from onnxplain.errors import FeedMismatch, NonFinite, UsageError


@pytest.mark.parametrize(
    ("method", "toy", "target", "values", "iterations"),
    [
        (AGI(), toys.TOY_L, 1, [0.016968, -0.093763, 0.122843, -0.073177, 0.180671, 0.074425], [1, 5]),
        (AGI(), toys.TOY_T, 0, [-0.000526, 0.013050, -0.010866, 0.014657, 0.011442, -0.007491], [2, 1]),
        (AGI.repo(), toys.TOY_L, 1, [0.019561, -0.533595, 0.426648, -0.465072, 0.668439, 0.250295], [1, 20]),
        (AGI.repo(), toys.TOY_T, 0, [-0.010000, 0.247947, -0.206457, 0.278490, 0.217404, -0.142330], [20, 1]),
    ],
)
def test_golden_attributions(
    method: AGI, toy: toys.Toy, target: int, values: list[float], iterations: list[int]
) -> None:
    answer = toys.explain(method, toy, toys.X, target)
    assert answer.values == pytest.approx(values, abs=1e-5)
    assert answer.diagnostics["iterations"] == iterations
    assert answer.diagnostics["arrived"] == [count < 20 for count in iterations]


def wide_net(classes: int = 30) -> toys.Toy:
    draw = np.random.default_rng(0)
    return toys.tanh_net(draw.normal(size=(16, 6)), draw.normal(size=16), draw.normal(size=(classes, 16)))


def test_classes_are_drawn_from_the_generator_of_the_task() -> None:
    def classes(seed: int, **parameters: Any) -> list[int]:
        return list(toys.explain(AGI(m=1, **parameters), wide_net(), toys.X, 7, seed=seed).diagnostics["classes"])

    assert len(set(classes(0))) == 20  # no class twice
    assert 7 not in classes(0)
    assert classes(0) == classes(0) != classes(1)
    # all of them, where there are no more
    assert classes(0, k=29) == classes(1, k=500) == [i for i in range(30) if i != 7]
    # and each of them now and then
    assert {i for seed in range(30) for i in classes(seed, k=5)} == set(range(30)) - {7}


def test_walks_add_up() -> None:
    """k classes together are k classes alone."""
    toy = wide_net()
    together = toys.explain(AGI(k=3), toy, toys.X, 7)
    alone = 0 * toys.X
    for other in together.diagnostics["classes"]:
        pair = toys.Toy(toy.logits, toy.pull_back, (6,), 30)

        class Only(AGI):
            def draw(self, count: int, explained: int, rng: Any, other: int = other) -> toys.Array:
                return np.array([other])

        alone += toys.explain(Only(), pair, toys.X, 7).values
    assert together.values == pytest.approx(alone, abs=1e-15)


@given(seed=st.integers(0, 2**32 - 1), restart=st.booleans(), epsilon=st.floats(0.01, 0.9))
def test_points_stay_in_the_range(seed: int, restart: bool, epsilon: float) -> None:
    """Every point that is asked for lies in the valid range; with `restart`, within epsilon of the image."""
    x = np.random.default_rng(seed).random(6)
    seen = []

    def listen() -> Any:
        program, answer = on_host(AGI(restart=restart, epsilon=epsilon, m=5)(x, toys.task(toys.TOY_T))), None
        while True:
            try:
                request = program.send(answer)
            except StopIteration as end:
                return end.value
            seen.append(request.x)  # type: ignore[union-attr]
            answer = yield request

    run(listen(), toys.model_of(toys.TOY_T))
    points = np.concatenate(seen)
    assert 0 <= points.min() <= points.max() <= 1
    assert not restart or np.abs(points - x).max() <= epsilon + 1e-15


def test_rows_and_calls() -> None:
    """One for x; each step 2, but the first 1; and 1 where a walk arrives."""
    usage = Usage()
    (outcome,) = drive([AGI()(toys.X, toys.task(toys.TOY_L, 1))], toys.model_of(toys.TOY_L, batch_size=64), usage=usage)
    assert outcome.unwrap().diagnostics["iterations"] == [1, 5]
    assert outcome.rows == usage.rows == {GRADIENT: 1 + (1 + 1) + (1 + 4 * 2 + 1), LOGITS: 0}
    assert usage.calls == {GRADIENT: 1 + 1 + 4 * 2 + 1, LOGITS: 0}
    # the most that it can be: nobody arrives
    usage = Usage()
    method, toy = AGI(m=7, epsilon=1e-6), wide_net()
    (outcome,) = drive([method(toys.X, toys.task(toy, 7))], toys.model_of(toy, batch_size=64), usage=usage)
    answer = outcome.unwrap()
    here = [i for i, count in enumerate(answer.diagnostics["iterations"]) if count == 0]  # predicted at x
    assert answer.diagnostics["iterations"] == [7 * (i not in here) for i in range(20)]
    assert usage.rows[GRADIENT] == 1 + (20 - len(here)) * 13
    assert method.rows((6,)) == 1 + 20 * 13
    assert usage.calls == {GRADIENT: 2 * 7, LOGITS: 0}


def test_the_double_softmax() -> None:
    x = toys.X
    expected, taken, _ = naive.adversarial_gradients(toys.TOY_T, x, 0, code=naive.PROB_ON_PROBS)
    answer = toys.explain(AGI(objective=Kind.PROB_ON_PROBS), toys.TOY_T, x)
    assert answer.values == pytest.approx(expected, abs=1e-13)
    assert answer.diagnostics["iterations"] == taken


@pytest.mark.parametrize("method", [AGI(), AGI.repo()])
def test_pixel_units_follow_the_range(method: AGI) -> None:
    in_levels = toys.tanh_net(toys.W / 255, toys.B, toys.V)
    levels = Space(*(np.array([v], np.float64) for v in (0, 255, 0, 1)))
    expected = toys.explain(method, toys.TOY_T, toys.X).values
    assert toys.explain(method, in_levels, 255 * toys.X, space=levels).values == pytest.approx(expected, abs=1e-12)


def test_weights_of_one_class_are_that_class() -> None:
    weights = np.array([0, 1, 0], np.float32)
    same = toys.explain(AGI(), toys.TOY_L, toys.X, 1)
    assert (toys.explain(AGI(), toys.TOY_L, toys.X, weights).values == same.values).all()


@pytest.mark.parametrize("weights", [[0.5, 0.5, 0], [0, 2, 0], [0, 0, 0], [1, -1, 0]])
def test_other_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="AGI walks from one class to another, so it explains one class, not weights"):
        toys.explain(AGI(), toys.TOY_L, toys.X, np.array(weights, np.float32))


def test_two_classes_and_one() -> None:
    two = toys.affine(np.array([[0.2, 0.1], [0, 0]]))
    answer = toys.explain(AGI(), two, np.array([0.9, 0.9]))
    assert answer.diagnostics["classes"] == [1]
    with pytest.raises(UsageError, match="AGI walks to another class, but this model has one output only"):
        toys.explain(AGI(), toys.affine(np.ones((1, 6))), toys.X)


def test_labels_each_by_itself() -> None:
    """With a sigmoid head the walk ends where label i has the highest logit; the objectives are of that head."""
    task = Task(0, toys.pixels(toys.TOY_T), np.random.default_rng(0), Head.SIGMOID)
    request: Any = AGI()(toys.X, task).send(None)
    assert request.objective.head is Head.SIGMOID
    assert request.objective.kind is Kind.PROB


def test_saturated_and_dead_models() -> None:
    for scale in (0, 1e4):
        answer = toys.explain(AGI(), toys.affine(scale * toys.W), toys.X, 1)
        assert np.isfinite(answer.values).all()
    dead = toys.explain(AGI(), toys.affine(0 * toys.W), toys.X, 1)
    assert not dead.values.any()
    # class 0, the first of equals, is the predicted one; the walk to class 2 has no slope, and never arrives
    assert (dead.diagnostics["iterations"], dead.diagnostics["arrived"]) == ([0, 20], [True, False])


def test_nan_is_an_error() -> None:
    with pytest.raises(NonFinite):
        toys.explain(AGI(), toys.affine(np.nan * toys.W), toys.X)


def test_what_it_needs() -> None:
    with pytest.raises(UsageError, match="AGI works in pixel units"):
        toys.explain(AGI(), toys.TOY_T, toys.X, space=Space.model())
    with pytest.raises(UsageError, match="target 3 is out of range"):
        toys.explain(AGI(), toys.TOY_T, toys.X, 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "k: expected a whole number from 1"),
        ({"m": 0}, "m: expected a whole number from 1 to 10000"),
        ({"m": 1.5}, "m"),
        ({"epsilon": 0.0}, "epsilon: expected a positive number, at most 1"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"objective": Kind.LOGIT}, r"objective: expected one of prob, prob_on_probs \(Kind\), got 'logit'"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"AGI: {message}"):
        AGI(**parameters)


def test_points_may_have_a_class_each() -> None:
    x = np.stack([toys.X] * 3)
    objective = toys.task(toys.TOY_T, 1).objective(Kind.LOGIT)

    def ask(classes: list[int] | None) -> Any:
        return (yield Points(x, objective, None if classes is None else np.array(classes)))

    for batch_size in (1, 2, 8):
        model = toys.model_of(toys.TOY_T, batch_size=batch_size)
        assert run(ask([2, 0, 1]), model).value == pytest.approx(toys.TOY_T.logits(toys.X)[[2, 0, 1]])
        assert run(ask(None), model).value == pytest.approx(toys.TOY_T.logits(toys.X)[[1, 1, 1]])
    with pytest.raises(UsageError, match="target 3 is out of range"):
        run(ask([0, 3, 1]), model)
    with pytest.raises(FeedMismatch, match="3 points with 2 classes"):
        run(ask([0, 1]), model)
