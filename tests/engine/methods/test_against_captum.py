"""Gradient methods against Captum: on nets that both differentiate, and on real classifiers.

On a PyTorch net Captum uses PyTorch's autograd and this engine the gradient model of its export, in float64. A real
classifier has no twin in PyTorch: Captum gets its gradients from the gradient model, and does everything else itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from frameworks import framework
from shared_photos import classifier

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.engine.drive import GRADIENT, LOGITS, Model, run
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.methods import (
    FastIG,
    GradientXInput,
    GuidedIG,
    IntegratedGradients,
    Method,
    Rule,
    Saliency,
    SmoothGrad,
    Task,
    Zero,
)
from onnxplain.engine.methods.method import generator
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space

torch = framework("torch")
captum = framework("captum.attr")
stats = framework("scipy.stats")

import torch_nets  # noqa: E402
from onnx_in_torch import OnnxInTorch  # noqa: E402

Array = np.ndarray[Any, Any]
SHAPE, STEPS = (3, 16, 16), 6
RULES = {
    "riemann_left": GuidedIG(steps=STEPS, max_dist=0.0, objective=Kind.LOGIT),
    "riemann_middle": IntegratedGradients(steps=STEPS, rule=Rule.MIDPOINT),
    "riemann_right": IntegratedGradients(steps=STEPS, rule=Rule.RIGHT),
    "riemann_trapezoid": IntegratedGradients(steps=STEPS, rule=Rule.CAPTUM_TRAPEZOID),
    "gausslegendre": IntegratedGradients(steps=STEPS, rule=Rule.GAUSS_LEGENDRE),
}


def in_torch(x: Array) -> Any:
    return torch.from_numpy(x).requires_grad_()


def integrated(rule: str, steps: int = STEPS) -> Callable[[Any, Array, Array], Array]:
    def attribute(net: Any, x: Array, classes: Array) -> Array:
        method = captum.IntegratedGradients(net)
        told = {"target": torch.from_numpy(classes), "n_steps": steps, "method": rule}
        return np.asarray(method.attribute(in_torch(x), **told).detach())

    return attribute


def saliency(absolute: bool) -> Callable[[Any, Array, Array], Array]:
    def attribute(net: Any, x: Array, classes: Array) -> Array:
        method = captum.Saliency(net)
        return np.asarray(method.attribute(in_torch(x), target=torch.from_numpy(classes), abs=absolute).detach())

    return attribute


def gradient_x_input(net: Any, x: Array, classes: Array) -> Array:
    return np.asarray(captum.InputXGradient(net).attribute(in_torch(x), target=torch.from_numpy(classes)).detach())


SAME: list[tuple[Method, Callable[[Any, Array, Array], Array]]] = [
    *((method, integrated(rule)) for rule, method in RULES.items()),
    (Saliency(), saliency(absolute=True)),
    (Saliency(signed=True), saliency(absolute=False)),
    (GradientXInput(), gradient_x_input),
    (FastIG(zero=Zero.INPUT), gradient_x_input),
]
NAMES = [*RULES, "saliency", "signed saliency", "gradient times input", "fast IG"]

# SmoothGrad and its kin: Captum's words for the statistic.
SMOOTH = {
    "smoothgrad": SmoothGrad(samples=5),
    "smoothgrad_sq": SmoothGrad.squared(samples=5),
    "vargrad": SmoothGrad.variance(samples=5),
}


def smooth(
    monkeypatch: pytest.MonkeyPatch, net: Any, x: Array, target: int, kind: str, method: SmoothGrad, seed: Any
) -> Array:
    """Captum's statistic over the noise that our method draws."""
    std = method.noise * (float(x.max()) - float(x.min()))
    noise = (std * seed.normal(size=(method.samples, *x.shape))).astype(x.dtype)

    def normal(mean: float, stds: Any) -> Any:
        assert mean == 0
        assert (np.asarray(stds) == np.float32(std)).all()
        return torch.from_numpy(noise).reshape(stds.shape)

    monkeypatch.setattr(torch, "normal", normal)
    tunnel = captum.NoiseTunnel(captum.Saliency(net))
    told = {"nt_type": kind, "nt_samples": method.samples, "stdevs": float(std), "abs": False}
    return np.asarray(tunnel.attribute(in_torch(x[None]), target=target, **told).detach())[0]


