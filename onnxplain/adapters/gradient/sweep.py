"""Reverse-mode differentiation of a graph: one walk backwards over its nodes.

    mark what lies on a way from `wrt` to the outputs that have a cotangent
    for each marked node, last first:  its inputs' cotangents += rule(its outputs' cotangents)

All that is not mathematics happens here, once, and in no rule: skipping what nobody needs, summing over broadcast axes,
accumulating, and collecting what cannot be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir

from onnxplain.adapters.gradient import rules as _rules  # noqa: F401  (fills the registry)
from onnxplain.adapters.gradient.body import emit_body, has_body
from onnxplain.adapters.gradient.control import subgraphs, why_left
from onnxplain.adapters.gradient.expr import Emit, Expr, UnsupportedCase
from onnxplain.adapters.gradient.registry import DEFAULT, EXPANSIONS, NO_GRADIENT, REFUSED, Entry, Rules, refusal
from onnxplain.adapters.gradient.stretches import total
from onnxplain.errors import Gap, NotDifferentiable

HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
SIZES = {"Shape", "Size"}  # which are the same at a reference
LARGEST = 2**31  # elements of a tensor: runtimes count in 32 bits, and we make tables of an axis, of a few bytes each
FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, *HALVES}
Contributions: TypeAlias = Sequence[tuple[ir.Value, Expr]]  # what a node adds to the cotangents of its inputs
Observe: TypeAlias = Callable[[ir.Node, Mapping[ir.Value, Expr], Contributions], None]


def active_values(
    nodes: Sequence[ir.Node], wrt: Iterable[ir.Value], of: Iterable[ir.Value], rules: Rules = DEFAULT
) -> set[ir.Value]:
    """The values that depend on `wrt` through derivatives, and that `of` depends on.

    Whatever is not known to end a derivative carries it on, so that it shows up as a gap and is never dropped.
    """
    forward = set(wrt)
    for node in nodes:
        if not ends(node) and any(x in forward for x in reads(node)):
            known = isinstance(find(node, rules), Entry)
            odd = any(whole(x) for x in reads(node) if x in forward)
            forward.update(y for y in node.outputs if carries(y) or odd or not known)
    needed = {y for y in of if y in forward}
    for node in reversed(nodes):
        if any(y in needed for y in node.outputs):
            needed.update(x for x in reads(node) if x in forward)
    return needed


def ends(node: ir.Node) -> bool:
    """Whether the derivative of a node is known to be zero, or not to exist."""
    return not node.domain and node.op_type in NO_GRADIENT


def carries(value: ir.Value) -> bool:
    """Whether a derivative may pass a value: a float of any width, a float quantised, or what nobody knows."""
    return value.dtype is None or value.dtype.is_floating_point() or quantised(value)


def whole(value: ir.Value) -> bool:
    """Whether a value is known to consist of whole numbers (or truth values, or text)."""
    return value.dtype is not None and not value.dtype.is_floating_point()


def quantised(value: ir.Value) -> bool:
    """Whether a value is a float written with whole numbers, until DequantizeLinear makes it one again."""
    node = value.producer()
    return node is not None and node.op_type == "QuantizeLinear" and not node.domain


def reads(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, and the values from outside that the graphs inside it read."""
    values = [x for x in node.inputs if x is not None]
    for inner in subgraphs(node):
        values += [x for child in inner for x in reads(child)]
        values += list(inner.outputs)
    return values


def gaps(nodes: Iterable[ir.Node], active: set[ir.Value], rules: Rules = DEFAULT) -> list[Gap]:
    """The nodes on the way that have no rule, or whose type no rule can work in."""
    return [found for node in nodes if (found := gap(node, active, rules)) is not None]


def gap(node: ir.Node, active: set[ir.Value], rules: Rules) -> Gap | None:
    """Why a node cannot be passed, as far as that shows without calling its rule; None if it can or need not be."""
    on_the_way = [y for y in node.outputs if y in active]
    huge = next((v for v in (*reads(node), *node.outputs) if elements(v) > LARGEST), None) if on_the_way else None
    odd = next((y for y in on_the_way if y.dtype not in FLOATS and not quantised(y)), None)
    if on_the_way and find(node, rules) is None:
        return Gap(kind(node), label(node), why_left(node) or refusal(kind(node)))
    if node.op_type != "DequantizeLinear" and any(whole(x) for x in reads(node) if x in active):
        return Gap(kind(node), label(node), "it works on quantised values; next: dequantise them before it")
    if huge is not None:
        return Gap(kind(node), label(node), f"{huge.name} has {elements(huge):,} elements, more than {LARGEST:,}")
    if odd is not None:
        what = "of unknown type" if odd.dtype is None else str(odd.dtype).lower()
        return Gap(kind(node), label(node), f"its output is {what}, only floats of 16, 32 and 64 bits are covered")
    return None


