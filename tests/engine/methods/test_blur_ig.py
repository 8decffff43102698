"""Blur IG: the blur, the grid of blurs, and what it sums to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import GRADIENT, LOGITS, drive
from onnxplain.engine.methods import BlurIG, Grid
from onnxplain.engine.methods.blur_ig import blur
from onnxplain.engine.requests import Kind, Points
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

PICTURE = np.random.default_rng(3).random((3, 20, 14))
SPACE = toys.pixels(toys.picture_net())


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 2.5, 12.0])
def test_the_blur_is_a_sum_over_taps(sigma: float) -> None:
    """At one pixel, written out."""
    radius = int(4 * sigma + 0.5)
    row, column = 6, 3
    total, weight = 0.0, 0.0
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            tap = np.exp(-(i * i + j * j) / (2 * sigma * sigma))
            weight += tap
            if 0 <= row + i < 20 and 0 <= column + j < 14:
                total += tap * PICTURE[1, row + i, column + j]
    assert blur(PICTURE, sigma, SPACE)[1, row, column] == pytest.approx(total / weight, rel=1e-12)


def test_no_blur_is_the_image() -> None:
    assert (blur(PICTURE, 0.0, SPACE) == PICTURE).all()


def test_channels_last() -> None:
    last = np.moveaxis(PICTURE, 0, -1)
    assert blur(last, 1.5, Space.pixels(channel_axis=-1)) == pytest.approx(
        np.moveaxis(blur(PICTURE, 1.5, SPACE), 0, -1)
    )


@pytest.mark.parametrize(
    ("grid", "sigmas"), [(Grid.LINEAR, [0, 2, 4, 6, 8]), (Grid.SQRT, np.sqrt([0, 2, 4, 6, 8]))], ids=lambda g: str(g)
)
def test_the_points_are_blurs_of_the_image(grid: Grid, sigmas: list[float]) -> None:
    """The last blur of the grid is where the path ends, and no point of it."""
    toy, x = toys.picture_net(), np.random.default_rng(0).random((3, 8, 8))
    request = next(BlurIG(steps=5, max_sigma=10.0, grid=grid)(x, toys.task(toy)))
    assert isinstance(request, Points)
    for point, sigma in zip(request.x, sigmas, strict=True):
        assert point == pytest.approx(blur(x, sigma, SPACE))


def test_the_gap_is_reported() -> None:
    """One step has nothing to go by, since a sharp image does not change under the first hundredth of a blur."""
    toy, x = toys.picture_net(), np.random.default_rng(0).random((3, 8, 8))
    coarse, fine = (toys.explain(BlurIG(steps=n, max_sigma=3.0), toy, x).diagnostics for n in (1, 300))
    assert coarse["change"] == pytest.approx(fine["change"])
    assert coarse["completeness_gap"] == 1
    assert fine["completeness_gap"] < 0.02


def test_rows() -> None:
    toy, x = toys.picture_net(), np.random.default_rng(0).random((3, 8, 8))
    (outcome,) = drive([BlurIG()(x, toys.task(toy))], toys.model_of(toy))
    assert outcome.rows == {GRADIENT: 100, LOGITS: 2}


def test_vectors_cannot_be_blurred() -> None:
    with pytest.raises(UsageError, match=r"BlurIG needs an image of shape \(C,H,W\) or \(H,W,C\), got \[6\]"):
        toys.explain(BlurIG(), toys.TOY_T, toys.X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "BlurIG: steps"),
        ({"max_sigma": 0.0}, "BlurIG: max_sigma: expected a positive number"),
        ({"grid": "log"}, "BlurIG: grid: expected one of linear, sqrt"),
        ({"grad_step": 0.0}, "BlurIG: grad_step"),
        ({"objective": Kind.SOFT_CE}, "BlurIG: objective"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BlurIG(**parameters)
