"""Mistakes in the rules of reductions, cumulations and determinants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, op
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.adapters.gradient.rules.mask import reaches
from onnxplain.adapters.gradient.rules.reduce import kept, reduced_axes

RIGHT = {name: entry.rule for name, entry in DEFAULT.items()}


def reduction(formula: Callable[[Expr, Expr, Expr, list[int]], Expr]) -> Callable[..., Any]:
    def rule(
        g: Expr, y: Expr, x: Expr, axes: Expr | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Any:
        over = reduced_axes(x, axes, noop_with_empty_axes)
        return formula(kept(g, x, over, keepdims), kept(y, x, over, keepdims), x, over), None

    return rule


def cumulated(name: str, **changed: Callable[[int], int]) -> Callable[..., Any]:
    """The right rule for other attributes."""

    def rule(g: Expr, y: Expr, x: Expr, axis: Expr, *, exclusive: int = 0, reverse: int = 0) -> Any:
        given = {"exclusive": exclusive, "reverse": reverse}
        return RIGHT[name](g, y, x, axis, **(given | {key: change(given[key]) for key, change in changed.items()}))

    return rule


def quotients(g: Expr, y: Expr, x: Expr, axis: Expr, **attributes: Any) -> Any:
    """y/x for the product of the others, which a zero spoils."""
    return op("CumSum", g * y, np.asarray(axis.constant.item()), reverse=1) / (x + 1e-300), None


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "ReduceL1: magnitude": ("ReduceL1", reduction(lambda g, y, x, axes: g * x)),
    "ReduceL2: not divided": ("ReduceL2", reduction(lambda g, y, x, axes: g * x)),
    "ReduceL2: sign": ("ReduceL2", reduction(lambda g, y, x, axes: g * op("Sign", x))),
    "ReduceSumSquare: factor": ("ReduceSumSquare", reduction(lambda g, y, x, axes: g * x)),
    "ReduceLogSum: not divided": ("ReduceLogSum", reduction(lambda g, y, x, axes: g)),
    "ReduceLogSumExp: exponential": ("ReduceLogSumExp", reduction(lambda g, y, x, axes: g * op("Exp", x))),
    "ReduceMax: the smallest": ("ReduceMax", RIGHT["ReduceMin"]),
    "ReduceMax: everywhere": ("ReduceMax", RIGHT["ReduceSum"]),
    "ReduceMin: sign": ("ReduceMin", reduction(lambda g, y, x, axes: -g * reaches(x, y, -1.0))),
    "ReduceProd: whole product": ("ReduceProd", reduction(lambda g, y, x, axes: g * y)),
    "ReduceProd: quotient": ("ReduceProd", reduction(lambda g, y, x, axes: g * y / (x + 1e-300))),
    "GlobalMaxPool: mean": ("GlobalMaxPool", RIGHT["GlobalAveragePool"]),
    "GlobalLpPool: always 2": ("GlobalLpPool", lambda g, y, x, *, p=2: RIGHT["GlobalLpPool"](g, y, x)),
    "LpPool: always 2": ("LpPool", lambda *args, p=2, **attributes: RIGHT["LpPool"](*args, **attributes)),
    "CumSum: the same way": ("CumSum", cumulated("CumSum", reverse=lambda r: 1 - r)),
    "CumSum: exclusive forgotten": ("CumSum", cumulated("CumSum", exclusive=lambda e: 0)),
    "CumProd: the other way": ("CumProd", cumulated("CumProd", reverse=lambda r: 1 - r)),
    "CumProd: exclusive forgotten": ("CumProd", cumulated("CumProd", exclusive=lambda e: 0)),
    "CumProd: quotient": ("CumProd", quotients),
    "Det: transposed": ("Det", lambda g, y, x: RIGHT["Det"](g, y, x.mT)),
    "Det: trace": ("Det", lambda g, y, x: g.reshape((*g.shape, 1, 1)) * x.emit.constant(np.eye(x.size(-1)))),
}