def elements(value: ir.Value) -> int:
    """How many there are of a value, as far as its sizes are known: for each sample, if the batch is free."""
    return 0 if value.shape is None else math.prod(d for d in value.shape if isinstance(d, int))


def label(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or "?"


def kind(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


@dataclass(frozen=True)
class Expansion:
    """How the outputs of an operator are computed again, from operators that have rules."""

    outputs: Callable[[ir.Node, list[Expr | None], Emit], Sequence[Expr | None]]


def find(node: ir.Node, rules: Rules) -> Entry | Expansion | None:
    """How a node is differentiated: by a rule, or by its expansion."""
    if not node.domain and node.op_type in rules:
        return rules[node.op_type]
    if kind(node) in REFUSED:
        return None
    if not node.domain and node.op_type in EXPANSIONS:
        formulas = EXPANSIONS[node.op_type]
        return Expansion(lambda node, xs, _: as_tuple(formulas(*xs, **attribute_values(node)))[: len(node.outputs)])
    version = node.version or (node.graph.opset_imports.get(node.domain, 1) if isinstance(node.graph, ir.Graph) else 1)
    return Expansion(emit_body) if has_body(node.domain, node.op_type, version) else None


def pull_back(
    nodes: Sequence[ir.Node],
    emit: Emit,
    cotangents: Mapping[ir.Value, Expr],
    wrt: Sequence[ir.Value],
    rules: Rules = DEFAULT,
    *,
    stop: bool = False,
    observe: Observe | None = None,
) -> tuple[dict[ir.Value, Expr], list[Gap]]:
    """The cotangents of `wrt`, given those of some values: Σ J(value, wrt)ᵀ cotangent, each in its value's full shape.

    `nodes`, in topological order, are what lies between. Values that nothing depends on are missing from the answer.
    Cotangents of half precision are float32. With them come all gaps: nodes that the derivative does not pass. With
    `stop` it ends there; without, it goes on with zeros, to find what else cannot be passed, and the answer is void.
    `observe` is called for every node that is passed, with the cotangents so far and what the node adds to them.
    """
    active = active_values(nodes, wrt, cotangents, rules)
    missing: list[Gap] = []
    sums: dict[ir.Value, Expr] = {y: g for y, g in cotangents.items() if y in active}
    for node in [node for node in reversed(nodes) if any(y in active for y in node.outputs)]:
        try:
            if (found := gap(node, active, rules)) is None:
                contributions = apply(node, emit, sums, active, rules)
                if observe is not None:
                    observe(node, sums, contributions)
        except UnsupportedCase as case:
            found = Gap(kind(node), label(node), str(case))
        except MemoryError:
            found = Gap(kind(node), label(node), "its gradient takes more memory than there is")
        except Exception as error:
            # Attributes that ONNX does not look at, or a fault of ours: named, and never passed over.
            what = f"{type(error).__name__}: {error}"[:200]
            why = f"its rule failed ({what}); next: check its attributes, and if they are right, report a bug"
            raise NotDifferentiable([Gap(kind(node), label(node), why)]) from error
        if found is not None:
            missing.append(found)
            contributions = [] if stop else zeros(emit, [x for x in reads(node) if x in active])
        for value, g in contributions:
            sums[value] = total(sums[value], g) if value in sums else g
    return {x: sums[x].expand(Expr(emit, x)) for x in wrt if x in sums}, missing[::-1]


def zeros(emit: Emit, values: Iterable[ir.Value]) -> list[tuple[ir.Value, Expr]]:
    """A cotangent of zeros for each value of known rank and type."""
    exprs = [Expr(emit, x) for x in values if x.shape is not None and x.dtype in FLOATS]
    return [(x.value, single(x).zeros()) for x in exprs]


def apply(
    node: ir.Node, emit: Emit, sums: Mapping[ir.Value, Expr], active: set[ir.Value], rules: Rules
) -> list[tuple[ir.Value, Expr]]:
    """What one node adds to the cotangents of its inputs."""
    gs = [sums.get(y) for y in node.outputs]
    if all(g is None for g in gs):
        return []
    stuck = next((x for x in node.inputs if x in emit.references and x not in active), None)
    if stuck is not None:
        raise UnsupportedCase(f"its input {stuck.name} depends on the image in jumps, which no multiplier covers")
    ys = [single(Expr(emit, y)) for y in node.outputs]
    xs = [None if x is None else single(Expr(emit, x)) for x in node.inputs]
    entry = find(node, rules)
    if isinstance(entry, Expansion):
        return through(entry, node, emit, xs, gs, active, rules)
    assert entry is not None
    wanted = [x is not None and x in active for x in node.inputs]
    # A smaller cotangent may go on where every operand has its output's shape; anything that sums needs all of it.
    small = entry.broadcastable and all(x.shape == ys[0].shape for x, w in zip(xs, wanted, strict=True) if w and x)
    if not small:
        gs = [None if g is None else g.expand(y) for g, y in zip(gs, ys, strict=True)]
    one = len(ys) == 1
    result = entry.rule(gs[0] if one else tuple(gs), ys[0] if one else tuple(ys), *xs, **attribute_values(node))
    parts = as_tuple(result)
    if len(parts) < max(i + 1 for i, w in enumerate(wanted) if w):
        raise AssertionError(f"the rule of {node.op_type} returned {len(parts)} cotangents for {len(xs)} inputs")
    contributions = []
    for value, x, want, part in zip(node.inputs, xs, wanted, parts, strict=False):
        if not want:
            continue
        assert value is not None
        assert x is not None
        g = part() if callable(part) else part
        if g is None:
            raise UnsupportedCase(f"no gradient with respect to input {value.name}")
        contributions.append((value, unbroadcast(g, x)))
    return contributions


def through(
    expansion: Expansion,
    node: ir.Node,
    emit: Emit,
    xs: list[Expr | None],
    gs: list[Expr | None],
    active: set[ir.Value],
    rules: Rules,
) -> list[tuple[ir.Value, Expr]]:
    """The same for an operator that is differentiated through its expansion, which is emitted for that."""
    if any(x in active for x in reads(node) if x not in node.inputs):
        raise UnsupportedCase("a graph inside it reads a value from outside that has a gradient")
    with emit.recording() as inner:
        outputs = expansion.outputs(node, xs, emit)
    if emit.references:
        with emit.recording() as twins:
            expansion.outputs(node, [x and x.reference for x in xs], emit)
        pair(inner, twins, emit)
    cotangents: dict[ir.Value, Expr] = {}
    for y, g in zip(outputs, gs, strict=True):
        if g is not None:
            if y is None:
                raise UnsupportedCase("an output that its expansion leaves out")
            g = g.expand(y)
            cotangents[y.value] = cotangents[y.value] + g if y.value in cotangents else g
    wanted = {x.value: given for given, x in zip(node.inputs, xs, strict=True) if x and given in active}
    gradients, missing = pull_back(inner, emit, cotangents, list(wanted), rules)
    if missing:
        reasons = sorted({f"{found.op}: {found.why}" for found in missing})
        raise UnsupportedCase(f"inside of it, {'; '.join(reasons)}")
    return [(given, gradients[x]) for x, given in wanted.items() if given is not None and x in gradients]


def pair(nodes: Sequence[ir.Node], twins: Sequence[ir.Node], emit: Emit) -> None:
    """Note that some nodes compute at the reference what others, in the same order, compute at the image."""
    if [node.op_type for node in nodes] != [twin.op_type for twin in twins]:
        raise UnsupportedCase("what it expands to is not the same at the image and at the reference")
    for node, twin in zip(nodes, twins, strict=True):
        if node.op_type not in SIZES and any(x in emit.references for x in node.inputs):
            emit.references |= zip(node.outputs, twin.outputs, strict=True)


def single(x: Expr) -> Expr:
    """A value of half precision as float32: rules work in nothing less."""
    if x.value.dtype not in HALVES:
        return x
    wide = x.cast(ir.DataType.FLOAT)
    if x.varies:
        x.emit.references[wide.value] = x.reference.cast(ir.DataType.FLOAT).value
    return wide


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


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def attribute_values(node: ir.Node) -> dict[str, Any]:
    """The attributes as a rule takes them."""
    return {
        name: list(attribute.value) if attribute.type.name.endswith("S") else attribute.value
        for name, attribute in node.attributes.items()
    }
