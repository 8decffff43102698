"""Control flow whose course is known now, written out: the branch that an If takes, the turns of a Scan or a Loop.

What depends on the data stays as it is and shows up as a gap, with the reason that `why_left` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import PREFIX
from onnxplain.adapters.gradient.facts import Array, Facts

MOST_NODES = 30_000  # that the loops of a graph may become: what comes of them is differentiated in about a minute
WHY = "onnxplain.why"  # in a node's `meta`: why it was left as it is, for the report of gaps


class Left(Exception):
    """The course is not known now, or too long. The text goes into the report of gaps."""


def why_left(node: ir.Node) -> str | None:
    """Why `write_out` left a node as it is, if it did."""
    reason: str | None = node.meta.get(WHY)
    return reason


def write_out(node: ir.Node, facts: Facts, names: Names) -> list[ir.Node] | None:
    """Put what an If, a Scan or a Loop does in its place. The new nodes, in order; None if the node stays.

    The facts of its inputs must be known; those of the new nodes are for the caller to find out.
    """
    writer = WRITERS.get(node.op_type) if not node.domain else None
    if writer is None:
        return None
    place = Place(node, facts, names)
    try:
        results = writer(place)
    except Left as left:
        place.undo()
        node.meta[WHY] = str(left)
        return None
    place.finish(results)
    names.written += len(place.nodes)
    return place.nodes


class Names:
    """The names in a graph and in the graphs inside it, and new ones; and how much was written there."""

    def __init__(self, graph: ir.Graph) -> None:
        self.taken: set[str | None] = {None, *graph.initializers, *(v.name for v in graph.inputs)}
        self._counts: dict[str, int] = {}
        self.written = 0  # nodes, by all loops
        for node in graph.all_nodes():
            self.taken |= {node.name, *(y.name for y in node.outputs)}
            for inner in subgraphs(node):
                self.taken |= {*inner.initializers, *(v.name for v in inner.inputs)}

    def fresh(self, stem: str | None) -> str:
        """The name itself if nothing has it yet, else with a number."""
        name = stem = stem or f"{PREFIX}written"
        while name in self.taken:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        self.taken.add(name)
        return name


class Place:
    """Where a node stands, and what is written there in its stead."""

    def __init__(self, node: ir.Node, facts: Facts, names: Names) -> None:
        assert isinstance(node.graph, ir.Graph)
        self.node = node
        self.facts = facts
        self.graph = node.graph
        self.names = names
        self.nodes: list[ir.Node] = []

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.node.attributes[name].value if name in self.node.attributes else default

    def body(self, name: str) -> ir.Graph:
        """A graph of the node's attributes, made ready for being copied.

        Its weights move out, so that all copies share them, and each of its outputs is something of its own.
        """
        body: ir.Graph = self.node.attributes[name].value
        own = {*body.inputs, *(y for node in body for y in node.outputs)}
        for i, y in enumerate(body.outputs):
            if y not in own or y in body.outputs[:i]:
                copy = ir.node("Identity", [y], outputs=[ir.Value(name=self.names.fresh(y.name))])
                body.append(copy)
                body.outputs[i] = copy.outputs[0]
        for inner in (body, *(g for node in body.all_nodes() for g in subgraphs(node))):
            for value in [w for w in inner.initializers.values() if not w.is_graph_input()]:
                if not value.is_graph_output():
                    inner.initializers.pop(str(value.name))
                    value.name = self.names.fresh(value.name)
                    self.graph.register_initializer(value)
        return body

    def copy(self, body: ir.Graph, arguments: Sequence[ir.Value]) -> list[ir.Value]:
        """One turn through a body: its nodes once more, and what its outputs are."""
        copied = body.clone(allow_outer_scope_values=True)
        stands_for = dict(zip(copied.inputs, arguments, strict=True))
        results = [stands_for.get(y, y) for y in copied.outputs]
        copied.outputs.clear()
        for formal, actual in stands_for.items():
            formal.replace_all_uses_with(actual)
        nodes = list(copied)
        copied.remove(nodes)
        for node in nodes:
            node.name = self.names.fresh(node.name)
            for y in node.outputs:
                y.name = self.names.fresh(y.name)
                y.shape = None  # it may have been another one in each turn
        self.insert(nodes)
        return results

    def insert(self, nodes: Iterable[ir.Node]) -> None:
        new = list(nodes)
        self.graph.insert_before(self.node, new)
        self.nodes += new

    def emit(self, op_type: str, inputs: Sequence[ir.Value], outputs: int = 1, **attributes: Any) -> list[ir.Value]:
        names = [self.names.fresh(f"{PREFIX}written_{op_type}") for _ in range(outputs)]
        node = ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=name) for name in names], name=names[0])
        self.insert([node])
        return list(node.outputs)

    def constant(self, array: Array) -> ir.Value:
        name = self.names.fresh(f"{PREFIX}written_constant")
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def stack(self, slices: Sequence[ir.Value], axis: int) -> ir.Value:
        """The slices of a scan output along a new axis."""
        where = self.constant(np.asarray([axis]))
        rows = [self.emit("Unsqueeze", [x, where])[0] for x in slices]
        return self.emit("Concat", rows, axis=axis)[0]

    def unstack(self, x: ir.Value, axis: int, count: int) -> list[ir.Value]:
        """The slices of a scan input, by one Split: the gradient of many Slices would be as many Pads."""
        sizes = self.constant(np.ones(count, np.int64))
        where = self.constant(np.asarray([axis]))
        return [self.emit("Squeeze", [row, where])[0] for row in self.emit("Split", [x, sizes], count, axis=axis)]

    def finish(self, results: Sequence[ir.Value | None]) -> None:
        """Let the readers of the node read the results, under the names that the node's outputs had."""
        own = {y for node in self.nodes for y in node.outputs}
        for old, new in zip(self.node.outputs, results, strict=False):
            if new is None:
                continue
            name, old.name = old.name, self.names.fresh(old.name)
            if new not in own:
                (new,) = self.emit("Identity", [new])
            own.discard(new)  # it has its name
            new.name, new.type, new.shape = name, old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.remove([self.node])

    def undo(self) -> None:
        self.remove(self.nodes)
        self.nodes = []

    def remove(self, nodes: Sequence[ir.Node]) -> None:
        """Take nodes out, so that nothing inside them counts as a reader of what stays."""
        for inner in [inner for node in nodes for body in subgraphs(node) for inner in body.all_nodes()]:
            for i in range(len(inner.inputs)):
                inner.replace_input_with(i, None)
        self.graph.remove(nodes, safe=True)

    def learn(self, nodes: Iterable[ir.Node]) -> None:
        """Find out what new nodes compute, as far as that is known now."""
        for node in nodes:
            if not node.domain and not subgraphs(node):
                with suppress(onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
                    self.facts.infer(node)


def branch(place: Place) -> list[ir.Value]:
    """If with a condition that is known now."""
    (condition,) = place.node.inputs
    assert condition is not None
    taken = place.facts.data(condition)
    if taken is None:
        raise Left("its condition depends on the input; next: export the model with the branch that it takes")
    return place.copy(place.body("then_branch" if taken.item() else "else_branch"), [])


def scan(place: Place) -> list[ir.Value | None]:
    """Scan: state, slices of the inputs -> state, slices of the outputs; a turn for each slice."""
    node, body = place.node, place.body("body")
    inputs = [x for x in node.inputs if x is not None]
    slices_in: int = place.attribute("num_scan_inputs")
    states = len(inputs) - slices_in
    slices_out = len(node.outputs) - states
    if len(body.inputs) != len(inputs) or len(inputs) != len(node.inputs):
        raise Left("it is a Scan of opset 8, with lengths for each sample; next: export with opset 11 or later")
    axes = place.attribute("scan_input_axes") or [0] * slices_in
    backwards = place.attribute("scan_input_directions") or [0] * slices_in
    scanned = [(x, axis % rank(x)) for x, axis in zip(inputs[states:], axes, strict=True)]
    lengths = {n for x, axis in scanned if x.shape is not None and isinstance(n := x.shape[axis], int)}
    if not lengths:
        raise Left("the length of its sequence is not fixed; next: export the model with a fixed length")
    turns = lengths.pop()
    affordable(place, body, turns)
    columns = [place.unstack(x, axis, turns) for x, axis in scanned]
    columns = [rows[::-1] if reverse else rows for rows, reverse in zip(columns, backwards, strict=True)]
    state: list[ir.Value] = inputs[:states]
    out: list[list[ir.Value]] = []
    for row in zip(*columns, strict=True):
        results = place.copy(body, [*state, *row])
        state, collected = results[:states], results[states:]
        out.append(collected)
    axes = place.attribute("scan_output_axes") or [0] * slices_out
    backwards = place.attribute("scan_output_directions") or [0] * slices_out
    stacked: list[ir.Value | None] = []
    for i, (axis, reverse) in enumerate(zip(axes, backwards, strict=True)):
        rows = [turn[i] for turn in out]
        if axis < 0:
            axis += 1 + rank(body.outputs[states + i])
        stacked.append(place.stack(rows[::-1] if reverse else rows, axis))
    return [*state, *stacked]


def loop(place: Place) -> list[ir.Value | None]:
    """Loop: number, condition, state -> condition, state, slices of the outputs; as long as the condition holds."""
    (count, going, *given), body = place.node.inputs, place.body("body")
    state = [x for x in given if x is not None]
    most, go = (None if x is None else place.facts.data(x) for x in (count, going))
    if (count is not None and most is None) or (going is not None and go is None):
        raise Left("how often it runs depends on the input; next: export the model with a fixed number of turns")
    if count is None and going is None:
        raise Left("it never ends")
    turns = MOST_NODES if most is None else int(most.item())
    more = True if go is None else bool(go.item())
    constantly = origin(body.outputs[0]) is body.inputs[1]  # the condition that came in
    out: list[list[ir.Value]] = []
    affordable(place, body, turns if constantly and more else 0)
    condition = place.constant(np.asarray(True))
    while more and len(out) < turns:
        affordable(place, body, len(out) + 1)
        number, condition = place.constant(np.asarray(len(out))), place.constant(np.asarray(True))
        before = len(place.nodes)
        outcome, *results = place.copy(body, [number, condition, *state])
        state = results[: len(state)]
        out.append(results[len(state) :])
        if constantly:
            continue
        place.learn(place.nodes[before:])
        after = place.facts.data(outcome)
        if after is None:
            raise Left("when it ends depends on the input; next: export the model with a fixed number of turns")
        more = bool(after.item())
        if going is None and not more:
            raise Left("its body wants to end it, but it has no condition; next: export the model again")
    stacked: list[ir.Value | None] = []
    for i, y in enumerate(place.node.outputs[len(state) :]):
        if not out and (y.uses() or y.is_graph_output()):
            raise Left("it does not run once, and its output has no elements; next: explain an output before it")
        stacked.append(place.stack([turn[i] for turn in out], 0) if out else None)
    return [*state, *stacked]


WRITERS: dict[str, Callable[[Place], Sequence[ir.Value | None]]] = {"If": branch, "Scan": scan, "Loop": loop}


def origin(value: ir.Value) -> ir.Value:
    """What a value is a copy of."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def affordable(place: Place, body: ir.Graph, turns: int) -> None:
    """Raise `Left` if that many turns are more than we write."""
    nodes = max(sum(1 for _ in body.all_nodes()), 1)  # an empty turn takes time as well
    if place.names.written + nodes * turns > MOST_NODES:
        raise Left(f"{turns} turns of {nodes} nodes: more than {MOST_NODES} in all; next: export a shorter sequence")


def rank(x: ir.Value) -> int:
    if x.shape is None:
        raise Left(f"the rank of {x.name} is not known; next: export the model with shapes")
    return len(x.shape)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs in a node's attributes: branches and bodies."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.value)
    return found
