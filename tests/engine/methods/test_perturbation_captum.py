"""Occlusion, LIME and KernelSHAP against Captum: on small nets, and on real classifiers.

Captum gets the same classifier, baseline and superpixels. What it gives to every channel is shared out among them here,
so that our map is the sum over channels. Both draw for themselves unless a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import exp, sqrt
from typing import Any

import numpy as np
import pytest
import toys
from frameworks import framework
from shared_photos import classifier

from onnxplain.engine.methods import LIME, Distance, Draws, KernelSHAP, Occlusion, Regression
from onnxplain.engine.requests import Array, Kind
from onnxplain.explainer import Explainer

torch = framework("torch")
captum = framework("captum.attr")
models = framework("captum._utils.models.linear_model")
stats = framework("scipy.stats")
framework("sklearn")

Logits = Callable[[Array], Array]
MOBILENET, RESNET = "imagenet/models/mobilenet_v1_0.25_128", "cifar10/models/resnet20_cifar10"
TOY = toys.picture_net(3)
X, BASELINE = np.random.default_rng(0).random((3, 8, 8)), np.random.default_rng(1).random((3, 8, 8))
SIXTEEN = np.add.outer(4 * (np.arange(8) // 2), np.arange(8) // 2)  # superpixels of 2 x 2
SEEDS = 10


def toy_logits(rows: Array, toy: toys.Toy = TOY) -> Array:
    return np.stack([toy.logits(row) for row in rows])


def in_torch(logits: Logits) -> Callable[[Any], Any]:
    return lambda rows: torch.from_numpy(logits(rows.detach().numpy()))


def occlusion(logits: Logits, x: Array, baseline: Array, target: int, method: Occlusion) -> Array:
    """Captum's map (H, W) of an image (C, H, W), with the windows of `method`."""
    channels = len(x)
    values = captum.Occlusion(in_torch(logits)).attribute(
        torch.from_numpy(x)[None],
        sliding_window_shapes=(channels, method.window, method.window),
        strides=(channels, method.stride, method.stride),
        baselines=torch.from_numpy(baseline)[None],
        target=target,
        perturbations_per_eval=16,
    )
    return np.asarray(values)[0, 0]


def of_superpixels(make: Any, cut: Array, x: Array, baseline: Array, target: int, **told: Any) -> Array:
    """The value of each superpixel, by a Captum method that takes a `feature_mask`."""
    mask = torch.from_numpy(np.broadcast_to(cut, x.shape).copy())[None]
    values = make.attribute(
        torch.from_numpy(x)[None], baselines=torch.from_numpy(baseline)[None], target=target, feature_mask=mask,
        perturbations_per_eval=16, **told,
    )  # fmt: skip
    first = np.unique(cut, return_index=True)[1]
    return np.asarray(values)[0, 0].reshape(-1)[first]


def closeness(distance: Distance, width: float) -> Callable[..., Any]:
    """Our kernel, for Captum's Lime."""

    def of(original: Any, perturbed: Any, kept: Any, **_: Any) -> Any:
        share = float(kept.double().mean())
        away = sqrt(1 - share) if distance is Distance.L2 else 1 - sqrt(share)
        return torch.tensor([exp(-(away**2) / width**2)])

    return of


def lime(logits: Logits, method: LIME, cut: Array, x: Array, baseline: Array, target: int, **told: Any) -> Array:
    """Captum's Lime with the kernel and the regression of `method`."""
    model = {Regression.RIDGE: models.SkLearnRidge, Regression.LASSO: models.SkLearnLasso}[method.regression]
    kernel = closeness(method.distance, method.width)
    make = captum.Lime(in_torch(logits), model(alpha=method.alpha), similarity_func=kernel, **told)
    return of_superpixels(make, cut, x, baseline, target, n_samples=method.samples)


def blocks(picture: tuple[int, ...], down: int, across: int) -> Array:
    """`down` x `across` superpixels of about one size."""
    rows, columns = (np.arange(size) * parts // size for size, parts in zip(picture, (down, across), strict=True))
    return np.add.outer(across * rows, columns)


def zero_of(explainer: Explainer, x: Array) -> Array:
    return np.broadcast_to(explainer.space.zero, x.shape).astype(np.float32)


def same_means(ours: list[Array], theirs: list[Array], rounding: float) -> None:
    """The means of both over seeds differ by at most 5 standard errors, sqrt(s² / n + s'² / n'), and by rounding."""
    error = np.sqrt(sum(np.var(runs, axis=0, ddof=1) / len(runs) for runs in (ours, theirs)))
    off = np.abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    scale = np.abs(np.mean(theirs, axis=0)).max()
    assert (off <= 5 * error + rounding * scale).all()
    assert error.max() < 0.1 * scale  # so that the tolerance tells something


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 2), (3, 2), (3, 3), (5, 4), (8, 8), (8, 3), (7, 2)])
def test_occlusion_on_a_small_net(window: int, stride: int) -> None:
    """In float64, windows cut off at the ends and all; Captum keeps its sums in float32."""
    toy = toys.picture_net(1, (3, 8, 10))
    draw = np.random.default_rng(2)
    x, baseline = draw.random((3, 8, 10)), draw.random((3, 8, 10))
    method = Occlusion(window=window, stride=stride, baseline=baseline, objective=Kind.LOGIT)
    ours = toys.explain(method, toy, x, 2).values.sum(axis=0)
    theirs = occlusion(partial(toy_logits, toy=toy), x, baseline, 2, method)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "window"), [(MOBILENET, 15), (RESNET, 5)], ids=["mobilenet", "resnet"])
