"""How cotangents stay in the blocked layout, in which ONNX Runtime's CPU keeps images between convolutions.

Only some operators have kernels for it (convolutions, pools, sums and products of equal shapes, a few activations), and
a sum or product only where all of its operands are in it already; a convolution or a pool takes its image into it. So
one cotangent that is not would have all that meet it, through the whole of a residual network, reordered twice.
On other runtimes nothing here makes a difference.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr, op

BLOCK = 16  # channels of a block, at the most
BLOCKED = "onnxplain.blocked"  # whether a cotangent is, in the `meta` of its value


def blocked(g: Expr) -> bool:
    """Whether a cotangent is in the blocked layout, as far as can be told from the operators that it comes from."""
    if BLOCKED not in g.value.meta:
        g.value.meta[BLOCKED] = is_blocked(g)
    return bool(g.value.meta[BLOCKED])


def is_blocked(g: Expr) -> bool:
    node = g.value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in ("Conv", "AveragePool", "MaxPool"):
        return g.value.dtype == ir.DataType.FLOAT and g.rank == 4
    if node.op_type not in ("Add", "Mul"):
        return False
    a, b = (Expr(g.emit, x) for x in node.inputs if x is not None)
    masked = node.op_type == "Mul" and made_by(b, "HardSigmoid")
    return a.value.shape == b.value.shape and blocked(a) and (masked or blocked(b))


def made_by(x: Expr, op_type: str) -> bool:
    node = x.value.producer()
    return node is not None and node.op_type == op_type


def fits(g: Expr) -> bool:
    """Whether a pool would take a value into the blocked layout."""
    channels = g.shape[1] if g.rank == 4 else None
    return g.value.dtype == ir.DataType.FLOAT and isinstance(channels, int) and channels % BLOCK == 0


def entered(g: Expr) -> Expr:
    """The same cotangent in the blocked layout: the mean over windows of a single element."""
    return op("AveragePool", g, kernel_shape=[1, 1]) if fits(g) and not blocked(g) else g


def added(a: Expr, b: Expr) -> Expr:
    """The sum of two cotangents of a value: if one is in the blocked layout, the other joins it there."""
    if a.value.shape == b.value.shape and blocked(a) != blocked(b):
        a, b = entered(a), entered(b)
    return a + b
