"""Images taken apart by the residues of their pixels, as a strided convolution sends its cotangent back.

Let s be the stride and o an offset of at least s - 1. Part (i, j) of an image x (N, C, H, W) holds the pixels

    part(i, j)[u, v] = x[s u + i - o, s v + j - o']        with anything where x has no pixel

Whatever works on each pixel by itself does to the parts what it does to the whole. So they are put together as late as
possible: in a network such as MobileNet behind the 1x1 convolution that follows, which leaves a sixth of the channels,
and until then all is done by operators that ONNX Runtime runs in the blocked layout of its convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.expr import Emit, Expr, concat, op

PARTED = "onnxplain.parted"  # of a value that was put together of parts, in its `meta`


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How an image of some sizes is taken apart; `counts` are the sizes of each of its parts."""

    stride: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def residues(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(self.stride) for j in range(self.stride)]

    def together(self, parts: Sequence[Expr]) -> Expr:
        """The image whose parts are given, in the order of `residues`.

        First the columns are interleaved, as a matrix is transposed, then whole rows: on ONNX Runtime's CPU that takes
        a third of the time of DepthToSpace.
        """
        n, c, h, w = parts[0].shape[0], *(parts[0].size(axis) for axis in (1, 2, 3))
        s, height, width = self.stride, self.counts[0] * self.stride, self.counts[1] * self.stride
        flat = concat(parts, 1).reshape((n, s, s, c * h * w))
        rows = flat.transpose((0, 1, 3, 2)).reshape((n, s, c, h, width))
        whole = rows.transpose((0, 2, 3, 1, 4)).reshape((n, c, height, width))
        ends = [offset + size for offset, size in zip(self.offsets, self.sizes, strict=True)]
        if (self.offsets, ends) != ((0, 0), [height, width]):
            whole = op("Slice", whole, list(self.offsets), ends, [2, 3])
        whole.value.meta[PARTED] = Parted(grid=self, parts=tuple(part.value for part in parts))
        return whole

    def apart(self, x: Expr) -> list[Expr]:
        """The parts of an image, with 0 where it has no pixel: a convolution of each channel with a single 1."""
        kernel = x.emit.constant(np.ones((x.size(1), 1, 1, 1), x.dtype))
        parts = []
        for residue in self.residues:
            befores = [offset - i for offset, i in zip(self.offsets, residue, strict=True)]
            lasts = [self.stride * (count - 1) for count in self.counts]
            afters = [
                max(last + 1 - before - size, 0) for last, before, size in zip(lasts, befores, self.sizes, strict=True)
            ]
            pads, strides = [*befores, *afters], [self.stride, self.stride]
            parts.append(op("Conv", x, kernel, group=x.size(1), pads=pads, strides=strides))
        return parts


@dataclass(frozen=True, kw_only=True)
class Parted:
    """What a value was put together of."""

    grid: Grid
    parts: tuple[ir.Value, ...]


def put_together_late(model: ir.Model) -> None:
    """Put parts together behind products and a 1x1 convolution that leaves fewer channels, where nothing else reads."""
    waiting = [y for node in model.graph for y in node.outputs if PARTED in y.meta]
    if not waiting:
        return
    passes.RemoveUnusedNodesPass()(model)
    emit = Emit(model.graph)
    for y in waiting:
        for node in way_to_fewer(y):
            y = moved_behind(node, y, emit)
    passes.TopologicalSortPass()(model)


def way_to_fewer(y: ir.Value) -> list[ir.Node]:
    """The nodes from y to such a convolution, with it; none if there is none."""
    way: list[ir.Node] = []
    while len(y.uses()) == 1 and not y.is_graph_output():
        ((node, index),) = y.uses()
        way.append(node)
        if narrows(node):
            return way if index == 0 and not node.outputs[0].is_graph_output() else []
        if not multiplies(node, y):
            return []
        (y,) = node.outputs
    return []


def narrows(node: ir.Node) -> bool:
    """Whether a node is a convolution that looks at one pixel at a time, at all of them, and leaves fewer channels."""
    if (node.domain, node.op_type) != ("", "Conv"):
        return False
    kernel, numbers = node.inputs[1], node.attributes.get_ints
    if kernel is None or kernel.shape is None or not kernel.shape.is_static():
        return False
    outputs, inputs, *window = kernel.shape.numpy()
    every = not any(numbers("pads", [0])) and set(numbers("strides", [1])) == {1}
    plain = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and node.attributes.get_int("group", 1) == 1
    return every and plain and window == [1, 1] and outputs < inputs


def multiplies(node: ir.Node, y: ir.Value) -> bool:
    """Whether a node multiplies y with something of the same shape, or with a number for each image or channel."""
    if (node.domain, node.op_type) != ("", "Mul") or y.shape is None:
        return False
    other = dims(factor(node, y))
    return other == dims(y) or (len(other) <= len(y.shape) and other[-2:] in ((), (1, 1)))


def factor(node: ir.Node, y: ir.Value) -> ir.Value:
    """What a Mul multiplies y with."""
    a, b = node.inputs
    other = b if a is y else a
    assert other is not None
    return other


def dims(value: ir.Value | None) -> tuple[int | str | None, ...]:
    """The shape; () stands for one that is not known, too."""
    if value is None or value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def moved_behind(node: ir.Node, y: ir.Value, emit: Emit) -> ir.Value:
    """Let a node work on the parts of y; the value that takes the place of its output."""
    parted: Parted = y.meta[PARTED]
    grid, parts = parted.grid, [Expr(emit, part) for part in parted.parts]
    if node.op_type == "Mul":
        other = Expr(emit, factor(node, y))
        factors = grid.apart(other) if other.shape == dims(y) else [other] * len(parts)
        results = [part * f for part, f in zip(parts, factors, strict=True)]
    else:
        rest = [None if x is None else Expr(emit, x) for x in node.inputs[1:]]
        results = [op("Conv", part, *rest) for part in parts]
    (old,) = node.outputs
    new = grid.together(results).value
    new.shape = old.shape
    old.replace_all_uses_with(new)
    return new
