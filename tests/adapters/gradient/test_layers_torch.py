"""Inner layers and bias-gradients against PyTorch's autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from frameworks import framework

torch = framework("torch")
framework("onnxscript")

import torch_nets  # noqa: E402

from onnxplain.adapters.gradient.classifier import gradient_model  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.engine.requests import Kind  # noqa: E402

SHAPE = (3, 16, 16)
KINDS = [Kind.LOGIT, Kind.PROB, Kind.LOGPROB]
TARGETS = [3, 1, 4]


@cache
def net(name: str) -> Any:
    return torch_nets.build(torch_nets.SMALL[name])


@cache
def exported(name: str, dynamo: bool) -> Any:
    return torch_nets.to_onnx(net(name), SHAPE, dynamo=dynamo)


def images(rows: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, *SHAPE))


def outputs(model: Any, x: np.ndarray, kinds: list[Kind], targets: list[int]) -> dict[str, np.ndarray]:
    t = np.eye(10, dtype=np.float32)[targets]
    feeds = {"input": x, "onnxplain_target": t, "onnxplain_objective": np.asarray(kinds, np.int64)}
    return dict(ReferenceExecutor(model)(feeds))


def objective(kind: Kind, z: Any, target: int) -> Any:
    log_p = torch.log_softmax(z, 0)
    return {Kind.LOGIT: z, Kind.PROB: log_p.exp(), Kind.LOGPROB: log_p}[kind][target]


def recorded(module: Any, parts: list[Any], x: np.ndarray, kinds: list[Kind]) -> list[tuple[Any, Any]]:
    """Parts of a net with their outputs, whose gradients are those of the objectives."""

    def value(z: Any) -> Any:
        return sum(objective(k, row, t) for k, row, t in zip(kinds, z, TARGETS, strict=True))

    return torch_nets.recorded(module, parts, torch.from_numpy(x).requires_grad_(), value)


def near(got: np.ndarray, want: Any) -> None:
    want = want.detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * np.abs(want).max())


def tokens(value: Any) -> Any:
    """(N, 16, C) as (N, C, 4, 4)."""
    return value.reshape(-1, 4, 4, value.shape[-1]).permute(0, 3, 1, 2)


LAYERS: list[tuple[str, bool, str, Callable[[Any], Any]]] = [
    ("plain", False, "/2/Conv_output_0", lambda m: m[2]),
    ("plain", False, "auto", lambda m: m[5]),
    ("residual", True, "auto", lambda m: m[3].activation),
    ("depthwise", False, "auto", lambda m: m[5]),
    ("depthwise", True, "auto", lambda m: m[5]),
    ("dense", False, "auto", lambda m: m[6]),
    ("vgg", False, "auto", lambda m: m[8]),
    ("squeeze", False, "auto", lambda m: m[1][2]),
    ("transformer", False, "auto", lambda m: m.norms[0]),
    ("transformer", True, "auto", lambda m: m.norms[0]),
    ("transformer", True, "layer_norm_1", lambda m: m.norms[1]),
]


@pytest.mark.parametrize(("name", "dynamo", "layer", "module"), LAYERS, ids=lambda v: v if isinstance(v, str) else None)
def test_activations_and_gradients_are_autograd_s(
    name: str, dynamo: bool, layer: str, module: Callable[[Any], Any]
) -> None:
    x = images()
    ((_, value),) = recorded(net(name), [module(net(name))], x, KINDS)
    out = outputs(gradient_model(exported(name, dynamo), layers=layer), x, KINDS, TARGETS)
    lay = tokens if value.ndim == 3 else lambda v: v
    near(out["activation_0"], lay(value))
    near(out["activation_gradient_0"], lay(value.grad))


@pytest.mark.parametrize("name", ["vgg", "dense", "squeeze", "residual"])
def test_bias_gradients_are_gradient_times_bias(name: str) -> None:
    """Layer by layer, in nets of ReLU: the maps are the gradients of the layers' outputs times their biases."""
    x, kinds = images(), [Kind.LOGIT] * 3
    found = recorded(net(name), torch_nets.biased(net(name)), x, kinds)
    out = outputs(gradient_model(exported(name, False), bias_gradients=True), x, kinds, TARGETS)
    on_the_picture = [(part, value) for part, value in found if value.shape[-1] > 1]
    assert sum(key.startswith("bias_gradient_") for key in out) == len(on_the_picture)
    for at, (part, value) in enumerate(on_the_picture):
        near(out[f"bias_gradient_{at}"], value.grad * torch_nets.bias_of(part))


def test_bias_gradients_sum_to_the_gradients_of_the_parameters() -> None:
    """Over places: b * dF/db, by autograd on the biases themselves."""
    model = net("vgg")
    x, kinds = images(1), [Kind.LOGIT]
    biases = [m.bias for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    for bias in biases:
        bias.requires_grad_(True)
    try:
        gradients = torch.autograd.grad(model(torch.from_numpy(x))[0, 3], biases)
    finally:
        for bias in biases:
            bias.requires_grad_(False)
    out = outputs(gradient_model(exported("vgg", False), bias_gradients=True), x, kinds, [3])
    for at in range(4):
        near(out[f"bias_gradient_{at}"].sum((2, 3)), (gradients[at] * biases[at])[None])
    near(out["bias_sum"], sum((g * b).sum() for g, b in zip(gradients, biases, strict=True)).reshape(1))


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [*((name, False) for name in torch_nets.SMALL), *((n, True) for n in ("depthwise", "transformer"))],
)
def test_everything_sums_to_the_logit(name: str, dynamo: bool) -> None:
    """F = x * dF/dx + bias_sum on every net, also where layers have no place on the picture: attention, gates."""
    x, kinds = images(), [Kind.LOGIT] * 3
    out = outputs(gradient_model(exported(name, dynamo), bias_gradients=True), x, kinds, TARGETS)
    points = torch.from_numpy(x).requires_grad_()
    values = net(name)(points)[range(3), TARGETS]
    (gradient,) = torch.autograd.grad(values.sum(), points)
    near(out["bias_sum"], values - (points * gradient).sum((1, 2, 3)))


def test_pieces_of_an_activation_function_count_as_one() -> None:
    """SiLU, which is exported as z * sigmoid(z): its implicit bias is g (f(z) - f'(z) z)."""
    module = torch_nets.build(
        lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.SiLU(), torch_nets.head(4))
    )
    x, kinds = images(), [Kind.LOGIT] * 3
    (_, z), (_, y) = recorded(module, [module[0], module[1]], x, kinds)
    for dynamo in (False, True):
        made = gradient_model(torch_nets.to_onnx(module, SHAPE, dynamo=dynamo), bias_gradients=True)
        out = outputs(made, x, kinds, TARGETS)
        assert "bias_gradient_1" not in out
        near(out["bias_gradient_0"], y.grad * y - z.grad * z)
