"""Integrals of gradients along paths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import toys
from conformance.methods.laws import PICTURES, VECTORS, Make, Row, Wrong, answers, row

from onnxplain.engine.methods import (
    Alphas,
    BlurIG,
    ExpectedGradients,
    FastIG,
    GuidedIG,
    IntegratedGradients,
    Task,
    Zero,
)
from onnxplain.engine.methods.blur_ig import blur
from onnxplain.engine.requests import Attribution, Kind, Line, Program
from onnxplain.engine.space import Space


def complete(make: Make) -> None:
    """sum A = F(x) - F(x') on quadratics, and the diagnostics say so."""
    for seed, x in enumerate(VECTORS):
        toy = toys.quadratic(seed)
        answer = toys.explain(make(baseline=x[::-1].copy()), toy, x, 1)
        assert answer.values.sum() == pytest.approx((toy.logits(x) - toy.logits(x[::-1]))[1], abs=1e-11)
        assert answer.diagnostics["completeness_gap"] < 1e-9


def exact_on_affine(make: Make) -> None:
    """A = w * (x - x') on affine models."""
    for x in VECTORS:
        values = toys.explain(make(baseline=x[::-1].copy(), objective=Kind.LOGIT), toys.TOY_L, x, 2).values
        assert values == pytest.approx(toys.W[2] * (x - x[::-1]), abs=1e-13)


def nothing_from_itself(make: Make) -> None:
    """x = x' gives exactly zero."""
    for x in VECTORS:
        assert not toys.explain(make(baseline=x), toys.TOY_T, x).values.any()


def ig_without_room(make: Make) -> None:
    """On the straight line it is IG whose gradients are those at the start of each step."""
    for x in VECTORS:
        start = x[::-1].copy()
        values = toys.explain(make(steps=9, max_dist=0.0, baseline=start, objective=Kind.LOGIT), toys.TOY_T, x).values
        gradients = [toys.TOY_T.pull_back(start + k / 9 * (x - start), np.eye(3)[0]) for k in range(9)]
        assert values == pytest.approx((x - start) * np.mean(gradients, axis=0), abs=1e-13)


def one_reference_is_ig(make: Make) -> None:
    for x in VECTORS:
        other = x[::-1].copy()
        method = make(background=other[None], references=1, points=9, alphas=Alphas.MIDPOINT)
        same = toys.explain(IntegratedGradients(steps=9, baseline=other), toys.TOY_T, x)
        assert toys.explain(method, toys.TOY_T, x).values == pytest.approx(same.values, abs=1e-14)


def complete_on_average(make: Make) -> None:
    """sum A = F(x) - mean F(x') on quadratics, over the background without x."""
    for seed, x in enumerate(VECTORS):
        toy, others = toys.quadratic(seed), np.delete(VECTORS, seed, axis=0)
        method = make(background=VECTORS, references=6, points=2, alphas=Alphas.MIDPOINT)
        # the mean of x - x' is not that of the gradients' products, so each path is exact by itself: 2 midpoints
        change = toy.logits(x)[1] - np.mean([toy.logits(other)[1] for other in others])
        assert toys.explain(method, toy, x, 1).values.sum() == pytest.approx(change, abs=1e-11)


def ig_of_nets_without_bias(make: Make) -> None:
    """On a ReLU net without biases it is IG from zero, and sums to the logit."""
    for seed, x in enumerate(VECTORS):
        toy = toys.relu_net(seed)
        values = toys.explain(make(), toy, x, 1).values
        same = toys.explain(IntegratedGradients(baseline=np.zeros(6)), toy, x, 1).values
        assert values == pytest.approx(same, abs=1e-13)
        assert values.sum() == pytest.approx(toy.logits(x)[1], abs=1e-13)


def zero_is_the_mean_colour(make: Make) -> None:
    space = Space.pixels((0.25,), (0.5,), rank=1)
    for x in VECTORS:
        gradient = toys.TOY_T.pull_back(x, np.eye(3)[1])
        assert toys.explain(make(), toys.TOY_T, x, 1, space=space).values == pytest.approx((x - 0.25) * gradient)


def loss_times_pixels(make: Make) -> None:
    """x * the gradient of the loss that has two softmaxes, wherever model space has its zero."""
    space = Space.pixels((0.25,), (0.5,), rank=1)
    for x in VECTORS:
        _, cotangent = toys.objective(Kind.CE_ON_PROBS, toys.TOY_T.logits(x), np.eye(3)[1])
        values = toys.explain(make(), toys.TOY_T, x, 1, space=space).values
        assert values == pytest.approx(x * toys.TOY_T.pull_back(x, cotangent), abs=1e-15)


def complete_in_small_steps(make: Make) -> None:
    """sum A is nearly F(x) - F(its blur); what is left are the taps that a wider blur adds at its edge."""
    toy = toys.picture_net()
    for x in PICTURES[:2]:
        method = make(steps=400, max_sigma=2.0, grad_step=1e-5, objective=Kind.LOGIT)
        answer = toys.explain(method, toy, x, 1)
        change = toy.logits(x)[1] - toy.logits(blur(x, 2.0, toys.pixels(toy)))[1]
        assert answer.diagnostics["change"] == pytest.approx(change, abs=1e-12)
        assert answer.values.sum() == pytest.approx(change, rel=0.01)


class Against(ExpectedGradients):
    """A method that finds a background of its own, since the pictures of the laws differ in shape."""

    def images(self, x: toys.Array) -> toys.Array:
        if self.background is not None:
            return self.background
        return np.random.default_rng(3).random((4, *x.shape)).astype(x.dtype)


IG = (complete, exact_on_affine, nothing_from_itself)
GIG = (exact_on_affine, nothing_from_itself, ig_without_room)
ROWS: dict[str, Row] = {
    "ig": row(partial(IntegratedGradients, steps=7), *IG),
    "ig-average": row(partial(IntegratedGradients.average, steps=7), *IG),
    "ig-gaussian": row(partial(IntegratedGradients.gaussian, steps=7), *IG),
    "eg": row(partial(Against, references=5, points=3), one_reference_is_ig, complete_on_average),
    "gig": row(partial(GuidedIG, steps=8), *GIG),
    "gig-isa": row(GuidedIG.isa, *GIG),
    "fig": row(FastIG, ig_of_nets_without_bias, zero_is_the_mean_colour),
    "fig-isa": row(FastIG.isa, loss_times_pixels),
    "blur-ig": row(partial(BlurIG, steps=9), complete_in_small_steps),
}


class Halved(IntegratedGradients):
    """Weights that do not sum to 1."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        program = super().__call__(x, task)
        line = next(program)
        assert isinstance(line, Line)
        path = yield replace(line, weights=line.weights / 2)
        forward = program.send(path)
        try:
            program.send((yield forward))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise AssertionError


class TooFree(GuidedIG):
    """Does not heed the bound."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_dist", 1.0)


