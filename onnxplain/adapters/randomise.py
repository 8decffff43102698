"""Classifiers with weights drawn anew: what an explanation that depends on what was learnt must not survive.

A *layer* is a node that multiplies what comes of the image with weights: a convolution, a matrix product, a recurrent
network. It has the name of its output, which no other layer has. Weights are drawn from the normal distribution that
has the mean and the standard deviation of the tensor in their place. (Adebayo et al. draw as the training code did
before training, which an ONNX file does not tell.)

All else stays: biases, and the scales, offsets and statistics of normalisations. They scale and shift channels that
mean nothing any more once the weights are drawn, and some of them, variances, must not be drawn from a normal
distribution. A constant weight has no deviation, and stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.control import subgraphs
from onnxplain.adapters.gradient.differentiate import as_message, finish, pick
from onnxplain.adapters.gradient.facts import RANDOM
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.adapters.gradient.read import ModelLike
from onnxplain.adapters.gradient.sweep import FLOATS, kind, label, reads
from onnxplain.engine.methods.options import suggest
from onnxplain.errors import InvalidModel, UsageError
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY

# The inputs that are weights, where they do not come of the image; of an Einsum it may be any.
WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "DeformConv": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Einsum": range(99),
    "GRU": (1, 2), "LSTM": (1, 2), "RNN": (1, 2),
}  # fmt: skip
QUANTISED = {"ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}


def weight_layers(model: ModelLike, output: str | None = None) -> list[str]:
    """The layers of a classifier that have weights, from the logits backwards: the order of a cascade.

    They are in the order of the graph, last first. Where several layers read the same weights, the one nearest to the
    logits stands for all of them. `output` names the logits where the model has several outputs: layers that it does
    not depend on are left out.

    Raises `InvalidModel` for a model that cannot be read, has quantised weights or control flow, or has no weights, and
    `UsageError` for a gradient model and for an output that the model does not have.
    """
    ours = ready(model)
    if output is not None:
        ours.graph.outputs[:] = pick("output", ours.graph.outputs, [output])
        passes.RemoveUnusedNodesPass()(ours)
    return list(layers_of(ours))


def randomised(model: ModelLike, layers: Sequence[str], seed: int) -> onnx.ModelProto:
    """The classifier with the weights of `layers` (names from `weight_layers`) drawn anew, and nothing else changed.

    What is drawn for a tensor depends on `seed` and the tensor's name alone, so that a cascade keeps what it has drawn
    while layers are added. Inputs, outputs and metadata are those of the given model; functions are written out, and
    models of old opsets raised to opset 18, as `gradient_model` does it.

    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018, section
    3: cascading randomisation takes `weight_layers(model)[:k]` for k = 1, 2, ..., the independent one a single layer.

    Raises what `weight_layers` raises, and `UsageError` for a layer that the model does not have, a seed below 0, and a
    model of more than 2 GB.
    """
    if isinstance(layers, str):
        raise UsageError(f"layers: expected a list of names, got {layers!r}; next: give [{layers!r}]")
    if seed < 0:
        raise UsageError(f"seed: expected a whole number from 0 on, got {seed}")
    ours = ready(model)
    known = layers_of(ours)
    for name in layers:
        if name not in known:
            raise UsageError(f"the model has no layer with weights {name!r}{suggest(name, known)}")
    for weight in {weight: None for name in layers for weight in known[name]}:  # each once, in order
        weight.const_value = lazily_drawn(weight, seed)
    return as_message(finish(ours))


def ready(model: ModelLike) -> ir.Model:
    """The model as one graph, whose weights are all initializers."""
    ours = prepare(model)
    if GRADIENT_MODEL_KEY in ours.metadata_props:
        raise UsageError(
            "a gradient model has its weights twice, forwards and backwards; next: give the classifier that it was "
            "made of"
        )
    return ours


def layers_of(model: ir.Model) -> dict[str, list[ir.Value]]:
    """The weights of each layer, by its name, last layer first; a tensor belongs to the last that reads it."""
    made_of: dict[ir.Value, set[ir.Value]] = {v: {v} for v in model.graph.initializers.values()}
    found: list[tuple[str, list[ir.Value]]] = []
    for node in model.graph:
        constants = [made_of[x] for x in reads(node) if x in made_of]
        if node.inputs and node.op_type not in RANDOM and len(constants) == len(reads(node)):
            refuse_unknown(node, constants)
            made_of |= {y: set().union(*constants) for y in node.outputs}
        elif node.op_type in WEIGHTS and not node.domain:
            parts = [made_of.get(x, set()) for i, x in enumerate(node.inputs) if x and i in WEIGHTS[node.op_type]]
            weights = {v for part in parts for v in part if v.dtype in FLOATS and elements(v) > 1}
            found.append((str(node.outputs[0].name), sorted(weights, key=lambda v: str(v.name))))
        else:
            refuse_unknown(node, constants)
    layers: dict[str, list[ir.Value]] = {}
    taken: set[ir.Value] = set()
    for name, known in reversed(found):
        if own := [v for v in known if v not in taken]:
            layers[name] = own
            taken.update(own)
    if not layers:
        raise InvalidModel("the model has no layer with weights (a convolution, a matrix product): none can be drawn")
    return layers


def refuse_unknown(node: ir.Node, constants: Sequence[set[ir.Value]]) -> None:
    """Raise where weights are read by a node that may be a layer, in a way that is not known here."""
    large = any(elements(v) > 1 and v.shape is not None and len(v.shape) > 1 for part in constants for v in part)
    if node.op_type in QUANTISED and large:
        why = "its weights are quantised; next: give the model as it was before"
    elif any(subgraphs(node)):
        why = "its course depends on the image, and weights inside it are not looked for; next: export it without"
    elif node.domain and large:
        why = "it is not known which of its inputs are weights; next: export the model with standard operators"
    else:
        return
    raise InvalidModel(f"{kind(node)} (node: {label(node)}): {why}")


def elements(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size


def lazily_drawn(weight: ir.Value, seed: int) -> ir.TensorProtocol:
    """The new value of a weight, made when it is written: of a large model, one tensor at a time."""
    old = weight.const_value
    assert old is not None
    make = partial(drawn, old, str(weight.name), seed)
    return ir.LazyTensor(make, old.dtype, ir.Shape(old.shape.numpy()), name=weight.name)


def drawn(tensor: ir.TensorProtocol, name: str, seed: int) -> ir.TensorProtocol:
    """Independent draws from N(mean, std²) of a tensor, in its shape and type; in single precision at least."""
    old = tensor.numpy()
    wide = np.float64 if old.dtype == np.float64 else np.float32
    key = tuple(np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32).tolist())
    new = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).standard_normal(old.shape, dtype=wide)
    new *= wide(old.std(dtype=np.float64))
    new += wide(old.mean(dtype=np.float64))
    return ir.tensor(new.astype(old.dtype, copy=False), dtype=tensor.dtype, name=name)
