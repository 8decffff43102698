"""The self-check is checked: gradient models that are wrong on purpose must fail, right ones must pass.

Wrong ones are made in two ways: by wrong rules, and by surgery on right models. A right model comes first wherever one
is spoilt, else every wrong one would look caught.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conformance.mutants import MUTANTS
from frameworks import framework
from onnx import helper, numpy_helper
from tiny import classifier

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.adapters.gradient.expr import PREFIX
from onnxplain.adapters.gradient.registry import DEFAULT, Entry
from onnxplain.adapters.onnx_file import Halves
from onnxplain.adapters.verify import verify_gradient
from onnxplain.engine.executors.setup import Setup
from onnxplain.engine.verify import Verification
from onnxplain.errors import UsageError
from onnxplain.models.preprocess import PreprocessSpec

DATA = Path(__file__).parents[3] / "shared" / "data"
SHARED = [
    *("imagenet/models/efficientnet_lite0", "imagenet/models/mobilenet_v2_1.0_224"),
    *("imagenet/models/squeezenet1_1_caffe", "imagenet/models/mobilenet_v1_0.25_128"),
    *("cifar10/models/resnet20_cifar10", "cifar10/models/resnet56_cifar10"),
    *("cifar10/models/resnet8_mlperftiny_cifar10", "cifar10/models/resnet_large_mlperftiny_cifar10"),
    *("cifar10/models/tiniest_cifar10", "cifar10/models/vggstyle_cnn_cifar10"),
]


def verification(model: onnx.ModelProto, **how: Any) -> Verification:
    return verify_gradient(Halves(forward_model(model), model), Setup(threads=1), **how)


# Surgery


def behind(name: str, *nodes: tuple[str, list[str], dict[str, Any]], **constants: np.ndarray) -> Callable[..., None]:
    """Nodes put behind the output `name`, one after the other: each is an operator, its inputs, its attributes."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        it = f"spoilt_{name}"
        for node in graph.node:
            node.output[:] = [it if output == name else output for output in node.output]
            node.input[:] = [it if given == name else given for given in node.input]
        made = it
        for i, (op, inputs, attributes) in enumerate(nodes):
            out = name if i == len(nodes) - 1 else f"{it}_{i}"
            graph.node.append(helper.make_node(op, [made, *inputs], [out], **attributes))
            made = out
        graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())

    return change


