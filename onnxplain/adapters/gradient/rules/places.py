"""What operators that move elements have in common: along an axis  y = M x  with a matrix M that is known now.

Where M only selects, y_j = x_p(j), it is given by its places p, -1 where y_j is none of x's elements.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, add_all, op
from onnxplain.adapters.gradient.facts import Array, Dim

LARGEST = 2**24  # elements of a matrix that is written out
RUNS = 4  # up to so many stretches are put back one by one


def put_back(g: Expr, axis: int, places: Array, size: int) -> Expr:
    """x̄_i = Σ ȳ_j over all j with p(j) = i, along one axis of `size` elements."""
    if not (places >= 0).any():
        raise UnsupportedCase("the output holds no element of its input")
    times = len(places) // size
    if np.array_equal(places, np.repeat(np.arange(size), times)):
        return resized(g, axis, size, times).sum([axis + 1]) if times > 1 else g
    stretches = runs(places)
    if len(stretches) <= RUNS:
        return add_all([place(g, axis, *stretch, size) for stretch in stretches])
    most = int(np.bincount(places[places >= 0]).max())
    if most * size > RUNS * (len(places) + size):  # some places are taken much more often than others
        if len(places) * size > LARGEST:
            raise UnsupportedCase(
                f"{len(places):,} places among {size:,}, some taken {most:,} times: too many to write out"
            )
        return pull(g, axis, np.asarray(places[:, None] == np.arange(size)))
    table = inverse(places, size)
    if (table == len(places)).any():
        g = g.pad(axis, 0, 1)
    gathered = op("Gather", g, table.squeeze(1) if table.shape[1] == 1 else table, axis=axis)
    return gathered if table.shape[1] == 1 else gathered.sum([axis + 1])


def runs(places: Array) -> list[tuple[int, int, int, int]]:
    """The stretches of y as (begin, end, first, step): they take the places first, first + step, ..."""
    found: list[tuple[int, int, int, int]] = []
    begin = 0
    while begin < len(places):
        end = begin + 1
        step = int(places[end] - places[begin]) if end < len(places) else 0
        while min(places[begin], places[end - 1]) >= 0 and end < len(places) and places[end] - places[end - 1] == step:
            end += 1
        taken = places[begin:end][places[begin:end] >= 0]
        if len(taken):
            found.append((begin, begin + len(taken), int(taken[0]), step if len(taken) > 1 else 1))
        begin = end
    return found


def place(g: Expr, axis: int, begin: int, end: int, first: int, step: int, size: int) -> Expr:
    """The elements begin ... end of ȳ put to the places first, first + step, ...; zeros elsewhere."""
    count = end - begin
    last = first + (count - 1) * step
    if step >= 0:
        part = g.slice(axis, begin, end)
    else:
        part = g.slice(axis, end - 1, begin - 1 if begin else np.iinfo(np.int64).min, -1)
    if step == 0:
        part = part.sum([axis], keepdims=True)
    elif abs(step) > 1:
        part = spread(part, axis, abs(step))
    return part.pad(axis, min(first, last), size - 1 - max(first, last))


def spread(g: Expr, axis: int, step: int) -> Expr:
    """`step - 1` zeros between neighbours along one axis, none behind the last."""
    size = g.size(axis)
    column = resized(g, axis, size, 1).pad(axis + 1, 0, step - 1)
    return resized(column, axis, size * step, over=2).slice(axis, 0, (size - 1) * step + 1)


def inverse(places: Array, size: int) -> Array:
    """For each place the elements of y that took it, as a row; filled up with len(y)."""
    order = np.argsort(places, kind="stable")
    order = order[places[order] >= 0]
    counts = np.bincount(places[order], minlength=size)
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((size, counts.max()), len(places), np.int64)
    table[places[order], column] = order
    return table


def pull(g: Expr, axis: int, matrix: Array) -> Expr:
    """x̄ = Mᵀ ȳ along one axis, M as (outputs, inputs)."""
    weights = matrix.astype(g.dtype)
    if axis == g.rank - 1:
        return g @ g.emit.constant(weights)
    behind = g.shape[axis + 1 :]
    columns = g if axis == g.rank - 2 else g.reshape((*g.shape[: axis + 1], fixed(behind)))
    return (g.emit.constant(weights.T) @ columns).reshape((*g.shape[:axis], matrix.shape[1], *behind))


def fixed(shape: tuple[Dim, ...]) -> int:
    """The number of elements of a shape that must be known now."""
    sizes = [d for d in shape if isinstance(d, int)]
    if len(sizes) < len(shape):
        raise UnsupportedCase(f"the dimensions {list(shape)} are not all fixed")
    return math.prod(sizes)


def resized(x: Expr, axis: int, *sizes: Dim, over: int = 1) -> Expr:
    """Reshape: `over` dimensions from `axis` on become the given ones."""
    return x.reshape((*x.shape[:axis], *sizes, *x.shape[axis + over :]))


def constant(value: Expr | None, what: str) -> Any:
    """The value of an operand that must be known now."""
    if value is None or value.constant is None:
        raise UnsupportedCase(
            f"{what} that only the run knows: no operator of all runtimes puts a cotangent back by them; "
            f"next: export the model with constant {what}, or with a fixed batch size"
        )
    return value.constant
