"""Credible path attribution: Akhtar and Jalwana, Towards Credible Visual Model Interpretation, ICML 2023."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, cross_entropy, gradients, logit, points


def credible_path(
    net: Net, x: Tensor, *, classes: Tensor, batch: int, kernels: tuple[int, ...] = (11, 21, 31), steps: int = 150,
    max_iter: int = 50, eta: float = 1 / 255, delta: float = 5 / 255, epsilon: float = 0.1,
) -> Tensor:  # fmt: skip
    """Baselines by algorithm 1, then algorithm 2 with its rule as printed, at the middles of equal parts of a path."""
    z, reference = gradients(net, x, classes, logit, batch)
    owner = torch.arange(len(x), device=x.device).repeat(len(kernels))
    start = torch.cat([blur(x, kernel) for kernel in kernels])
    predicted = z.argmax(1)
    start = search(net, x[owner], start, z[owner], predicted[owner], batch, max_iter, eta, delta, epsilon)
    way = x[owner] - start
    total, count = torch.zeros_like(way), torch.zeros_like(way)
    for path, alpha in points(len(way), steps // len(kernels), batch, x):
        _, gradient = gradients(net, start[path] + alpha * way[path], classes[owner[path]], logit, batch)
        scaled, at_x = (1 - alpha) * way[path] * gradient, reference[owner[path]]
        valid = (at_x.sign() == scaled.sign()) & (at_x.abs() > scaled.abs())
        total.index_add_(0, path, gradient * valid)
        count.index_add_(0, path, valid.to(x.dtype))
    mean = torch.where(count > 0, total / count.clamp_min(1), torch.zeros_like(total))
    return (way * mean).reshape(len(kernels), *x.shape).mean(0)


def search(
    net: Net, x: Tensor, start: Tensor, goal: Tensor, classes: Tensor, batch: int, max_iter: int, eta: float,
    delta: float, epsilon: float,
) -> Tensor:  # fmt: skip
    """Algorithm 1 for every row of x; a baseline that has arrived is asked no more, and the best point of each wins."""
    point = keep_away(start, x, delta)
    best = point.clone()
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    kept = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    enough = nearest.clone()
    active = torch.arange(len(x), device=x.device)
    for i in range(max_iter):
        here = point[active]
        z, gradient = gradients(net, here, classes[active], cross_entropy, batch)
        distance = (z - goal[active]).norm(dim=1)
        slack = 2 * torch.finfo(x.dtype).eps
        away = ((here - x[active]).abs() >= delta - slack).flatten(1).all(1)
        better = (away & ~kept[active]) | ((away == kept[active]) & (distance < nearest[active]))
        won = active[better]
        best[won], nearest[won], kept[won] = here[better], distance[better], away[better]
        if i == 0:
            enough = epsilon * distance
        going = distance > enough[active]
        active = active[going]
        if not len(active) or i + 1 == max_iter:
            break
        point[active] = keep_away(here[going] - eta * gradient[going].sign(), x[active], delta)
    return best


def keep_away(point: Tensor, x: Tensor, delta: float) -> Tensor:
    """The nearest point in [0,1] that is delta from x in every feature; from x itself towards the middle."""
    point = point.clamp(0, 1)
    gap = point - x
    side = torch.where(gap == 0, torch.where(x <= 0.5, 1.0, -1.0).to(x.dtype), gap.sign())
    moved = x + side * delta
    moved = torch.where((moved < 0) | (moved > 1), x - side * delta, moved)
    return torch.where(gap.abs() < delta, moved, point)


def blur(x: Tensor, kernel: int) -> Tensor:
    """A Gaussian of `kernel` taps each way, sigma = 0.3 ((kernel - 1)/2 - 1) + 0.8, reflected at the borders."""
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    at = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    taps = torch.exp(-(at**2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(x)
    # by index, since F.pad reflects once only, and the image may be smaller than that
    row, column = (torch.from_numpy(np.pad(np.arange(size), kernel // 2, mode="reflect")) for size in x.shape[2:])
    planes = x[:, :, row][:, :, :, column].flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(planes, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1)).reshape(x.shape)
