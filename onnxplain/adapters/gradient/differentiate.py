"""`differentiate`: a model with its vector-Jacobian products as further outputs. `coverage`: whether that can work."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.expr import PREFIX, Emit, Expr
from onnxplain.adapters.gradient.parts import put_together_late
from onnxplain.adapters.gradient.prepare import blaming, check, prepare
from onnxplain.adapters.gradient.read import ModelLike
from onnxplain.adapters.gradient.registry import DEFAULT, Rules, needs_reference
from onnxplain.adapters.gradient.scales import fold_scales
from onnxplain.adapters.gradient.sweep import (
    FLOATS,
    Observe,
    active_values,
    ends,
    find,
    gaps,
    kind,
    pull_back,
    reads,
    single,
)
from onnxplain.errors import Gap, InvalidModel, NotDifferentiable, PartialGradientWarning, UsageError

MESSAGE = 2**31 - 2**24  # bytes of weights in one message: protobuf has 2 GiB, and the graph needs some of it
OnUnsupported: TypeAlias = Literal["error", "stop-gradient"]

STOPPED_KEY = "onnxplain.stopped"  # in the metadata of a partial gradient: the gaps at which it stops


def differentiate(
    model: ModelLike,
    of: Sequence[str] | None = None,
    wrt: Sequence[str] | None = None,
    *,
    rules: Rules = DEFAULT,
    on_unsupported: OnUnsupported = "error",
) -> onnx.ModelProto:
    """Add reverse-mode derivatives to a model.

    Every input and output stays. For each float output `y` of `of` (default: all) comes an input `grad_y` in its dtype
    and shape, for each float input `x` of `wrt` (default: all) an output `grad_x` in its:
    `grad_x = Σ_y J(y, x)ᵀ grad_y`. `rules` may be another table, layered over the default.

    Where an operator has no gradient, "error" raises with all gaps at once; "stop-gradient" takes its derivative for
    zero, lists it in the metadata (`onnxplain.stopped`) and warns: the result is not the gradient of the model.

    Raises `InvalidModel` for a model that cannot be read, `NotDifferentiable`, and `UsageError` for names that the
    model does not have.
    """
    if needs_reference(rules):
        raise UsageError("these rules need a reference, which gradient_model gives the graph; next: use that")
    ours = prepare(model)
    graph = ours.graph
    outputs = pick("output", graph.outputs, of)
    inputs = pick("input", graph.inputs, wrt)
    ends = {v.name for v in (*graph.inputs, *graph.outputs)}
    taken = [name for name in (f"grad_{v.name}" for v in (*outputs, *inputs)) if name in ends]
    if taken:
        raise UsageError(
            f"the model already has an input or output {taken[0]!r}; next: rename it, or choose of= and wrt="
        )
    emit = Emit(graph)
    cotangents = {}
    make_way(graph, {f"grad_{v.name}" for v in (*outputs, *inputs)})
    for y in outputs:
        g = ir.Value(name=f"grad_{y.name}", shape=y.shape, type=y.type)
        graph.inputs.append(g)
        cotangents[y] = single(Expr(emit, g))
    with blaming(model):
        gradients = gradients_of(ours, emit, cotangents, inputs, rules, on_unsupported)
    for x in inputs:
        gradient = gradients[x] if x in gradients else Expr(emit, x).zeros()
        graph.outputs.append(copied(gradient.cast(x.dtype or ir.DataType.FLOAT), f"grad_{x.name}"))
    with blaming(model):
        return as_message(finish(ours))


def gradients_of(
    model: ir.Model,
    emit: Emit,
    cotangents: Mapping[ir.Value, Expr],
    wrt: Sequence[ir.Value],
    rules: Rules = DEFAULT,
    on_unsupported: OnUnsupported = "error",
    observe: Observe | None = None,
) -> dict[ir.Value, Expr]:
    """The cotangents of `wrt`, with gaps as `differentiate` says; `observe` is that of `pull_back`."""
    if on_unsupported not in get_args(OnUnsupported):
        raise UsageError(
            f"on_unsupported: expected one of {', '.join(get_args(OnUnsupported))}, got {on_unsupported!r}"
        )
    stop = on_unsupported == "stop-gradient"
    gradients, missing = pull_back(list(model.graph), emit, cotangents, wrt, rules, stop=stop, observe=observe)
    if missing and not stop:
        raise NotDifferentiable(missing)
    if missing:
        model.metadata_props[STOPPED_KEY] = json.dumps([asdict(gap) for gap in missing])
        warnings.warn(PartialGradientWarning(missing), stacklevel=3)
    return gradients


def stopped_at(meta: Mapping[str, str]) -> list[Gap]:
    """Where a gradient stops, by the metadata of its model; nowhere if they do not say so in our form."""
    try:
        return [Gap(**gap) for gap in json.loads(meta.get(STOPPED_KEY, "[]"))]
    except (TypeError, ValueError):
        return []


def pick(what: str, values: Sequence[ir.Value], names: Sequence[str] | None) -> list[ir.Value]:
    """The float values of the given names; all of them if no names are given."""
    floats = {v.name: v for v in values if v.dtype in FLOATS}
    for name in names or ():
        if name not in floats:
            raise UsageError(
                f"{what} {name!r}: the model has no float {what} of that name; it has {sorted(map(str, floats))}"
            )
    chosen = [floats[name] for name in names] if names is not None else list(floats.values())
    if not chosen:
        raise InvalidModel(f"the model has no float {what}, so there is nothing to differentiate")
    return chosen


def named(expr: Expr, name: str, shape: ir.Shape | None = None) -> ir.Value:
    """An output of that name; a forward value that has it already makes way."""
    if expr.value.name == name:
        return expr.value
    make_way(expr.emit.graph, {name})
    return copied(expr, name, shape)


def copied(expr: Expr, name: str, shape: ir.Shape | None = None) -> ir.Value:
    """A copy of that name, which no other value has."""
    node = ir.node("Identity", [expr.value], outputs=[ir.Value(name=name)], name=f"{name}_output")
    expr.emit.graph.append(node)
    out = node.outputs[0]
    out.type, out.shape = expr.value.type, shape or expr.value.shape
    return out


def make_way(graph: ir.Graph, names: Set[str]) -> None:
    """Rename what has one of those names inside the graph."""
    inner = [value for node in graph for value in node.outputs]
    for value in (*inner, *graph.initializers.values()):
        if value.name in names:
            value.name = f"{PREFIX}forward_{value.name}"


def finish(model: ir.Model) -> ir.Model:
    """Drop what is not used and check the rest, strictly."""
    put_together_late(model)
    passes.RemoveUnusedNodesPass()(model)
    fold_scales(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    model.ir_version = max(model.ir_version, 8)
    check(model)
    return model


def weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def as_message(model: ir.Model) -> onnx.ModelProto:
    """The model with its weights inside, which a message has room for up to 2 GB."""
    size = weight_bytes(model)
    if size > MESSAGE:
        raise UsageError(
            f"the result has {size / 2**30:.1f} GiB of weights, more than the 2 GiB that fit into one message; "
            "next: write it to files (write_gradient_model, or onnxplain export)"
        )
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return ir.to_proto(model)


@dataclass(frozen=True)
class Coverage:
    """Which operators lie between input and output, with how many nodes each, and what could be done with them."""

    rules: dict[str, int]  # operators with a gradient rule, or an expansion into such
    zero: dict[str, int]  # operators that end a way: their derivative is zero or does not exist
    gaps: tuple[Gap, ...]

    @property
    def complete(self) -> bool:
        return not self.gaps


def coverage(model: ModelLike) -> Coverage:
    """What `differentiate` would find, without building anything: from all float inputs to all float outputs."""
    graph = prepare(model).graph
    wrt, of = pick("input", graph.inputs, None), pick("output", graph.outputs, None)
    nodes = list(graph)
    active = active_values(nodes, wrt, of)
    on_the_way = [node for node in nodes if any(y in active for y in node.outputs)]
    last = [node for node in nodes if ends(node) and any(x in active for x in reads(node))]
    return Coverage(
        rules=dict(Counter(kind(node) for node in on_the_way if find(node, DEFAULT) is not None)),
        zero=dict(Counter(kind(node) for node in last)),
        gaps=tuple(gaps(nodes, active)),
    )
