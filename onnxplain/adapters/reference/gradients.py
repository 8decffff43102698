"""What all loops share: a net asked in batches, for logits and for gradients by torch.autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Net = Callable[[Tensor], Tensor]  # images (n, C, H, W) in [0,1] -> logits (n, K)
Score = Callable[[Tensor, Tensor], Tensor]  # logits (n, K), classes (n,) -> (n,)


def logit(z: Tensor, classes: Tensor) -> Tensor:
    return z.gather(1, classes[:, None])[:, 0]


def probability(z: Tensor, classes: Tensor) -> Tensor:
    return logit(z.softmax(1), classes)


def cross_entropy(z: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(z, classes, reduction="none")


@torch.no_grad()
def logits(net: Net, x: Tensor, batch: int) -> Tensor:
    return torch.cat([net(rows) for rows in torch.split(x, batch)])


def gradients(net: Net, x: Tensor, classes: Tensor, score: Score, batch: int) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of the score, each row its own."""
    answers = []
    for rows, theirs in zip(torch.split(x, batch), torch.split(classes, batch), strict=True):
        leaf = rows.detach().requires_grad_()
        z = net(leaf)
        (gradient,) = torch.autograd.grad(score(z, theirs).sum(), leaf)
        answers.append((z.detach(), gradient))
    first, second = zip(*answers, strict=True)
    return torch.cat(first), torch.cat(second)


def points(paths: int, steps: int, batch: int, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """All points of all paths, `batch` at a time: which path, and where on it, the middle of `steps` equal parts."""
    number = torch.arange(paths * steps, device=x.device)
    where = ((number // paths).to(x.dtype) + 0.5) / steps  # all paths go on side by side
    owners, alphas = torch.split(number % paths, batch), torch.split(where[:, None, None, None], batch)
    return list(zip(owners, alphas, strict=True))
