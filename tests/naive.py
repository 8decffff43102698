"""Sign-gradient methods as plain loops over one image, straight from the pseudocode: what the package is held against.

Nothing here is shared with the package, and nothing is fast. A net is a `toys.Toy`; an objective is the code of a
gradient model's extra input and a target row; images are in pixel space.
"""

from __future__ import annotations

import math

import numpy as np
import toys

Array = toys.Array
LOGIT, PROB, CE, CE_ON_PROBS, PROB_ON_PROBS = 0, 1, 3, 6, 7


def one_hot(toy: toys.Toy, target: int) -> Array:
    return np.eye(toy.classes)[target]


def ask(toy: toys.Toy, code: int, target: Array, x: Array) -> tuple[float, Array]:
    """Value and gradient of an objective at one point."""
    value, cotangent = toys.objective(code, toy.logits(x), target)
    return float(value), toy.pull_back(x, cotangent)


def released_isa(
    toy: toys.Toy,
    x: Array,
    target: int,
    rng: np.random.Generator,
    *,
    k: int,
    steps: int = 8,
    step: float = 0.004,
    spread: float = 1.3,
    noise: float = 0.05,
    weight: float = 0.01,
    up: bool = True,
    down: bool = True,
    drop_tail: bool = False,
) -> Array:
    """The released code of ISA, image by image (algorithms.md section 2.2): rows 1 to 9, and 10 with `drop_tail`."""
    row, flat = one_hot(toy, target), x.ravel()
    result = np.zeros(x.size)
    left = set(range(x.size))
    for r in range(math.ceil(x.size / k)):
        if drop_tail and len(left) < k:
            break
        start = np.array([v if i in left else 0.0 for i, v in enumerate(flat)]).reshape(x.shape)
        kept = np.array([i in left for i in range(x.size)]).reshape(x.shape)
        places, losses, sums = [start.copy(), start.copy()], ([], []), [0 * x, 0 * x]  # type: ignore[var-annotated]
        for _ in range(steps):
            for walk, on in ((0, up), (1, down)):
                if not on:
                    continue
                here = places[walk]
                norm = math.sqrt(sum(v * v for v in here.ravel()))
                value, g = ask(toy, CE_ON_PROBS, row, here + noise * rng.standard_normal(x.shape, np.float32))
                shrink = weight * here / norm if norm else 0 * here
                if walk == 0:  # up the loss, and down the norm
                    losses[0].append(value - weight * norm)
                    g = g - shrink
                    sums[0] = sums[0] + step * abs(g)
                    places[0] = here + step * np.sign(g)
                else:  # down both; removed features stay where they are
                    losses[1].append(value + weight * norm)
                    g = (g + shrink) * kept
                    sums[1] = sums[1] + step * abs(g)
                    places[1] = here - step * np.sign(g)
        if up and down:
            score = sums[0] / (losses[0][-1] - losses[0][0]) + sums[1] / (losses[1][0] - losses[1][-1])
        else:
            score = sums[0] if up else sums[1]
        of = score.ravel()
        least = min(of[i] for i in left)
        final = {i: abs((of[i] + least) * flat[i]) for i in left}
        lowest = sorted(left, key=lambda i: (final[i], i))[:k]
        bottom, top = final[lowest[0]], final[lowest[-1]]
        for i in lowest:
            result[i] = (final[i] - bottom) / (top - bottom + 1e-6) * spread + r
        left -= set(lowest)
    return result.reshape(x.shape)


def adversarial_gradients(
    toy: toys.Toy,
    x: Array,
    target: int,
    *,
    steps: int = 20,
    step: float = 0.05,
    restart: bool = False,
    code: int = PROB,
) -> tuple[Array, list[int], list[Array]]:
    """AGI with all other classes (section 6); the steps and the end of each walk, too."""
    total, taken, ends = 0 * x, [], []
    for other in range(toy.classes):
        if other == target:
            continue
        here, count = x.copy(), 0
        while count < steps and np.argmax(toy.logits(here)) != other:
            _, up = ask(toy, code, one_hot(toy, other), here)
            _, down = ask(toy, code, one_hot(toy, target), here)
            start = x if restart else here
            there = np.minimum(np.maximum(start + step * np.sign(up), 0), 1)
            total = total - down * (there - start)
            here, count = there, count + 1
        taken.append(count)
        ends.append(here)
    return total, taken, ends


def sign_attack(
    toy: toys.Toy, x: Array, target: int, *, steps: int, step: float, earliest: bool, code: int = CE
) -> Array:
    """Up the loss until another class wins, or to the last step."""
    here = x.copy()
    for _ in range(steps):
        if earliest and np.argmax(toy.logits(here)) != target:
            break
        _, g = ask(toy, code, one_hot(toy, target), here)
        here = np.minimum(np.maximum(here + step * np.sign(g), 0), 1)
    return here


def l2_attack(
    toy: toys.Toy,
    x: Array,
    target: int,
    rng: np.random.Generator,
    *,
    radii: tuple[float, ...],
    steps: int,
    mean: float = 0.0,
    std: float = 1.0,
) -> Array:
    """Foolbox's L2 projected gradient descent (section 7), in the space of u = (x - mean) / std."""
    center = (x - mean) / std
    for radius in radii:
        normal = rng.standard_normal(x.shape, np.float32).astype(float)
        u = center + radius * rng.random() ** (1 / x.size) * normal / np.linalg.norm(normal)
        u = (np.clip(mean + std * u, 0, 1) - mean) / std
        for _ in range(steps):
            _, g = ask(toy, CE, one_hot(toy, target), mean + std * u)
            g = g * std
            u = u + 2 * radius * radius / steps * g / max(np.linalg.norm(g), 1e-12)
            far = np.linalg.norm(u - center)
            if far > radius:
                u = center + radius * (u - center) / far
            u = (np.clip(mean + std * u, 0, 1) - mean) / std
        if np.argmax(toy.logits(mean + std * u)) != target:
            break
    return mean + std * u


def integrated(toy: toys.Toy, x: Array, start: Array, target: int, code: int, t: Array, w: Array) -> Array:
    """Integrated gradients by a given rule."""
    total = 0 * x
    for place, weight in zip(t, w, strict=True):
        _, g = ask(toy, code, one_hot(toy, target), start + place * (x - start))
        total = total + weight * g
    return (x - start) * total


def captum_trapezoid(steps: int) -> tuple[Array, Array]:
    w = np.full(steps, 1 / steps)
    w[0] = w[-1] = 1 / (2 * steps)
    return np.linspace(0, 1, steps), w


def midpoint(steps: int) -> tuple[Array, Array]:
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
