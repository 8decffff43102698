"""KernelSHAP: Shapley values, their error when coalitions are drawn."""

from __future__ import annotations

import sys
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pytest
import toys
from frameworks import framework

from onnxplain.engine.methods import KernelSHAP
from onnxplain.engine.methods.kernel_shap import every_coalition
from onnxplain.engine.requests import Array, Kind
from onnxplain.errors import BackendMissing, UsageError

X = np.random.default_rng(0).random((3, 8, 8))
BASELINE = np.random.default_rng(1).random((3, 8, 8))
EIGHT = np.add.outer(2 * (np.arange(8) // 2), np.arange(8) // 4)  # superpixels of 2 x 4
SIXTEEN = np.add.outer(4 * (np.arange(8) // 2), np.arange(8) // 2)  # of 2 x 2
TOY = toys.picture_net(3)


@pytest.fixture
def sklearn() -> None:
    framework("sklearn")


def shapley(cut: Array, target: int, kind: Kind) -> Array:
    """phi_s = sum over S without s of |S|! (M - |S| - 1)! / M! (v(S + s) - v(S)), all 2^M coalitions."""
    count = int(cut.max()) + 1
    members = [frozenset(c) for size in range(count + 1) for c in combinations(range(count), size)]
    value = {}
    for coalition in members:
        z = TOY.logits(np.where(np.isin(cut, list(coalition)), X, BASELINE))
        value[coalition] = z[target] if kind is Kind.LOGIT else toys.softmax(z)[target]
    phi = np.zeros(count)
    for coalition in members:
        for s in set(range(count)) - coalition:
            share = factorial(len(coalition)) * factorial(count - len(coalition) - 1) / factorial(count)
            phi[s] += share * (value[coalition | {s}] - value[coalition])
    return phi


@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("kind", [Kind.LOGIT, Kind.PROB])
def test_few_superpixels_have_exact_shapley_values(kind: Kind) -> None:
    """All 254 coalitions of 8 superpixels and the two ends, each asked once."""
    method = KernelSHAP(segments=EIGHT, baseline=BASELINE, samples=254, objective=kind)
    answer = toys.explain(method, TOY, X, 1)
    phi = shapley(EIGHT, 1, kind)
    assert answer.diagnostics["exact"] is True
    np.testing.assert_allclose(answer.diagnostics["shapley_values"], phi, atol=1e-12)
    np.testing.assert_allclose(answer.values.sum(axis=0), phi[EIGHT], atol=1e-12)
    assert answer.diagnostics["change"] == pytest.approx(phi.sum())


@pytest.mark.usefixtures("sklearn")
def test_drawn_coalitions_come_near_and_add_up_exactly() -> None:
    """10 seeds of 2000 coalitions of 12: within 5 standard errors of the mean, which the seeds themselves tell."""
    cut = np.minimum(SIXTEEN, 11)
    phi = shapley(cut, 1, Kind.LOGIT)
    method = KernelSHAP(segments=cut, baseline=BASELINE, samples=2000)
    answers = [toys.explain(method, TOY, X, 1, seed=seed) for seed in range(10)]
    found = np.array([answer.diagnostics["shapley_values"] for answer in answers])
    assert not any(answer.diagnostics["exact"] for answer in answers)
    np.testing.assert_allclose(found.sum(axis=1), phi.sum(), atol=1e-12)
    error = found.std(axis=0, ddof=1) / np.sqrt(10)
    assert (np.abs(found.mean(axis=0) - phi) < 5 * error).all()
    assert error.max() < 0.01 * np.abs(phi).max()


def test_the_kernel() -> None:
    """(M - 1) / (C(M, n) n (M - n)): for M = 4, 1/4 of one or three superpixels, 1/8 of two."""
    kept, weights = every_coalition(4)
    assert len(np.unique(kept, axis=0)) == 14
    assert weights.tolist() == [{1: 1 / 4, 2: 1 / 8, 3: 1 / 4}[n] for n in kept.sum(axis=1).tolist()]


def test_coalitions_are_drawn_by_the_kernel_with_their_complements() -> None:
    kept, weights = KernelSHAP(samples=20_000).draw(np.random.default_rng(0), 5)
    assert (kept[0::2] == ~kept[1::2]).all()
    assert (weights == 1).all()
    sizes = np.bincount(kept.sum(axis=1), minlength=6) / 20_000
    likely = np.array([0, 1 / 4, 1 / 6, 1 / 6, 1 / 4, 0])
    # a share of 10000 pairs has a standard error of at most 0.5 / sqrt(10000)
    np.testing.assert_allclose(sizes, likely / likely.sum(), atol=5 * 0.005)
    np.testing.assert_allclose(kept[::2].mean(axis=0), 0.5, atol=5 * 0.005)
    assert len(KernelSHAP(samples=33).draw(np.random.default_rng(0), 8)[0]) == 33


@pytest.mark.usefixtures("sklearn")
def test_one_superpixel_has_all_of_the_change() -> None:
    answer = toys.explain(KernelSHAP(segments=np.zeros((8, 8), int), baseline=BASELINE), TOY, X, 2)
    change = TOY.logits(X)[2] - TOY.logits(BASELINE)[2]
    np.testing.assert_allclose(3 * answer.values, np.full_like(X, change), rtol=1e-12)


@pytest.mark.usefixtures("sklearn")
def test_an_image_that_is_its_baseline_gives_nothing() -> None:
    assert not toys.explain(KernelSHAP(segments=EIGHT, baseline=X), TOY, X).values.any()


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="20 samples do not determine 16 superpixels; next: at least 32 samples"):
        toys.explain(KernelSHAP(segments=SIXTEEN, samples=20), TOY, X)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(BackendMissing, match="scikit-learn") as caught:
        toys.explain(KernelSHAP(segments=EIGHT), TOY, X)
    assert caught.value.extra == "superpixels"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 1}, "KernelSHAP: samples: expected a whole number from 2 to 1000000, got 1"),
        ({"segments": np.ones(3)}, "KernelSHAP: segments: expected Segments.QUICKSHIFT, Segments.SLIC or an array of"),
        ({"baseline": None}, "KernelSHAP: baseline: expected "),
        ({"objective": 0}, "KernelSHAP: objective: expected one of "),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        KernelSHAP(**wrong)
    assert str(caught.value).startswith(message)
