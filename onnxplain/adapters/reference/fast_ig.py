"""Fast integrated gradients: Hesse, Schaub-Meyer and Roth, Fast Axiomatic Attribution for Neural Networks, 2021."""

from __future__ import annotations

from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, gradients, logit


def fast_ig(net: Net, x: Tensor, *, classes: Tensor, batch: int, zero: Tensor) -> Tensor:
    """Gradient times input in model space; `zero`, which broadcasts against x, is what normalisation maps to 0."""
    return (x - zero) * gradients(net, x, classes, logit, batch)[1]
