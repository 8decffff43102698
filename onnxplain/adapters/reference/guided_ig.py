"""Guided integrated gradients: Kapishnikov et al., CVPR 2021, bounded as in the code of its authors (PAIR saliency)."""

from __future__ import annotations

from math import isclose

import torch
from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, gradients, probability


def guided_ig(
    net: Net, x: Tensor, *, classes: Tensor, batch: int, steps: int = 200, fraction: float = 0.25,
    max_dist: float = 0.02,
) -> Tensor:  # fmt: skip
    """Along a path from black, of the probability; each step moves the features with the smallest gradients first."""
    end = x.double()
    point, total = torch.zeros_like(end), torch.zeros_like(end)
    for t in [(step + 1) / steps for step in range(steps)]:
        _, gradient = gradients(net, point.to(x), classes, probability, batch)
        each = zip(point, end, gradient.double().abs(), strict=True)
        moved = torch.stack([move(p, e, size, t, max_dist, fraction) for p, e, size in each])
        total += (moved - point) * gradient
        point = moved
    return total.to(x)


def move(point: Tensor, end: Tensor, size: Tensor, t: float, max_dist: float, fraction: float) -> Tensor:
    """One image moved until 1 - t of the L1 distance is left, near where the straight line has each feature at t."""
    point, highest = torch.maximum(point, max(t - max_dist, 0) * end), min(t + max_dist, 1) * end
    goal = (1 - t) * float(end.abs().sum())
    while True:
        distance = float((end - point).abs().sum())
        size = size.masked_fill(point == highest, torch.inf)  # what has come as far as it may
        chosen = (size <= size.flatten().kthvalue(int(fraction * (size.numel() - 1)) + 1).values) & size.isfinite()
        room = float((highest - point).abs()[chosen].sum())
        if room == 0 or isclose(distance, goal, rel_tol=1e-9, abs_tol=1e-9):
            return point
        share = (distance - goal) / room
        if share <= 1:
            return torch.where(chosen, point + share * (highest - point), point)
        point = torch.where(chosen, highest, point)