def before(name: str, op: str, second: np.ndarray, **attributes: Any) -> Callable[..., None]:
    """The input `name` changed by an operator before anybody reads it."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["changed" if given == name else given for given in node.input]
        model.graph.node.insert(0, helper.make_node(op, [name, "second"], ["changed"], **attributes))
        model.graph.initializer.append(numpy_helper.from_array(second, "second"))

    return change


def weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    """The copies of the weights that the backward half has."""

    def apply(model: onnx.ModelProto) -> None:
        mine = {v for node in model.graph.node for v in node.input if v.startswith(PREFIX)}
        changed = 0
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if tensor.name in mine and values.ndim >= 2 and values.size > 64:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(values)), tensor.name))
                changed += 1
        assert changed

    return apply


def mask(**zero: slice) -> np.ndarray:
    """Ones, with zeros in a box of rows and columns."""
    ones = np.ones((1, 3, 16, 16), np.float32)
    ones[0, zero.get("c", slice(None)), zero.get("h", slice(None)), zero.get("w", slice(None))] = 0
    return ones


NOISE = np.random.default_rng(5).normal(size=(1, 3, 16, 16)).astype(np.float32)
SURGERY: dict[str, Callable[..., None]] = {
    "all zero": behind("gradient", ("Mul", ["k"], {}), k=np.float32(0)),
    "sign": behind("gradient", ("Neg", [], {})),
    "1 % too large": behind("gradient", ("Mul", ["k"], {}), k=np.float32(1.01)),
    "1 % too small": behind("gradient", ("Mul", ["k"], {}), k=np.float32(0.99)),
    "a million times too large": behind("gradient", ("Mul", ["k"], {}), k=np.float32(1e6)),
    "a million times too small": behind("gradient", ("Mul", ["k"], {}), k=np.float32(1e-6)),
    "zero in a corner": behind("gradient", ("Mul", ["k"], {}), k=mask(h=slice(0, 5), w=slice(0, 5))),
    "zero at the border": behind("gradient", ("Mul", ["k"], {}), k=mask(h=slice(0, 1))),
    "zero in one channel": behind("gradient", ("Mul", ["k"], {}), k=mask(c=slice(1, 2))),
    "5 % too large in one quadrant": behind(
        "gradient", ("Mul", ["k"], {}), k=1.05 - 0.05 * mask(h=slice(8, 16), w=slice(8, 16)).astype(np.float32)
    ),
    "channels in reverse": behind("gradient", ("Gather", ["k"], {"axis": 1}), k=np.asarray([2, 1, 0])),
    "upside down": behind("gradient", ("Gather", ["k"], {"axis": 2}), k=np.arange(16)[::-1].copy()),
    "height and width exchanged": behind("gradient", ("Transpose", [], {"perm": [0, 1, 3, 2]})),
    "shifted by a pixel": behind("gradient", ("Gather", ["k"], {"axis": 3}), k=np.roll(np.arange(16), 1)),
    "clipped": behind("gradient", ("Clip", ["k", "l"], {}), k=np.float32(-1e-2), l=np.float32(1e-2)),
    "of another class": before("onnxplain_target", "Gather", np.roll(np.arange(10), 1), axis=1),
    "always of the logit": before("onnxplain_objective", "Mul", np.asarray([0])),
    "values halved": behind("value", ("Mul", ["k"], {}), k=np.float32(0.5)),
    "logits of another model": behind("logits", ("Mul", ["k"], {}), k=np.float32(1.0001)),
    "weights turned": weights(lambda w: w[..., ::-1] if w.ndim > 2 else w[::-1]),
    "weights in four bits": weights(lambda w: np.round(w / np.abs(w).max() * 7) / 7 * np.abs(w).max()),
}  # fmt: skip


NETS = ("plain", "residual", "depthwise", "inception", "dense", "transformer", "vgg", "squeeze")


@cache
def net(name: str) -> onnx.ModelProto:
    """A small net in float32."""
    torch = framework("torch")
    framework("onnxscript")
    import torch_nets

    dynamo = name in ("residual", "transformer")  # the other exporter writes them in a way that has gaps
    built = torch_nets.build(torch_nets.SMALL[name]).float()
    return torch_nets.to_onnx(built, (3, 16, 16), dtype=torch.float32, dynamo=dynamo)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_right_gradient_passes(name: str, seed: int) -> None:
    """And small errors would have been noticed: of 2 % of its size, of 20 % of any form."""
    found = verification(gradient_model(net(name)), seed=seed)
    assert found.failures == ()
    assert found.passed
    assert found.along < 0.02
    assert found.across < 0.2


@pytest.mark.parametrize("change", SURGERY)
@pytest.mark.parametrize("name", ["plain", "vgg"])
def test_a_spoilt_gradient_model_fails(name: str, change: str) -> None:
    spoilt = gradient_model(net(name))
    right = forward_model(spoilt)
    SURGERY[change](spoilt)
    onnx.checker.check_model(spoilt)
    assert verify_gradient(Halves(right, spoilt), Setup(threads=1)).verdict == "failed"


IN_NETS = {
    "Relu: straight through": "vgg",
    "Conv: kernel not turned": "plain",
    "Conv: channels in reverse": "plain",
    "Conv: groups in reverse": "depthwise",
    "MaxPool: twice": "vgg",
    "AveragePool: sum": "dense",
    "GlobalAveragePool: sum": "dense",
    "Tanh: x for y": "plain",
    "Sigmoid: missing factor": "plain",
    "Mul: one operand forgotten": "depthwise",
    "Softmax: diagonal only": "transformer",
    "Erf: factor": "transformer",
    "LayerNormalization: no mean": "transformer",
    "LayerNormalization: no variance": "transformer",
    "MatMul: sign": "transformer",
    "Concat: backwards": "inception",
    "Transpose: the same order again": "transformer",
}


@pytest.mark.parametrize("mutant", IN_NETS)
def test_a_gradient_by_a_wrong_rule_fails(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes that are easy to make, in nets that have the operator."""
    op, rule = MUTANTS[mutant]
    monkeypatch.setitem(DEFAULT, op, Entry(rule, DEFAULT[op].broadcastable))
    found = verification(gradient_model(net(IN_NETS[mutant])))
    assert found.verdict == "failed", (found.along, found.across)


