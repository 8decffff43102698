"""The light models of the onnx package: random weights in place of their constant ones, and PyTorch as the reference.

As they come, every weight is the same number, so their output is uniform and every window of their pooling is a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import helper, numpy_helper
from torch import Tensor

Function = Callable[[Tensor], Tensor]
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light(name: str, seed: int = 0) -> tuple[onnx.ModelProto, Function]:
    """A light model with random weights, and its logits (before a Softmax at the end) as a function in PyTorch."""
    rng = np.random.default_rng(seed)
    model = onnx.load(DATA / f"light_{name}.onnx")
    randomise(model, rng)
    images = torch.from_numpy(rng.standard_normal((1, 3, 224, 224)))
    statistics: dict[str, Tensor] = {}
    run(model.graph, images, statistics)
    for tensor in model.graph.initializer:
        if tensor.name in statistics:
            tensor.CopyFrom(numpy_helper.from_array(statistics[tensor.name].numpy().astype(np.float32), tensor.name))
    return model, lambda x: torch.cat([run(model.graph, image[None]) for image in x])


def randomise(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Put random numbers in place of every float weight, and of every ConstantOfShape that makes one."""
    graph = model.graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    shapes = {name: list(array.shape) for name, array in arrays.items() if array.dtype == np.float32}
    shapes |= {node.output[0]: arrays[node.input[0]].tolist() for node in makers}
    obsolete = {*shapes, *(node.input[0] for node in makers)}
    kept = {
        "node": [node for node in graph.node if node not in makers],
        "initializer": [t for t in graph.initializer if t.name not in obsolete],
        "input": [v for v in graph.input if v.name not in obsolete],
    }
    for field, items in kept.items():
        items = [type(item).FromString(item.SerializeToString()) for item in items]  # clearing a field frees its items
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    read = {name for node in graph.node for name in node.input}
    for name, shape in shapes.items():
        if name not in read:
            continue  # the labels of their training
        graph.initializer.append(numpy_helper.from_array(draw(rng, role(graph, name), shape), name))
        # of their IR version, where a weight is an input with a default
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))


def role(graph: onnx.GraphProto, name: str) -> str:
    """What reads a weight, and as which of its inputs: "Conv 1"."""
    node = next(node for node in graph.node if name in node.input)
    return (
        role(graph, node.output[0])
        if node.op_type in ("Reshape", "Unsqueeze")
        else f"{node.op_type} {place(node, name)}"
    )


def place(node: onnx.NodeProto, name: str) -> int:
    return list(node.input).index(name)


def draw(rng: np.random.Generator, role: str, shape: list[int]) -> np.ndarray:
    """Weights that keep activations at their size; scales about 1, biases about 0."""
    if role == "Conv 1":
        return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
    if role == "Gemm 1":
        return rng.normal(0, math.sqrt(2 / shape[-1]), shape).astype(np.float32)
    if role in ("BatchNormalization 1", "BatchNormalization 4", "Mul 1"):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    if role in ("BatchNormalization 2", "Add 1"):  # off the kink of ReLU, where float32 itself is noisy
        return (rng.uniform(1, 2, shape) * rng.choice((-1, 1), shape)).astype(np.float32)
    return rng.normal(0, 0.2, shape).astype(np.float32)


def run(graph: onnx.GraphProto, x: Tensor, statistics: dict[str, Tensor] | None = None) -> Tensor:
    """The logits. With `statistics`, BatchNormalization takes them from the batch and leaves them there."""
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    values = {name: value.to(x.dtype) if value.is_floating_point() else value for name, value in values.items()}
    (image,) = (v.name for v in graph.input if v.name not in values)
    values[image] = y = x
    for node in graph.node:
        if node.op_type == "Softmax":
            break
        if statistics is not None and node.op_type == "BatchNormalization":
            of = values[node.input[0]]
            batch = {node.input[3]: of.mean((0, 2, 3)), node.input[4]: of.var((0, 2, 3))}
            statistics |= batch
            values |= batch
        y = OPERATORS[node.op_type](attributes(node), *(values[name] for name in node.input))
        values[node.output[0]] = y
    return y.reshape(len(x), -1)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def padded(x: Tensor, a: Mapping[str, Any], value: float = 0.0) -> Tensor:
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    return F.pad(x, (left, right, top, bottom), value=value)


def conv(a: Mapping[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.conv2d(padded(x, a), w, b, stride=a["strides"], groups=a.get("group", 1))


def max_pool(a: Mapping[str, Any], x: Tensor) -> Tensor:
    return F.max_pool2d(padded(x, a, -math.inf), a["kernel_shape"], a["strides"])


def average_pool(a: Mapping[str, Any], x: Tensor) -> Tensor:
    """The mean over what of a window lies inside the image."""
    inside = torch.ones_like(x[:1, :1])
    mean, share = (F.avg_pool2d(padded(part, a), a["kernel_shape"], a["strides"]) for part in (x, inside))
    return mean / share


def batch_normalization(a: Mapping[str, Any], x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, b, eps=a.get("epsilon", 1e-5))


def lrn(a: Mapping[str, Any], x: Tensor) -> Tensor:
    return F.local_response_norm(x, a["size"], a["alpha"], a["beta"], a["bias"])


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, x, y: x + y,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Conv": conv,
    "Dropout": lambda _, x: x,
    "Gemm": lambda _, x, w, b: F.linear(x, w, b),  # all of theirs have transB
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "LRN": lrn,
    "MaxPool": max_pool,
    "Mul": lambda _, x, y: x * y,
    "Relu": lambda _, x: F.relu(x),
    "Reshape": lambda _, x, shape: x.reshape(tuple(shape)),
    "Sum": lambda _, *xs: sum(xs[1:], xs[0]),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": lambda a, x: x.reshape(*x.shape, *(1 for _ in a["axes"])),  # all of theirs are at the end
}
