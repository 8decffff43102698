"""ISA: Zhu et al., Iterative Search Attribution for Deep Neural Networks, ICML 2024."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, cross_entropy, gradients, logits


def isa(
    net: Net, x: Tensor, *, classes: Tensor, batch: int, k: int = 5000, t1: int = 8, t2: int = 8, eta1: float = 0.002,
    eta2: float = 0.002, s: float = 1.1,
) -> Tensor:  # fmt: skip
    """Algorithm 1: `t1` steps up the loss, `t2` down, and the k lowest features go black, until none is left."""
    images, features = len(x), x[0].numel()
    alive = torch.ones(images, features, dtype=torch.bool, device=x.device)
    result = torch.zeros(images, features, dtype=x.dtype, device=x.device)
    rounds = -(-features // k)
    for r in range(rounds):
        mask = alive.view(x.shape)
        path_sums, changes = walks(net, x * mask, classes, mask, batch, (t1, t2), (eta1, -eta2))
        ratios = path_sums.abs() / changes.abs().clamp_min(1e-12).to(x)[:, None, None, None]
        score = (ratios[:images] + ratios[images:]).reshape(images, features).masked_fill(~alive, torch.inf)
        count = min(k, features - r * k)
        low, index = (found[:, :count] for found in score.sort(dim=1, stable=True))  # of equal ones the first
        least, most = low[:, :1], low[:, -1:]
        share = torch.where(most > least, (low - least) / (most - least), float(r == rounds - 1))
        result.scatter_(1, index, s * share + r)
        alive.scatter_(1, index, False)
    return result.view(x.shape)


def walks(
    net: Net, x0: Tensor, classes: Tensor, alive: Tensor, batch: int, steps: tuple[int, int], etas: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Both chains from x0 as one batch, the way up first: their path sums, and the changes of the loss, float64."""
    z, first = gradients(net, x0, classes, cross_entropy, batch)  # at x0, which is the same place for both
    begun = cross_entropy(z.double(), classes).repeat(2)
    x, classes, alive = x0.repeat(2, 1, 1, 1), classes.repeat(2), alive.repeat(2, 1, 1, 1)
    each = torch.tensor([steps, etas], dtype=torch.float64, device=x.device)
    steps_of, eta = each.repeat_interleave(len(x0), dim=1)
    path_sum = torch.zeros_like(x)
    for t in range(max(steps)):
        on = (steps_of > t).nonzero()[:, 0]
        g = first[on % len(x0)] if t == 0 else gradients(net, x[on], classes[on], cross_entropy, batch)[1]
        g = g * alive[on]
        step = eta[on].to(x)[:, None, None, None] * g.sign()
        path_sum[on] += step * g
        x[on] += step
    return path_sum, cross_entropy(logits(net, x, batch).double(), classes) - begun
