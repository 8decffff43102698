"""Occlusion: by hand, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.methods import Baseline, Occlusion
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError


def test_by_hand() -> None:
    """Windows of 2 at stride 1 on four features, F = <w, x>, x' = 0: an inner feature is in two windows."""
    w, x = np.array([[1.0, 2, 3, 4]]), np.array([1.0, 1, 1, 1])
    method = Occlusion(window=2, stride=1, baseline=0 * x, objective=Kind.LOGIT)
    answer = toys.explain(method, toys.affine(w), x, 0)
    assert answer.values.tolist() == [3, 4, 6, 7]
    assert answer.diagnostics == {"value": 10.0, "windows": 3}


def test_cost_and_layout() -> None:
    assert Occlusion().rows((3, 224, 224)) == Occlusion().rows((224, 224, 3)) == 1 + 28 * 28
    assert Occlusion(window=3, stride=1).rows((6,)) == 1 + 4
    x = np.random.default_rng(0).random((3, 8, 8))
    weights = np.random.default_rng(1).normal(size=(2, 192))
    first = toys.affine(weights, shape=(3, 8, 8))
    last = toys.affine(weights.reshape(2, 3, 8, 8).transpose(0, 2, 3, 1).reshape(2, -1), shape=(8, 8, 3))
    method = Occlusion(window=3, stride=2)
    one = toys.explain(method, first, x).values
    other = toys.explain(method, last, x.transpose(1, 2, 0), space=Space.pixels(channel_axis=-1)).values
    np.testing.assert_allclose(other.transpose(2, 0, 1), one, atol=1e-14)


def test_an_image_that_is_its_baseline_gives_nothing() -> None:
    x = np.full((3, 8, 8), 0.5)
    for baseline in (Baseline.AVERAGE, x):
        assert not toys.explain(Occlusion(window=3, stride=2, baseline=baseline), toys.picture_net(), x).values.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "Occlusion: window: expected a whole number from 1 to 10000, got 0"),
        ({"stride": 16}, "Occlusion: stride: expected at most the window (15), so that every pixel is covered, got 16"),
        ({"baseline": None}, "Occlusion: baseline: expected "),
        ({"objective": Kind.SOFT_CE}, "Occlusion: objective: expected one of "),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Occlusion(**wrong)
    assert str(caught.value).startswith(message)


def test_a_window_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(UsageError, match=r"does not fit a picture of shape \[8, 8\]; next: .* at most 8"):
        toys.explain(Occlusion(), toys.picture_net(), np.zeros((3, 8, 8)))
    with pytest.raises(UsageError, match=r"a picture of shape \[6\]"):
        toys.explain(Occlusion(), toys.TOY_L, toys.X)
    with pytest.raises(UsageError, match="baseline of shape"):
        toys.explain(Occlusion(window=2, stride=1, baseline=np.zeros(5)), toys.TOY_L, toys.X)