def test_occlusion_on_a_real_classifier(name: str, window: int) -> None:
    """Spearman's correlation is 0.999 or more for each photo."""
    method = Occlusion(window=window, stride=window // 2 + 1, objective=Kind.LOGIT)
    with classifier(name, 2) as (explainer, x, classes):
        for image, target in zip(x, classes.tolist(), strict=True):
            (ours,) = explainer.explain(image[None], method, target)
            theirs = occlusion(explainer.logits, image, zero_of(explainer, image), target, method)
            map = ours.attribution.sum(axis=0)
            assert stats.spearmanr(map.ravel(), theirs.ravel()).statistic >= 0.999
            np.testing.assert_allclose(map, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("regression", [Regression.RIDGE, Regression.LASSO])
@pytest.mark.parametrize("distance", list(Distance))
def test_lime_on_the_same_samples(regression: Regression, distance: Distance) -> None:
    """Captum with our draws: the same coefficients, up to the float32 that it computes in."""
    method = LIME(
        samples=200, segments=SIXTEEN, draws=Draws.COINS, distance=distance, width=0.5, baseline=BASELINE, alpha=0.01,
        regression=regression, objective=Kind.LOGIT,
    )  # fmt: skip
    drawn = method.draw(np.random.default_rng(0), 16)  # as `toys.explain` has them drawn
    samples = iter(torch.from_numpy(drawn.astype(np.float32))[:, None])
    theirs = lime(toy_logits, method, SIXTEEN, X, BASELINE, 1, perturb_func=lambda *_, **__: next(samples))
    ours = toys.explain(method, TOY, X, 1).diagnostics["weights"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_lime_within_its_sampling_error() -> None:
    """Each draws its own coins, 10 seeds of both, on a photo. A penalty of 0.001 on some hundred samples is nothing.

    Our first sample is always the image, one of 250: what that moves is far less than the standard error of the others.
    """
    with classifier(RESNET, 1) as (explainer, x, classes):
        cut, zero, target = blocks(x.shape[2:], 3, 3), zero_of(explainer, x[0]), int(classes[0])
        method = LIME.repo(segments=cut, samples=250, baseline=zero, alpha=1e-3, objective=Kind.LOGIT)
        ours = [
            np.array(explainer.explain(x, method, target, seed=seed)[0].diagnostics["weights"]) for seed in range(SEEDS)
        ]
        theirs = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            theirs.append(lime(explainer.logits, method, cut, x[0], zero, target))
        same_means(ours, theirs, rounding=1e-4)


def exact_shapley(logits: Logits, cut: Array, x: Array, baseline: Array, target: int) -> Array:
    """Captum's, over all orders of the superpixels."""
    return of_superpixels(captum.ShapleyValues(in_torch(logits)), cut, x, baseline, target)


def test_kernel_shap_is_exact_on_a_small_net() -> None:
    """By all 62 coalitions of 6 superpixels; Captum by all 720 orders, keeping its sums in float32."""
    cut = blocks((8, 8), 2, 3)
    ours = toys.explain(KernelSHAP(segments=cut, baseline=BASELINE), TOY, X, 1)
    assert ours.diagnostics["exact"]
    theirs = exact_shapley(toy_logits, cut, X, BASELINE, 1)
    np.testing.assert_allclose(ours.diagnostics["shapley_values"], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [MOBILENET, RESNET], ids=["mobilenet", "resnet"])
def test_kernel_shap_is_exact_on_a_real_classifier(name: str) -> None:
    """4 superpixels of a photo: 14 coalitions here, 24 orders there; all in the classifier's float32."""
    with classifier(name, 1) as (explainer, x, classes):
        cut, target = blocks(x.shape[2:], 2, 2), int(classes[0])
        (ours,) = explainer.explain(x, KernelSHAP(segments=cut), target)
        theirs = exact_shapley(explainer.logits, cut, x[0], zero_of(explainer, x[0]), target)
        phi = np.array(ours.diagnostics["shapley_values"])
        np.testing.assert_allclose(phi, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
        np.testing.assert_allclose(ours.attribution.sum(axis=0), phi[cut], rtol=1e-5, atol=1e-6)


def test_kernel_shap_within_its_sampling_error() -> None:
    """16 superpixels, whose 65534 coalitions neither asks: 10 seeds of both.

    Captum keeps the sum by a large weight instead of exactly, and computes in float32: 1e-3 is left for that.
    """
    method = KernelSHAP(segments=SIXTEEN, baseline=BASELINE, samples=600)
    ours, theirs = [], []
    for seed in range(SEEDS):
        answer = toys.explain(method, TOY, X, 1, seed=seed)
        assert not answer.diagnostics["exact"]
        ours.append(np.array(answer.diagnostics["shapley_values"]))
        torch.manual_seed(seed)
        theirs.append(of_superpixels(captum.KernelShap(in_torch(toy_logits)), SIXTEEN, X, BASELINE, 1, n_samples=600))
    same_means(ours, theirs, rounding=1e-3)
