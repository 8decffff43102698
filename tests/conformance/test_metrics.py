"""What every insertion/deletion metric must obey, and metrics that are wrong on purpose and must be caught.

The right ones come from `InsertionDeletion`; the yardsticks are RISE's loop written out once more, and the laws that
follow from the definition. A wrong metric is the right one with one mistake that has been seen in the wild.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from onnxplain.engine.metrics import InsertionDeletion, Order, Protocol
from onnxplain.engine.space import Space

RNG = np.random.default_rng(2018)
SHAPE = (3, 12, 12)
HW = 144
SPACE = Space.pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TAPS = [0.087958, 0.088896, 0.090474, 0.092191, 0.093489]  # as published; then the middle, then backwards
TAPS = np.array([*TAPS, 0.093982, *TAPS[::-1]])
WEIGHTS = RNG.normal(size=(432, 8)) / 8
HEAD = RNG.normal(size=(8, 5))
X = RNG.uniform(size=SHAPE)
MAP = RNG.normal(size=SHAPE).astype(np.float32)


def net(images):
    """A small net with a hidden layer."""
    return 2 * np.tanh(images.reshape(len(images), -1) @ WEIGHTS) @ HEAD


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


@dataclass(frozen=True)
class Result:
    """What a metric says: curves, and the numbers made of them."""

    insertion: np.ndarray
    deletion: np.ndarray
    insertion_auc: float
    deletion_auc: float
    insertion_mean: float


Metric = Callable[[np.ndarray, Protocol], Result]


def right(heatmap, protocol):
    (played,) = InsertionDeletion(protocol).score(net, X[None], [heatmap], space=SPACE)
    return Result(
        played.insertion.s,
        played.deletion.s,
        played.insertion.auc,
        played.deletion.auc,
        played.insertion.mean,
    )


# ---- the yardstick: RISE's loop, one image at a time, nothing shared with the product ----


def convolve(plane):
    """The blur of one plane: zeros all around, and every output pixel by itself."""
    padded = np.pad(plane, 5)
    kernel = np.outer(TAPS, TAPS)
    height, width = plane.shape
    return np.array([[(padded[i : i + 11, j : j + 11] * kernel).sum() for j in range(width)] for i in range(height)])


def nothing(kind):
    mean, std = SPACE.zero.astype(np.float64), SPACE.scale.astype(np.float64)
    if kind == "black":
        return np.zeros(SHAPE)
    if kind == "zero":
        return mean + np.zeros(SHAPE)
    return np.stack([convolve(plane) for plane in (X - mean) / std]) * std + mean


def loop(start, finish, heatmap, protocol):
    """RISE's `single_run`; with a (3, HW) order, its advanced indexing writes all channels at the union."""
    c = int(net(X[None])[0].argmax())
    q = -(-HW // 224) if protocol.step is None else protocol.step
    n_steps = (HW + q - 1) // q
    union = protocol.order is Order.UNION
    flat = (heatmap if union else heatmap.sum(0, keepdims=True)).reshape(-1, HW)
    order = np.argsort(-flat, axis=1, kind="stable")
    start, finish, scores = start.copy(), finish.reshape(1, 3, HW), []
    for i in range(n_steps + 1):
        scores.append(softmax(net(start[None])[0])[c])
        coords = order[:, q * i : q * (i + 1)]
        coords = coords if union else coords[0]
        start.reshape(1, 3, HW)[0, :, coords] = finish[0, :, coords]
    return np.array(scores)


# ---- the laws ----

RISE = replace(Protocol.named("rise"), step=9)
AGI = replace(Protocol.named("agi_isa"), step=9)
UNION = replace(Protocol.named("agi_isa-union"), step=9)
CASES = {str(p): p for p in (RISE, AGI, UNION, replace(RISE, step=10), replace(UNION, step=50), Protocol.named("rise"))}


def is_the_published_loop(metric):
    for protocol in CASES.values():
        blank, end = nothing(protocol.insertion), nothing(protocol.deletion)
        result = metric(MAP, protocol)
        np.testing.assert_allclose(result.insertion, loop(blank, X, MAP, protocol), atol=1e-5)
        np.testing.assert_allclose(result.deletion, loop(X, end, MAP, protocol), atol=1e-5)


def ends_do_not_depend_on_the_map(metric):
    full = softmax(net(X[None])[0])
    c = full.argmax()
    for protocol in CASES.values():
        first = softmax(net(nothing(protocol.insertion)[None])[0])[c]
        last = softmax(net(nothing(protocol.deletion)[None])[0])[c]
        for heatmap in (MAP, RNG.normal(size=SHAPE).astype(np.float32)):
            result = metric(heatmap, protocol)
            ends = [result.insertion[0], result.insertion[-1], result.deletion[0], result.deletion[-1]]
            np.testing.assert_allclose(ends, [first, full[c], full[c], last], atol=1e-5)


def has_a_point_before_every_step_and_after_the_last(metric):
    for protocol in CASES.values():
        q = protocol.step or 1
        assert len(metric(MAP, protocol).insertion) == -(-HW // q) + 1


def area_is_the_trapezoid_rule(metric):
    for protocol in CASES.values():
        result = metric(MAP, protocol)
        n = len(result.insertion) - 1
        np.testing.assert_allclose(result.insertion_auc, np.trapezoid(result.insertion, dx=1 / n), rtol=1e-12)
        np.testing.assert_allclose(result.deletion_auc, np.trapezoid(result.deletion, dx=1 / n), rtol=1e-12)


def mean_and_area_give_the_ends(metric):
    """2 [(N + 1) mean - N AUC] = s_0 + s_N."""
    for protocol in CASES.values():
        result = metric(MAP, protocol)
        n = len(result.insertion) - 1
        ends = 2 * ((n + 1) * result.insertion_mean - n * result.insertion_auc)
        np.testing.assert_allclose(ends, result.insertion[0] + result.insertion[-1], rtol=1e-9)


def deletion_backwards_is_insertion_in_reversed_order(metric):
    """With the same substrate in both games and q | HW."""
    forth, back = metric(MAP, AGI), metric(-MAP, AGI)
    np.testing.assert_allclose(forth.deletion[::-1], back.insertion, atol=1e-12)
    np.testing.assert_allclose(forth.deletion_auc, back.insertion_auc, rtol=1e-12)


def only_the_ranking_counts(metric):
    heatmap = MAP[0]
    for protocol in (RISE, AGI):
        plain, stretched = metric(heatmap, protocol), metric(np.exp(2 * heatmap), protocol)
        np.testing.assert_array_equal(plain.insertion, stretched.insertion)


def ties_go_to_the_lower_index(metric):
    constant, falling = np.ones((12, 12), np.float32), -np.arange(HW, dtype=np.float32).reshape(12, 12)
    np.testing.assert_array_equal(metric(constant, RISE).insertion, metric(falling, RISE).insertion)


def a_map_that_knows_the_net_beats_its_opposite(metric):
    c = net(X[None])[0].argmax()
    hidden = X.ravel() @ WEIGHTS
    gradient = (WEIGHTS * (1 - np.tanh(hidden) ** 2)) @ HEAD[:, c]
    heatmap = (gradient.reshape(SHAPE) * X).astype(np.float32)
    good, bad = metric(heatmap, AGI), metric(-heatmap, AGI)
    assert good.insertion_auc > bad.insertion_auc
    assert good.deletion_auc < bad.deletion_auc


LAWS = [
    is_the_published_loop,
    ends_do_not_depend_on_the_map,
    has_a_point_before_every_step_and_after_the_last,
    area_is_the_trapezoid_rule,
    mean_and_area_give_the_ends,
    deletion_backwards_is_insertion_in_reversed_order,
    only_the_ranking_counts,
    ties_go_to_the_lower_index,
    a_map_that_knows_the_net_beats_its_opposite,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_our_metric_obeys(law):
    law(right)


# ---- wrong on purpose ----


def divides_by_points_instead_of_steps(heatmap, protocol):
    r = right(heatmap, protocol)
    n = len(r.insertion) - 1
    return replace(r, insertion_auc=r.insertion_auc * n / (n + 1), deletion_auc=r.deletion_auc * n / (n + 1))


def ranks_ascending(heatmap, protocol):
    return right(-heatmap, protocol)


def of_curves(insertion, deletion):
    steps = len(insertion) - 1
    areas = [np.trapezoid(s, dx=1 / steps) for s in (insertion, deletion)]
    return Result(insertion, deletion, *areas, insertion.mean())


def scores_after_the_change_only(heatmap, protocol):
    r = right(heatmap, protocol)
    return of_curves(r.insertion[1:], r.deletion[1:])


def forgets_the_last_change(heatmap, protocol):
    r = right(heatmap, protocol)
    return of_curves(r.insertion[:-1], r.deletion[:-1])


def stretches_the_curve_to_0_and_1(heatmap, protocol):
    r = right(heatmap, protocol)
    return of_curves((r.insertion - r.insertion.min()) / np.ptp(r.insertion), r.deletion)


def sums_without_halving_the_ends(heatmap, protocol):
    r = right(heatmap, protocol)
    return replace(r, insertion_auc=r.insertion.sum() / (len(r.insertion) - 1))


def breaks_ties_upwards(heatmap, protocol):
    """flip(argsort(ascending)), as released code does."""
    order = np.argsort(heatmap.reshape(-1, HW), axis=1, kind="stable")[:, ::-1]
    rank = np.argsort(order, axis=1).astype(np.float32)
    return right(-rank.reshape(heatmap.shape), protocol)


def swaps_the_substrates(heatmap, protocol):
    return right(heatmap, replace(protocol, insertion=protocol.deletion, deletion=protocol.insertion))


def takes_the_size_of_the_values_into_account(heatmap, protocol):
    return right(np.abs(heatmap - 1), protocol)


def plays_deletion_with_the_insertion_order_reversed(heatmap, protocol):
    return replace(right(heatmap, protocol), deletion=right(-heatmap, protocol).deletion)


WRONG = {  # and a law, other than the loop written out, that tells
    divides_by_points_instead_of_steps: area_is_the_trapezoid_rule,
    ranks_ascending: a_map_that_knows_the_net_beats_its_opposite,
    scores_after_the_change_only: has_a_point_before_every_step_and_after_the_last,
    forgets_the_last_change: ends_do_not_depend_on_the_map,
    stretches_the_curve_to_0_and_1: ends_do_not_depend_on_the_map,
    sums_without_halving_the_ends: mean_and_area_give_the_ends,
    breaks_ties_upwards: ties_go_to_the_lower_index,
    swaps_the_substrates: ends_do_not_depend_on_the_map,
    takes_the_size_of_the_values_into_account: only_the_ranking_counts,
    plays_deletion_with_the_insertion_order_reversed: deletion_backwards_is_insertion_in_reversed_order,
}


@pytest.mark.parametrize("metric", WRONG, ids=lambda metric: metric.__name__)
def test_a_wrong_metric_is_rejected(metric):
    with pytest.raises(AssertionError):
        WRONG[metric](metric)
