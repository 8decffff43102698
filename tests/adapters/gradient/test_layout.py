"""Cotangents stay in ONNX Runtime's blocked layout, and the gradient is PyTorch's."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from frameworks import framework

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.rules import conv, reduce
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor

torch = framework("torch")

import torch.nn.functional as F  # noqa: E402, N812

CHANNELS = 16


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    inner = (CHANNELS, CHANNELS, 1, 1)
    shapes = {"stem": (CHANNELS, 3, 3, 3), "first": inner, "main": (CHANNELS, CHANNELS, 3, 3), "short": inner}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def residual() -> onnx.ModelProto:
    """A block of a residual network and the mean of what it gives; at r the shortcut's cotangent meets the other."""

    def node(op: str, *names: str, **attributes: Any) -> onnx.NodeProto:
        return onnx.helper.make_node(op, names[:-1], names[-1:], **attributes)

    nodes = [
        *(node("Conv", "x", "stem", "a", pads=[1] * 4), node("Relu", "a", "r")),
        *(node("Conv", "r", "first", "f"), node("Relu", "f", "s")),
        node("Conv", "s", "main", "b", pads=[1] * 4, strides=[2, 2]),
        node("Conv", "r", "short", "c", strides=[2, 2]),
        *(node("Add", "b", "c", "d"), node("Relu", "d", "e"), node("GlobalAveragePool", "e", "y")),
    ]
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "block",
        [make("x", onnx.TensorProto.FLOAT, ["N", 3, 9, 8])],
        [make("y", onnx.TensorProto.FLOAT, ["N", CHANNELS, 1, 1])],
        [onnx.numpy_helper.from_array(a, name) for name, a in weights().items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def theirs(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    w = {name: torch.from_numpy(a) for name, a in weights().items()}
    leaf = torch.from_numpy(x).requires_grad_()
    r = F.relu(F.conv2d(leaf, w["stem"], padding=1))
    main = F.conv2d(F.relu(F.conv2d(r, w["first"])), w["main"], padding=1, stride=2)
    y = F.relu(main + F.conv2d(r, w["short"], stride=2)).mean((2, 3), True)
    y.backward(torch.from_numpy(g))
    return np.asarray(leaf.grad.numpy())


@pytest.mark.parametrize("small", [True, False])
def test_a_cotangent_joins_the_other_in_the_blocked_layout(small: bool) -> None:
    """The shortcut's does at r, where the other comes from a plain convolution; that of a small mean starts there."""
    with patch.object(conv, "SMALL_MAP", 20 * small), patch.object(reduce, "SMALL_MAP", 32 * small):
        model = differentiate(residual())
    rng = np.random.default_rng(2)
    x, g = rng.normal(size=(3, 3, 9, 8)).astype(np.float32), rng.normal(size=(3, CHANNELS, 1, 1)).astype(np.float32)
    got = OnnxRuntimeExecutor(model)({"x": x, "grad_y": g})["grad_x"]
    want = theirs(x, g)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["AveragePool"] == 1 + small
    assert ops["ConvTranspose"] == 2 - small
