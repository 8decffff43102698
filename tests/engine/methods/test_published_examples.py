"""The examples on paper of the credible-path article, as they should read (arXiv 2305.14395, section 4).

All are functions of two variables that are affine below and above 1, and all paths run along the diagonal.
"""

from __future__ import annotations

import numpy as np
import pytest
import toys

from onnxplain.engine.methods import CrediblePath, IntegratedGradients
from onnxplain.engine.requests import Attribution, Validity
from onnxplain.engine.space import Space

RANGE = Space.model((0, 5))


def bent(below: tuple[float, float, float], above: tuple[float, float, float]) -> toys.Toy:
    """w . x + b with one (w, b) where both x are at most 1, another where both are above; 0 elsewhere."""

    def piece(x: toys.Array) -> toys.Array:
        if (x <= 1).all():
            return np.array(below)
        return np.array(above if (x > 1).all() else (0.0, 0.0, 0.0))

    return toys.Toy(lambda x: piece(x)[:2] @ x + piece(x)[2:], lambda x, v: v[0] * piece(x)[:2], shape=(2,), classes=1)


EXAMPLE_1 = bent((1, 4, 1), (4, 1, 2))
REPLACEMENT = bent((1, 3, 0), (3, 1, 0))


def ig(toy: toys.Toy, at: float) -> Attribution:
    """From 0, with points so many that the bend falls between two of them: the sum is the integral."""
    return toys.explain(IntegratedGradients(steps=120), toy, np.full(2, at), space=RANGE)


@pytest.mark.parametrize(
    ("at", "published", "right", "change"), [(1.5, [3.5, 6.5], [3.0, 4.5], 8.5), (4.0, [20, 19], [13, 7], 21)]
)
def test_example_1(at: float, published: list[float], right: list[float], change: float) -> None:
    """IG is x times the mean of (1, 4) over the share 1/a of the path and (4, 1) over the rest.

    The published values count the first part over the whole length, x * (1, 4) + (x - 1) * (4, 1); at (4, 4), where
    that is (16, 19), there is a slip beside. F jumps by 1 at the bend, which no integral of its gradient sees: the
    attributions miss F(x) - F(0) by exactly 1, and the example says nothing of completeness.
    """
    answer = ig(EXAMPLE_1, at)
    assert answer.values == pytest.approx(right)
    assert answer.diagnostics["change"] == pytest.approx(change)
    assert answer.diagnostics["change"] - answer.diagnostics["sum"] == pytest.approx(1)
    x = np.full(2, at)
    slip = x * (1, 4) + (x - 1) * (4, 1)
    assert slip == pytest.approx(published if at == 1.5 else [16, 19])


def test_example_1_still_makes_its_point() -> None:
    """Which variable matters more is turned over from one point to the other, though both have the gradient (4, 1)."""
    near, far = ig(EXAMPLE_1, 1.5).values, ig(EXAMPLE_1, 4.0).values
    assert near[0] < near[1]
    assert far[0] > far[1]


@pytest.mark.parametrize(("at", "values"), [(2.0, [4, 4]), (4.0, [10, 6])])
def test_the_replacement_of_example_1_is_complete(at: float, values: list[float]) -> None:
    """Without offsets F is continuous along the diagonal, and the same point is made by a function that is fair."""
    answer = ig(REPLACEMENT, at)
    assert answer.values == pytest.approx(values)
    assert answer.values.sum() == pytest.approx(REPLACEMENT.logits(np.full(2, at))[0])
    assert answer.diagnostics["completeness_gap"] < 1e-12


def from_baseline(baseline: tuple[float, float], at: float, validity: Validity | None) -> toys.Array:
    method = CrediblePath(starts=np.array([baseline]), max_iter=1, steps=40, validity=validity)
    return toys.explain(method, EXAMPLE_1, np.full(2, at), space=RANGE).values


@pytest.mark.parametrize("validity", [None, Validity.PATH])
def test_example_2(validity: Validity | None) -> None:
    """A baseline in the same affine piece, (3, 3), gives the ratio 4 of its weights on both sides."""
    assert from_baseline((3, 3), 1.5, validity) == pytest.approx([-6, -1.5])
    assert from_baseline((3, 3), 4.0, validity) == pytest.approx([4, 1])


def test_example_2_needs_more_than_the_same_piece() -> None:
    """The ratio is not 4 for every baseline of the piece, as is said there: it takes x_1 - x'_1 = +-(x_2 - x'_2).

    What is the same for all baselines is A / (x - x').
    """
    values = from_baseline((2, 3), 4.0, None)
    assert values == pytest.approx([8, 1])
    assert values / (4 - np.array([2, 3])) == pytest.approx([4, 1])


def test_example_2_by_the_rules_as_printed() -> None:
    """Inside one affine piece `literal` drops what lies below its baseline, and `grad` drops everything."""
    assert from_baseline((3, 3), 4.0, Validity.LITERAL) == pytest.approx([4, 1])
    assert not from_baseline((3, 3), 1.5, Validity.LITERAL).any()
    assert not from_baseline((3, 3), 4.0, Validity.GRAD).any()