class WithItself(Against):
    """Keeps the image among those that it is compared with."""

    def images(self, x: toys.Array) -> toys.Array:
        return np.concatenate([super().images(x), x[None] * (1 + 1e-12)])


class Forward(BlurIG):
    """From sharp to blurred, and not the other way round."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        answer = yield from super().__call__(x, task)
        return replace(answer, values=-answer.values)


WRONG: Wrong = [
    ("IG with half the weight", Halved, complete),
    ("IG with half the weight", Halved, exact_on_affine),
    ("IG of the gradient alone", answers(IntegratedGradients, lambda a, x: a / x), complete),
    ("IG with an offset", answers(IntegratedGradients, lambda a, x: a + 1e-9), nothing_from_itself),
    ("guided IG that heeds no bound", TooFree, ig_without_room),
    ("expected gradients, divided by points only", answers(Against, lambda a, x: a * 3), one_reference_is_ig),
    ("expected gradients from the image itself", WithItself, complete_on_average),
    ("fast IG of a loss", FastIG.isa, ig_of_nets_without_bias),
    ("fast IG, signs turned back", answers(FastIG.isa, lambda a, x: -a), loss_times_pixels),
    ("fast IG from black", partial(FastIG, zero=Zero.INPUT), zero_is_the_mean_colour),
    ("blur IG, signs turned", Forward, complete_in_small_steps),
]
