"""Where paths begin."""

from __future__ import annotations

import numpy as np
import pytest
import toys

from onnxplain.engine.methods import Baseline, IntegratedGradients, Task
from onnxplain.engine.methods.baselines import baseline_of, blurred
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PICTURE = np.random.default_rng(5).random((3, 40, 30)).astype(np.float32)
PIXELS = Space.pixels(MEAN, STD)


def start(baseline: Baseline | toys.Array, x: toys.Array = PICTURE, space: Space = PIXELS, seed: int = 0) -> toys.Array:
    found = baseline_of(x, baseline, Task(0, space, np.random.default_rng(seed)), "IG")
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    return found


def test_the_ones_with_one_value() -> None:
    assert (start(Baseline.BLACK) == 0).all()
    assert start(Baseline.MEAN_COLOUR)[:, 3, 4] == pytest.approx(MEAN)
    assert np.ptp(start(Baseline.MEAN_COLOUR), axis=(1, 2)).max() == 0
    assert start(Baseline.AVERAGE)[:, 3, 4] == pytest.approx(PICTURE.mean((1, 2)))
    assert start(Baseline.AVERAGE_SCALAR) == pytest.approx(np.full_like(PICTURE, PICTURE.mean()))


def test_gaussian_noise_is_standard_in_model_space() -> None:
    """Clipped to the pixels that there are; of an unbounded space it is whole."""
    noise = start(Baseline.GAUSSIAN)
    assert (noise.min(), noise.max()) == (0, 1)
    inside = (noise > 0) & (noise < 1)
    for channel in range(3):  # 0 lies 2 sigma below the mean, 1 lies 3, 2 and 4/3 above: most is left of the bell
        here = noise[channel][inside[channel]]
        assert np.median(here) == pytest.approx(MEAN[channel], abs=0.05)
    whole = start(Baseline.GAUSSIAN, space=Space.model())
    assert whole.mean() == pytest.approx(0, abs=0.05)
    assert whole.std() == pytest.approx(1, abs=0.05)


def test_uniform_noise_fills_the_range() -> None:
    noise = start(Baseline.UNIFORM, space=Space.model((-2.0, 3.0)))
    assert noise.min() == pytest.approx(-2, abs=0.01)
    assert noise.max() == pytest.approx(3, abs=0.01)
    assert noise.mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("baseline", [Baseline.GAUSSIAN, Baseline.UNIFORM])
def test_noise_is_one_draw_of_the_seed(baseline: Baseline) -> None:
    assert (start(baseline, seed=1) == start(baseline, seed=1)).all()
    assert (start(baseline, seed=1) != start(baseline, seed=2)).any()


def test_blur() -> None:
    assert (start(Baseline.BLUR) == blurred(PICTURE, 31, PIXELS)).all()
    assert start(Baseline.BLUR).std() < PICTURE.std() / 5
    with pytest.raises(UsageError, match=r"blurring needs an image of shape \(C,H,W\)"):
        start(Baseline.BLUR, toys.X, Space.pixels(rank=1))


def test_an_array_is_broadcast() -> None:
    grey = np.full((1, 1, 1), 0.5)
    assert (start(grey) == 0.5).all()
    with pytest.raises(UsageError, match=r"IG: a baseline of shape \[5\] does not fit an image of shape \[3, 40, 30\]"):
        start(np.zeros(5))


def test_the_image_is_left_as_it_is() -> None:
    before = PICTURE.copy()
    for baseline in Baseline:
        start(baseline)
    assert (before == PICTURE).all()


@pytest.mark.parametrize("baseline", Baseline)
def test_only_black_and_uniform_noise_need_the_range(baseline: Baseline) -> None:
    if baseline in (Baseline.BLACK, Baseline.UNIFORM):
        with pytest.raises(UsageError, match=f"IG with a {baseline.value} baseline works in pixel units"):
            start(baseline, space=Space.model())
    else:
        assert np.isfinite(start(baseline, space=Space.model())).all()


@pytest.mark.parametrize("baseline", Baseline)
def test_every_one_serves_integrated_gradients(baseline: Baseline) -> None:
    toy, x = toys.picture_net(), np.random.default_rng(0).random((3, 8, 8))
    answer = toys.explain(IntegratedGradients(baseline=baseline), toy, x, 1)
    assert answer.diagnostics["completeness_gap"] < 0.01
