"""Methods that replace parts of the image and run the model forward only."""

from __future__ import annotations

from functools import partial
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import toys
from conformance.methods.laws import PICTURES, VECTORS, Make, Row, Wrong, answers, row

from onnxplain.engine.drive import LOGITS, Model, run
from onnxplain.engine.methods import LIME, RISE, Draws, KernelSHAP, Occlusion, Saliency, forward_only
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space

BLOCKS = np.add.outer(2 * (np.arange(8) // 4), np.arange(8) // 4)  # four superpixels of 4 x 4
ALONE = np.arange(6)  # every feature of a vector by itself


def asks_no_gradient(make: Make) -> None:
    """A model without a gradient is enough, and the method says so."""
    assert forward_only(make())
    toy = toys.picture_net()
    forward, _ = toys.executors(toy)
    run(make()(PICTURES[0], toys.task(toy)), Model({LOGITS: lambda: forward}))


def nothing_of_a_constant_model(make: Make) -> None:
    """Where F is the same everywhere, A is zero."""
    toy = toys.affine(np.zeros((4, 192)), np.array([1.0, -2, 0.5, 3]), (3, 8, 8))
    for x in PICTURES:
        assert toys.explain(make(), toy, x, 1).values == pytest.approx(np.zeros_like(x), abs=1e-14)


def is_the_mean_over_windows(make: Make) -> None:
    """On affine models A_i is the mean of sum w (x - x') over the windows that cover i, on pictures and vectors."""
    draw = np.random.default_rng(3)
    for shape, axis in (((1, 8, 7), 0), ((7, 8, 1), -1), ((8, 7), 0), ((7,), 0)):
        weights, x, start = draw.normal(size=(2, int(np.prod(shape)))), draw.random(shape), draw.random(shape)
        toy, space = toys.affine(weights, shape=shape), Space.pixels(rank=len(shape), channel_axis=axis)
        method = make(window=3, stride=2, baseline=start, objective=Kind.LOGIT)
        values = toys.explain(method, toy, x, 1, space=space).values
        share = (weights[1].reshape(shape) * (x - start)).squeeze()
        axes = [[range(at, min(at + 3, size)) for at in range(0, size - 1, 2)] for size in share.shape]
        windows = [set(product(*window)) for window in product(*axes)]
        for pixel in np.ndindex(share.shape):
            falls = [sum(share[other] for other in window) for window in windows if pixel in window]
            assert values.squeeze()[pixel] == pytest.approx(np.mean(falls), abs=1e-12)


def is_the_expectation(make: Make) -> None:
    """A is E[F(x * m) m] / p within 5 standard errors, by all 16 grids of 2 x 2 cells with all 4 shifts."""
    toy, p, masks = toys.picture_net(5, (1, 4, 4)), 0.3, 3000
    x = np.random.default_rng(4).random((1, 4, 4))
    at = (np.arange(6) + 0.5) / 3 - 0.5  # pixels of the enlarged grid in cells, whose centres are 0 and 1
    enlarge = np.abs(at - np.round((at - 0.5) / 2) * 2)  # the share of cell 1, mirrored at 0 and 1
    enlarge = np.stack([1 - enlarge, enlarge], axis=1)
    seen, likely = [], []
    for bits in product((0, 1), repeat=4):
        whole = enlarge @ np.reshape(bits, (2, 2)) @ enlarge.T
        for down, right in product((0, 1), repeat=2):
            mask = whole[down : down + 4, right : right + 4]
            seen.append(toys.softmax(toy.logits(x * mask))[2] * mask / p)
            likely.append(p ** sum(bits) * (1 - p) ** (4 - sum(bits)) / 4)
    mean = np.average(seen, axis=0, weights=likely)
    error = np.sqrt(np.average((np.array(seen) - mean) ** 2, axis=0, weights=likely) / masks)
    values = toys.explain(make(grid=2, p=p, masks=masks), toy, x, 2).values[0]
    assert (np.abs(values - mean) < 5 * error).all()


def recovers_an_affine_model(make: Make) -> None:
    """With every feature as a superpixel and no penalty, A = w * (x - x')."""
    for x in VECTORS:
        start = x[::-1].copy()
        method = make(segments=ALONE, baseline=start, objective=Kind.LOGIT, k=6, alpha=1e-9)
        values = toys.explain(method, toys.TOY_L, x, 2).values
        assert values == pytest.approx(toys.W[2] * (x - start), abs=1e-6)


def is_shapley(make: Make) -> None:
    """Features as superpixels: the mean over all orders of what a feature adds to those before it."""
    for x in VECTORS:
        start = x[::-1].copy()
        expected = np.zeros(6)
        for order in permutations(range(6)):
            now = start.copy()
            for feature in order:
                before = toys.TOY_T.logits(now)[1]
                now[feature] = x[feature]
                expected[feature] += (toys.TOY_T.logits(now)[1] - before) / 720
        values = toys.explain(make(segments=ALONE, baseline=start), toys.TOY_T, x, 1).values
        assert values == pytest.approx(expected, abs=1e-12)


def is_efficient(make: Make) -> None:
    """phi sum to F(x) - F(x') however few the samples, and are w * (x - x') on affine models."""
    for x in VECTORS:
        start = x[::-1].copy()
        method = make(segments=ALONE, baseline=start, samples=40)
        values = toys.explain(method, toys.TOY_T, x, 1).values
        assert values.sum() == pytest.approx((toys.TOY_T.logits(x) - toys.TOY_T.logits(start))[1], abs=1e-13)
        values = toys.explain(method, toys.TOY_L, x, 2).values
        assert values == pytest.approx(toys.W[2] * (x - start), abs=1e-12)


FORWARD = (asks_no_gradient, nothing_of_a_constant_model)

ROWS: dict[str, Row] = {
    "rise": row(partial(RISE, masks=40, grid=3), asks_no_gradient, is_the_expectation),
    "rise-repo": row(partial(RISE.repo, masks=40), asks_no_gradient, is_the_expectation),
    "occlusion": row(partial(Occlusion, window=3, stride=2), *FORWARD, is_the_mean_over_windows),
    "lime": row(partial(LIME, segments=BLOCKS, samples=60), *FORWARD, recovers_an_affine_model),
    "lime-repo": row(partial(LIME.repo, segments=BLOCKS, samples=60), *FORWARD, recovers_an_affine_model),
    "kernel-shap": row(partial(KernelSHAP, segments=BLOCKS), *FORWARD, is_shapley, is_efficient),
}


class LeavesOut(Occlusion):
    """Windows that stick out at the far ends are left out, so that their pixels are covered less often or never."""

    def counts(self, picture: tuple[int, ...]) -> tuple[int, ...]:
        return tuple((size - self.window) // self.stride + 1 for size in picture)


def banzhaf(**parameters: Any) -> LIME:
    """All coalitions alike: another value of cooperative games."""
    flat = {"width": 1e6, "draws": Draws.COINS, "k": 6, "samples": 2000, "objective": Kind.LOGIT}
    return LIME(**flat | parameters)


WRONG: Wrong = [
    ("asks for a gradient", Saliency, asks_no_gradient),
    ("RISE, which is F for a constant F", partial(RISE, masks=40), nothing_of_a_constant_model),
    ("occlusion without the ends", LeavesOut, is_the_mean_over_windows),
    ("occlusion of what is kept", answers(Occlusion, lambda a, x: -a), is_the_mean_over_windows),
    ("RISE without 1/p", answers(RISE, lambda a, x: 0.3 * a), is_the_expectation),
    ("RISE turned by half", answers(RISE, lambda a, x: a[:, ::-1, ::-1]), is_the_expectation),
    ("LIME with a penalty", lambda **more: LIME.repo(**more | {"alpha": 1.0}), recovers_an_affine_model),
    ("LIME without its last feature", lambda **more: LIME(**more | {"k": 5}), recovers_an_affine_model),
    ("Banzhaf values", banzhaf, is_shapley),
    ("Banzhaf values of few samples", banzhaf, is_efficient),
    ("KernelSHAP, centred", answers(KernelSHAP, lambda a, x: a - a.mean()), is_efficient),
]
