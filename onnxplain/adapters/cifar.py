"""Residual nets for CIFAR-10 in PyTorch, whose layers have the names of the published weights.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2, with projections for new shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.adapters import pytorch
from onnxplain.adapters.original import Original, require
from onnxplain.errors import InputError
from onnxplain.models.preprocess import PreprocessSpec

PREPROCESS = PreprocessSpec(size=(32, 32), image_mean=(0.4914, 0.4822, 0.4465), image_std=(0.2023, 0.1994, 0.2010))


def load(weights: Path, depth: int, name: str) -> Original:
    """The net with `depth` blocks in each of its three stages. Raises `InputError` unless the file has its weights."""
    torch = require("torch", "pytorch")
    net = residual_net(depth)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    except Exception as error:
        raise InputError(
            f"{weights}: not the weights of {name} ({pytorch.first_line(error)}); next: remove it"
        ) from error
    return pytorch.original(net.eval(), np.zeros((2, 3, 32, 32), np.float32), preprocess=PREPROCESS, name=name)


def residual_net(depth: int, classes: int = 10) -> Any:
    """6 * depth + 2 layers: stages of 16, 32 and 64 channels."""
    torch = require("torch", "pytorch")
    nn: Any = torch.nn

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
            same = inputs == outputs
            self.downsample = None if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(3, 16, 3), nn.BatchNorm2d(16)
            self.layer1, self.layer2, self.layer3 = (
                nn.Sequential(
                    *(Block(before if i == 0 else after, after, stride if i == 0 else 1) for i in range(depth))
                )
                for before, after, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
            )
            self.fc = nn.Linear(64, classes)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.fc(x.mean((2, 3)))

    return Net()
