"""Reductions."""

from __future__ import annotations

import numpy as np
import onnx
from conformance.samples.sample import Array, Sample, between, directions, distinct, ints, node, normal, slope

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.registry import DEFAULT, Rules
from onnxplain.engine.executors.reference import ReferenceExecutor


def reduction(op: str) -> list[Sample]:
    """One axis, several, all, none: with the reduced axes kept and dropped."""
    x = distinct(2, 3, 4)
    x = x + np.sign(x) * 0.4  # away from 0, and from each other
    return [
        node(op, x, ints(1)),
        node(op, x, ints(-1, 1), keepdims=0),
        node(op, x, ints(0), keepdims=0),
        node(op, x, label="all"),
        node(op, x, keepdims=0, label="all", free=()),
        node(op, x, noop_with_empty_axes=1),
    ]


def with_zeros(*shape: int) -> Array:
    """One zero in the first row, two in the second, and none in the others."""
    x = normal(*shape)
    x[0, 1] = x[1, 0] = x[1, -1] = 0
    return x


SAMPLES = [
    node("ReduceSum", normal(2, 3, 4), ints(1)),
    node("ReduceSum", normal(2, 3, 4), ints(-1, 1), keepdims=0),
    node("ReduceSum", normal(2, 3, 4), label="all"),
    node("ReduceSum", normal(2, 3, 4), keepdims=0, label="all", free=()),
    node("ReduceSum", normal(2, 3, 4), ints(0), keepdims=0),
    node("ReduceSum", normal(2, 3, 4), noop_with_empty_axes=1),
    node("ReduceSum", normal(2, 3, 4), ints(), noop_with_empty_axes=1, keepdims=0, label="empty"),
    node("ReduceMean", normal(2, 3, 4), ints(1)),
    node("ReduceMean", normal(2, 3, 4, 5), ints(2, 3), keepdims=0),
    node("ReduceMean", normal(2, 3, 4), free=(), label="all"),
    node("ReduceMean", normal(2, 3, 4), free=(), keepdims=0, label="all"),
    node("ReduceMean", normal(2, 3, 4), noop_with_empty_axes=1),
    *(sample for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp") for sample in reduction(op)),
    *(sample for op in ("ReduceMax", "ReduceMin", "ReduceProd") for sample in reduction(op)),
    node("ReduceLogSum", between(1, 2, 2, 3, 4), ints(1)),
    node("ReduceLogSum", between(1, 2, 2, 3, 4), ints(0, -1), keepdims=0),
    node("CumSum", normal(2, 3, 4), np.asarray(1)),
    node("CumSum", normal(2, 3, 4), np.asarray(-1), exclusive=1),
    node("CumSum", normal(2, 3, 4), np.asarray(1), reverse=1),
    node("CumSum", normal(2, 3, 4), np.asarray(0), exclusive=1, reverse=1),
    node("CumProd", normal(2, 3, 4), np.asarray(1), opset=26),
    node("CumProd", normal(2, 3, 4), np.asarray(-1), opset=26, exclusive=1),
    node("CumProd", with_zeros(2, 5), np.asarray(1), opset=26, reverse=1),
    node("CumProd", with_zeros(2, 5), np.asarray(1), opset=26, exclusive=1, reverse=1),
    node("CumProd", normal(2, 1), np.asarray(1), opset=26, label="one element"),
    node("ReduceProd", with_zeros(2, 5), ints(1), label="zeros"),
    node("Softmax", normal(2, 3, 4)),
    node("Softmax", normal(2, 3, 4), axis=1),
    node("Softmax", normal(2, 3, 4), axis=0),
    node("LogSoftmax", normal(2, 3, 4)),
    node("LogSoftmax", normal(2, 3, 4), axis=-2),
    node("LogSoftmax", normal(2, 3, 4), axis=0),
]


def chain_gap(rules: Rules = DEFAULT, inner: str = "Softmax") -> float:
    """The adjoint gap of ReduceSum(inner(x)): what `inner` gets is a cotangent with a 1 in place of an axis."""
    make = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node(inner, ["x"], ["h"], axis=1),
        onnx.helper.make_node("ReduceSum", ["h", "axes"], ["s"], keepdims=1),
    ]
    axes = onnx.numpy_helper.from_array(ints(1), "axes")
    shapes = [make("x", onnx.TensorProto.DOUBLE, [2, 3]), make("s", onnx.TensorProto.DOUBLE, [2, 1])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "chain", shapes[:1], shapes[1:], [axes]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    x = normal(2, 3)
    along = directions(np.random.default_rng(0), {"x": x})
    change = slope(ReferenceExecutor(model), {"x": x}, along)["s"]
    back = ReferenceExecutor(differentiate(model, rules=rules))({"x": x, "grad_s": np.ones((2, 1))})["grad_x"]
    return float(np.abs((back * along["x"]).sum(1, keepdims=True) - change).max())
