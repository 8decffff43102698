"""Layers of the frameworks' own classifiers, with random weights and in float64: the usual choice, and maps of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import framework

torch = framework("torch")
framework("onnxscript")

from bench.coverage.stubs import import_torchvision  # noqa: E402

torchvision = framework("torchvision", import_torchvision)
timm = framework("timm")

import torch_nets  # noqa: E402
from torch.nn.functional import interpolate  # noqa: E402

from onnxplain.adapters.gradient.classifier import gradient_model, logits_model  # noqa: E402
from onnxplain.engine.drive import BIASES, LAYERS, LOGITS, Model, run  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.engine.methods import FullGrad, GradCAM, HiResCAM, Method, Task  # noqa: E402
from onnxplain.engine.space import Space  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # the frameworks have their own
TARGET = 7
# library, name, size of the image, the module whose output is the usual choice, tokens before the grid
ZOO = [
    ("torchvision", "resnet18", 64, lambda m: m.layer4, None),
    ("torchvision", "mobilenet_v2", 64, lambda m: m.features, None),
    ("torchvision", "densenet121", 64, lambda m: m.features, None),  # with the ReLU behind it, which works in place
    ("torchvision", "swin_t", 64, lambda m: m.features[-1][-1].norm1, 0),
    ("timm", "test_vit", 160, lambda m: m.blocks[-1].norm1, 1),
    ("timm", "test_convnext", 96, lambda m: m.stages[-1], None),
]
each = pytest.mark.parametrize(("library", "name", "size", "module", "prefix"), ZOO, ids=[case[1] for case in ZOO])


def made(library: str, name: str) -> Any:
    torch.manual_seed(0)
    source = torchvision.models.get_model if library == "torchvision" else timm.create_model
    net = source(name).double().eval().requires_grad_(False)
    for part in net.modules():  # heads that begin with zeros would make all gradients zero
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and part.bias is not None:
            torch.nn.init.normal_(part.bias, std=0.1)
    return net


def recorded(net: Any, x: Any, module: Any) -> tuple[Any, Any]:
    """A layer's output and the gradient of the target's logit with respect to it, as autograd has them."""
    kept: list[Any] = []
    hook = module.register_forward_hook(lambda _, __, out: kept.append(out))
    z = net(x)[0, TARGET]
    hook.remove()
    (gradient,) = torch.autograd.grad(z, kept[0])
    return kept[0].detach(), gradient


@each
def test_the_usual_choice_and_its_gradient(library: str, name: str, size: int, module: Any, prefix: int | None) -> None:
    """Activation and gradient are those of the module that guides for these nets recommend; Grad-CAM follows."""
    net = made(library, name)
    x = torch.randn(1, 3, size, size, dtype=torch.float64).requires_grad_()
    a, g = recorded(net, x, module(net))
    if prefix is not None and a.ndim == 3:
        side = int((a.shape[1] - prefix) ** 0.5)
        a, g = (v[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2) for v in (a, g))
    elif prefix is not None:
        a, g = (v.permute(0, 3, 1, 2) for v in (a, g))
    model = torch_nets.to_onnx(net, (3, size, size))
    start = {
        LOGITS: lambda: ReferenceExecutor(logits_model(model)),
        LAYERS: lambda: ReferenceExecutor(gradient_model(model, layers="auto")),
        BIASES: lambda: ReferenceExecutor(gradient_model(model, bias_gradients=True)),
    }
    ours = Model(start, batch_size=1)

    def explained(method: Method) -> Any:
        return run(method(x.detach().numpy()[0], Task(TARGET, Space.model(), np.random.default_rng(0))), ours)

    def near(method: Method, map: Any) -> None:
        want = interpolate(map, (size, size), mode="bilinear", align_corners=False)[0, 0].numpy()
        np.testing.assert_allclose(
            explained(method).values.sum(0), want, rtol=0, atol=1e-7 * float((g * a).abs().max())
        )

    assert (g * a).abs().max() > 0
    near(GradCAM(), (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).clamp(min=0))
    near(HiResCAM(), (g * a).sum(1, keepdim=True))
    assert explained(FullGrad()).diagnostics["completeness_gap"] < 1e-6


def test_grad_cam_of_a_resnet_is_captum_s() -> None:
    captum = framework("captum.attr")
    net = made("torchvision", "resnet18")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    maps = captum.LayerGradCam(net, net.layer4).attribute(x, target=TARGET, relu_attributions=True)
    want = interpolate(maps, (64, 64), mode="bilinear", align_corners=False)[:, 0].detach().numpy()
    model = torch_nets.to_onnx(net, (3, 64, 64))
    start = {
        LOGITS: lambda: ReferenceExecutor(logits_model(model)),
        LAYERS: lambda: ReferenceExecutor(gradient_model(model, layers="/layer4/layer4.1/relu_1/Relu")),
    }
    ours = Model(start)
    for image, map in zip(x.numpy(), want, strict=True):
        found = run(GradCAM()(image, Task(TARGET, Space.model(), np.random.default_rng(0))), ours)
        np.testing.assert_allclose(found.values.sum(0), map, rtol=0, atol=1e-9 * np.abs(map).max())
