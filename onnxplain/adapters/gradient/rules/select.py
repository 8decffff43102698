"""Operators that choose between elements or repeat them. Where they choose is constant, or ends the derivative."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op
from onnxplain.adapters.gradient.facts import Array
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.mask import keep
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


@vjp("Gather")
def gather(g: Expr, y: Expr, x: Expr, indices: Expr, *, axis: int = 0) -> tuple[Any, ...]:
    """y_j = x_i(j) along one axis, an index of any shape in its place;  x̄_i = Σ ȳ_j over all i(j) = i."""
    axis %= x.rank
    if x.emit.facts.counts(indices.value, x.value, axis):
        return g.like(x), None  # a reshape, as which exporters write strided views
    places = constant(indices, "indices")
    flat = resized(g, axis, places.size, over=places.ndim)
    return put_back(flat, axis, counted(places, x.size(axis)).ravel(), x.size(axis)).like(x), None


@vjp("Compress")
def compress(g: Expr, y: Expr, x: Expr, condition: Expr, *, axis: int | None = None) -> tuple[Any, ...]:
    """y = the elements of x for which a constant condition holds;  x̄ has them back in their places."""
    places = np.flatnonzero(constant(condition, "conditions"))
    if axis is None:
        return put_back(g.reshape((len(places),)), 0, places, fixed(x.shape)).reshape(x.shape), None
    axis %= x.rank
    return put_back(resized(g, axis, len(places)), axis, places, x.size(axis)).like(x), None


@vjp("GatherElements")
def gather_elements(g: Expr, y: Expr, x: Expr, indices: Expr, *, axis: int = 0) -> tuple[Any, ...]:
    """y_j = x_i(j), one index for each element of y;  x̄_i = Σ ȳ_j over all i(j) = i."""
    places = element_places(x, constant(indices, "indices"), axis)
    return put_back(g.reshape((places.size,)), 0, places, fixed(x.shape)).reshape(x.shape), None


@vjp("GatherND")
def gather_nd(g: Expr, y: Expr, x: Expr, indices: Expr, *, batch_dims: int = 0) -> tuple[Any, ...]:
    """y_j = x_i(j), an index of several axes at once;  x̄_i = Σ ȳ_j over all i(j) = i."""
    places, rest = slice_places(x, constant(indices, "indices"), batch_dims)
    rows = fixed(x.shape[: x.rank - len(rest)])
    return put_back(g.reshape((len(places), *rest)), 0, places, rows).reshape(x.shape), None


@vjp("ScatterElements")
def scatter_elements(
    g: Expr, y: Expr, x: Expr, indices: Expr, updates: Expr, *, axis: int = 0, reduction: str = "none"
) -> tuple[Any, ...]:
    """y_i(j) = u_j, or x_i(j) + Σ u_j;  x̄ = ȳ (0 where it was replaced), ū_j = ȳ_i(j)."""
    places = element_places(x, constant(indices, "indices"), axis)
    return scattered(g, x, updates, places, (), reduction)


@vjp("ScatterND")
def scatter_nd(g: Expr, y: Expr, x: Expr, indices: Expr, updates: Expr, *, reduction: str = "none") -> tuple[Any, ...]:
    """y_i(j) = u_j, or x_i(j) + Σ u_j, an index of several axes at once;  x̄ and ū as for single elements."""
    places, rest = slice_places(x, constant(indices, "indices"), 0)
    return scattered(g, x, updates, places, rest, reduction)


def scattered(g: Expr, x: Expr, updates: Expr, places: Array, rest: tuple[Any, ...], reduction: str) -> tuple[Any, ...]:
    """The cotangents of x and of its updates; `rest` are the last axes of x, which an index takes whole."""
    if reduction not in ("none", "add"):
        raise UnsupportedCase(f"reduction {reduction}")
    if reduction == "none" and len(np.unique(places)) < len(places):
        raise UnsupportedCase("indices that repeat, of which runtimes take any; next: use reduction add")
    leading = x.shape[: x.rank - len(rest)]

    def data() -> Expr:
        if reduction == "add":
            return g
        kept = np.ones(fixed(leading), g.dtype)
        kept[places] = 0
        return g * g.emit.constant(kept.reshape([x.size(a) if a < len(leading) else 1 for a in range(x.rank)]))

    def update() -> Expr:
        return op("Gather", g.reshape((fixed(leading), *rest)), places, axis=0).reshape(updates.shape)

    return data, None, update


def counted(indices: Array, size: int) -> Array:
    """Indices counted from the front."""
    return np.where(indices < 0, indices + size, indices).astype(np.int64)


def element_places(x: Expr, indices: Array, axis: int) -> Array:
    """Where in the flat x the elements lie that differ from their own place along one axis only."""
    shape = tuple(x.size(a) for a in range(x.rank))
    where: list[Array] = list(np.indices(indices.shape))
    where[axis] = counted(indices, shape[axis])
    return np.ravel_multi_index(tuple(where), shape).ravel()


def slice_places(x: Expr, indices: Array, batch_dims: int) -> tuple[Array, tuple[Any, ...]]:
    """Which rows of x are taken if its indexed axes are made one, and the axes that are taken whole."""
    deep = batch_dims + indices.shape[-1]
    shape = tuple(x.size(a) for a in range(deep))
    where: list[Array] = list(np.indices(indices.shape[:-1])[:batch_dims])
    where += [counted(part, shape[batch_dims + i]) for i, part in enumerate(np.moveaxis(indices, -1, 0))]
    return np.ravel_multi_index(tuple(where), shape).ravel(), x.shape[deep:]


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
