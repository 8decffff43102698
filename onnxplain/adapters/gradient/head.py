"""The head of a classifier: where its logits are, and what makes probabilities of them.

    ... ──► logits ──► Softmax | LogSoftmax | Sigmoid ──► Reshape, Cast, Log, ... ──► output
                  └──────────────────────────────────► ArgMax, LabelEncoder, ... ──► label

What lies behind the logits is cut off: a derivative through a saturated softmax is zero, and the objectives have the
head in them. Whatever is cut or passed over is said in a note.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.adapters.gradient.sweep import active_values, kind, label
from onnxplain.engine.requests import Head
from onnxplain.errors import InvalidModel, UsageError

ACTIVATIONS = {"Softmax": Head.SOFTMAX, "LogSoftmax": Head.SOFTMAX, "Sigmoid": Head.SIGMOID}
MOVERS = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# What may stand between an activation and what only looks like logits: a mean of probabilities, 1 - p, a clip, ...
NEAR = MOVERS | {
    "Add", "AveragePool", "Clip", "Concat", "Div", "Exp", "Gather", "GlobalAveragePool", "Log", "Max", "Mean", "Min",
    "Mul", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Slice", "Split", "Sub", "Sum",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tail:
    """An output, the logits that it comes from, and the nodes between them, last first."""

    output: ir.Value
    logits: ir.Value
    cut: Sequence[ir.Node] = ()

    @property
    def activation(self) -> str | None:
        """The activation among them, which is next to the logits."""
        return self.cut[-1].op_type if self.cut else None

    @property
    def logarithm(self) -> bool:
        """Whether the output is a logarithm of probabilities."""
        return any(node.op_type in ("Log", "LogSoftmax") for node in self.cut)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The logits of a classifier, behind which output, their head, and what a user should know of how."""

    tail: Tail
    head: Head
    notes: Sequence[str]

    @property
    def logits(self) -> ir.Value:
        return self.tail.logits


