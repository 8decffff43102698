"""Normalisations beside convolutions scale their kernels on the way back, and the gradient is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from frameworks import framework

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.engine.executors.reference import ReferenceExecutor

torch = framework("torch")

import torch.nn.functional as F  # noqa: E402, N812

WEIGHTS = {
    "wide": (6, 4, 3, 3), "back": (4, 6, 3, 3), "grouped": (6, 2, 3, 3),
    **{f"{part}{c}": (c,) for part in ("scale", "bias", "mean") for c in (4, 6)},
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    variances = {f"var{c}": rng.uniform(0.5, 2, c) for c in (4, 6)}
    return {name: rng.normal(size=shape) for name, shape in WEIGHTS.items()} | variances


def norm(x: str, y: str, channels: int) -> onnx.NodeProto:
    parts = [f"{part}{channels}" for part in ("scale", "bias", "mean", "var")]
    return onnx.helper.make_node("BatchNormalization", [x, *parts], [y], epsilon=2**-10)


def node(op: str, x: str, y: str, *others: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(op, [x, *others], [y], **attributes)


def theirs_norm(x: Any, w: dict[str, Any], c: int) -> Any:
    return F.batch_norm(x, w[f"mean{c}"], w[f"var{c}"], w[f"scale{c}"], w[f"bias{c}"], eps=2**-10)


def behind(x: Any, w: dict[str, Any]) -> Any:
    return F.relu(theirs_norm(F.conv2d(x, w["wide"], padding=1), w, 6))


def before(x: Any, w: dict[str, Any]) -> Any:
    return F.conv2d(F.relu(theirs_norm(x, w, 4)), w["wide"], padding=1)


def strided(x: Any, w: dict[str, Any]) -> Any:
    return F.conv2d(F.relu(theirs_norm(F.conv_transpose2d(x, w["wide"].transpose(0, 1), stride=2), w, 6)), w["back"])


def grouped(x: Any, w: dict[str, Any]) -> Any:
    return theirs_norm(F.conv2d(x, w["grouped"], groups=2), w, 6)


def twice(x: Any, w: dict[str, Any]) -> Any:
    y = F.relu(theirs_norm(x, w, 4))
    return F.conv2d(y, w["wide"], padding=1) + F.conv2d(y, w["wide"] * 2, padding=1)


CASES: dict[str, tuple[list[onnx.NodeProto], Callable[..., Any], int]] = {
    "behind": (
        [node("Conv", "x", "a", "wide", pads=[1] * 4), norm("a", "b", 6), node("Relu", "b", "y")], behind, 0,
    ),
    "before": (
        [norm("x", "a", 4), node("Relu", "a", "b"), node("Conv", "b", "y", "wide", pads=[1] * 4)], before, 0,
    ),
    "transposed": (
        [
            node("ConvTranspose", "x", "a", "wide_t", strides=[2, 2]), norm("a", "b", 6), node("Relu", "b", "c"),
            node("Conv", "c", "y", "back"),
        ],
        strided, 0,
    ),
    "grouped": ([node("Conv", "x", "a", "grouped", group=2), norm("a", "y", 6)], grouped, 1),
    "twice": (
        [
            norm("x", "a", 4), node("Relu", "a", "b"), node("Conv", "b", "c", "wide", pads=[1] * 4),
            node("Conv", "b", "d", "double", pads=[1] * 4), node("Add", "c", "y", "d"),
        ],
        twice, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_factor_goes_into_a_kernel_that_nothing_else_reads(name: str) -> None:
    nodes, same, left = CASES[name]
    values = weights()
    constants = values | {"wide_t": values["wide"].swapaxes(0, 1), "double": 2 * values["wide"]}
    make = onnx.helper.make_tensor_value_info
    used = {x for node in nodes for x in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [make("x", onnx.TensorProto.DOUBLE, ["N", 4, 6, 7])],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items() if name in used],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 4, 6, 7))
    leaf = torch.from_numpy(x).requires_grad_()
    y = same(leaf, {name: torch.from_numpy(a) for name, a in values.items()})
    g = rng.normal(size=tuple(y.shape))
    y.backward(torch.from_numpy(g))
    gradient = differentiate(model)
    out = ReferenceExecutor(gradient)({"x": x, "grad_y": g})
    np.testing.assert_allclose(out["y"], y.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(out["grad_x"], leaf.grad.numpy(), rtol=0, atol=1e-12 * np.abs(leaf.grad.numpy()).max())
    factors = {tensor.name for tensor in gradient.graph.initializer if tensor.dims in ([4, 1, 1], [6, 1, 1])}
    assert sum(any(x in factors for x in node.input) for node in gradient.graph.node) == left
