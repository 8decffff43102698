"""Rank correlation against SciPy, with and without ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from frameworks import framework

from onnxplain.engine.metrics.ranks import average_ranks, spearman

stats = framework("scipy.stats")


@pytest.mark.parametrize("levels", [2, 5, 10**6])
@pytest.mark.parametrize("shape", [(2,), (50,), (3, 8, 9)])
def test_same_as_scipy(levels, shape):
    draw = np.random.default_rng(levels)
    a, b = draw.integers(levels, size=(2, *shape)).astype(np.float32)
    a.flat[:2], b.flat[:2] = (0, 1), (1, 0)
    np.testing.assert_array_equal(average_ranks(a), stats.rankdata(a.ravel()))
    np.testing.assert_allclose(spearman(a, b), stats.spearmanr(a.ravel(), b.ravel()).statistic, rtol=1e-12)


def test_only_ranks_count():
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    np.testing.assert_allclose(spearman(np.exp(a), b**3), spearman(a, b), rtol=1e-12)
    assert spearman(a, a) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)


def test_a_constant_has_none():
    assert math.isnan(spearman(np.ones(9), np.arange(9.0)))
    assert math.isnan(spearman(np.arange(9.0), np.ones(9)))
