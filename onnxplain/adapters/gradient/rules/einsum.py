"""Einsum. The cotangent of one operand is the Einsum of ȳ with the others, and it is written as matrix products.

    y[o] = Σ A[a] B[b] C[c]      Ā[a] = Σ ȳ[o] B[b] C[c]     over all letters that are not in a

No Einsum is emitted: runtimes differ in which equations they take.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase
from onnxplain.adapters.gradient.facts import Dim
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.places import LARGEST


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A tensor with a letter for each axis, all different. Axes of length 1 are left out: they broadcast."""

    value: Expr
    letters: str

    def size(self, letter: str) -> Dim:
        return self.value.shape[self.letters.index(letter)]


@vjp("Einsum")
def einsum(g: Expr, y: Expr, *xs: Expr, equation: str) -> tuple[Any, ...]:
    """x̄ᵢ = the Einsum of ȳ with all operands but xᵢ, in xᵢ's letters."""
    inputs, output = letters_of(equation, [x.rank for x in xs])

    def cotangent(i: int) -> Expr:
        others = [(x, letters) for k, (x, letters) in enumerate(zip(xs, inputs, strict=True)) if k != i]
        factors = [factor(x, letters) for x, letters in ((g, output), *others)]
        own = "".join(dict.fromkeys(inputs[i]))  # a letter that an operand has twice stands for its diagonal
        return on_diagonal(contract(factors, own), inputs[i], xs[i])

    return tuple(lambda i=i: cotangent(i) for i in range(len(xs)))


def letters_of(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the output. Those of an ellipsis are digits, which no equation may have."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(term) + len("...") if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    signs = "0123456789"[: max(hidden)]
    inputs = [t.replace("...", signs[len(signs) - count :]) for t, count in zip(terms, hidden, strict=True)]
    if arrow:
        return inputs, right.replace("...", signs)
    counts = Counter(left.replace(".", "").replace(",", ""))
    return inputs, signs + "".join(sorted(letter for letter, count in counts.items() if count == 1))


def factor(x: Expr, letters: str) -> Factor:
    """A tensor without its axes of length 1, and of its diagonal if a letter stands there twice."""
    kept = [a for a, d in enumerate(x.shape) if d != 1]
    x, letters = moved(x, range(x.rank), [x.shape[a] for a in kept]), "".join(letters[a] for a in kept)
    while len(set(letters)) < len(letters):
        first = next(a for a, letter in enumerate(letters) if letters.count(letter) > 1)
        second = letters.index(letters[first], first + 1)
        x = (x * eye(x, first, second)).sum([second])
        letters = letters[:second] + letters[second + 1 :]
    return Factor(value=x, letters=letters)


def on_diagonal(result: Factor, letters: str, x: Expr) -> Expr:
    """The result in the operand's axes: 1 where it is the same all along one, zero off the diagonal of two."""
    places = {letter: letters.index(letter) for letter in letters}
    order = "".join(letter for letter in places if letter in result.letters)
    sizes = {places[letter]: result.size(letter) for letter in order}
    g = arrange(result, order, [sizes.get(a, 1) for a in range(x.rank)])
    for a, letter in enumerate(letters):
        if places[letter] != a:
            g = g * eye(x, places[letter], a)
    return g


def eye(x: Expr, first: int, second: int) -> Expr:
    """1 where two axes of x have the same index, 0 elsewhere."""
    size = x.size(first)
    if size * size > LARGEST:
        raise UnsupportedCase(f"a diagonal of {size:,} elements: too many to write out")
    shape = [size if a in (first, second) else 1 for a in range(x.rank)]
    return x.emit.constant(np.eye(size, dtype=x.dtype).reshape(shape))


def contract(factors: list[Factor], kept: str) -> Factor:
    """The product of all factors, summed over the letters that are not kept."""
    first, *rest = factors
    while rest:
        second, *rest = rest
        needed = set(kept).union(*(f.letters for f in rest))
        a, b = summed(first, needed | set(second.letters)), summed(second, needed | set(first.letters))
        first = product(a, b, needed)
    return summed(first, set(kept))


def summed(f: Factor, needed: set[str]) -> Factor:
    """Without the letters that nobody needs."""
    axes = [a for a, letter in enumerate(f.letters) if letter not in needed]
    return Factor(value=f.value.sum(axes), letters="".join(letter for letter in f.letters if letter in needed))


def product(a: Factor, b: Factor, needed: set[str]) -> Factor:
    """A matrix product if there is a letter to sum over, else a product element by element."""
    both = [letter for letter in a.letters if letter in b.letters]
    batch = "".join(letter for letter in both if letter in needed)
    inner = "".join(letter for letter in both if letter not in needed)
    rows = "".join(letter for letter in a.letters if letter not in both)
    columns = "".join(letter for letter in b.letters if letter not in both)
    sizes = {letter: f.size(letter) for f in (a, b) for letter in f.letters}
    outer = [sizes[letter] for letter in batch]
    row, column = [sizes[letter] for letter in rows], [sizes[letter] for letter in columns]
    if inner:
        depth = merged([sizes[letter] for letter in inner])
        left = arrange(a, batch + rows + inner, [*outer, merged(row), depth])
        right = arrange(b, batch + inner + columns, [*outer, depth, merged(column)])
        value = (left @ right).reshape([*outer, *row, *column])
    else:
        left = arrange(a, batch + rows, [*outer, *row, *(1 for _ in column)])
        value = left * arrange(b, batch + columns, [*outer, *(1 for _ in row), *column])
    return Factor(value=value, letters=batch + rows + columns)


def arrange(f: Factor, order: str, shape: list[Dim]) -> Expr:
    """A factor with its letters in the given order, then in the given shape."""
    return moved(f.value, [f.letters.index(letter) for letter in order], shape)


def moved(x: Expr, perm: Sequence[int], shape: Sequence[Dim]) -> Expr:
    """Transpose and Reshape. Of a constant a new one comes, for a weight must not feed both directions."""
    if x.constant is not None:
        return x.emit.constant(np.transpose(x.constant, list(perm)).reshape(np.asarray(shape, int)))
    x = x if list(perm) == list(range(x.rank)) else x.transpose(perm)
    return x.reshape(shape)


def merged(dims: list[Dim]) -> Dim:
    """The length of several axes made one."""
    sizes = [d for d in dims if isinstance(d, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else dims[0] if len(dims) == 1 else None
