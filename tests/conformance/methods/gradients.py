"""The gradient itself, and means of it; and mistakes that any method could make."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import toys
from conformance.methods.laws import (
    PICTURES,
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
from conformance.methods.path import ig_of_nets_without_bias

from onnxplain.engine.methods import GradientXInput, IntegratedGradients, Saliency, SmoothGrad, Statistic, Task
from onnxplain.engine.requests import Attribution, Gradients, Kind, Points, Program


def is_the_gradient(make: Make) -> None:
    """Of the logit or of the probability, with or without its sign."""
    for x in VECTORS:
        for kind in (Kind.LOGIT, Kind.PROB):
            tell = partial(make, objective=kind)
            gradient = toys.TOY_T.pull_back(x, toys.objective(kind, toys.TOY_T.logits(x), np.eye(3)[1])[1])
            assert toys.explain(tell(), toys.TOY_T, x, 1).values == pytest.approx(np.abs(gradient), abs=1e-15)
            assert toys.explain(tell(signed=True), toys.TOY_T, x, 1).values == pytest.approx(gradient, abs=1e-15)


def is_the_gradient_times_the_input(make: Make) -> None:
    for x in VECTORS:
        gradient = toys.TOY_T.pull_back(x, np.eye(3)[1])
        assert toys.explain(make(), toys.TOY_T, x, 1).values == pytest.approx(x * gradient, abs=1e-15)


def is_a_statistic_of_gradients(make: Make) -> None:
    """What numpy makes of the gradients at the points that were asked for, however many there are."""
    method = make(samples=40)
    toy, x = toys.picture_net(), PICTURES[0]
    program = method(x, toys.task(toy, 1))
    points: list[toys.Array] = []
    gradients: list[toys.Array] = []
    request = next(program)
    while True:
        assert isinstance(request, Points)
        points += list(request.x)
        here = np.stack([toy.pull_back(point, np.eye(4)[1]) for point in request.x])
        gradients += list(here)
        try:
            request = program.send(Gradients(np.zeros((len(here), 4)), np.zeros(len(here)), here))
        except StopIteration as end:
            values = end.value.values
            break
    assert len(points) == 40
    assert np.std(np.stack(points) - x) == pytest.approx(method.noise * (np.ptp(x) if method.relative else 1), rel=0.03)
    assert np.mean(np.stack(points) - x) == pytest.approx(0, abs=0.04 * method.noise)
    statistics = {
        Statistic.MEAN: lambda g: g.mean(axis=0),
        Statistic.MEAN_SQUARE: lambda g: (g * g).mean(axis=0),
        Statistic.VARIANCE: lambda g: g.var(axis=0),
    }
    assert values == pytest.approx(statistics[method.statistic](np.stack(gradients)), abs=1e-13)


def scribble(values: toys.Array, x: toys.Array) -> toys.Array:
    x += 1
    return values


ROWS: dict[str, Row] = {
    "saliency": row(Saliency, is_the_gradient),
    "saliency-isa": row(Saliency.isa, is_the_gradient),
    "smoothgrad": row(partial(SmoothGrad, samples=6), is_a_statistic_of_gradients),
    "smoothgrad-squared": row(partial(SmoothGrad.squared, samples=6), is_a_statistic_of_gradients),
    "vargrad": row(partial(SmoothGrad.variance, samples=6), is_a_statistic_of_gradients),
    "smoothgrad-pair": row(SmoothGrad.pair, is_a_statistic_of_gradients),
    "smoothgrad-captum": row(SmoothGrad.captum, is_a_statistic_of_gradients),
    "gradient-x-input": row(GradientXInput, ig_of_nets_without_bias, is_the_gradient_times_the_input),
}


class Shared:
    """State that outlives an image."""

    count = 0

    def add(self, values: toys.Array, x: toys.Array) -> toys.Array:
        self.count += 1
        return values + self.count


class Bessel(SmoothGrad):
    """Divides by one less than there are copies."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        answer = yield from super().__call__(x, task)
        return replace(answer, values=answer.values * self.samples / (self.samples - 1))


class Louder(SmoothGrad):
    """Takes the noise twice."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        return SmoothGrad(samples=self.samples, noise=2 * self.noise)(x, task)


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
    ("SmoothGrad that divides by N - 1", Bessel, is_a_statistic_of_gradients),
    ("SmoothGrad with twice the noise", Louder, is_a_statistic_of_gradients),
    ("gradient without input", partial(Saliency, signed=True), is_the_gradient_times_the_input),
    ("saliency squared", answers(Saliency, lambda a, x: a * a), is_the_gradient),
]
