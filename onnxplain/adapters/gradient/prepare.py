"""Whatever was given as a model, made ready: read, checked, inlined, of opset 18 or later, with every shape known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient import control, ml
from onnxplain.adapters.gradient.expr import FACTS, PREFIX, UnsupportedCase
from onnxplain.adapters.gradient.facts import SMALL, Array, Facts
from onnxplain.adapters.gradient.read import ModelLike, quoted, read, refusing
from onnxplain.errors import InvalidModel, NotDifferentiable

SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
OPSET = 18  # older models are raised to it: the last opset at which CUDA has a kernel for all that the rules emit


def weights_of(model: ir.Model) -> list[ir.Value]:
    """The initializers that are not small."""
    return [v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size > SMALL]


@contextmanager
def without_weights(model: ir.Model) -> Iterator[onnx.ModelProto]:
    """The model as a message in which weights are inputs: what ONNX says of it needs their shapes only."""
    weights, count = weights_of(model), len(model.graph.inputs)
    for value in weights:
        assert value.const_value is not None
        value.shape = ir.Shape(value.const_value.shape.numpy())
        value.type = ir.TensorType(value.const_value.dtype)
        del model.graph.initializers[str(value.name)]
    model.graph.inputs.extend(weights)
    try:
        yield ir.to_proto(model)
    finally:
        del model.graph.inputs[count:]
        for value in weights:
            model.graph.register_initializer(value)


def raised(model: ir.Model, opset: int = OPSET) -> ir.Model:
    """The model at a newer opset, by ONNX's own converter, which need not see the weights."""
    tensors = {str(value.name): value.const_value for value in weights_of(model)}
    with without_weights(model) as proto:
        ours = ir.from_proto(onnx.version_converter.convert_version(proto, opset))
    for value in [value for value in ours.graph.inputs if value.name in tensors]:
        ours.graph.inputs.remove(value)
        value.const_value = tensors[str(value.name)]
        ours.graph.register_initializer(value)
    ours.metadata_props.update(model.metadata_props)
    ours.meta.update(model.meta)
    return ours


def check(model: ir.Model) -> None:
    """Raise what ONNX's checker says of a model, in its strict mode."""
    with without_weights(model) as proto:
        onnx.checker.check_model(proto, full_check=True)


@contextmanager
def blaming(model: ModelLike) -> Iterator[None]:
    """Turn complaints about our graph, or gaps, into `InvalidModel` if ONNX has complaints about the given model.

    It always is one where what we put around a model, outside of any rule, finds nothing that it could work with.
    """
    try:
        yield
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, NotDifferentiable, UnsupportedCase) as e:
        with refusing("the model"):
            check(read(model))
        if isinstance(e, UnsupportedCase):
            raise InvalidModel(f"the model has no gradient that could be written out: {e}") from e
        raise


def prepare(model: ModelLike) -> ir.Model:
    """Read a model and normalise it: see the module's first line. Raises `InvalidModel`."""
    ours = read(model)
    with refusing("the model"):
        ours = normalise(ours)
        with without_weights(ours):  # it can be written: its texts are texts
            return ours


def normalise(model: ir.Model) -> ir.Model:
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)  # before that, every weight had to be an input
    passes.InlinePass()(model)
    version = model.graph.opset_imports.setdefault("", OPSET)  # a model of ai.onnx.ml alone need not name it
    if version < OPSET:
        model = raised(model)
    elif version > onnx.defs.onnx_opset_version():
        raise InvalidModel(
            f"the model has opset {version}, newer than the installed onnx knows ({onnx.defs.onnx_opset_version()}); "
            "next: upgrade onnx, or export at an older opset"
        )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if version < 11:
        from_the_first_element(model.graph)
    resolve_identities(model.graph)
    passes.TopologicalSortPass()(model)
    passes.NameFixPass()(model)
    name_dimensions(model)
    return infer_shapes(model)


def from_the_first_element(graph: ir.Graph) -> None:
    """Say of Resize what Upsample, and Resize up to opset 10, meant without saying it.

    They scale from the first element on, and the nearest element is the one before, or behind if the axis gets shorter:
    so ONNX Runtime has it. The converter leaves it to the defaults of later opsets, which scale around the middle.
    """
    for node in [node for node in graph.all_nodes() if node.op_type == "Resize" and not node.domain]:
        scales = node.inputs[2] if len(node.inputs) > 2 else None
        known = scales.const_value.numpy() if scales is not None and scales.const_value is not None else np.ones(1)
        if known.min() < 1 < known.max() and node.attributes.get_string("mode", "nearest") == "nearest":
            raise InvalidModel(
                f"{node.name or 'Resize'} makes one axis longer and another shorter, to the nearest element, which no "
                "opset from 11 on can say; next: export the model at opset 11 or later"
            )
        node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
        node.attributes.add(ir.AttrString("nearest_mode", "ceil" if known.min() < 1 else "floor"))


def resolve_identities(graph: ir.Graph) -> None:
    """Let whoever reads a weight through Identity read the weight: exporters share weights like that."""
    for node in graph:
        x, y = (*node.inputs, None)[0], node.outputs[0]
        if node.op_type == "Identity" and x is not None and x.is_initializer() and not y.is_graph_output():
            y.replace_all_uses_with(x)


def name_dimensions(model: ir.Model) -> None:
    """Name the free dimensions of inputs that have no name: two of them may differ, so they must not look equal."""
    for value in model.graph.inputs:
        if value.shape is not None:
            if any(isinstance(d, int) and d < 0 for d in value.shape):
                raise InvalidModel(f"the input {value.name} has a negative dimension; next: export the model again")
            dims = [
                d if isinstance(d, int) or d.value is not None else f"{value.name}_{a}"
                for a, d in enumerate(value.shape)
            ]
            value.shape = ir.Shape(dims)


