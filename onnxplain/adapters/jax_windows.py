"""Pooling as jax2onnx writes `lax.reduce_window`, as two-dimensional pooling again.

    (N, H, W, C) ──Unsqueeze──► (1, 1, N, H, W, C) ──MaxPool | Conv with ones, of all four axes──► Squeeze

The windows of the batch and the channels have the length 1. Runtimes have no fast kernels for pooling of four axes, and
no gradient passes a window over an axis of unknown length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxplain.engine.requests import Array

PLAIN = frozenset({"kernel_shape", "strides", "pads", "group"})  # what such nodes say


def flatten_windows(model: onnx.ModelProto) -> None:
    """Rewrite such nodes of a model, in place. What is not of this form stays as it is."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [part for node in model.graph.node for part in (flattened(node, constants) or [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def flattened(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> list[onnx.NodeProto] | None:
    """The nodes that a pooling over four axes is made of; None if it is no such pooling, or slides along three."""
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    kernel = window(node, said, constants)
    if kernel is None or len(kernel) != 4 or not said.keys() <= PLAIN or said.get("group", 1) != 1:
        return None
    strides, pads = said.get("strides", [1] * 4), said.get("pads", [0] * 8)
    slides = [i for i in range(4) if kernel[i] > 1 or strides[i] > 1 or pads[i] or pads[4 + i]]
    if len(slides) > 2:
        return None
    slides += [i for i in (3, 2, 1, 0) if i not in slides][: 2 - len(slides)]
    first, second = sorted(slides)
    order = [i for i in range(4) if i not in slides] + [first, second]
    how: dict[str, Any] = {
        "kernel_shape": [kernel[first], kernel[second]],
        "strides": [strides[first], strides[second]],
        "pads": [pads[first], pads[second], pads[4 + first], pads[4 + second]],
    }
    name, count = node.output[0], float(kernel[first] * kernel[second])
    axes = numpy_helper.from_array(np.array([0, 1]), f"{name}.axes")
    made = [
        helper.make_node("Constant", [], [axes.name], value=axes),
        helper.make_node("Squeeze", [node.input[0], axes.name], [f"{name}.four"]),
        helper.make_node("Transpose", [f"{name}.four"], [f"{name}.first"], perm=order),
    ]
    if node.op_type == "MaxPool":
        made.append(helper.make_node("MaxPool", [f"{name}.first"], [f"{name}.pooled"], **how))
    else:  # a sum
        many = numpy_helper.from_array(np.array(count, np.float32), f"{name}.count")
        made += [
            helper.make_node("AveragePool", [f"{name}.first"], [f"{name}.mean"], count_include_pad=1, **how),
            helper.make_node("Constant", [], [many.name], value=many),
            helper.make_node("Mul", [f"{name}.mean", many.name], [f"{name}.pooled"]),
        ]
    back = np.argsort(order).tolist()
    made.append(helper.make_node("Transpose", [f"{name}.pooled"], [f"{name}.last"], perm=back))
    made.append(helper.make_node("Unsqueeze", [f"{name}.last", axes.name], [name]))
    return made


def window(
    node: onnx.NodeProto, said: Mapping[str, list[int]], constants: Mapping[str, onnx.TensorProto]
) -> list[int] | None:
    """The lengths of the windows of a MaxPool, or of a Conv that sums; None for other nodes."""
    if node.op_type == "MaxPool" and len(node.output) == 1:
        return said.get("kernel_shape")
    if node.op_type != "Conv" or len(node.input) != 2 or node.input[1] not in constants:
        return None
    weights: Array = numpy_helper.to_array(constants[node.input[1]])
    return list(weights.shape[2:]) if weights.shape[:2] == (1, 1) and (weights == 1).all() else None
