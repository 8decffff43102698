"""`gradient_model`: a classifier made into one graph that gives logits, the explained value and its input gradient."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.batch import free_batch
from onnxplain.adapters.gradient.biases import BiasGradients
from onnxplain.adapters.gradient.differentiate import OnUnsupported, as_message, finish, gradients_of, make_way, named
from onnxplain.adapters.gradient.expr import Emit, Expr
from onnxplain.adapters.gradient.head import classes, find_logits
from onnxplain.adapters.gradient.image import as_float, fix_size, fold, image_input
from onnxplain.adapters.gradient.layers import Layer, Layers
from onnxplain.adapters.gradient.objective import COTANGENT, value_and_cotangent
from onnxplain.adapters.gradient.prepare import blaming, prepare
from onnxplain.adapters.gradient.read import ModelLike, files_of
from onnxplain.adapters.gradient.reference import add_reference
from onnxplain.adapters.gradient.registry import DEFAULT, Rules, needs_reference
from onnxplain.adapters.gradient.sweep import single
from onnxplain.engine.drive import (
    ACTIVATION,
    ACTIVATION_GRADIENT,
    BIAS_GRADIENT,
    BIAS_SUM,
    OBJECTIVE,
    REFERENCE,
    TARGET,
)
from onnxplain.engine.requests import Head, Kind
from onnxplain.errors import InvalidModel, UsageError
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, PREPROCESS_KEY, PreprocessSpec

OUTPUTS = ("logits", "value", "gradient")  # of a gradient model
OBJECTIVES = {kind.name.lower(): int(kind) for kind in Kind}  # and the codes of its objectives
HEAD_KEY, LAYOUT_KEY, NOTES_KEY = "onnxplain.head", "onnxplain.layout", "onnxplain.notes"
SOURCE_KEY = "onnxplain.source_sha256"
LAYERS_KEY, BIASES_KEY = "onnxplain.layers", "onnxplain.bias_gradients"
RULES_KEY, DEEPLIFT_ID = "onnxplain.rules", "deeplift"  # of a model whose `gradient` are multipliers


def gradient_model(
    model: ModelLike,
    *,
    preprocess: PreprocessSpec | None = None,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    layers: str | Sequence[str] = (),
    bias_gradients: bool = False,
    rules: Rules = DEFAULT,
    on_unsupported: OnUnsupported = "error",
) -> onnx.ModelProto:
    """The gradient model of a classifier.

    Inputs: the classifier's own (same name, layout, H and W), `onnxplain_target` float32 (N, K) and
    `onnxplain_objective` int64 (N), a code of `Kind` for each sample. Outputs: `logits` (N, K), `value` (N), `gradient`
    (as the input). Images of integers and of half precision become float32. With rules that look at a reference
    (`DEEPLIFT`) there is one more input, `onnxplain_reference`, as the image, and `gradient` are the multipliers.

    Args:
        model: a path, a `ModelProto` or an onnx-ir model.
        preprocess: is folded in, so that the input is RGB, or grey, in [0,1]; without it the input is whatever the
            classifier wants.
        output: the name of the output to follow to the logits, where there are several float outputs.
        head: "softmax" or "sigmoid", what makes probabilities of logits. None: as the activation says that the model
            ends in, which is cut off; without one, sigmoid for a single class and softmax for several.
        input_shape: (C, H, W) or (H, W, C), with or without a leading 1: the sizes that the model leaves open.
        layers: names of inner values, or of the nodes that make them. Layer i adds the outputs `activation_i` and
            `activation_gradient_i`, ∂value/∂activation, both (N, C, h, w); "auto" is the usual choice for class
            activation maps (see `Layers.automatic`).
        bias_gradients: add what each node contributes to the explained logit beside what it passes on (see `biases`):
            `bias_gradient_i` (N, C, h, w) of each layer that lies on the picture, and the sum of all, `bias_sum` (N).
        rules, on_unsupported: those of `differentiate`.

    Raises:
        InvalidModel: the model cannot be read or is no classifier.
        NotDifferentiable: there are operators without a gradient.
        UsageError: the model has no such `output` or layer, or arguments contradict the model or each other; or the
            result has more than 2 GB, which only files can hold (`write_gradient_model`).
    """
    how: dict[str, Any] = {"output": output, "head": head, "input_shape": input_shape}
    how |= {"layers": layers, "bias_gradients": bias_gradients, "rules": rules, "on_unsupported": on_unsupported}
    return as_message(gradient_graph(model, preprocess=preprocess, **how))


def gradient_graph(
    model: ModelLike,
    *,
    preprocess: PreprocessSpec | None = None,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    layers: str | Sequence[str] = (),
    bias_gradients: bool = False,
    rules: Rules = DEFAULT,
    on_unsupported: OnUnsupported = "error",
) -> ir.Model:
    """`gradient_model`, of any size: its weights may lie in files still."""
    with blaming(model):
        ours, x, z, head = classifier(model, preprocess, output, head, input_shape)
    graph = ours.graph
    if needs_reference(rules):
        if bias_gradients:
            raise UsageError("bias_gradients: there are none of multipliers; next: leave out one or the other")
        make_way(graph, {REFERENCE})
        add_reference(z.emit, x.value)
        ours.metadata_props[RULES_KEY] = DEEPLIFT_ID
    names = [layers] if isinstance(layers, str) else list(layers)
    chosen: list[Layer] = []
    biases: BiasGradients | None = None
    if names or bias_gradients:
        inside = Layers(graph, x.value, z.value, last=ours.metadata_props.get(LAYOUT_KEY) == "NHWC")
        chosen = inside.named(names, model)
        # what `fold` has put before the classifier is none of its layers: u is in model space
        folded = frozenset(node for node, _ in x.value.uses()) if preprocess is not None else frozenset()
        biases = BiasGradients(inside, skip=folded) if bias_gradients else None
    batch, count = z.shape
    make_way(graph, {TARGET, OBJECTIVE, COTANGENT})
    target = ir.Value(name=TARGET, shape=ir.Shape([batch, count]), type=ir.TensorType(ir.DataType.FLOAT))
    kinds = ir.Value(name=OBJECTIVE, shape=ir.Shape([batch]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.extend([target, kinds])
    t = Expr(z.emit, target).cast(z.value.dtype or ir.DataType.DOUBLE)
    with blaming(model):
        value, cotangent = value_and_cotangent(z, t, Expr(z.emit, kinds), Head(head))
        cotangent.value.name = COTANGENT
        wrt = [x.value, *(layer.value for layer in chosen)]
        gradients = gradients_of(ours, z.emit, {z.value: cotangent}, wrt, rules, on_unsupported, biases)
        if x.value not in gradients:
            raise InvalidModel(
                "the logits do not depend on the image through any derivative; next: name another output"
            )
        inner = {name: e for at, layer in enumerate(chosen) for name, e in both(at, layer, gradients, z.emit).items()}
        if biases is not None:
            inner |= bias_outputs(ours, biases, value)
    if x.value.name in inner:
        raise InvalidModel(f"the image input is called {x.value.name}, a name that its layers need; next: rename it")
    logits, explained, gradient = OUTPUTS
    graph.outputs[:] = [
        *(named(z, logits), named(value, explained), named(gradients[x.value], gradient, x.value.shape)),
        *(named(e, name) for name, e in inner.items()),
    ]
    ours.metadata_props[GRADIENT_MODEL_KEY] = "1"
    ours.metadata_props["onnxplain.objectives"] = json.dumps(OBJECTIVES)
    if chosen:
        ours.metadata_props[LAYERS_KEY] = json.dumps([layer.facts for layer in chosen])
    with blaming(model):
        return finish(ours)


def both(at: int, layer: Layer, gradients: Mapping[ir.Value, Expr], emit: Emit) -> dict[str, Expr]:
    """The outputs of a layer: its activation, and the gradient of the explained value with respect to it."""
    activation = layer.grid(Expr(emit, layer.value))
    gradient = gradients.get(layer.value)
    return {
        ACTIVATION.format(at): activation,
        ACTIVATION_GRADIENT.format(at): activation.zeros() if gradient is None else layer.grid(gradient),
    }


def bias_outputs(model: ir.Model, biases: BiasGradients, value: Expr) -> dict[str, Expr]:
    """The outputs of the bias-gradients, which the metadata say of whose they are."""
    maps, whole = biases.outputs(value)
    model.metadata_props[BIASES_KEY] = json.dumps([layer.value.name for layer, _ in maps])
    outputs = {BIAS_GRADIENT.format(at): map for at, (_, map) in enumerate(maps)}
    return outputs | {BIAS_SUM: whole}


def logits_model(
    model: ModelLike,
    *,
    preprocess: PreprocessSpec | None = None,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
) -> onnx.ModelProto:
    """The classifier as its gradient model has it, forward only: the same input in, `logits` out.

    It needs no gradient rules, so a classifier that cannot be differentiated has one too. Raises `InvalidModel`, or
    `UsageError`, as `gradient_model` does.
    """
    with blaming(model):
        ours, _, z, _ = classifier(model, preprocess, output, head, input_shape)
        ours.graph.outputs[:] = [named(z, "logits")]
        return as_message(finish(ours))


def forward_model(gradient: onnx.ModelProto) -> onnx.ModelProto:
    """The forward half of a gradient model: image in, logits out. (Runtimes do not skip what is not fetched.)

    Weights that lie in files stay there.
    """
    ours = ir.from_proto(gradient)
    ours.graph.inputs[:] = [v for v in ours.graph.inputs if v.name not in (TARGET, OBJECTIVE, REFERENCE)]
    return only(ours, ("logits",))


def without_layers(gradient: onnx.ModelProto) -> onnx.ModelProto:
    """A gradient model without the outputs of inner layers, which those who do not ask for them need not pay for."""
    if {v.name for v in gradient.graph.output} == set(OUTPUTS):
        return gradient
    return only(ir.from_proto(gradient), OUTPUTS)


def only(model: ir.Model, outputs: Collection[str]) -> onnx.ModelProto:
    """A model with these outputs, and what they need."""
    model.graph.outputs[:] = [v for v in model.graph.outputs if v.name in outputs]
    passes.RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)


def classifier(
    model: ModelLike,
    preprocess: PreprocessSpec | None,
    output: str | None,
    head: str | None,
    input_shape: Sequence[int] | None,
) -> tuple[ir.Model, Expr, Expr, Head]:
    """The model from its image to its logits and no further, described in its metadata; image, logits and head.

    Its preprocessing is folded in, its batch is free if it can be.
    """
    ours = prepare(model)
    x = image_input(ours.graph, taken=(TARGET, OBJECTIVE, REFERENCE, *OUTPUTS))
    notes = as_float(ours, x)
    axis = fix_size(ours, x, preprocess, input_shape)
    found = find_logits(ours.graph, x, output, head)
    ours.graph.outputs[:] = [found.logits]
    passes.RemoveUnusedNodesPass()(ours)
    passes.RemoveUnusedOpsetsPass()(ours)
    notes += [*found.notes, *freed(ours, x, found.logits)]
    emit = Emit(ours.graph)
    if preprocess is not None:
        assert axis is not None
        fold(preprocess, Expr(emit, x), axis)
        passes.TopologicalSortPass()(ours)
    z = rows(Expr(emit, found.logits), x)
    for key in (PREPROCESS_KEY, LAYOUT_KEY):
        ours.metadata_props.pop(key, None)  # what is not folded in does not hold
    ours.metadata_props.update(
        {
            "onnxplain.version": version("onnxplain"),
            SOURCE_KEY: source_sha256(model, ours),
            "onnxplain.space": "model" if preprocess is None else "pixel",
            HEAD_KEY: str(found.head),
            NOTES_KEY: json.dumps(notes),
        }
    )
    if preprocess is not None:
        ours.metadata_props[PREPROCESS_KEY] = json.dumps(preprocess.to_dict())
    if axis is not None:
        ours.metadata_props[LAYOUT_KEY] = "NHWC" if axis < 0 else "NCHW"
    return ours, Expr(emit, x), z, found.head


def freed(model: ir.Model, x: ir.Value, logits: ir.Value) -> list[str]:
    """Make a fixed batch free if that is sound, and say what became of it. A fixed batch other than 1 has to be."""
    assert x.shape is not None
    size = x.shape[0]
    if not isinstance(size, int):
        return []
    reason = free_batch(model, x, logits)
    if reason is None:
        return [f"the batch, which was fixed at {size}, is free"]
    if size != 1:
        raise InvalidModel(
            f"input {x.name}: the batch is fixed at {size}, and cannot be made free because of {reason}; "
            "next: export the model with a symbolic batch"
        )
    return [f"the batch stays fixed at 1, which is slow, because of {reason}"]


def rows(z: Expr, x: ir.Value) -> Expr:
    """Logits as (N, K), in single precision at least."""
    assert x.shape is not None
    count = classes(z.value)
    assert count is not None
    z = single(z)
    if z.rank != 2:
        z = z.reshape((None, count))
    if z.shape[0] is None or isinstance(x.shape[0], int):
        z.value.shape = ir.Shape([x.shape[0], count])
    return z


def source_sha256(model: ModelLike, ours: ir.Model | None = None) -> str:
    """The SHA-256 of the model's file (with those of its weights), or of a model in memory as it would be written.

    `ours` is what was read from it, if it was.
    """
    if isinstance(model, str | os.PathLike):
        digest = hashlib.sha256()
        for path in files_of(model, ours):
            with open(path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return digest.hexdigest()
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
