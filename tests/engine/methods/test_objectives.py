"""The objectives: the gradient of each is that of its value, and the values are those of the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import run
from onnxplain.engine.requests import Gradients, Kind, Objective, Points, Program

TARGETS = {
    Kind.SOFT_CE: np.array([0.25, 0.5, 0.25], np.float32),
    Kind.LOGIT_L2: np.array([0.5, -1.25, 2], np.float32),
}


def ask(x: toys.Array, objective: Objective) -> Program[Gradients]:
    answer: Gradients = yield Points(x, objective)
    return answer


@pytest.mark.parametrize("target", [1, np.array([0.5, -1, 0.25], np.float32)], ids=["class", "weights"])
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("toy", [toys.TOY_L, toys.TOY_T], ids=["L", "T"])
def test_the_gradient_is_the_slope_of_the_value(toy: toys.Toy, kind: Kind, target: int | toys.Array) -> None:
    objective = Objective(kind, TARGETS.get(kind, target))
    answer = run(ask(toys.X[None], objective), toys.model_of(toy))
    h = 1e-3  # five points: the error is h^4 |f^(5)| / 30, about 1e-12 here, and rounding another 1e-13

    def psi(x: toys.Array) -> float:
        return float(objective.value(toy.logits(x)))

    slopes = [
        (psi(toys.X - 2 * e) - 8 * psi(toys.X - e) + 8 * psi(toys.X + e) - psi(toys.X + 2 * e)) / (12 * h)
        for e in h * np.eye(6)
    ]
    assert answer.gradient[0] == pytest.approx(slopes, abs=1e-10)
    assert answer.value[0] == pytest.approx(psi(toys.X), abs=1e-14)


def test_golden_cross_entropy() -> None:
    at_l = run(ask(toys.X[None], Objective(Kind.CE, 1)), toys.model_of(toys.TOY_L))
    at_t = run(ask(toys.X[None], Objective(Kind.CE, 0)), toys.model_of(toys.TOY_T))
    assert at_l.logits[0] == pytest.approx([1.325, 1.4, 0.05], abs=1e-5)
    assert at_t.logits[0] == pytest.approx([0.498727, 0.215511, 0.328556], abs=1e-5)
    assert [at_l.value[0], at_t.value[0]] == pytest.approx([0.782523, 0.954310], abs=1e-5)
    assert at_l.gradient[0] == pytest.approx([0.034299, -1.331903, 0.873393, 1.213365, -1.450441, 0.495965], abs=1e-5)
    assert at_t.gradient[0] == pytest.approx([0.277485, 0.364296, -0.621529, -0.311003, 0.417588, -0.475859], abs=1e-5)


def test_facts_about_the_objectives() -> None:
    def gradient(kind: Kind) -> toys.Array:
        return np.asarray(run(ask(toys.X[None], Objective(kind, 0)), toys.model_of(toys.TOY_T)).gradient[0])

    p = toys.softmax(toys.TOY_T.logits(toys.X))[0]
    assert gradient(Kind.PROB) == pytest.approx(p * gradient(Kind.LOGPROB), abs=1e-14)
    assert gradient(Kind.CE) == pytest.approx(-gradient(Kind.LOGPROB), abs=1e-14)
    # with 1000 classes the double softmax lies between the values at p = 1 and at p = 0
    z = np.zeros((2, 1000))
    z[0, 0], z[1, 1] = 1e3, 1e3
    assert Objective(Kind.CE_ON_PROBS, 0).value(z) == pytest.approx([5.909, 6.909], abs=1e-3)
