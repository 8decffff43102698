"""LIME: its draws, its kernel, its regressions."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import toys
from frameworks import framework

from onnxplain.engine.methods import LIME, Baseline, Distance, Draws, Regression
from onnxplain.engine.requests import Array, Kind
from onnxplain.engine.space import Space
from onnxplain.errors import BackendMissing, UsageError

X = np.random.default_rng(0).random((3, 8, 8))
BLOCKS = np.add.outer(4 * (np.arange(8) // 2), np.arange(8) // 2)  # 16 superpixels of 2 x 2
TOY = toys.picture_net(3)


@pytest.fixture
def sklearn() -> None:
    framework("sklearn")


def drawn(method: LIME, count: int) -> Array:
    """What the samples keep, drawn again as `toys.explain` has them drawn."""
    return method.draw(np.random.default_rng(0), count)


@pytest.mark.parametrize("draws", list(Draws))
def test_draws(draws: Draws) -> None:
    """The first sample is x; sizes are uniform, coins binomial; every superpixel is kept equally often."""
    kept = drawn(LIME(samples=20_001, draws=draws), 5)
    assert kept[0].all()
    sizes = np.bincount(kept[1:].sum(axis=1), minlength=6) / 20_000
    expected = np.array([0, 1, 1, 1, 1, 1]) / 5 if draws is Draws.SIZES else np.array([1, 5, 10, 10, 5, 1]) / 32
    # a share of 20000 draws has a standard error of at most 0.5 / sqrt(20000) = 0.0035
    np.testing.assert_allclose(sizes, expected, atol=5 * 0.0035)
    np.testing.assert_allclose(kept[1:].mean(axis=0), 0.6 if draws is Draws.SIZES else 0.5, atol=5 * 0.0035)


def test_the_kernel_of_the_released_code_is_the_papers_at_another_width() -> None:
    """sqrt(exp(-d^2 / 0.25^2)) = exp(-d^2 / width^2)."""
    repo = LIME.repo()
    assert repo.id == "lime-repo"
    assert np.exp(-(0.3**2) / repo.width**2) == pytest.approx(np.sqrt(np.exp(-(0.3**2) / 0.25**2)))
    assert (repo.draws, repo.distance, repo.regression) == (Draws.COINS, Distance.COSINE, Regression.RIDGE)


@pytest.mark.usefixtures("sklearn")
def test_k_lasso_keeps_k_superpixels_and_fits_them_freely() -> None:
    """On an affine model with 4 strong superpixels of 16 those are found, and the fit of them is not shrunk."""
    weights = np.zeros((2, 3, 8, 8))
    strong = {2: 3.0, 7: -2.0, 8: 2.5, 13: -1.5}
    for block, weight in strong.items():
        weights[1][:, block == BLOCKS] = weight / 12  # per feature of its 12
    toy = toys.affine(weights.reshape(2, -1), shape=(3, 8, 8))
    method = LIME(segments=BLOCKS, k=4, baseline=np.zeros((3, 8, 8)), objective=Kind.LOGIT, samples=300)
    answer = toys.explain(method, toy, np.ones((3, 8, 8)), 1)
    assert answer.diagnostics["weights"] == pytest.approx([strong.get(block, 0) for block in range(16)], abs=1e-10)
    assert answer.diagnostics["r2"] == pytest.approx(1)
    fewer = toys.explain(LIME(segments=BLOCKS, k=2, objective=Kind.LOGIT), TOY, X, 1)
    assert np.count_nonzero(fewer.diagnostics["weights"]) == 2
    assert 0 < fewer.diagnostics["r2"] < 1


@pytest.mark.usefixtures("sklearn")
def test_superpixels_are_replaced_by_their_own_mean_colour_unless_told_otherwise() -> None:
    """So that an image that is constant on each superpixel never changes, and A is zero."""
    flat = np.stack([BLOCKS / 16, 1 - BLOCKS / 16, BLOCKS * 0 + 0.5])
    answer = toys.explain(LIME(segments=BLOCKS), TOY, flat)
    assert np.abs(answer.values).max() < 1e-12
    assert toys.explain(LIME(segments=BLOCKS, baseline=Baseline.AVERAGE), TOY, flat).values.any()
    last = toys.explain(
        LIME(segments=BLOCKS), toys.picture_net(3, (8, 8, 3)), flat.transpose(1, 2, 0),
        space=Space.pixels(channel_axis=-1),
    )  # fmt: skip
    assert np.abs(last.values).max() < 1e-12


@pytest.mark.usefixtures("sklearn")
def test_a_score_that_never_changes_has_no_fidelity() -> None:
    toy = toys.affine(np.zeros((2, 192)), shape=(3, 8, 8))
    for method in (LIME(segments=BLOCKS), LIME.repo(segments=BLOCKS)):
        answer = toys.explain(method, toy, X)
        assert not answer.values.any()
        assert answer.diagnostics["r2"] is None


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(
        BackendMissing, match=r'scikit-learn is not installed; next: pip install "onnxplain\[superpixel'
    ):
        toys.explain(LIME(segments=BLOCKS), TOY, X)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 1}, "LIME: samples: expected a whole number from 2 to 1000000, got 1"),
        ({"segments": "slic"}, "LIME: segments: expected Segments.QUICKSHIFT, Segments.SLIC or an array of integers"),
        ({"segments": np.zeros((8, 8))}, "LIME: segments: expected Segments.QUICKSHIFT"),
        ({"width": 0}, "LIME: width: expected a positive number"),
        ({"alpha": -1}, "LIME: alpha: expected a positive number"),
        ({"k": 0}, "LIME: k: expected a whole number"),
        ({"distance": "l2"}, "LIME: distance: expected one of l2, cosine"),
        ({"draws": None}, "LIME: draws: expected one of sizes, coins"),
        ({"regression": "ols"}, "LIME: regression: expected one of k_lasso, lasso, ridge"),
        ({"baseline": 0}, "LIME: baseline: expected "),
        ({"objective": Kind.LOGIT_L2}, "LIME: objective: expected one of "),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LIME(**wrong)
    assert str(caught.value).startswith(message)
