"""Scores of a data set are monoids, and say what NumPy says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.metrics import Score, Scores

VALUES = st.lists(st.floats(-1, 1), max_size=20)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "metric": st.sampled_from(["insertion_auc", "deletion_auc"]),
            "protocol": st.sampled_from(["rise", "agi_isa"]),
            "reduction": st.sampled_from(["sum", "none"]),
            "value": st.floats(0, 1),
        }
    ),
    max_size=12,
)


def total(values):
    score = Score.empty()
    for value in values:
        score = score.merge(Score.of(value))
    return score


def agree(a, b):
    assert a.n == b.n
    np.testing.assert_allclose([a.mean, a.m2], [b.mean, b.m2], atol=1e-12)


@given(VALUES, VALUES, VALUES)
def test_merging_is_associative_and_commutative(a, b, c):
    a, b, c = total(a), total(b), total(c)
    agree(a.merge(b).merge(c), a.merge(b.merge(c)))
    agree(a.merge(b), b.merge(a))


@given(VALUES)
def test_empty_is_the_identity(values):
    score = total(values)
    assert score.merge(Score.empty()) == score == Score.empty().merge(score)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_mean_and_standard_error(values):
    mean, error, n = total(values).compute()
    assert n == len(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(n), abs=1e-7)


def test_too_few_values_have_no_mean_or_no_error():
    assert math.isnan(Score.empty().compute().mean)
    assert Score.of(0.5).compute().mean == 0.5
    assert math.isnan(Score.of(0.5).compute().standard_error)


@given(ROWS, ROWS)
def test_rows_of_another_kind_are_never_averaged_together(a, b):
    merged = Scores.of(a).merge(Scores.of(b))
    for summary in merged.compute():
        same = [
            row["value"]
            for row in a + b
            if all(row[name] == summary[name] for name in ("metric", "protocol", "reduction"))
        ]
        assert summary["n"] == len(same)
        assert summary["mean"] == pytest.approx(np.mean(same), abs=1e-12)
    assert sum(summary["n"] for summary in merged.compute()) == len(a + b)


@given(ROWS)
def test_no_rows_are_the_identity(rows):
    scores = Scores.of(rows)
    assert scores.merge(Scores.empty()) == scores == Scores.empty().merge(scores)
