"""Operators that choose between elements or repeat them. Where they choose is constant, or ends the derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op
from onnxplain.adapters.gradient.facts import Array
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.mask import keep, reaches
from onnxplain.adapters.gradient.rules.places import constant, fixed, put_back, resized


@vjp("Where", broadcastable=True)
def choose(g: Expr, y: Expr, condition: Expr, a: Expr, b: Expr) -> tuple[Any, ...]:
    """y = a where the condition holds, else b;  ā = ȳ there, b̄ = ȳ elsewhere."""
    return None, lambda: keep(g, condition), lambda: keep(g, op("Not", condition))


@vjp("Expand")
def expand(g: Expr, y: Expr, x: Expr, shape: Expr) -> tuple[Any, ...]:
    """y = x, repeated;  x̄ = the sum over the copies, which the sweep takes."""
    return g, None


@vjp("Trilu")
def trilu(g: Expr, y: Expr, x: Expr, k: Expr | None = None, *, upper: int = 1) -> tuple[Any, ...]:
    """y = one triangle of x;  x̄ = the same triangle of ȳ."""
    return (op("Trilu", g, k, upper=upper), None)[: 1 + (k is not None)]


@vjp("ReverseSequence")
def reverse_sequence(g: Expr, y: Expr, x: Expr, lengths: Expr, *, batch_axis: int = 1, time_axis: int = 0) -> Any:
    """Each row's first elements in reverse, which is its own inverse."""
    return op("ReverseSequence", g, lengths, batch_axis=batch_axis, time_axis=time_axis), None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Which elements of x an index takes: `axes` of its axes, from the first on, are made one, and `places` lie there.

    They are the same all along the other axes, whose sizes need not be known.
    """

    places: Array
    first: int
    axes: int = 1

    def rows(self, x: Expr) -> int:
        """The length of the axes that are made one."""
        return fixed(x.shape[self.first : self.first + self.axes])

    def back(self, g: Expr, x: Expr) -> Expr:
        """x̄_i = Σ ȳ_j over all places(j) = i."""
        flat = resized(g, self.first, self.places.size, over=self.places.ndim)
        back = put_back(flat, self.first, self.places.ravel(), self.rows(x))
        return resized(back, self.first, *x.shape[self.first : self.first + self.axes]).like(x)


@vjp("Gather")
def gather(g: Expr, y: Expr, x: Expr, indices: Expr, *, axis: int = 0) -> tuple[Any, ...]:
    """y_j = x_i(j) along one axis, an index of any shape in its place;  x̄_i = Σ ȳ_j over all i(j) = i."""
    axis %= x.rank
    if x.emit.facts.counts(indices.value, x.value, axis):
        return g.like(x), None  # a reshape, as which exporters write strided views
    places = counted(constant(indices, "indices"), x.size(axis))
    return Taken(places=places, first=axis).back(g, x), None


@vjp("Compress")
def compress(g: Expr, y: Expr, x: Expr, condition: Expr, *, axis: int | None = None) -> tuple[Any, ...]:
    """y = the elements of x for which a constant condition holds;  x̄ has them back in their places."""
    places = np.flatnonzero(constant(condition, "conditions"))
    if axis is None:
        return Taken(places=places, first=0, axes=x.rank).back(g.reshape((len(places),)), x), None
    axis %= x.rank
    return Taken(places=places, first=axis).back(resized(g, axis, len(places)), x), None


@vjp("GatherElements")
def gather_elements(g: Expr, y: Expr, x: Expr, indices: Expr, *, axis: int = 0) -> tuple[Any, ...]:
    """y_j = x_i(j), one index for each element of y;  x̄_i = Σ ȳ_j over all i(j) = i."""
    return single_elements(x, indices, axis % x.rank).back(g, x), None


@vjp("GatherND")
def gather_nd(g: Expr, y: Expr, x: Expr, indices: Expr, *, batch_dims: int = 0) -> tuple[Any, ...]:
    """y_j = x_i(j), an index of several axes at once;  x̄_i = Σ ȳ_j over all i(j) = i."""
    return several_axes(x, indices, batch_dims).back(g, x), None


@vjp("ScatterElements")
def scatter_elements(
    g: Expr, y: Expr, x: Expr, indices: Expr, updates: Expr, *, axis: int = 0, reduction: str = "none"
) -> tuple[Any, ...]:
    """y_i(j) = u_j, or x_i(j) + Σ u_j;  x̄ = ȳ (0 where it was replaced), ū_j = ȳ_i(j). Maxima: see `extreme`."""
    return scattered(g, y, x, updates, single_elements(x, indices, axis % x.rank), reduction)


@vjp("ScatterND")
def scatter_nd(g: Expr, y: Expr, x: Expr, indices: Expr, updates: Expr, *, reduction: str = "none") -> tuple[Any, ...]:
    """y_i(j) = u_j, or x_i(j) + Σ u_j, an index of several axes at once;  x̄ and ū as for single elements."""
    return scattered(g, y, x, updates, several_axes(x, indices, 0), reduction)


def scattered(g: Expr, y: Expr, x: Expr, updates: Expr, taken: Taken, reduction: str) -> tuple[Any, ...]:
    """The cotangents of x and of its updates."""
    places = taken.places.ravel()
    if reduction == "mul":
        raise UnsupportedCase("reduction mul")
    if reduction == "none" and len(np.unique(places)) < len(places):
        raise UnsupportedCase("indices that repeat, of which runtimes take any; next: use reduction add")

    def at_places(value: Expr) -> Expr:
        rows = resized(value, taken.first, taken.rows(x), over=taken.axes)
        return op("Gather", rows, places, axis=taken.first).like(updates)

    def kept() -> Expr:
        mask = np.ones(taken.rows(x), g.dtype)
        mask[places] = 0
        axes = range(taken.first, taken.first + taken.axes)
        return g * g.emit.constant(mask.reshape([x.size(a) if a in axes else 1 for a in range(x.rank)]))

    def extreme(sign: float) -> tuple[Any, ...]:
        """y_i = the largest or smallest of x_i and all its u_j;  ȳ_i is shared out evenly among those equal to y_i."""
        own, theirs = reaches(x, y, sign), reaches(updates, at_places(y), sign)
        share = g / (own + taken.back(theirs, x))
        return lambda: share * own, None, lambda: at_places(share) * theirs

    if reduction in ("max", "min"):
        return extreme(1.0 if reduction == "max" else -1.0)
    return kept if reduction == "none" else g, None, lambda: at_places(g)


def counted(indices: Array, size: int) -> Array:
    """Indices counted from the front."""
    return np.where(indices < 0, indices + size, indices).astype(np.int64)


def single_elements(x: Expr, indices: Expr, axis: int) -> Taken:
    """The elements of x that differ from their own place along one axis only.

    Leading axes along which the index is the same may be of any size, such as a batch.
    """
    known = before_expand(indices)
    first = 0
    while first < axis and known.shape[first] == 1 and x.shape[first] == indices.shape[first] is not None:
        first += 1
    sizes, shape = zip(*((indices.size(a), x.size(a)) for a in range(first, x.rank)), strict=True)
    where: list[Array] = list(np.indices(sizes))
    where[axis - first] = counted(np.broadcast_to(known.reshape(known.shape[first:]), sizes), shape[axis - first])
    return Taken(places=np.ravel_multi_index(tuple(where), shape), first=first, axes=x.rank - first)


def before_expand(indices: Expr) -> Array:
    """The indices as they are, or as they were before they were repeated along axes that then are of length 1 here."""
    node = indices.value.producer()
    if indices.constant is None and node is not None and node.op_type == "Expand" and node.inputs[0] is not None:
        before = Expr(indices.emit, node.inputs[0]).constant
        if before is not None:
            return before.reshape((1,) * (indices.rank - before.ndim) + before.shape)
    return np.asarray(constant(indices, "indices"))


def several_axes(x: Expr, indices: Expr, batch_dims: int) -> Taken:
    """The rows of x that an index of several axes takes; the index has its own rows for each of the batch axes."""
    known = constant(indices, "indices")
    axes = batch_dims + known.shape[-1]
    shape = tuple(x.size(a) for a in range(axes))
    where: list[Array] = list(np.indices(known.shape[:-1])[:batch_dims])
    where += [counted(part, shape[batch_dims + i]) for i, part in enumerate(np.moveaxis(known, -1, 0))]
    return Taken(places=np.ravel_multi_index(tuple(where), shape), first=0, axes=axes)


@vjp("TopK")
def top_k(g: Any, y: Any, x: Expr, k: Expr, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Any, ...]:
    """y_j = x_i(j), the k largest;  x̄_i = Σ_j ȳ_j [i(j) = i], with the indices that the operator chose."""
    axis %= x.rank
    values, indices = y
    count, size = values.size(axis), x.size(axis)
    number = np.arange(size).reshape(-1, *(1,) * (x.rank - 1 - axis))
    chosen = op("Equal", resized(indices, axis, count, 1), number)
    return keep(resized(g[0], axis, count, 1), chosen).sum([axis]), None


@vjp("OneHot")
def one_hot(g: Expr, y: Expr, indices: Expr, depth: Expr, values: Expr, *, axis: int = -1) -> tuple[Any, ...]:
    """y = v₁ at the index, v₀ elsewhere;  v̄ = (Σ ȳ elsewhere, Σ ȳ at the index)."""

    def back() -> Expr:
        everything = list(range(y.rank))
        at = [op("OneHot", indices, depth, np.asarray(pair, g.dtype), axis=axis) for pair in ((1, 0), (0, 1))]
        return op("Concat", *((g * part).sum(everything).reshape((1,)) for part in at), axis=0)

    return None, None, back
