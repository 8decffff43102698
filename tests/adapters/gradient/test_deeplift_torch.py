"""DeepLIFT against Captum's, on nets of PyTorch in float64, and on real classifiers that are rebuilt in PyTorch.

Captum keeps the change through ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus and MaxPool modules. It takes the gradient
of ReLU6 and of products, normalises Softmax otherwise, and MaxPool windows that overlap lose what several of them
gives to an element, as does a module behind another one without an operation between: there the two differ, and
Captum's attributions do not sum to the change.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import framework

from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.adapters.gradient.rules.deeplift import DEEPLIFT
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.methods import DeepLift
from onnxplain.engine.requests import Kind

torch = framework("torch")
captum = framework("captum.attr")
deep_lift = framework("captum.attr._core.deep_lift")

import torch_nets  # noqa: E402
from shared_photos import DATA, classifier  # noqa: E402
from torch import nn  # noqa: E402

Array = np.ndarray[Any, Any]
SHAPE = (3, 16, 16)
DRAW = np.random.default_rng(1)
X, REFERENCE = DRAW.random((2, *SHAPE)), DRAW.random((2, *SHAPE))
CLASSES = [3, 7]


def smooth() -> Any:
    """Every smooth function that Captum has a rule for."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Softplus()),
        *(nn.Conv2d(8, 8, 3, dilation=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 16), nn.ELU(), nn.Linear(16, 10)),
    )


def vgg() -> Any:
    """With a step between ReLU and pooling: Captum loses the change where two of its modules follow at once."""
    parts = list(torch_nets.vgg())
    return nn.Sequential(*(q for p in parts for q in ([apart(), p] if isinstance(p, nn.MaxPool2d) else [p])))


def apart() -> Any:
    return torch_nets.Lambda(lambda x: x * 1.0)


NETS = {
    "plain": torch_nets.plain,
    "smooth": smooth,
    "residual and batch normalisation": torch_nets.residual,
    "vgg and max pooling": vgg,
}


def theirs(net: Any, x: Array, reference: Array, classes: list[int]) -> Array:
    method = captum.DeepLift(net)
    given = {"baselines": torch.from_numpy(reference), "target": torch.tensor(classes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that it puts hooks on modules
        return np.asarray(method.attribute(torch.from_numpy(x).requires_grad_(), **given).detach())


def ours(run: Any, x: Array, reference: Array, classes: list[int]) -> tuple[Array, Array]:
    """A, and the logits."""
    count = run.outputs["logits"].shape[1]
    (name,) = (name for name in run.inputs if not name.startswith("onnxplain_"))
    feeds = {
        name: x,
        "onnxplain_reference": reference,
        "onnxplain_target": np.eye(count, dtype=np.float32)[classes],
        "onnxplain_objective": np.full(len(x), Kind.LOGIT, np.int64),
    }
    answer = run(feeds)
    return answer["gradient"] * (x - reference), answer["logits"].copy()


def close(a: Array, b: Array, least: float) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=least * np.abs(b).max())


@pytest.mark.parametrize("name", NETS)
def test_same_as_captum(name: str) -> None:
    """To rounding: in float64 all is the same but the order of sums."""
    net = torch_nets.build(NETS[name])
    run = ReferenceExecutor(gradient_model(torch_nets.to_onnx(net, SHAPE), rules=DEEPLIFT))
    found, _ = ours(run, X, REFERENCE, CLASSES)
    close(found, theirs(net, X, REFERENCE, CLASSES), 1e-9)


@pytest.mark.parametrize("name", torch_nets.SMALL)
def test_the_change_is_kept(name: str) -> None:
    """In all nets, with gates, attention, normalisations and overlapping windows."""
    net = torch_nets.build(torch_nets.SMALL[name])
    run = ReferenceExecutor(gradient_model(torch_nets.to_onnx(net, SHAPE), rules=DEEPLIFT))
    found, z = ours(run, X, REFERENCE, CLASSES)
    _, z0 = ours(run, REFERENCE, X, CLASSES)
    change = (z - z0)[[0, 1], CLASSES]
    assert found.sum(axis=(1, 2, 3)) == pytest.approx(change, rel=1e-9, abs=1e-12)


LOST = {
    "windows that overlap": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 1), torch_nets.head(4)),
    "ReLU and then pooling": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), torch_nets.head(4)),
}


@pytest.mark.parametrize("name", LOST)
def test_where_captum_loses_the_change(name: str) -> None:
    """Here it is kept, so that the two cannot agree."""
    net = torch_nets.build(LOST[name])
    run = ReferenceExecutor(gradient_model(torch_nets.to_onnx(net, SHAPE), rules=DEEPLIFT))
    found, z = ours(run, X, REFERENCE, CLASSES)
    _, z0 = ours(run, REFERENCE, X, CLASSES)
    change = (z - z0)[[0, 1], CLASSES]
    assert found.sum(axis=(1, 2, 3)) == pytest.approx(change, rel=1e-9)
    assert np.abs(theirs(net, X, REFERENCE, CLASSES).sum(axis=(1, 2, 3)) / change - 1).min() > 0.1


# Real classifiers


