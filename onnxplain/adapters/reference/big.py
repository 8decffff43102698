"""BIG: Wang, Fredrikson and Datta, Robust Models Are More Interpretable Because Attributions Look Normal, ICML 2022."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, cross_entropy, gradients
from onnxplain.adapters.reference.integrated_gradients import integral


def big(
    net: Net, x: Tensor, *, classes: Tensor, batch: int, steps: int = 50, attack_steps: int = 50, eta: float = 0.001
) -> Tensor:
    """Definition 4: integrated gradients from the first point of another class on a walk up the loss."""
    point = x.clone()
    active = torch.arange(len(x), device=x.device)
    for _ in range(attack_steps):
        z, gradient = gradients(net, point[active], classes[active], cross_entropy, batch)
        going = z.argmax(1) == classes[active]
        active = active[going]
        if not len(active):
            break
        point[active] = (point[active] + eta * gradient[going].sign()).clamp(0, 1)
    return integral(net, x, point, classes, batch, steps)
