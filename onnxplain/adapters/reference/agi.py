"""AGI: Pan, Li and Zhu, Explaining Deep Neural Network Models with Adversarial Gradient Integration, IJCAI 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, gradients, probability


def agi(
    net: Net, x: Tensor, *, classes: Tensor, batch: int, others: Tensor, m: int = 20, epsilon: float = 0.05
) -> Tensor:
    """Algorithm 1: from x, sign steps up the probability of each other class (N, k), until the net predicts it.

    What is added up is the fall of the explained probability along the way, to first order.
    """
    owner = torch.arange(len(x), device=x.device).repeat_interleave(others.shape[1])
    aim, point = others.flatten(), x[owner]
    total = torch.zeros_like(point)
    active = torch.arange(len(point), device=x.device)
    for _ in range(m):
        z, up = gradients(net, point[active], aim[active], probability, batch)
        going = z.argmax(1) != aim[active]
        active = active[going]
        if not len(active):
            break
        _, slope = gradients(net, point[active], classes[owner[active]], probability, batch)
        moved = (point[active] + epsilon * up[going].sign()).clamp(0, 1)
        total[active] -= slope * (moved - point[active])
        point[active] = moved
    return total.view(*others.shape, *x.shape[1:]).sum(1)
