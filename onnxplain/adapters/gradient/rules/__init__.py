"""The gradient rules, by the mathematics that they share. Importing this package fills the registry."""

from onnxplain.adapters.gradient.rules import (
    conv,
    einsum,
    elementwise,
    linalg,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    refused,
    resize,
    select,
    shape,
)

__all__ = [
    "conv",
    "einsum",
    "elementwise",
    "linalg",
    "norm",
    "pool",
    "quantize",
    "recurrent",
    "reduce",
    "refused",
    "resize",
    "select",
    "shape",
]
