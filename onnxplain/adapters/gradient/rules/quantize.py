"""Quantised models in QDQ form: floats with a detour through whole numbers.

q = clip(round(x / s) + z) and y = (q - z) s. Rounding has no derivative of use, so the derivative goes straight
through: q̄ = s ȳ, and x̄ = q̄ / s where x was not clipped. The sweep lets it through the whole numbers between the two
operators, and nowhere else.
"""

from __future__ import annotations

from collections import ChainMap
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase
from onnxplain.adapters.gradient.registry import DEFAULT, Entry, Rules, refuse, vjp
from onnxplain.adapters.gradient.rules.mask import above, below

RANGES = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
}


def spread(parameter: Expr, x: Expr, axis: int, block_size: int) -> Expr:
    """A scale or zero point, for a tensor, a channel or a block, in a shape that broadcasts to x."""
    if parameter.rank == 0 or parameter.shape == (1,):
        return parameter.reshape(())
    axis %= x.rank
    if block_size:
        if parameter.constant is None:
            raise UnsupportedCase("blocks whose scale is not constant")
        each = np.repeat(parameter.constant, block_size, axis=axis)
        return parameter.emit.constant(np.take(each, range(x.size(axis)), axis=axis))
    return parameter.reshape((*(1,) * axis, *parameter.shape, *(1,) * (x.rank - axis - 1)))


@vjp("QuantizeLinear", broadcastable=True)
def quantize_linear(
    g: Expr, y: Expr, x: Expr, scale: Expr, zero: Expr | None = None, *, axis: int = 1, block_size: int = 0, **_: Any
) -> tuple[Any, ...]:
    """y = clip(round(x / s) + z);  x̄ = ȳ / s where  low - 1/2 < x / s + z < high + 1/2."""
    if y.value.dtype not in RANGES:
        raise UnsupportedCase(f"quantised to {str(y.value.dtype).lower()}; next: quantise to 8 bits")
    low, high = RANGES[y.value.dtype]
    s = spread(scale, x, axis, block_size)
    below_all, above_all = low - 0.5, high + 0.5
    if zero is None:
        edges = s * below_all, s * above_all
    else:
        z = spread(zero, x, axis, block_size).cast(scale.value.dtype or ir.DataType.FLOAT)
        edges = (below_all - z) * s, (above_all - z) * s
    return lambda: g / s * above(x, edges[0]) * below(x, edges[1]), parameter, None


def straight_through(
    g: Expr, y: Expr, x: Expr, scale: Expr, zero: Expr | None = None, *, axis: int = 1, block_size: int = 0, **_: Any
) -> tuple[Any, ...]:
    """y = clip(round(x / s) + z);  x̄ = ȳ / s."""
    return lambda: g / spread(scale, x, axis, block_size), parameter, None


@vjp("DequantizeLinear", broadcastable=True)
def dequantize_linear(
    g: Expr, y: Expr, x: Expr, scale: Expr, zero: Expr | None = None, *, axis: int = 1, block_size: int = 0, **_: Any
) -> tuple[Any, ...]:
    """y = (x - z) s;  x̄ = s ȳ,  s̄ = Σ ȳ (x - z)."""

    def factor() -> Expr:
        kind, a = scale.value.dtype or ir.DataType.FLOAT, axis % y.rank
        total = x.cast(kind)
        total = g * (total if zero is None else total - spread(zero, y, axis, block_size).cast(kind))
        if scale.rank == 0 or scale.shape == (1,):
            return total
        if not block_size:
            return total.sum([i for i in range(y.rank) if i != a])
        blocks = scale.size(a)
        total = total.pad(a, 0, blocks * block_size - y.size(a))
        return total.reshape((*y.shape[:a], blocks, block_size, *y.shape[a + 1 :])).sum([a + 1])

    return lambda: g * spread(scale, y, axis, block_size), factor, None


def parameter() -> Expr:
    raise UnsupportedCase("the gradient with respect to a scale")


# A table of rules for `differentiate(model, rules=...)`: also what was clipped is passed straight through.
STRAIGHT_THROUGH: Rules = ChainMap({"QuantizeLinear": Entry(straight_through, broadcastable=True)}, DEFAULT)

refuse(
    "it computes with whole numbers; next: quantise the model in QDQ form, or explain the float model",
    *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    *(
        f"com.microsoft.{op_type}"
        for op_type in (
            *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger16", "MatMulIntegerToFloat", "QAttention"),
            *("QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool"),
            *(
                "QLinearLeakyRelu",
                "QLinearMul",
                "QLinearReduceMean",
                "QLinearSigmoid",
                "QLinearSoftmax",
                "QLinearWhere",
            ),
        )
    ),
)
refuse(
    "it is ONNX Runtime's own; next: quantise to 8 bits, or at opset 21, so that the standard operator is used",
    *("com.microsoft.DequantizeLinear", "com.microsoft.QuantizeLinear"),
)
