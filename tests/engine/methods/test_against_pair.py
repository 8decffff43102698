"""Guided IG, blur IG, IG and SmoothGrad against the library of Guided and Blur IG's authors, on real classifiers.

The library gets gradients from the gradient model, and does everything else itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from frameworks import framework
from shared_photos import classifier

from onnxplain.engine.methods import BlurIG, Bound, Grid, GuidedIG, IntegratedGradients, Method, Rule, SmoothGrad
from onnxplain.engine.methods.blur_ig import blur
from onnxplain.engine.methods.method import generator
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space
from onnxplain.explainer import Explainer

pair = framework("saliency.core")
stats = framework("scipy.stats")
ndimage = framework("scipy.ndimage")

Array = np.ndarray[Any, Any]
CLASSIFIERS = ["imagenet/models/mobilenet_v1_0.25_128", "cifar10/models/resnet20_cifar10"]
quantile = np.quantile


@pytest.fixture(autouse=True)
def numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy has renamed an argument since that library was written: `interpolation` is `method`."""
    monkeypatch.setattr(np, "quantile", lambda a, q, interpolation: quantile(a, q, method=interpolation))


def gradients_of(explainer: Explainer, target: int, kind: Kind) -> Callable[..., dict[str, Array]]:
    """What the library asks: gradients at a batch of images with the channels last."""

    def call(images: Array, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Array]:
        x = np.moveaxis(np.asarray(images), -1, 1).astype(np.float32)
        gradient = explainer.gradients(x, target, kind).gradient
        return {pair.INPUT_OUTPUT_GRADIENTS: np.moveaxis(gradient, 1, -1)}

    return call


def agree(ours: Array, theirs: Array) -> None:
    """To 1e-5 of the largest element, and in order: Spearman's correlation over all elements is 0.999 or more."""
    theirs = np.moveaxis(theirs, -1, 0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert stats.spearmanr(ours.ravel(), theirs.ravel()).statistic >= 0.999


SAME: list[tuple[str, Method, Any, dict[str, Any]]] = [
    ("guided IG", GuidedIG(steps=25), pair.GuidedIG, {"x_steps": 25}),
    ("guided IG, free", GuidedIG(steps=25, max_dist=1.0), pair.GuidedIG, {"x_steps": 25, "max_dist": 1.0}),
    (
        "guided IG, finer",
        GuidedIG(steps=15, fraction=0.1, max_dist=0.1),
        pair.GuidedIG,
        {"x_steps": 15, "fraction": 0.1, "max_dist": 0.1},
    ),
    ("blur IG", BlurIG(steps=20), pair.BlurIG, {"steps": 20}),
    ("blur IG, roots", BlurIG(steps=20, grid=Grid.SQRT), pair.BlurIG, {"steps": 20, "sqrt": True}),
    ("blur IG, narrow", BlurIG(steps=10, max_sigma=5.0), pair.BlurIG, {"steps": 10, "max_sigma": 5}),
    (
        "IG",
        IntegratedGradients(steps=10, rule=Rule.ENDPOINTS_MEAN, objective=Kind.PROB),
        pair.IntegratedGradients,
        {"x_steps": 10},
    ),
]


@pytest.mark.parametrize("name", CLASSIFIERS, ids=lambda name: name.split("/")[-1])
@pytest.mark.parametrize(("method", "theirs", "told"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_same_on_a_real_classifier(name: str, method: Method, theirs: Any, told: dict[str, Any]) -> None:
    with classifier(name, 2) as (explainer, x, classes):
        ours = explainer.explain(x, method, classes.tolist())
        for explanation, image, target in zip(ours, x, classes.tolist(), strict=True):
            call = gradients_of(explainer, target, Kind.PROB)
            # float64, since a hundredth of a blur is too little for float32
            mask = theirs().GetMask(np.moveaxis(image, 0, -1).astype(np.float64), call, **told)
            agree(explanation.attribution, mask)


def test_anchors_are_free_paths_between_points_of_the_straight_line() -> None:
    """The library has lost its anchors: its free path from each to the next, added up."""
    with classifier(CLASSIFIERS[1], 1) as (explainer, x, classes):
        method = GuidedIG(steps=40, fraction=0.1, bound=Bound.ANCHORS, anchors=3)
        (ours,) = explainer.explain(x, method, classes.tolist())
        image = np.moveaxis(x[0], 0, -1).astype(np.float64)
        call = gradients_of(explainer, int(classes[0]), Kind.PROB)
        told = {"x_steps": 10, "fraction": 0.1, "max_dist": 1.0}
        parts = [pair.GuidedIG().GetMask(image * (i + 1) / 4, call, x_baseline=image * i / 4, **told) for i in range(4)]
        agree(ours.attribution, np.sum(parts, axis=0))


@pytest.mark.parametrize("magnitude", [True, False])
def test_same_mean_over_the_same_noise(monkeypatch: pytest.MonkeyPatch, magnitude: bool) -> None:
    make = SmoothGrad.pair if magnitude else SmoothGrad
    with classifier(CLASSIFIERS[1], 2) as (explainer, x, classes):
        method = make(samples=5)
        for image, target in zip(x, classes.tolist(), strict=True):
            (ours,) = explainer.explain(image[None], method, target)
            draws = generator(0, image, method)

            def normal(mean: float, std: float, shape: tuple[int, ...], draws: Any = draws) -> Array:
                noise = (std * draws.normal(size=(shape[2], *shape[:2]))).astype(np.float32)
                return mean + np.moveaxis(noise, 0, -1)

            monkeypatch.setattr(np.random, "normal", normal)
            call = gradients_of(explainer, target, Kind.LOGIT)
            library = pair.GradientSaliency()
            x_last = np.moveaxis(image, 0, -1).astype(np.float64)
            mask = library.GetSmoothedMask(x_last, call, nsamples=5, magnitude=magnitude)
            agree(ours.attribution, mask)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 7.3, 50.0])
def test_the_blur_is_scipys(sigma: float) -> None:
    x = np.random.default_rng(0).random((3, 60, 40))
    want = ndimage.gaussian_filter(x, [0, sigma, sigma], mode="constant")
    np.testing.assert_allclose(blur(x, sigma, Space.pixels()), want, rtol=0, atol=1e-14)