def find_logits(graph: ir.Graph, x: ir.Value, output: str | None = None, head: str | None = None) -> Found:
    """The logits behind the float outputs of a classifier of images x.

    `output` names the output to follow. Without it, all outputs that could hold logits have to lead to the same ones;
    or the ones that an activation stands on, if the other outputs lie before or behind them. `head` is taken at its
    word.

    Raises `InvalidModel` where that is ambiguous or nothing fits, `UsageError` for names that do not exist.
    """
    described = ", ".join(map(shown, graph.outputs))
    candidates = [v for v in graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
    if output is not None:
        candidates = [v for v in candidates if v.name == output]
        if not candidates:
            raise UsageError(f"output {output!r}: the model has no float output of that name; it has {described}")
    if not candidates:
        raise InvalidModel(f"expected one float output (the logits), got {described}; next: give a classifier")
    active = active_values(list(graph), [x], candidates)
    candidates = [v for v in candidates if v in active]
    if not candidates:
        raise InvalidModel("the logits do not depend on the image through any derivative; next: name another output")
    behind = list(map(tail_of, candidates))
    tails = [tail for tail in behind if classes(tail.logits) is not None and keeps_batch(tail.logits, x)]
    if not tails:
        raise InvalidModel(f"expected logits of shape (N, K) with a fixed K, got {shown(behind[0].logits)}")
    tail = choose(tails, described)
    passed_over = [shown(v) for v in graph.outputs if v is not tail.output]
    notes = [f"left out: output {text}" for text in passed_over]
    if tail.cut:
        nodes = ", ".join(f"{kind(node)} ({label(node)})" for node in reversed(tail.cut))
        notes.append(f"cut off behind the logits {tail.logits.name}: {nodes}")
    near = activation_near(tail.logits)
    if near is not None:
        notes.append(
            f"the logits {tail.logits.name} are computed from a {near.op_type} ({label(near)}), which is not cut off: "
            "the gradient goes through it, and vanishes where it is saturated"
        )
    return Found(tail=tail, head=head_of(tail, head), notes=notes)


def choose(tails: Sequence[Tail], described: str) -> Tail:
    """The output to follow."""
    sure = {tail.logits: tail for tail in tails if tail.activation is not None}
    ways = {tail.logits: tail for tail in tails} | sure
    if len(ways) == 1:
        (tail,) = ways.values()
        return tail
    if len(sure) == 1:
        (tail,) = sure.values()
        others = [other for other in ways if other is not tail.logits]
        if all(leads(tail.logits, other) or leads(other, tail.logits) for other in others):
            return tail
    raise InvalidModel(
        f"expected one float output (the logits), got {described}; next: name the logits (output=, or --output-name)"
    )


def head_of(tail: Tail, given: str | None) -> Head:
    """The head that was asked for, or that of the activation, or the one that the number of classes suggests."""
    several = (classes(tail.logits) or 0) > 1
    if given is None:
        guess = Head.SOFTMAX if several else Head.SIGMOID
        found = ACTIVATIONS[tail.activation] if tail.activation is not None else guess
        if found is Head.SOFTMAX and not several:
            raise InvalidModel(
                f"{tail.activation} over one class is always 1; next: give a classifier, or head='sigmoid' if the "
                "logit in front of it is meant"
            )
        return found
    if given not in list(Head):
        raise UsageError(f"head {given!r} is unknown; next: use one of {', '.join(Head)}")
    if given == Head.SOFTMAX and not several:
        raise UsageError("head: the softmax of one class is always 1; next: leave head out")
    return Head(given)


def tail_of(output: ir.Value) -> Tail:
    """What can be cut off in front of an output: an activation over the classes, and what stands behind it."""
    value, cut = output, []
    while (node := value.producer()) is not None and not node.domain and node.inputs[0] is not None:
        cut.append(node)
        if node.op_type in ACTIVATIONS:
            refuse_other_axes(node)
            return Tail(output=output, logits=node.inputs[0], cut=cut)
        if node.op_type not in MOVERS and node.op_type != "Log":
            break
        value = node.inputs[0]
    return Tail(output=output, logits=output)


def refuse_other_axes(node: ir.Node) -> None:
    """Raise unless a softmax goes over the classes, the one axis that is not 1 long."""
    shape = dims(node.inputs[0])
    if node.op_type == "Sigmoid" or shape is None:
        return
    axis = (node.attributes["axis"].value if "axis" in node.attributes else -1) % len(shape)
    if axis == 0 or any(d != 1 for a, d in enumerate(shape) if a not in (0, axis)):
        raise InvalidModel(
            f"{node.op_type} ({label(node)}) of axis {axis} of {list(shape)} at the end: expected one over the classes"
        )


def classes(logits: ir.Value) -> int | None:
    """K of logits (N, K), where axes of length 1 may stand anywhere; None for anything else."""
    shape = dims(logits)
    if not shape or not all(isinstance(d, int) for d in shape[1:]) or sum(d != 1 for d in shape[1:]) > 1:
        return None
    return math.prod(d for d in shape[1:] if isinstance(d, int)) or None


def keeps_batch(logits: ir.Value, x: ir.Value) -> bool:
    """Whether as many logits come out as images go in, as far as that is known."""
    ours, theirs = (dims(logits) or (None,))[0], (dims(x) or (None,))[0]
    return ours == theirs or not isinstance(ours, int)


def activation_near(logits: ir.Value) -> ir.Node | None:
    """An activation that the logits are made of by arithmetic alone, with no layer in between."""
    seen, todo = set(), [logits]
    while todo:
        node = todo.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if not node.domain and node.op_type in ACTIVATIONS:
            return node
        if not node.domain and node.op_type in NEAR:
            todo += [value for value in node.inputs if value is not None]
    return None


def leads(value: ir.Value, to: ir.Value) -> bool:
    """Whether a value is computed from another one."""
    seen, todo = set(), [to]
    while todo:
        current = todo.pop()
        if current is value:
            return True
        node = current.producer()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [v for v in node.inputs if v is not None]
    return False


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def shown(value: ir.Value) -> str:
    """A value as messages have it: name, dtype and shape."""
    shape = "" if value.shape is None else f"[{', '.join(str(d) for d in value.shape)}]"
    return f"{value.name} {str(value.dtype).lower()}{shape}"
