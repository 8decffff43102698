"""The gradient itself, and means of it; and mistakes that any method could make."""

from __future__ import annotations

import numpy as np
import pytest
import toys
from conformance.methods.laws import (
    VECTORS,
    Make,
    Row,
    Wrong,
    answers,
    costs_no_more_than_it_says,
    depends_on_its_image_alone,
    fits_the_image,
    row,
    survives_dead_and_constant,
)

from onnxplain.engine.methods import IntegratedGradients, Saliency


def is_the_gradient(make: Make) -> None:
    for x in VECTORS:
        gradient = toys.TOY_T.pull_back(x, np.eye(3)[1])
        assert toys.explain(make(), toys.TOY_T, x, 1).values == pytest.approx(np.abs(gradient), abs=1e-15)
        assert toys.explain(make(signed=True), toys.TOY_T, x, 1).values == pytest.approx(gradient, abs=1e-15)


def scribble(values: toys.Array, x: toys.Array) -> toys.Array:
    x += 1
    return values


ROWS: dict[str, Row] = {
    "saliency": row(Saliency, is_the_gradient),
}


class Shared:
    """State that outlives an image."""

    count = 0

    def add(self, values: toys.Array, x: toys.Array) -> toys.Array:
        self.count += 1
        return values + self.count


WRONG: Wrong = [
    ("float64", answers(Saliency, lambda a, x: a.astype(np.float64)), fits_the_image),
    ("transposed", answers(Saliency, lambda a, x: a.T), fits_the_image),
    ("scribbles on the image", answers(Saliency, scribble), fits_the_image),
    ("float64 points", lambda: lambda x, task: Saliency()(x * np.float64(1), task), fits_the_image),
    ("counts images", answers(Saliency, Shared().add), depends_on_its_image_alone),
    (
        "draws from thin air",
        answers(Saliency, lambda a, x: a + np.random.default_rng().random(a.shape)),
        depends_on_its_image_alone,
    ),
    ("understates its cost", answers(IntegratedGradients, lambda a, x: a, says=51), costs_no_more_than_it_says),
    ("divides by its own sum", answers(IntegratedGradients, lambda a, x: a / a.sum()), survives_dead_and_constant),
    ("saliency squared", answers(Saliency, lambda a, x: a * a), is_the_gradient),
]