def test_a_forgotten_way_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a residual block the shortcut only: what is left is a gradient that looks plausible."""

    def shortcut_only(g: Any, y: Any, a: Any, b: Any) -> Any:
        return (g * 0.0, g) if a.rank == b.rank == 4 else DEFAULT["Sub"].rule(g, y, a, b)

    right = verification(gradient_model(net("residual")))
    monkeypatch.setitem(DEFAULT, "Add", Entry(shortcut_only, DEFAULT["Add"].broadcastable))
    assert right.passed
    assert verification(gradient_model(net("residual"))).verdict == "failed"


DEEP = {"resnet50": (3, 64, 64), "inception_v3": (3, 107, 107)}


@cache
def deep(name: str) -> onnx.ModelProto:
    """A net so deep that float32 is noisy; it takes normalised images."""
    torch = framework("torch")
    framework("onnxscript")
    import torch_nets

    shape = DEEP[name]
    built = torch_nets.build(getattr(torch_nets, name))
    torch_nets.settle(built, torch.from_numpy(np.random.default_rng(3).normal(size=(8, *shape))))
    return torch_nets.to_onnx(built.float(), shape, dtype=torch.float32)


@pytest.mark.parametrize("name", DEEP)
def test_noise_of_a_deep_net_does_not_fail_it(name: str) -> None:
    """Kinks lie everywhere, and rounding is amplified; that a tenth is missing is noticed all the same."""
    right = gradient_model(deep(name))
    found = verification(right)
    assert found.failures == ()
    assert found.along < 0.1
    behind("gradient", ("Mul", ["k"], {}), k=np.float32(0.9))(right)
    assert verification(right).verdict == "failed"


def test_a_deep_net_that_lacks_a_way_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULT, "Concat", Entry(MUTANTS["Concat: backwards"][1], DEFAULT["Concat"].broadcastable))
    assert verification(gradient_model(deep("inception_v3"))).verdict == "failed"


def shared(name: str) -> onnx.ModelProto:
    path = DATA / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand (../shared/data)")
    spec = PreprocessSpec.from_json_file(DATA / f"{name}.preprocessor_config.json")
    return gradient_model(path, preprocess=spec)


@pytest.mark.parametrize("name", SHARED, ids=lambda name: name.split("/")[-1])
def test_real_classifiers_pass(name: str) -> None:
    """At random images, where errors of 3 % of the size and of 30 % of any form are noticed."""
    model = shared(name)
    found = verification(model)
    assert found.failures == ()
    assert found.passed
    assert found.along < 0.03


@pytest.mark.parametrize("name", SHARED[3:], ids=lambda name: name.split("/")[-1])
def test_a_real_classifier_that_is_spoilt_fails(name: str) -> None:
    """By 4 % of the size."""
    model = shared(name)
    behind("gradient", ("Mul", ["k"], {}), k=np.float32(0.96))(model)
    assert verification(model).verdict == "failed"


@pytest.mark.parametrize("name", ["imagenet/models/squeezenet1_1_caffe", "cifar10/models/vggstyle_cnn_cifar10"])
def test_real_photos_with_saturated_areas_pass(name: str) -> None:
    """Equal neighbours are ties of max pooling, at which a gradient has several right values: the grain parts them."""
    model = shared(name)
    folder = DATA / ("imagenet/images/nips17_100" if name.startswith("imagenet") else "cifar10/images/test100")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))[:2]
    found = verification(model, images=files)
    assert found.failures == ()
    assert [look.image for look in found.looks] == [str(file) for file in files]


def test_a_model_without_preprocessing_takes_no_photos(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no preprocessing"):
        verification(gradient_model(classifier()), images=[tmp_path / "a.png"])


def test_a_gradient_that_was_told_to_stop_is_partial() -> None:
    """It cannot pass, and where it stops is said; but its logits still have to be those of the forward half."""
    model = gradient_model(classifier())
    behind("gradient", ("Mul", ["k"], {}), k=np.float32(0))(model)
    gap = {"op": "Odd", "node": "odd0", "why": "no rule"}
    model.metadata_props.add(key="onnxplain.stopped", value=json.dumps([gap]))
    found = verification(model)
    assert found.verdict == "partial"
    assert not found.passed
    assert [stop.node for stop in found.stopped] == ["odd0"]
    right = forward_model(model)
    behind("logits", ("Mul", ["l"], {}), l=np.float32(2))(model)
    assert verify_gradient(Halves(right, model), Setup()).verdict == "failed"


def test_the_same_seed_gives_the_same_numbers() -> None:
    model = gradient_model(classifier())
    assert verification(model, seed=7) == verification(model, seed=7)
    assert verification(model, seed=7) != verification(model, seed=8)