@refusing("the model")
def infer_shapes(model: ir.Model) -> ir.Model:
    """Find out types and shapes, and compute the shape arithmetic that does not depend on the input's content."""
    graph = model.graph
    declared: dict[str, ir.Value] | None = None
    facts = graph.meta[FACTS] = Facts(graph.opset_imports[""])
    control_flow, classical = control.Names(graph), ml.Rewriter(graph)
    waiting = list(graph)[::-1]
    theirs = set(waiting)
    while waiting:
        node = waiting.pop()
        written = control.write_out(node, facts, control_flow)
        if written is None:
            written = classical.rewrite(node)
        if written is not None:
            waiting += written[::-1]
            continue
        try:
            known = not node.domain and not any(a.type in SUBGRAPHS for a in node.attributes.values())
            if known:
                said = [(y.dtype, y.shape) for y in node.outputs] if node in theirs else []
                facts.infer(node)
                refuse_contradictions(node, said)
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
            known = False
        if known:
            fold(node, facts)
            continue
        declared = declarations(model) if declared is None else declared
        for y in node.outputs:
            if y.name in declared:
                y.shape, y.type = declared[y.name].shape, declared[y.name].type
    passes.RemoveUnusedNodesPass()(model)
    return model


def refuse_contradictions(node: ir.Node, said: Sequence[tuple[ir.DataType | None, ir.Shape | None]]) -> None:
    """Raise if the file says of an output of a node what cannot be. A free dimension may be any size."""
    for y, (dtype, shape) in zip(node.outputs, said, strict=False):
        if shape is None or y.shape is None:
            continue
        pairs = zip(shape, y.shape, strict=True) if len(shape) == len(y.shape) else [(0, 1)]
        if dtype not in (None, y.dtype) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
            raise InvalidModel(
                f"the model contradicts itself about {quoted(str(y.name))}: declared {shown(dtype, shape)}, computed "
                f"{shown(y.dtype, y.shape)}; next: export it again, or remove the declaration"
            )


def shown(dtype: ir.DataType | None, shape: ir.Shape) -> str:
    """A type as messages have it."""
    return f"{str(dtype).lower()} [{', '.join(str(d) for d in shape)}]"


def declarations(model: ir.Model) -> dict[str, ir.Value]:
    """What ONNX's inference for whole models finds: for nodes whose types cannot be found out one by one."""
    with without_weights(model) as proto:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=False, data_prop=True)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    tensors = [value for value in values if value.type.HasField("tensor_type")]
    return {value.name: ir.serde.deserialize_value_info_proto(value, None) for value in tensors}


def fold(node: ir.Node, facts: Facts) -> None:
    """Make constants of the whole numbers that a node computes, or takes, where they are the same for any batch."""
    assert isinstance(node.graph, ir.Graph)
    known = [facts.data(y) for y in node.outputs]
    if all(data is not None and data.dtype.kind in "iub" and data.size <= SMALL for data in known):
        for y, data in zip(node.outputs, known, strict=True):
            if not y.is_graph_output():
                y.replace_all_uses_with(constant(node.graph, str(y.name), np.asarray(data)))
        return
    if node.op_type in PLACES:
        for i in PLACES[node.op_type]:
            x = node.inputs[i] if i < len(node.inputs) else None
            if x is not None and x.const_value is None:
                fixed = whatever_the_batch(node, i, facts)
                if fixed is not None:
                    node.replace_input_with(i, constant(node.graph, f"{PREFIX}{node.outputs[0].name}_{i}", fixed))


PLACES = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2)}  # inputs that tell sizes, by index


def whatever_the_batch(node: ir.Node, index: int, facts: Facts) -> Array | None:
    """Sizes that follow from a free dimension, as constants that mean the same for each size of it; None if none do."""
    x, given = node.inputs[0], node.inputs[index]
    assert x is not None
    assert given is not None
    (before, after), (there, then) = facts.of(x), facts.of(node.outputs[0])
    a, b = (trial.data for trial in facts.of(given))
    shapes = [trial.shape for trial in (before, after, there, then)]
    if a is None or b is None or any(shape is None or None in shape for shape in shapes):
        return None
    old, new = (list(zip(*pair, strict=True)) for pair in (shapes[:2], shapes[2:]))
    if node.op_type == "Reshape":
        free = [i for i, (p, q) in enumerate(new) if p != q]
        return np.asarray([-1 if i in free else p for i, (p, _) in enumerate(new)], np.int64) if len(free) < 2 else None
    if node.op_type == "Expand":  # it broadcasts both ways: 1 leaves a dimension as it is
        old = [(1, 1)] * (len(new) - len(old)) + old
        sizes = [1 if was == now else now[0] if now[0] == now[1] else None for was, now in zip(old, new, strict=True)]
        return None if None in sizes else np.asarray(sizes, np.int64)
    axes = facts.data(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(len(a))
    if axes is None:
        return None
    ends = []
    for p, q, axis in zip(a.tolist(), b.tolist(), axes.tolist(), strict=True):
        if p != q and old[axis] != (p, q):
            return None
        ends.append(p if p == q else np.iinfo(np.int64).max)
    return np.asarray(ends, np.int64)


def constant(graph: ir.Graph, name: str, data: Array) -> ir.Value:
    """A new initializer."""
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.asarray(data, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
