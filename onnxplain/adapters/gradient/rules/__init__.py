"""The gradient rules, by the mathematics that they share. Importing this package fills the registry."""

from onnxplain.adapters.gradient.rules import (
    conv,
    elementwise,
    linalg,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    select,
    shape,
)

__all__ = ["conv", "elementwise", "linalg", "norm", "pool", "quantize", "recurrent", "reduce", "select", "shape"]
