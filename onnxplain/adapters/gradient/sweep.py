"""Reverse-mode differentiation of a graph: one walk backwards over its nodes.

    mark what lies on a way from `wrt` to the outputs that have a cotangent
    for each marked node, last first:  its inputs' cotangents += rule(its outputs' cotangents)

All that is not mathematics happens here, once, and in no rule: skipping what nobody needs, summing over broadcast axes,
accumulating, and collecting what cannot be differentiated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxplain.adapters.gradient import rules as _rules  # noqa: F401  (fills the registry)
from onnxplain.adapters.gradient.expr import Emit, Expr, UnsupportedCase
from onnxplain.adapters.gradient.registry import DEFAULT, NO_GRADIENT, Entry, Rules, refusal
from onnxplain.errors import Gap, NotDifferentiable

FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE}


def active_values(
    graph: ir.Graph, wrt: Iterable[ir.Value], of: Iterable[ir.Value], rules: Rules = DEFAULT
) -> set[ir.Value]:
    """The values that depend on `wrt` through derivatives, and that `of` depends on.

    Whatever is not known to end a derivative carries it on, so that it shows up as a gap and is never dropped.
    """
    forward = set(wrt)
    for node in graph:
        if not ends(node) and any(x in forward for x in reads(node)):
            forward.update(y for y in node.outputs if find(node, rules) is None or carries(y))
    needed = {y for y in of if y in forward}
    for node in reversed(graph):
        if any(y in needed for y in node.outputs):
            needed.update(x for x in reads(node) if x in forward)
    return needed


def ends(node: ir.Node) -> bool:
    """Whether the derivative of a node is known to be zero, or not to exist."""
    return not node.domain and node.op_type in NO_GRADIENT


def carries(value: ir.Value) -> bool:
    """Whether a derivative may pass a value: a float of any width, or something whose type nobody knows."""
    return value.dtype is None or value.dtype.is_floating_point()


def reads(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, and the values from outside that the graphs inside it read."""
    values = [x for x in node.inputs if x is not None]
    for inner in subgraphs(node):
        values += [x for child in inner for x in reads(child)]
        values += list(inner.outputs)
    return values


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs in a node's attributes: branches and bodies."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.value)
    return found


def gaps(graph: ir.Graph, active: set[ir.Value], rules: Rules = DEFAULT) -> list[Gap]:
    """The nodes on the way that have no rule, or whose type no rule can work in."""
    found = []
    for node in graph:
        on_the_way = [y for y in node.outputs if y in active]
        odd = next((y for y in on_the_way if y.dtype not in FLOATS), None)
        if on_the_way and find(node, rules) is None:
            found.append(Gap(kind(node), label(node), refusal(kind(node))))
        elif odd is not None:
            what = "of unknown type" if odd.dtype is None else str(odd.dtype).lower()
            found.append(Gap(kind(node), label(node), f"its output is {what}, only float32 and float64 are covered"))
    return found


def label(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or "?"


def kind(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def find(node: ir.Node, rules: Rules) -> Entry | None:
    return None if node.domain else rules.get(node.op_type)


def pull_back(
    graph: ir.Graph, emit: Emit, cotangents: Mapping[ir.Value, Expr], wrt: Sequence[ir.Value], rules: Rules = DEFAULT
) -> dict[ir.Value, Expr]:
    """The cotangents of `wrt`, given those of some values: Σ J(value, wrt)ᵀ cotangent, each in its value's full shape.

    Values that nothing depends on are missing from the answer. Raises `NotDifferentiable` with every gap there is.
    """
    active = active_values(graph, wrt, cotangents, rules)
    missing = gaps(graph, active, rules)
    if missing:
        raise NotDifferentiable(missing)
    sums: dict[ir.Value, Expr] = {y: g for y, g in cotangents.items() if y in active}
    for node in [node for node in reversed(graph) if any(y in active for y in node.outputs)]:
        entry = find(node, rules)
        assert entry is not None
        try:
            contributions = apply(node, entry, emit, sums, active)
        except UnsupportedCase as case:
            missing.append(Gap(kind(node), label(node), str(case)))
            continue
        for value, g in contributions:
            sums[value] = sums[value] + g if value in sums else g
    if missing:
        raise NotDifferentiable(missing)
    return {x: sums[x].expand(Expr(emit, x)) for x in wrt if x in sums}


def apply(
    node: ir.Node, entry: Entry, emit: Emit, sums: Mapping[ir.Value, Expr], active: set[ir.Value]
) -> list[tuple[ir.Value, Expr]]:
    """What one node adds to the cotangents of its inputs."""
    ys = [Expr(emit, y) for y in node.outputs]
    gs = [sums.get(y) for y in node.outputs]
    if all(g is None for g in gs):
        return []
    xs = [None if x is None else Expr(emit, x) for x in node.inputs]
    wanted = [x is not None and x in active for x in node.inputs]
    # A smaller cotangent may go on where every operand has its output's shape; anything that sums needs all of it.
    small = entry.broadcastable and all(x.shape == ys[0].shape for x, w in zip(xs, wanted, strict=True) if w and x)
    if not small:
        gs = [None if g is None else g.expand(y) for g, y in zip(gs, ys, strict=True)]
    attributes = {name: attribute_value(attribute) for name, attribute in node.attributes.items()}
    single = len(ys) == 1
    result = entry.rule(gs[0] if single else tuple(gs), ys[0] if single else tuple(ys), *xs, **attributes)
    parts = result if isinstance(result, tuple) else (result,)
    if len(parts) < max(i + 1 for i, w in enumerate(wanted) if w):
        raise AssertionError(f"the rule of {node.op_type} returned {len(parts)} cotangents for {len(xs)} inputs")
    contributions = []
    for x, want, part in zip(xs, wanted, parts, strict=False):
        if not want:
            continue
        assert x is not None
        g = part() if callable(part) else part
        if g is None:
            raise UnsupportedCase(f"no gradient with respect to input {x.value.name}")
        contributions.append((x.value, unbroadcast(g, x)))
    return contributions


def unbroadcast(g: Expr, x: Expr) -> Expr:
    """Sum a cotangent over the axes along which its operand was repeated. Dimensions of 1 are left to `expand`."""
    extra = g.rank - x.rank
    repeated = [extra + a for a, d in enumerate(x.shape) if d == 1 and g.shape[extra + a] != 1]
    g = g.sum([*range(extra), *repeated], keepdims=True)
    if extra:
        g = g.reshape(g.shape[extra:])
    for have, want in zip(g.shape, x.shape, strict=True):
        if have not in (1, want):
            raise UnsupportedCase(f"whether {x.value.name} {list(x.shape)} was broadcast is not known")
    return g


def attribute_value(attribute: ir.Attr) -> Any:
    return list(attribute.value) if attribute.type.name.endswith("S") else attribute.value