class Rebuilt(nn.Module):
    """A classifier of ONNX in PyTorch: each node a module of its own, as Captum wants them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = prepare(path).graph
        self.input, self.output = str(graph.inputs[0].name), str(graph.outputs[0].name)
        self.steps: list[tuple[Any, list[str], str]] = []
        self.modules_ = nn.ModuleList()
        for node in graph:
            names = [str(v.name) for v in node.inputs if v is not None]
            weights = {i: v.const_value.numpy() for i, v in enumerate(node.inputs) if v is not None and v.const_value}
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            module = module_of(node.op_type, weights, attributes)
            self.modules_.append(module)
            inputs = [name for i, name in enumerate(names) if i not in weights]
            self.steps.append((module, inputs, str(node.outputs[0].name)))

    def forward(self, x: Any) -> Any:
        values = {self.input: x}
        for module, inputs, out in self.steps:
            values[out] = module(*(values[name] for name in inputs))
        return values[self.output]


def tensor(array: Array) -> Any:
    return torch.from_numpy(array.copy())


def module_of(op_type: str, weights: dict[int, Array], attributes: dict[str, Any]) -> Any:
    pads = list(attributes.get("pads", [0] * 4))
    border = [pads[1], pads[3], pads[0], pads[2]]
    strides = list(attributes.get("strides", [1, 1]))
    match op_type:
        case "Conv":
            w, b = tensor(weights[1]), tensor(weights[2]) if 2 in weights else None
            groups = attributes.get("group", 1)
            pad, conv = torch.nn.functional.pad, torch.nn.functional.conv2d
            return torch_nets.Lambda(lambda x: conv(pad(x, border), w, b, strides, groups=groups))
        case "BatchNormalization":
            scale, bias, mean, var = (tensor(weights[i]) for i in range(1, 5))
            norm, epsilon = torch.nn.functional.batch_norm, attributes.get("epsilon", 1e-5)
            return torch_nets.Lambda(lambda x: norm(x, mean, var, scale, bias, eps=epsilon))
        case "Relu":
            return nn.ReLU()
        case "Clip":
            assert (weights[1].item(), weights[2].item()) == (0, 6)
            return nn.ReLU6()
        case "MaxPool":
            assert not any(pads)
            return nn.MaxPool2d(list(attributes["kernel_shape"]), strides, ceil_mode=bool(attributes.get("ceil_mode")))
        case "GlobalAveragePool":
            return nn.AdaptiveAvgPool2d(1)
        case "Flatten" | "Reshape":
            return nn.Flatten()
        case "Gemm":
            matrix = tensor(weights[1].T if attributes.get("transB") else weights[1])
            return torch_nets.Lambda(lambda x: x @ matrix + tensor(weights[2]))
        case "Add":
            return Two(lambda a, b: a + b)
        case "Slice":
            starts, ends, axes = (weights[i].tolist() for i in (1, 2, 3))
            steps = weights[4].tolist() if 4 in weights else [1] * len(axes)
            where = dict(zip(axes, map(slice, starts, ends, steps), strict=True))
            return torch_nets.Lambda(lambda x: x[tuple(where.get(axis, slice(None)) for axis in range(4))])
        case "Pad":
            before, after = np.split(weights[1], 2)
            flat = [int(n) for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
            return torch_nets.Lambda(lambda x: torch.nn.functional.pad(x, flat))
    raise AssertionError(op_type)


class Two(nn.Module):
    """A function of two values."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, a: Any, b: Any) -> Any:
        return self.fn(a, b)


@pytest.fixture
def relu6() -> Iterator[None]:
    """Captum keeps the change through ReLU6 too, once it is told."""
    deep_lift.SUPPORTED_NON_LINEAR[nn.ReLU6] = deep_lift.nonlinear
    yield
    del deep_lift.SUPPORTED_NON_LINEAR[nn.ReLU6]


SAME = [
    *("cifar10/models/resnet20_cifar10", "cifar10/models/vggstyle_cnn_cifar10"),
    *("imagenet/models/mobilenet_v1_0.25_128", "imagenet/models/mobilenet_v2_1.0_224"),
    "imagenet/models/efficientnet_lite0",
]


@pytest.mark.usefixtures("relu6")
@pytest.mark.parametrize("name", SAME, ids=lambda name: name.split("/")[-1])
def test_same_as_captum_on_a_real_classifier(name: str) -> None:
    """In model space, from the reference zero; the last step of the two is float32, on different kernels."""
    with classifier(name, 2) as (explainer, x, classes):
        spec = explainer.preprocess
        assert spec is not None
        space = explainer.space
        x = ((x - space.zero) / space.scale).astype(np.float32)
    net = Rebuilt(DATA / f"{name}.onnx").eval()
    reference = np.zeros_like(x)
    run = OnnxRuntimeExecutor(gradient_model(DATA / f"{name}.onnx", rules=DEEPLIFT))
    found, z = ours(run, x, reference, classes.tolist())
    with torch.no_grad():
        close(net(torch.from_numpy(x)).numpy(), z, 1e-4)
    expected = theirs(net, x, reference, classes.tolist())
    close(found, expected, 2e-3)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999


KEPT = [*SAME, "imagenet/models/squeezenet1_1_caffe", "cifar10/models/tiniest_cifar10"]


@pytest.mark.parametrize("name", KEPT, ids=lambda name: name.split("/")[-1])
def test_the_change_is_kept_by_a_real_classifier(name: str) -> None:
    """Relative to the change, in float32."""
    with classifier(name, 2) as (explainer, x, classes):
        for explanation in explainer.explain(x, DeepLift(), classes.tolist()):
            assert explanation.diagnostics["completeness_gap"] < 1e-5
