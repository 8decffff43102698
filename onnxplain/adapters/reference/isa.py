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
        up, down, change_up, change_down = walks(net, x * mask, classes, mask, batch, (t1, t2), (eta1, eta2))
        score = torch.zeros_like(x)
        for path, change in ((up, change_up), (down, change_down)):
            score += path.abs() / change.abs().clamp_min(1e-12)[:, None, None, None]
        flat = score.reshape(images, -1).masked_fill(~alive, torch.inf)
        low, index = flat.topk(min(k, features - r * k), dim=1, largest=False)
        least, most = low.amin(1, keepdim=True), low.amax(1, keepdim=True)
        share = (low - least) / (most - least)
        share = torch.where(most > least, share, torch.full_like(share, float(r == rounds - 1)))
        result.scatter_(1, index, s * share + r)
        alive.scatter_(1, index, False)
    return result.view(x.shape)


def walks(
    net: Net, x0: Tensor, classes: Tensor, alive: Tensor, batch: int, steps: tuple[int, int], eta: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both chains from x0 as one batch: their path sums, and the changes of the loss from end to end."""
    n = len(x0)
    x = torch.cat([x0, x0])
    both, mask = classes.repeat(2), alive.repeat(2, 1, 1, 1)
    step = torch.cat([x.new_full((n, 1, 1, 1), eta[0]), x.new_full((n, 1, 1, 1), -eta[1])])
    t1, t2 = steps
    total = torch.zeros_like(x)
    start = torch.empty(0)
    for t in range(max(t1, t2)):
        if t == 0:  # the same place for both
            z, gradient = gradients(net, x0, classes, cross_entropy, batch)
            start, gradient = cross_entropy(z, classes), gradient.repeat(2, 1, 1, 1)
            going = slice(0, 2 * n)
        else:
            going = slice(0 if t < t1 else n, 2 * n if t < t2 else n)
            _, gradient = gradients(net, x[going], both[going], cross_entropy, batch)
        gradient = gradient * mask[going]
        move = step[going] * gradient.sign()
        total[going] += move * gradient
        x[going] += move
    end = cross_entropy(logits(net, x, batch), both)
    return total[:n], total[n:], end[:n] - start, end[n:] - start
