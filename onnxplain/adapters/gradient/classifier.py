"""`gradient_model`: a classifier made into one graph that gives logits, the explained value and its input gradient."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.differentiate import OnUnsupported, finish, gradients_of, make_way, named
from onnxplain.adapters.gradient.expr import Emit, Expr, op
from onnxplain.adapters.gradient.objective import value_and_cotangent
from onnxplain.adapters.gradient.prepare import ModelLike, blaming, files_of, infer_shapes, prepare
from onnxplain.adapters.gradient.sweep import FLOATS
from onnxplain.engine.drive import OBJECTIVE, TARGET
from onnxplain.engine.requests import Kind
from onnxplain.errors import InvalidModel, UsageError
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, PREPROCESS_KEY, PreprocessSpec

BATCH = "N"
OUTPUTS = ("logits", "value", "gradient")  # of a gradient model
OBJECTIVES = {kind.name.lower(): int(kind) for kind in Kind}  # and the codes of its objectives


def gradient_model(
    model: ModelLike,
    *,
    preprocess: PreprocessSpec | None = None,
    output: str | None = None,
    on_unsupported: OnUnsupported = "error",
) -> onnx.ModelProto:
    """The gradient model of a classifier.

    Inputs: the classifier's own (same name, layout, H and W), `onnxplain_target` float32 (N, K) and
    `onnxplain_objective` int64 (N), a code of `Kind` for each sample. Outputs: `logits` (N, K), `value` (N), `gradient`
    (as the input). With `preprocess` its normalisation is folded in, so that the input is RGB in [0,1]; without, the
    input is whatever the classifier wants. `output` names the logits where there are several float outputs;
    `on_unsupported` is that of `differentiate`.

    Raises `InvalidModel`, `NotDifferentiable`, or `UsageError` for an `output` that the model does not have.
    """
    ours, x, z = classifier(model, preprocess, output)
    graph = ours.graph
    batch, classes = z.shape
    for name in (TARGET, OBJECTIVE):
        make_way(graph, name)
    target = ir.Value(name=TARGET, shape=ir.Shape([batch, classes]), type=ir.TensorType(ir.DataType.FLOAT))
    kinds = ir.Value(name=OBJECTIVE, shape=ir.Shape([batch]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.extend([target, kinds])
    t = Expr(z.emit, target)
    t = t if z.dtype == t.dtype else op("Cast", t, to=int(z.value.dtype or ir.DataType.DOUBLE))
    with blaming(model):
        value, cotangent = value_and_cotangent(z, t, Expr(z.emit, kinds))
        gradients = gradients_of(ours, z.emit, {z.value: cotangent}, [x.value], on_unsupported=on_unsupported)
    if x.value not in gradients:
        raise InvalidModel("the logits do not depend on the image through any derivative; next: name another output")
    logits, explained, gradient = OUTPUTS
    graph.outputs[:] = [named(z, logits), named(value, explained), named(gradients[x.value], gradient, x.value.shape)]
    ours.metadata_props[GRADIENT_MODEL_KEY] = "1"
    ours.metadata_props["onnxplain.objectives"] = json.dumps(OBJECTIVES)
    with blaming(model):
        return finish(ours)


def logits_model(
    model: ModelLike, *, preprocess: PreprocessSpec | None = None, output: str | None = None
) -> onnx.ModelProto:
    """The classifier as its gradient model has it, forward only: the same input in, `logits` out.

    It needs no gradient rules, so a classifier that cannot be differentiated has one too. Raises `InvalidModel`, or
    `UsageError` for an `output` that the model does not have.
    """
    ours, _, z = classifier(model, preprocess, output)
    ours.graph.outputs[:] = [named(z, "logits")]
    with blaming(model):
        return finish(ours)


def forward_model(gradient: onnx.ModelProto) -> onnx.ModelProto:
    """The forward half of a gradient model: image in, logits out. (Runtimes do not skip what is not fetched.)"""
    ours = ir.from_proto(gradient)
    graph = ours.graph
    graph.outputs[:] = [v for v in graph.outputs if v.name == "logits"]
    graph.inputs[:] = [v for v in graph.inputs if v.name not in (TARGET, OBJECTIVE)]
    passes.RemoveUnusedNodesPass()(ours)
    return ir.to_proto(ours)


def classifier(model: ModelLike, preprocess: PreprocessSpec | None, output: str | None) -> tuple[ir.Model, Expr, Expr]:
    """The model with its preprocessing folded in and described in its metadata; its image and its logits."""
    ours = prepare(model)
    x = image_input(ours.graph)
    fix_input_size(ours, x, preprocess)
    z = logits_output(ours.graph, output)
    emit = Emit(ours.graph)
    ours.metadata_props.update(
        {
            "onnxplain.version": version("onnxplain"),
            "onnxplain.source_sha256": source_sha256(model),
            "onnxplain.space": "model" if preprocess is None else "pixel",
            "onnxplain.head": "softmax",
        }
    )
    ours.metadata_props.pop(PREPROCESS_KEY, None)  # what is not folded in does not hold
    if preprocess is not None:
        ours.metadata_props[PREPROCESS_KEY] = json.dumps(preprocess.to_dict())
        fold(preprocess, Expr(emit, x))
        passes.TopologicalSortPass()(ours)
    return ours, Expr(emit, x), Expr(emit, z)


def source_sha256(model: ModelLike) -> str:
    """The SHA-256 of the model's file (with those of its weights), or of a model in memory as it would be written."""
    if isinstance(model, str | os.PathLike):
        digest = hashlib.sha256()
        for path in files_of(model):
            with open(path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return digest.hexdigest()
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def image_input(graph: ir.Graph) -> ir.Value:
    """The one image that goes in: a float tensor (N, C, H, W)."""
    described = ", ".join(map(shown, graph.inputs))
    if len(graph.inputs) != 1:
        raise InvalidModel(f"expected one image input, got {len(graph.inputs)} inputs: {described}")
    (x,) = graph.inputs
    if x.name in (TARGET, OBJECTIVE, *OUTPUTS):
        raise InvalidModel(f"the image input is called {x.name}, a name that a gradient model needs; next: rename it")
    if x.dtype not in FLOATS or x.shape is None or len(x.shape) < 2:
        raise InvalidModel(f"expected a float image input of shape (N, C, H, W), got {described}")
    return x


def shown(value: ir.Value) -> str:
    """A value as messages have it: name, dtype and shape."""
    shape = "" if value.shape is None else f"[{', '.join(str(d) for d in value.shape)}]"
    return f"{value.name} {str(value.dtype).lower()}{shape}"


def fix_input_size(model: ir.Model, x: ir.Value, preprocess: PreprocessSpec | None) -> None:
    """Make the batch the only symbolic dimension: the preprocessing tells H and W where the model leaves them open."""
    assert x.shape is not None
    dims = [d if isinstance(d, int) else None for d in x.shape]
    if preprocess is not None:
        expected = (3, *preprocess.output_size)
        if len(dims) == 4 and dims[3] == 3 and dims[1] != 3:
            raise InvalidModel(
                f"the model's input is {shown(x)}, channels last: photos are supported channels first only; "
                "next: export it with the layout (N, 3, H, W)"
            )
        if len(dims) != 4 or any(d not in (None, e) for d, e in zip(dims[1:], expected, strict=True)):
            raise UsageError(
                f"the preprocessing gives images of shape {expected}, but the model's input is {shown(x)}; "
                "next: give the preprocessing that belongs to this model"
            )
        dims[1:] = expected
    if any(d is None for d in dims[1:]):
        raise InvalidModel(f"input {x.name}: height and width are not fixed; next: give the preprocessing of the model")
    if dims[0] not in (None, 1):
        raise InvalidModel(f"input {x.name}: the batch is fixed at {dims[0]}; next: export it with a symbolic batch")
    fixed = ir.Shape([dims[0] if dims[0] is not None else BATCH, *dims[1:]])
    if x.shape != fixed:
        x.shape = fixed
        for node in model.graph:
            for y in node.outputs:
                y.shape = None
        for y in model.graph.outputs:
            y.shape = None
        infer_shapes(model)


def logits_output(graph: ir.Graph, name: str | None) -> ir.Value:
    """The logits: the float output (N, K), or what goes into the softmax that it is."""
    floats = [v for v in graph.outputs if v.dtype in FLOATS]
    described = ", ".join(map(shown, graph.outputs))
    if name is not None:
        floats = [v for v in floats if v.name == name]
        if not floats:
            raise UsageError(f"output {name!r}: the model has no float output of that name; it has {described}")
    if len(floats) != 1:
        hint = "next: name the logits (output=, or --output-name)" if floats else "next: give a classifier"
        raise InvalidModel(f"expected one float output (the logits), got {described}; {hint}")
    z, last = before_activation(floats[0])
    if last == "Sigmoid":
        raise InvalidModel(
            f"output {floats[0].name} is a Sigmoid: classes that do not exclude each other are not supported yet; "
            "next: export the model without it, if softmax is meant"
        )
    if z.shape is None or len(z.shape) != 2 or not isinstance(z.shape[1], int):
        raise InvalidModel(f"expected logits of shape (N, K) with a fixed K, got {shown(z)}")
    if z.shape[1] < 2:
        raise InvalidModel(f"expected logits of at least two classes, got {shown(z)}: one output is not supported yet")
    return z


def before_activation(output: ir.Value) -> tuple[ir.Value, str | None]:
    """What goes into the activation that a classifier ends in, and its name: Softmax, LogSoftmax, Sigmoid or None.

    Operators that only move elements may stand behind it.
    """
    value = output
    while (node := value.producer()) is not None and not node.domain and node.inputs[0] is not None:
        if node.op_type in ("Softmax", "LogSoftmax"):
            axis = node.attributes["axis"].value if "axis" in node.attributes else -1
            rank = len(value.shape) if value.shape is not None else 2
            if axis not in (1, 1 - rank):
                raise InvalidModel(f"{node.op_type} of axis {axis} at the end: expected one over the classes, axis 1")
        if node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
            return node.inputs[0], node.op_type
        if node.op_type not in ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout"):
            break
        value = node.inputs[0]
    return output, None


def fold(preprocess: PreprocessSpec, x: Expr) -> None:
    """Put the normalisation between the input, which becomes RGB in [0,1], and all that reads it."""
    space = preprocess.space()
    consumers = list(x.value.uses())
    zero, scale = (x.emit.constant(np.asarray(part, x.dtype)) for part in (space.zero, space.scale))
    normalised = (x - zero) / scale
    if preprocess.do_flip_channel_order:
        red, green, blue = (normalised.slice(1, c, c + 1) for c in range(3))
        normalised = op("Concat", blue, green, red, axis=1)
    for node, index in consumers:
        node.replace_input_with(index, normalised.value)
