"""SmoothGrad: its noise, its statistics, its presets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import GRADIENT, LOGITS, drive
from onnxplain.engine.methods import METHODS, Method, SmoothGrad, Statistic
from onnxplain.engine.requests import Kind
from onnxplain.errors import UsageError


def test_the_mean_over_noise_on_paper() -> None:
    """z = x^2: the gradient 2 x has mean 2 x, mean square 4 x^2 + 4 s^2 and variance 4 s^2 under noise s."""
    toy = toys.Toy(lambda x: np.array([x @ x]), lambda x, v: v[0] * 2 * x, (6,), 1)
    told = {"samples": 20_000, "noise": 0.5, "relative": False}
    assert toys.explain(SmoothGrad(**told), toy, toys.X).values == pytest.approx(2 * toys.X, abs=0.03)
    squared = toys.explain(SmoothGrad.squared(**told), toy, toys.X).values
    assert squared == pytest.approx(4 * toys.X**2 + 1, abs=0.1)
    assert toys.explain(SmoothGrad.variance(**told), toy, toys.X).values == pytest.approx(np.ones(6), abs=0.05)


def test_noise_in_parts_of_the_range_of_the_image_or_absolute() -> None:
    assert toys.explain(SmoothGrad(), toys.TOY_T, toys.X).diagnostics == {"noise_std": pytest.approx(0.15 * 0.8)}
    assert toys.explain(SmoothGrad(relative=False), toys.TOY_T, toys.X).diagnostics == {"noise_std": 0.15}


def test_a_constant_image_gets_no_relative_noise() -> None:
    x = np.full(6, 0.3)
    gradient = toys.TOY_T.pull_back(x, np.eye(3)[0])
    assert toys.explain(SmoothGrad(), toys.TOY_T, x).values == pytest.approx(gradient, abs=1e-15)
    assert toys.explain(SmoothGrad.variance(), toys.TOY_T, x).values == pytest.approx(np.zeros(6), abs=1e-13)
    assert toys.explain(SmoothGrad(relative=False), toys.TOY_T, x).values != pytest.approx(gradient, abs=1e-3)


def test_the_draws_do_not_depend_on_the_parts_in_which_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = toys.explain(SmoothGrad(), toys.TOY_T, toys.X).values
    monkeypatch.setattr("onnxplain.engine.methods.smoothgrad.AT_ONCE", 7)
    assert toys.explain(SmoothGrad(), toys.TOY_T, toys.X).values == pytest.approx(whole, abs=1e-14)


def test_rows() -> None:
    (outcome,) = drive([SmoothGrad(samples=33)(toys.X, toys.task(toys.TOY_T))], toys.model_of(toys.TOY_T))
    assert outcome.rows == {GRADIENT: 33, LOGITS: 0}


@pytest.mark.parametrize(
    ("id", "method", "samples", "noise", "relative", "statistic"),
    [
        ("smoothgrad", SmoothGrad(), 50, 0.15, True, Statistic.MEAN),
        ("smoothgrad-squared", SmoothGrad.squared(), 50, 0.15, True, Statistic.MEAN_SQUARE),
        ("vargrad", SmoothGrad.variance(), 50, 0.15, True, Statistic.VARIANCE),
        ("smoothgrad-pair", SmoothGrad.pair(), 25, 0.15, True, Statistic.MEAN_SQUARE),
        ("smoothgrad-captum", SmoothGrad.captum(), 5, 1.0, False, Statistic.MEAN),
    ],
)
def test_presets(id: str, method: Method, samples: int, noise: float, relative: bool, statistic: Statistic) -> None:
    assert METHODS[id] == method
    told = {"samples": samples, "noise": noise, "relative": relative, "statistic": statistic}
    assert method == SmoothGrad(id=id, **told)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"samples": 0}, "SmoothGrad: samples"),
        ({"noise": -0.1}, "SmoothGrad: noise: expected a number from 0"),
        ({"statistic": "mean"}, "SmoothGrad: statistic: expected one of mean, mean_square, variance"),
        ({"objective": Kind.SOFT_CE}, "SmoothGrad: objective"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SmoothGrad(**parameters)
