"""Infidelity and max-sensitivity against Captum, on a net of PyTorch and its export, with the same perturbations."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from frameworks import framework

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.engine.drive import GRADIENT, LOGITS, Model, run
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.methods import GradientXInput, Saliency, Task
from onnxplain.engine.metrics import Infidelity, MaxSensitivity, Perturbation
from onnxplain.engine.space import Space

torch = framework("torch")
metrics = framework("captum.metrics")
attr = framework("captum.attr")

import torch_nets  # noqa: E402

Array = np.ndarray[Any, Any]
SHAPE, TARGET = (3, 16, 16), 3
SPACE = Space.model((0.0, 1.0))
X = np.random.default_rng(1).random(SHAPE)
START = np.full(SHAPE, 0.25)
MAP = np.random.default_rng(2).normal(size=SHAPE)


@cache
def twins(name: str) -> tuple[Any, Model]:
    """A net, and its export as the driver takes it, both in float64."""
    net = torch_nets.build(torch_nets.SMALL[name])
    export = torch_nets.to_onnx(net, SHAPE)
    forward, backward = ReferenceExecutor(forward_model(export)), ReferenceExecutor(gradient_model(export))
    return net, Model({LOGITS: lambda: forward, GRADIENT: lambda: backward})


def torched(a: Array) -> Any:
    return torch.from_numpy(a[None])


@pytest.mark.parametrize("name", ["plain", "squeeze"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("perturbation", Perturbation)
@pytest.mark.parametrize("times_input", [False, True])
def test_same_infidelity(name: str, normalise: bool, perturbation: Perturbation, times_input: bool) -> None:
    net, model = twins(name)
    metric = Infidelity(
        perturbation=perturbation, noise=0.1, side=5, samples=16, normalise=normalise, times_input=times_input
    )
    i = metric.perturbations(X, SPACE, np.random.default_rng(0), 16)

    def perturb(inputs: Any, baselines: Any = None) -> Any:
        assert len(inputs) == 16
        return inputs - torch.from_numpy(i)

    decorated = metrics.infidelity_perturb_func_decorator(times_input)(perturb)
    told = {"target": TARGET, "n_perturb_samples": 16, "normalize": normalise, "baselines": torched(START)}
    expected = metrics.infidelity(net, decorated, torched(X), torched(MAP), **told)
    ask: dict[str, Any] = {"space": SPACE, "target": TARGET, "start": START if times_input else None}
    ours = run(metric(X, MAP, rng=np.random.default_rng(0), **ask), model)
    np.testing.assert_allclose(ours.value, float(expected), rtol=1e-6)


@pytest.mark.parametrize("name", ["plain", "residual"])
@pytest.mark.parametrize("method", [Saliency(), GradientXInput()], ids=lambda method: method.id)
def test_same_max_sensitivity(name: str, method: Any) -> None:
    net, model = twins(name)
    metric = MaxSensitivity(radius=0.05, samples=6)
    task = Task(TARGET, SPACE, np.random.default_rng(0))
    same = np.random.default_rng(7)
    d = np.stack([metric.perturbation(X, task, same) for _ in range(6)])
    theirs = attr.InputXGradient(net) if isinstance(method, GradientXInput) else attr.Saliency(net)
    more = {} if isinstance(method, GradientXInput) else {"abs": not method.signed}

    def explain(inputs: Any) -> Any:
        (images,) = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.enable_grad():
            return (theirs.attribute(images.detach().requires_grad_(), target=TARGET, **more),)

    def perturb(inputs: Any) -> Any:
        assert len(inputs) == 6
        return inputs + torch.from_numpy(d)

    expected = metrics.sensitivity_max(explain, torched(X), perturb, n_perturb_samples=6)
    ours = run(metric(X, method, task, np.random.default_rng(7)), model)
    assert ours.value > 1e-3
    np.testing.assert_allclose(ours.value, float(expected), rtol=1e-6)
