"""ISA, credible path attribution and integrated gradients as plain loops in PyTorch: what the engine is timed against.

Written from the papers, batched as well as a loop can be: all images go together, and every call of the net has
`batch` rows where there are as many. `net` takes images in [0,1] to logits; x is (N, C, H, W) on the net's device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Net = Callable[[Tensor], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]  # logits (n, K), classes (n,) -> (n,)


def logit(z: Tensor, classes: Tensor) -> Tensor:
    return z.gather(1, classes[:, None])[:, 0]


def cross_entropy(z: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(z, classes, reduction="none")


@torch.no_grad()
def logits(net: Net, x: Tensor, batch: int) -> Tensor:
    return torch.cat([net(rows) for rows in x.split(batch)])


def gradients(net: Net, x: Tensor, classes: Tensor, score: Score, batch: int) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of the score, each row its own."""
    answers = []
    for rows, theirs in zip(x.split(batch), classes.split(batch), strict=True):
        leaf = rows.detach().requires_grad_()
        z = net(leaf)
        (gradient,) = torch.autograd.grad(score(z, theirs).sum(), leaf)
        answers.append((z.detach(), gradient))
    first, second = zip(*answers, strict=True)
    return torch.cat(first), torch.cat(second)


def integrated_gradients(net: Net, x: Tensor, *, batch: int, steps: int = 50) -> Tensor:
    """From black, by the midpoint rule, of the logit of the predicted class."""
    classes = logits(net, x, batch).argmax(1)
    total = torch.zeros_like(x)
    for owner, alpha in points(len(x), steps, batch, x):
        _, gradient = gradients(net, x[owner] * alpha, classes[owner], logit, batch)
        total.index_add_(0, owner, gradient)
    return x * total / steps


def points(paths: int, steps: int, batch: int, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """All points of all paths, `batch` at a time: which path, and where on it, the middle of `steps` equal parts."""
    number = torch.arange(paths * steps, device=x.device)
    where = ((number // paths).to(x.dtype) + 0.5) / steps  # all paths go on side by side
    return list(zip((number % paths).split(batch), where[:, None, None, None].split(batch), strict=True))


def isa(
    net: Net, x: Tensor, *, batch: int, k: int = 5000, t1: int = 8, t2: int = 8, eta: float = 0.002, s: float = 1.1
) -> Tensor:
    """Zhu et al. (ICML 2024), algorithm 1: `t1` steps up the loss, `t2` down, and the k lowest features go black."""
    images, features = len(x), x[0].numel()
    classes = logits(net, x, batch).argmax(1)
    alive = torch.ones(images, features, dtype=torch.bool, device=x.device)
    result = torch.zeros(images, features, dtype=x.dtype, device=x.device)
    rounds = -(-features // k)
    for r in range(rounds):
        mask = alive.view(x.shape)
        up, down, change_up, change_down = walks(net, x * mask, classes, mask, batch, t1, t2, eta)
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
    net: Net, x0: Tensor, classes: Tensor, alive: Tensor, batch: int, t1: int, t2: int, eta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both chains from x0 as one batch: their path sums, and the changes of the loss from end to end."""
    n = len(x0)
    x = torch.cat([x0, x0])
    both, mask = classes.repeat(2), alive.repeat(2, 1, 1, 1)
    step = torch.cat([x.new_full((n, 1, 1, 1), eta), x.new_full((n, 1, 1, 1), -eta)])
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


def credible_path(
    net: Net, x: Tensor, *, batch: int, kernels: tuple[int, ...] = (11, 21, 31), steps: int = 150, max_iter: int = 50,
    eta: float = 1 / 255, delta: float = 5 / 255, epsilon: float = 0.1,
) -> Tensor:  # fmt: skip
    """Akhtar and Jalwana (ICML 2023): baselines by algorithm 1, then algorithm 2 with its rule as printed."""
    classes = logits(net, x, batch).argmax(1)
    z, reference = gradients(net, x, classes, logit, batch)
    owner = torch.arange(len(x), device=x.device).repeat(len(kernels))
    start = torch.cat([blur(x, kernel) for kernel in kernels])
    start = search(net, x[owner], start, z[owner], classes[owner], batch, max_iter, eta, delta, epsilon)
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
    planes = F.pad(x.flatten(0, 1)[:, None], (kernel // 2,) * 4, mode="reflect")
    rows = F.conv2d(planes, taps.view(1, 1, -1, 1))
    return F.conv2d(rows, taps.view(1, 1, 1, -1)).reshape(x.shape)
