"""Class activation maps, Score-CAM and FullGrad against code that nobody here wrote: Captum and PyTorch's autograd.

The nets are exported to ONNX and explained in float64, so that both sides round alike.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from frameworks import framework

torch = framework("torch")
framework("onnxscript")
captum = framework("captum.attr")

import torch_nets  # noqa: E402
from torch.nn.functional import interpolate  # noqa: E402

from onnxplain.adapters.gradient.classifier import gradient_model, logits_model  # noqa: E402
from onnxplain.engine.drive import BIASES, LAYERS, LOGITS, Model, run  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.engine.methods import (  # noqa: E402
    FullGrad,
    GradCAM,
    HiResCAM,
    LayerCAM,
    Method,
    Rescale,
    ScoreCAM,
    Task,
    Weights,
)
from onnxplain.engine.requests import Kind  # noqa: E402
from onnxplain.engine.space import Space  # noqa: E402

SHAPE = (3, 16, 16)
X = np.random.default_rng(5).normal(size=(3, *SHAPE))
TARGETS = [3, 1, 4]
# a net, the ONNX name of a layer, and the module that makes it
CASES = [
    ("plain", "/2/Conv_output_0", lambda m: m[2]),
    ("residual", "auto", lambda m: m[3].activation),
    ("depthwise", "auto", lambda m: m[5]),
    ("dense", "auto", lambda m: m[6]),
    ("vgg", "auto", lambda m: m[8]),
    ("vgg", "/3/Relu_output_0", lambda m: m[3]),
]
each_layer = pytest.mark.parametrize(("name", "layer", "module"), CASES, ids=[f"{n}-{v}" for n, v, _ in CASES])


@cache
def net(name: str) -> Any:
    return torch_nets.build(torch_nets.SMALL[name])


@cache
def exported(name: str) -> Any:
    return torch_nets.to_onnx(net(name), SHAPE)


@cache
def model_of(name: str, layer: str) -> Model:
    """A net as the driver takes it, run by the reference: ONNX Runtime has no convolution in float64."""
    model = exported(name)
    inside = {"layers": layer} if layer else {"bias_gradients": True}
    start = {
        LOGITS: lambda: ReferenceExecutor(logits_model(model)),
        LAYERS if layer else BIASES: lambda: ReferenceExecutor(gradient_model(model, **inside)),
    }
    return Model(start)


def explained(name: str, method: Method, layer: str = "auto") -> np.ndarray:
    """The maps (N, H, W) of three images, in float64."""
    model = model_of(name, layer)
    programs = (
        method(x, Task(target, Space.model(), np.random.default_rng(0))) for x, target in zip(X, TARGETS, strict=True)
    )
    return np.stack([run(program, model).values.sum(axis=0) for program in programs])


def near(got: np.ndarray, want: Any) -> None:
    want = want.detach().numpy().reshape(got.shape)
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * np.abs(want).max())


def upsampled(map: Any, align_corners: bool = False) -> Any:
    return interpolate(map, SHAPE[1:], mode="bilinear", align_corners=align_corners)


def of_targets(z: Any) -> Any:
    return z[range(3), TARGETS].sum()


def layer_and_gradient(name: str, module: Any) -> tuple[Any, Any]:
    """Activation and gradient (N, C, h, w) of a module's output, by autograd."""
    x = torch.from_numpy(X).requires_grad_()
    ((_, value),) = torch_nets.recorded(net(name), [module], x, of_targets)
    return value.detach(), value.grad


@each_layer
def test_grad_cam_is_captum_s(name: str, layer: str, module: Any) -> None:
    """`LayerGradCam` with its ReLU, enlarged bilinearly."""
    theirs = captum.LayerGradCam(net(name), module(net(name)))
    maps = theirs.attribute(torch.from_numpy(X), target=TARGETS, relu_attributions=True)
    near(explained(name, GradCAM(), layer), upsampled(maps))


