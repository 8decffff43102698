"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op
from onnxplain.adapters.gradient.registry import vjp


@vjp("MatMul")
def matmul(g: Expr, y: Expr, a: Expr, b: Expr) -> tuple[Any, Any]:
    """Y = A B;  Ā = Ȳ Bᵀ,  B̄ = Aᵀ Ȳ. A vector stands for one row (left) or one column (right)."""
    if a.rank > 1 and b.rank > 1:
        return lambda: g @ b.mT, lambda: a.mT @ g
    row = a.reshape((1, *a.shape)) if a.rank == 1 else a
    column = b.reshape((*b.shape, 1)) if b.rank == 1 else b
    batch = y.shape[: y.rank - (a.rank > 1) - (b.rank > 1)]
    full = g.reshape((*batch, row.shape[-2], column.shape[-1]))

    def first() -> Expr:
        return matmul_to(full @ column.mT, a)

    def second() -> Expr:
        return matmul_to(row.mT @ full, b)

    return first, second


def matmul_to(cotangent: Expr, operand: Expr) -> Expr:
    """Sum the batch axes of a product that the operand, a vector, does not have."""
    if operand.rank > 1:
        return cotangent
    return cotangent.sum(range(cotangent.rank - 2)).reshape(operand.shape)


@vjp("Gemm")
def gemm(
    g: Expr,
    y: Expr,
    a: Expr,
    b: Expr,
    c: Expr | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> tuple[Any, ...]:
    """Y = α A′ B′ + β C with A′ = Aᵀ if transA, B′ = Bᵀ if transB;  Ā′ = α Ȳ B′ᵀ,  B̄′ = α A′ᵀ Ȳ,  C̄ = β Ȳ."""

    def first() -> Expr:
        # The product with B′ᵀ is spelled through Bᵀ: a constant B then gets a copy in the opposite memory order.
        if transA:
            return op("Gemm", b.mT, g, alpha=alpha, transA=int(not transB), transB=1)
        return op("Gemm", g, b.mT, alpha=alpha, transB=transB)

    def second() -> Expr:
        if transB:
            return op("Gemm", g, a.mT, alpha=alpha, transA=1, transB=int(not transA))
        return op("Gemm", a.mT, g, alpha=alpha, transA=transA)

    return (first, second, lambda: g * beta)[: 3 if c is not None else 2]


@vjp("Det")
def determinant(g: Expr, y: Expr, x: Expr) -> Expr:
    """y = det X;  X̄ = ȳ adj(X)ᵀ, the matrix of cofactors, which singular matrices have as well.

    adj(X) by Faddeev and LeVerrier: B₁ = I, Bₖ₊₁ = X Bₖ - tr(X Bₖ)/k I, and adj(X) = ±Bₙ for an n × n matrix. That
    cancels, and so it is for the small matrices of geometry only.
    """
    n = x.size(-1)
    if n > 4:
        raise UnsupportedCase("a matrix larger than 4 x 4")
    unit = x.emit.constant(np.eye(n, dtype=x.dtype))
    b = unit
    for k in range(1, n):
        product = x @ b
        b = product - (product * unit).sum([x.rank - 2, x.rank - 1], keepdims=True) * (1 / k) * unit
    return g.reshape((*g.shape, 1, 1)) * (b.mT if n > 1 else b) * (-1.0) ** (n - 1)