@cache
def twins(name: str) -> tuple[Any, Model]:
    """A net, and its export as the driver takes it, both in float64."""
    net = torch_nets.build(torch_nets.SMALL[name])
    export = torch_nets.to_onnx(net, SHAPE)
    forward, backward = ReferenceExecutor(forward_model(export)), ReferenceExecutor(gradient_model(export))
    return net, Model({LOGITS: lambda: forward, GRADIENT: lambda: backward})


def explained(method: Method, model: Model, x: Array, target: int) -> Array:
    return run(method(x, Task(target, Space.model((0.0, 1.0)), np.random.default_rng(0))), model).values


@pytest.mark.parametrize("name", ["plain", "squeeze"])
@pytest.mark.parametrize(("method", "theirs"), SAME, ids=NAMES)
def test_same_on_a_net_of_pytorch(name: str, method: Method, theirs: Callable[..., Array]) -> None:
    net, model = twins(name)
    x = np.random.default_rng(1).random((2, *SHAPE))
    want = theirs(net, x, np.array([3, 7]))
    for image, target, expected in zip(x, (3, 7), want, strict=True):
        ours = explained(method, model, image, target)
        # the weights of its rules are float32
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-7 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "method"), SMOOTH.items(), ids=list(SMOOTH))
def test_same_statistics_of_noise(monkeypatch: pytest.MonkeyPatch, kind: str, method: SmoothGrad) -> None:
    net, model = twins("plain")
    x = np.random.default_rng(1).random(SHAPE)
    expected = smooth(monkeypatch, net, x, 3, kind, method, np.random.default_rng(0))
    np.testing.assert_allclose(explained(method, model, x, 3), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


CLASSIFIERS = ["imagenet/models/mobilenet_v1_0.25_128", "cifar10/models/resnet20_cifar10"]


def agree(ours: Array, theirs: Array) -> None:
    """To 1e-4 of the largest element, and in order: Spearman's correlation over all elements is 0.999 or more."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert stats.spearmanr(ours.ravel(), theirs.ravel()).statistic >= 0.999


@pytest.mark.parametrize("name", CLASSIFIERS, ids=lambda name: name.split("/")[-1])
def test_same_on_a_real_classifier(name: str) -> None:
    with classifier(name, 2) as (explainer, x, classes):
        for method, theirs in SAME:
            ours = explainer.explain(x, method, classes.tolist())
            for explanation, expected in zip(ours, theirs(OnnxInTorch(explainer), x, classes), strict=True):
                agree(explanation.attribution, expected)


@pytest.mark.parametrize("name", CLASSIFIERS, ids=lambda name: name.split("/")[-1])
def test_same_statistics_on_a_real_classifier(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with classifier(name, 2) as (explainer, x, classes):
        for kind, method in SMOOTH.items():
            for image, target in zip(x, classes.tolist(), strict=True):
                (ours,) = explainer.explain(image[None], method, target)
                net, draws = OnnxInTorch(explainer), generator(0, image, method)
                agree(ours.attribution, smooth(monkeypatch, net, image, target, kind, method, draws))


def test_probabilities_are_pytorchs_softmax() -> None:
    with classifier(CLASSIFIERS[0], 2) as (explainer, x, classes):
        net = torch.nn.Sequential(OnnxInTorch(explainer), torch.nn.Softmax(dim=1))
        ours = explainer.explain(x, Saliency.isa(), classes.tolist())
        for explanation, expected in zip(ours, saliency(absolute=True)(net, x, classes), strict=True):
            agree(explanation.attribution, expected)
