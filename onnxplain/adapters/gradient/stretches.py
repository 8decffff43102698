"""Cotangents that are zero but for stretches along one axis.

What is taken out of a value in pieces, as the queries, keys and values of an attention are, sends such cotangents back.
Where the stretches do not meet, their sum needs no addition: the pieces are laid side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, concat
from onnxplain.adapters.gradient.layout import added

STRETCHES = "onnxplain.stretches"  # of a value that was laid out here, in its `meta`


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """Pieces by where they begin along an axis of a value, which is zero elsewhere. They do not overlap."""

    axis: int
    size: int
    pieces: tuple[tuple[int, Expr], ...]

    def apart_from(self, other: Stretches) -> bool:
        """Whether both lie along the same axis and have no place in common."""
        if self.axis != other.axis:
            return False
        pairs = pairwise(sorted_by_start(self, other))
        return all(start + piece.size(self.axis) <= after for (start, piece), (after, _) in pairs)

    def laid_out(self) -> Expr:
        """The value: each piece with the zeros up to the next one, and the first one with those before."""
        parts, at = [], 0
        starts = [start for start, _ in self.pieces]
        for (start, piece), until in zip(self.pieces, [*starts[1:], self.size], strict=True):
            parts.append(piece.pad(self.axis, start - at, until - start - piece.size(self.axis)))
            at = until
        whole = concat(parts, self.axis)
        whole.value.meta[STRETCHES] = self
        return whole


def sorted_by_start(a: Stretches, b: Stretches) -> list[tuple[int, Expr]]:
    return sorted((*a.pieces, *b.pieces), key=lambda piece: piece[0])


def total(a: Expr, b: Expr) -> Expr:
    """The sum of two cotangents of one value."""
    first, second = stretches(a), stretches(b)
    if first is None or second is None or not first.apart_from(second):
        return added(a, b)
    return Stretches(axis=first.axis, size=first.size, pieces=tuple(sorted_by_start(first, second))).laid_out()


def stretches(g: Expr) -> Stretches | None:
    """The stretches of a cotangent that was laid out here, or is one piece with zeros around it; else None."""
    if STRETCHES in g.value.meta:
        known: Stretches = g.value.meta[STRETCHES]
        return known
    node = g.value.producer()
    if node is None or node.op_type != "Pad" or "mode" in node.attributes:
        return None
    piece, widths, *more = (None if x is None else Expr(g.emit, x) for x in node.inputs)
    if piece is None or widths is None or any(x is None or x.constant is None or x.constant != 0 for x in more):
        return None
    before, after = np.split(np.asarray(widths.constant), 2)
    axes = np.flatnonzero(before | after).tolist()
    if len(axes) != 1 or min(before.min(), after.min()) < 0 or not isinstance(g.shape[axes[0]], int):
        return None
    return Stretches(axis=axes[0], size=g.size(axes[0]), pieces=((int(before[axes[0]]), piece),))