@each_layer
def test_layer_cam_and_hires_cam_are_autograd_s(name: str, layer: str, module: Any) -> None:
    a, g = layer_and_gradient(name, module(net(name)))
    near(explained(name, LayerCAM(), layer), upsampled((g.clamp(min=0) * a).sum(1, keepdim=True).clamp(min=0)))
    near(explained(name, HiResCAM(), layer), upsampled((g * a).sum(1, keepdim=True)))


def test_hires_cam_is_captum_s_layer_gradient_x_activation() -> None:
    theirs = captum.LayerGradientXActivation(net("vgg"), net("vgg")[8])
    maps = theirs.attribute(torch.from_numpy(X), target=TARGETS).sum(1, keepdim=True)
    near(explained("vgg", HiResCAM()), upsampled(maps))


def test_tokens_of_a_transformer() -> None:
    """Grad-CAM of the last norm before attention, with tokens laid out as pytorch-grad-cam's guide does it."""
    a, g = layer_and_gradient("transformer", net("transformer").norms[0])
    a, g = (v.reshape(3, 4, 4, 12).transpose(2, 3).transpose(1, 2) for v in (a, g))
    map = (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).clamp(min=0)
    near(explained("transformer", GradCAM()), upsampled(map))


@pytest.mark.parametrize("kind", [Kind.LOGIT, Kind.PROB])
@pytest.mark.parametrize(
    "method", [ScoreCAM(), ScoreCAM(weights=Weights.SOFTMAX), ScoreCAM.repo()], ids=lambda m: m.weights.value
)
def test_score_cam_is_a_loop_over_channels(method: ScoreCAM, kind: Kind) -> None:
    """One channel after the other, in PyTorch."""
    method = type(method)(id=method.id, weights=method.weights, upsample_first=method.upsample_first, objective=kind)
    model = net("dense")
    a, _ = layer_and_gradient("dense", model[6])
    maps = []
    for x, target, channels in zip(torch.from_numpy(X), TARGETS, a, strict=True):

        def score(image: Any, target: int = target) -> Any:
            z = model(image[None])[0]
            return (z if kind is Kind.LOGIT else torch.softmax(z, 0))[target]

        kept, scores = [], []
        for channel in channels:
            mask = upsampled(channel[None, None])[0, 0]
            if mask.max() > mask.min():
                kept.append(channel)
                scores.append(score(x * (mask - mask.min()) / (mask.max() - mask.min())))
        s = torch.stack(scores)
        weights = {
            Weights.INCREASE: s - score(0 * x),
            Weights.SOFTMAX: torch.softmax(s - score(0 * x), 0),
            Weights.SCORE: s,
        }[method.weights]
        map = (weights[:, None, None] * torch.stack(kept)).sum(0)[None, None]
        maps.append(upsampled(map).clamp(min=0) if method.upsample_first else upsampled(map.clamp(min=0)))
    near(explained("dense", method), torch.cat(maps))


@pytest.mark.parametrize("name", ["vgg", "dense"])
@pytest.mark.parametrize("method", [FullGrad(), FullGrad.repo()], ids=lambda m: m.id)
def test_fullgrad_is_autograd_s(method: FullGrad, name: str) -> None:
    """By hooks on all layers with biases, rescaled by channel, or by layer as the released code does it."""
    model = net(name)
    x = torch.from_numpy(X).requires_grad_()
    values = torch_nets.recorded(model, torch_nets.biased(model), x, of_targets)
    by_layer, axes = method.rescale is Rescale.LAYER, (1, 2, 3) if method.rescale is Rescale.LAYER else (2, 3)

    def psi(m: Any) -> Any:
        m = m.abs()
        constant = torch.isclose(m.amin(axes, keepdim=True), m.amax(axes, keepdim=True), rtol=1e-12, atol=0)
        m = m - m.amin(axes, keepdim=True)
        m = m / (m.amax(axes, keepdim=True) + (1e-6 if by_layer else 0))
        m = torch.where(constant, 0.0, m)
        return upsampled(m, align_corners=method.align_corners).sum(1)

    expected = psi(x.grad * x.detach()) + sum(psi(out.grad * torch_nets.bias_of(part)) for part, out in values)
    near(explained(name, method, ""), expected)
