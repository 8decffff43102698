"""Integrated gradients: Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, ICML 2017."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, gradients, logit, points


def integrated_gradients(net: Net, x: Tensor, *, classes: Tensor, batch: int, steps: int = 50) -> Tensor:
    """Equation 1 from black, of the logit, by the midpoint rule."""
    return integral(net, x, torch.zeros_like(x), classes, batch, steps)


def integral(net: Net, x: Tensor, start: Tensor, classes: Tensor, batch: int, steps: int) -> Tensor:
    """(x - x') times the mean gradient on the straight way from x'."""
    total = torch.zeros_like(x)
    for owner, alpha in points(len(x), steps, batch, x):
        here = start[owner] + alpha * (x - start)[owner]
        _, gradient = gradients(net, here, classes[owner], logit, batch)
        total.index_add_(0, owner, gradient)
    return (x - start) * total / steps
