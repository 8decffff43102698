"""Inner layers of a classifier: what a name means, how that lies on the picture, and which one is the usual choice.

Every layer becomes (N, C, h, w), whatever its place in the graph:

    (N, C, h, w)  as it is            (N, h, w, C)  transposed
    (N, T, C)     tokens: p of them stand before a grid of h x w, and are dropped       (N, C, T)  the same
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from onnxplain.adapters.gradient.expr import PREFIX, Expr
from onnxplain.adapters.gradient.head import dims, shown
from onnxplain.adapters.gradient.read import ModelLike, read
from onnxplain.adapters.gradient.sweep import FLOATS, active_values, reads, single
from onnxplain.errors import UsageError

AUTO: Literal["auto"] = "auto"
UNKNOWN = "where {} leaves its channels is not known"
LISTED = " (`onnxplain inspect --format json` lists them)"
MOST_PREFIX = 8  # tokens before a grid: class token, distillation token, registers

CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))
ATTENTION = frozenset(("Attention", "Einsum", "MatMul"))  # of two operands that both depend on the image
CHANNELS_FIRST = CONVOLUTIONS | {
    "AveragePool", "BatchNormalization", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization",
    "InstanceNormalization", "LRN", "LpPool", "MaxPool", "SpaceToDepth",
}  # fmt: skip
CHANNELS_LAST = frozenset(("LayerNormalization", "RMSNormalization"))
RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
MOVES = RESHAPES | {
    "Cast",
    "Concat",
    "Dropout",
    "Gather",
    "Identity",
    "Pad",
    "Slice",
    "Split",
    "Transpose",
}  # of tokens: windows, rolls, heads


class NoGrid(Exception):
    """Why a value does not lie on the picture."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a value lies on the picture: its axis of channels, height and width, and how many tokens stand before."""

    axis: int
    size: tuple[int, int]
    prefix: int = 0

    def __call__(self, value: Expr) -> Expr:
        """The value as (N, C, h, w), in single precision at least."""
        value = single(value)
        if value.rank == 4:
            return value if self.axis == 1 else value.transpose((0, 3, 1, 2))
        if self.axis == 2:
            value = value.transpose((0, 2, 1))
        value = value.slice(2, self.prefix, value.size(2))
        return value.reshape((value.shape[0], value.shape[1], *self.size))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A value inside a classifier, and how it lies on the picture."""

    value: ir.Value
    grid: Grid

    @property
    def facts(self) -> dict[str, Any]:
        """What the metadata says of it."""
        shape = dims(self.value)
        assert shape is not None
        node = self.value.producer()
        return {
            "name": self.value.name,
            "node": None if node is None else node.name,
            "operator": None if node is None else node.op_type,
            "channels": shape[self.grid.axis],
            "grid": list(self.grid.size),
            "channel_axis": self.grid.axis,
            "prefix_tokens": self.grid.prefix,
        }


class Layers:
    """The layers that lie between an image `x` and logits `z`; `last` says that the image has its channels last."""

    def __init__(self, graph: ir.Graph, x: ir.Value, z: ir.Value, *, last: bool = False) -> None:
        self.graph, self.x, self.z, self.last = graph, x, z, last
        self.active = active_values(list(graph), [x], [z])
        self.nodes = [node for node in graph if any(y in self.active for y in node.outputs)]
        self.sizes: set[tuple[int, int]] = set()  # of convolutions, which tokens may come from
        for node in self.nodes:
            match dims(node.outputs[0]):
                case (_, _, int(h), int(w)) if node.op_type in CONVOLUTIONS:
                    self.sizes.add((h, w))
        self.axes = self.channel_axes()

    @staticmethod
    def rank(value: ir.Value) -> int:
        return len(dims(value) or ())

    def all(self) -> list[Layer]:
        """Everything that lies on the picture and is more than one place large, in the order of the graph."""
        theirs = [y for node in self.nodes for y in node.outputs if not str(y.name).startswith(PREFIX)]
        found = (self.find(y) for y in theirs if y in self.active)
        return [layer for layer in found if layer is not None]

    def find(self, value: ir.Value) -> Layer | None:
        """A value as a layer of more than one place; None if it is none."""
        try:
            layer = Layer(value=value, grid=self.grid(value))
        except NoGrid:
            return None
        return layer if math.prod(layer.grid.size) > 1 else None

    def grid(self, value: ir.Value) -> Grid:
        """How a value lies on the picture. Raises `NoGrid`."""
        shape, batch = dims(value), (dims(self.x) or (None,))[0]
        if value.dtype not in FLOATS:
            raise NoGrid("it does not hold floats; next: name the floats before or behind it")
        if shape is None or len(shape) not in (3, 4):
            raise NoGrid(
                "it has no height and width; next: name a value of shape (N, C, h, w), (N, h, w, C) or (N, tokens, C)"
            )
        if shape[0] != batch:
            raise NoGrid(f"its first axis is not the batch ({batch}); next: name a value of which every image has one")
        axis = self.axes.get(value, "it does not lie between the image and the logits")
        if isinstance(axis, str):
            raise NoGrid(axis)
        places = [d for a, d in enumerate(shape) if a not in (0, axis)]
        if not all(isinstance(d, int) for d in shape[1:]) or axis not in (1, len(shape) - 1):
            raise NoGrid("its height, width or channels are not known")
        if len(shape) == 4:
            return Grid(axis=axis, size=(places[0], places[1]))  # type: ignore[arg-type]
        size, prefix = self.token_grid(places[0])  # type: ignore[arg-type]
        return Grid(axis=axis, size=size, prefix=prefix)

    def token_grid(self, tokens: int) -> tuple[tuple[int, int], int]:
        """Height and width of the grid that tokens make, and how many stand before it.

        It is that of a convolution (the patch embedding), or a whole part of it; otherwise a square.
        """
        parts = [(h // k, w // k) for h, w in sorted(self.sizes) for k in (1, 2, 4, 8, 16, 32) if h % k == w % k == 0]
        square = math.isqrt(tokens)
        fitting = [(h, w) for h, w in (*parts, (square, square)) if 0 <= tokens - h * w <= MOST_PREFIX and h * w > 1]
        if not fitting:
            raise NoGrid(f"its {tokens} tokens are no grid, with at most {MOST_PREFIX} before it")
        size = min(fitting, key=lambda size: tokens - math.prod(size))
        return size, tokens - math.prod(size)

    def channel_axes(self) -> dict[ir.Value, int | str]:
        """The axis along which each value has its channels, by what it is made with; or why nobody knows."""
        axes: dict[ir.Value, int | str] = {self.x: self.rank(self.x) - 1 if self.last else 1}
        for node in self.nodes:
            for y in node.outputs:
                if y in self.active:
                    axes[y] = self.channel_axis(node, y, axes)
        return axes

    def channel_axis(self, node: ir.Node, y: ir.Value, axes: Mapping[ir.Value, int | str]) -> int | str:
        """That of an output of a node, given those before it."""
        source, *others = [x for x in reads(node) if x in self.active]
        axis, before, after = axes[source], dims(source) or (), dims(y) or ()
        last = len(after) - 1
        if not after:
            return "its shape is not known"
        if node.op_type in CHANNELS_FIRST:
            return 1
        if node.op_type in CHANNELS_LAST:
            return last
        if node.op_type in ("MatMul", "Gemm"):
            if others:
                return "it is a product of two values that depend on the image, as in attention"
            return last if source is node.inputs[0] else last - 1
        if isinstance(axis, str):
            return axis
        if node.op_type == "Transpose":
            perm = node.attributes["perm"].value if "perm" in node.attributes else range(len(before))[::-1]
            return list(perm).index(axis) if axis in perm else UNKNOWN.format(node.op_type)
        if node.op_type not in RESHAPES and len(before) == len(after):
            return axis
        if axis == len(before) - 1 and before[-1:] == after[-1:]:
            return last
        if axis == 1 and before[1:2] == after[1:2]:
            return 1
        return UNKNOWN.format(node.op_type)

    def automatic(self) -> Layer:
        """The layer to take where none is named.

        Of a convolutional net: where the last convolution of more than one place leads to, as long as everything passes
        there and height and width stay: through normalisation, activation, shortcut, concatenation. If attention comes
        after it, as in a vision transformer: the tokens that the last attention is computed from, since the gradient
        of later ones reaches the class token alone.

        Raises `UsageError` if there is none.
        """
        layers = [(at, y) for at, node in enumerate(self.nodes) if node.op_type in CONVOLUTIONS for y in node.outputs]
        convolutions = [(at, layer) for at, y in layers if (layer := self.find(y)) is not None]
        mixing = [at for at, node in enumerate(self.nodes) if node.op_type in ATTENTION and self.mixes(node)]
        if mixing and (not convolutions or mixing[-1] > convolutions[-1][0]):
            tokens = self.before(self.nodes[mixing[-1]].outputs[0])
            if tokens is not None:
                return tokens
        if not convolutions:
            raise UsageError(
                "layers: the model has no convolution and no attention over places of the picture, so that there is "
                f"no usual choice; next: name a layer{LISTED}"
            )
        return self.behind(convolutions[-1][1])

    def mixes(self, node: ir.Node) -> bool:
        """Whether a node multiplies values of several places that both depend on the image."""
        both = [x for x in node.inputs if x in self.active]
        return len(both) > 1 and all(self.rank(x) > 2 for x in both)

    def before(self, value: ir.Value) -> Layer | None:
        """The last layer that all ways from the image to a value pass: in a transformer the norm before attention.

        Its projections do not count, nor what only moves tokens, for instance rolls them round for shifted windows.
        """
        ways = ((y, [x for x in reads(node) if x in self.active]) for node in self.nodes for y in node.outputs)
        up = passes(self.x, ((y, xs) for y, xs in ways if y in self.active))
        while value is not self.x:
            value = up[value]
            layer = self.find(value)
            node = value.producer()
            moved = node is not None and node.op_type in MOVES
            if layer is not None and not moved and not self.projected(value):
                return layer
        return None

    def behind(self, layer: Layer) -> Layer:
        """The last layer of the same height and width that all ways from one to the logits pass."""
        values = [self.x, *(y for node in self.nodes for y in node.outputs if y in self.active)]
        on: dict[ir.Value, list[ir.Value]] = {value: [] for value in values}
        for node in self.nodes:
            for x in reads(node):
                if x in on:
                    on[x] += [y for y in node.outputs if y in self.active]
        up = passes(self.z, ((value, on[value]) for value in reversed(values) if value is not self.z))
        value = layer.value
        while value is not self.z:
            value = up[value]
            found = self.find(value)
            if self.rank(value) < 3 or (found is not None and found.grid.size != layer.grid.size):
                break
            layer = found or layer
        return layer

    def projected(self, value: ir.Value) -> bool:
        """Whether a value is W x, or W x + b."""
        node = value.producer()
        while node is not None and node.op_type == "Add":
            (value, *more) = [x for x in node.inputs if x in self.active]
            node = None if more else value.producer()
        return node is not None and node.op_type in ("MatMul", "Gemm")

    def named(self, names: Iterable[str], model: ModelLike) -> list[Layer]:
        """The layers of these names, of values or of the nodes that make them; "auto" is the usual choice.

        Raises `UsageError` for a name that means none.
        """
        layers = [self.automatic() if name == AUTO else self.one(name, model) for name in names]
        for at, layer in enumerate(layers):
            if any(other.value is layer.value for other in layers[:at]):
                raise UsageError(f"layers: {layer.value.name} is named twice; next: name it once")
        return layers

    def one(self, name: str, model: ModelLike) -> Layer:
        nodes = {str(node.name): node for node in self.graph if node.name}
        values = {str(y.name): y for y in (self.x, *(y for node in self.graph for y in node.outputs))}
        value = values.get(name)
        if value is None and name in nodes:
            floats = [y for y in nodes[name].outputs if y.dtype in FLOATS] or list(nodes[name].outputs)
            if len(floats) > 1:
                several = ", ".join(str(y.name) for y in floats)
                raise UsageError(f"layer {name!r}: the node makes several values; next: name one of {several}")
            value = floats[0]
        if value is None:
            raise UsageError(f"layer {name!r}: {self.why_missing(name, model)}")
        if value not in self.active:
            what = "the logits do not depend on the image through it"
            raise UsageError(f"layer {name!r}: {what}; next: name another{LISTED}")
        try:
            return Layer(value=value, grid=self.grid(value))
        except NoGrid as why:
            raise UsageError(f"layer {name!r} ({shown(value)}): {why}") from None

    def why_missing(self, name: str, model: ModelLike) -> str:
        graph = read(model).graph
        theirs = [n for node in graph.all_nodes() for n in (node.name, *(y.name for y in node.outputs))]
        if name in (*theirs, *graph.initializers):
            return (
                "the model has it, but it lies behind the logits or beside the way to them, or is gone because "
                f"constants are folded, functions inlined and identities passed over; next: name one near it{LISTED}"
            )
        made = [(layer.value.name, node.name) for layer in self.all() if (node := layer.value.producer()) is not None]
        close = difflib.get_close_matches(name, [n for names in made for n in names if n], n=1)
        meant = f"; did you mean {close[0]}?" if close else ";"
        return f"the model has no value or node of that name{meant} next: see its layers{LISTED}"


def passes(root: ir.Value, ways: Iterable[tuple[ir.Value, Sequence[ir.Value]]]) -> Mapping[ir.Value, ir.Value]:
    """For each value the last one that all its ways from `root` pass: its immediate dominator.

    `ways` gives each value with those that come right before it, these first.
    """
    up, depth = {root: root}, {root: 0}
    for value, sources in ways:
        known = [source for source in sources if source in up]
        if not known:
            continue
        meet = known[0]
        for other in known[1:]:
            while meet is not other:
                if depth[meet] >= depth[other]:
                    meet = up[meet]
                else:
                    other = up[other]
        up[value], depth[value] = meet, depth[meet] + 1
    return up
