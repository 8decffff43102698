"""What metrics of attributions and of methods must obey, and metrics that are wrong on purpose and must be caught.

A metric here is a function of a toy and of what it scores. The laws follow from the definitions, on models whose answer
is known on paper. A wrong metric is the right one with a mistake, most of which have been seen in the wild.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import Model, run
from onnxplain.engine.methods import IntegratedGradients, Saliency, Task
from onnxplain.engine.metrics import (
    CompletenessGap,
    Infidelity,
    MaxSensitivity,
    ParameterRandomisation,
    RandomLogit,
    WeakDependence,
)
from onnxplain.engine.requests import Attribution, Logits

X, START = toys.X, np.full(6, 0.5)
W = toys.W
AFFINE = toys.affine(W, np.array([3.0, -1.0, 2.0]))
SPACE = toys.pixels(AFFINE)
GRADIENT = Saliency(signed=True)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def play(program: Any, toy: toys.Toy) -> float:
    return float(run(program, toys.model_of(toy)).value)


# ---- the metrics, each as a function ----


def gap(toy, a, target=0, start=START):
    return play(CompletenessGap()(X, a, start=start, target=target), toy)


def weak(toy, a, target=0, start=START):
    return play(WeakDependence()(X, a, start=start, target=target), toy)


def infid(toy, a, target=0, **changes):
    metric = replace(Infidelity(samples=60, noise=0.1), **changes)
    return play(metric(X, a, space=SPACE, target=target, rng=draws()), toy)


def sensitivity(toy, method, samples=12, radius=0.1):
    metric = MaxSensitivity(samples=samples, radius=radius)
    return play(metric(X, method, toys.task(toy), draws(1)), toy)


def logit(toy, method, target=0):
    return play(RandomLogit()(X, method, toys.task(toy, target), draws(2)), toy)


def cascade(toys_by_depth: Sequence[toys.Toy], method):
    """The correlations (map, magnitude) of each depth; toy 0 is the model as it was learnt."""
    layers = [f"layer{i}" for i in range(len(toys_by_depth) - 1)]

    @contextmanager
    def reopen(names: Sequence[str]) -> Iterator[Model]:
        yield toys.model_of(toys_by_depth[len(names)])

    metric, task = ParameterRandomisation(), toys.task(toys_by_depth[0])
    (found,) = metric.score(toys.model_of(toys_by_depth[0]), reopen, layers, X[None], method, [task])
    return [one.value for one in found.measured]


# ---- methods to score ----


def the_image(x, task):
    yield Logits(x[None])
    return Attribution(2 * x)


def noise(x, task):
    yield Logits(x[None])
    return Attribution(task.rng.normal(size=x.shape))


def zeros(x, task):
    yield Logits(x[None])
    return Attribution(0 * x)


# ---- the laws ----


def gap_of_a_complete_map_is_0(metric):
    for seed in range(4):
        toy = toys.quadratic(seed)
        a = toys.explain(IntegratedGradients(steps=1), toy, X, 1).values
        assert metric(toy, a, 1, np.zeros(6)) < 1e-12


def gap_is_relative_to_the_change(metric):
    """A model twice as steep, and a map twice as large: the same gap. Too much and too little: the same too."""
    a = W[1] * (X - START)
    more, less = (metric(AFFINE, a * share, 1) for share in (1.25, 0.75))
    np.testing.assert_allclose([more, less], 0.25)
    np.testing.assert_allclose(metric(toys.affine(2 * W), 2.5 * a, 1), 0.25)


def gap_of_no_change_is_finite(metric):
    np.testing.assert_allclose(metric(AFFINE, np.full(6, 1e-6), 0, X), 6)


def weak_of_gradient_times_change_is_0(metric):
    for target in range(3):
        assert metric(AFFINE, W[target] * (X - START), target) < 1e-12


def weak_sees_a_constant_and_a_sign(metric):
    np.testing.assert_allclose(metric(AFFINE, W[0] * (X - START) + 0.03), 0.1)
    np.testing.assert_allclose(metric(AFFINE, -W[0] * (X - START)), 2)


def weak_says_nothing_across_regions(metric):
    for toy in (toys.relu_net(0), toys.TOY_T):
        assert math.isnan(metric(toy, X - START, 0, -START))


def infidelity_of_a_linear_model_is_0_for_its_weights_only(metric):
    for target in range(3):
        assert metric(AFFINE, W[target], target) < 1e-20
        # of w + 1, it is E (sum_i I_i)^2 = 6 * 0.1^2
        np.testing.assert_allclose(metric(AFFINE, W[target] + 1, target, samples=4000), 0.06, rtol=0.1)


def infidelity_is_scaled_only_if_it_is_asked(metric):
    assert metric(AFFINE, 3 * W[0]) > 1e-2
    assert metric(AFFINE, 3 * W[0], normalise=True) < 1e-20
    assert metric(AFFINE, -W[0], normalise=True) < 1e-20  # the best scale may be negative
    a = W[0] + draws(5).normal(size=6)
    np.testing.assert_allclose(metric(AFFINE, 7 * a, normalise=True), metric(AFFINE, a, normalise=True), rtol=1e-9)


def sensitivity_of_a_constant_gradient_is_0(metric):
    assert metric(AFFINE, GRADIENT) == 0


def sensitivity_is_the_largest_and_grows_with_draws(metric):
    few, many = metric(AFFINE, the_image, samples=3), metric(AFFINE, the_image, samples=200)
    assert few < many <= 0.1 * math.sqrt(6) / np.linalg.norm(X) * (1 + 1e-6)
    assert many > 0.085 * math.sqrt(6) / np.linalg.norm(X)  # a corner of the ball, nearly


def sensitivity_is_relative(metric):
    """|A(x + d) - A(x)| / |A(x)| of 2x and of the radius."""
    one, two = metric(AFFINE, the_image, radius=0.05), metric(AFFINE, the_image, radius=0.1)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)
    d = draws(1).uniform(-1, 1, size=(12, 6))
    np.testing.assert_allclose(two, 0.1 * np.linalg.norm(d, axis=1).max() / np.linalg.norm(X), rtol=1e-6)


def sensitivity_does_not_measure_the_methods_own_noise(metric):
    assert metric(AFFINE, noise) == 0


def sensitivity_of_zeros_is_no_number(metric):
    assert math.isnan(metric(AFFINE, zeros))


def logit_is_1_for_a_method_that_knows_no_class(metric):
    for method in (the_image, noise):
        np.testing.assert_allclose(metric(AFFINE, method), 1)


def logit_is_minus_1_for_opposite_classes(metric):
    for target in (0, 1):
        np.testing.assert_allclose(metric(toys.affine(np.stack([W[0], -W[0]])), GRADIENT, target), -1)


def logit_counts_ranks_only(metric):
    toy = toys.affine(np.stack([W[0], np.exp(W[0])]))
    np.testing.assert_allclose(metric(toy, GRADIENT), 1)


def logit_of_constant_maps_is_no_number(metric):
    assert math.isnan(metric(AFFINE, zeros))


def cascade_of_the_same_model_is_1(metric):
    np.testing.assert_allclose(metric([toys.TOY_T] * 3, GRADIENT), 1)


def cascade_holds_every_depth_against_the_original(metric):
    """The second model is the opposite of the first, the third its double: -1, then 1, and magnitudes 1."""
    np.testing.assert_allclose(metric([AFFINE, toys.affine(-W), toys.affine(2 * W)], GRADIENT), [-1, 1, 1, 1])


def cascade_explains_the_same_class(metric):
    """The drawn model prefers another class."""
    other = toys.affine(W, np.array([-50.0, 50.0, 0.0]))
    np.testing.assert_allclose(metric([AFFINE, other], GRADIENT), 1)


def cascade_keeps_the_methods_random_numbers(metric):
    np.testing.assert_allclose(metric([AFFINE] * 3, noise), 1)


def cascade_to_a_dead_model_is_no_number(metric):
    assert np.isnan(metric([AFFINE, toys.affine(0 * W)], GRADIENT)).all()


LAWS = {
    gap: [gap_of_a_complete_map_is_0, gap_is_relative_to_the_change, gap_of_no_change_is_finite],
    weak: [weak_of_gradient_times_change_is_0, weak_sees_a_constant_and_a_sign, weak_says_nothing_across_regions],
    infid: [infidelity_of_a_linear_model_is_0_for_its_weights_only, infidelity_is_scaled_only_if_it_is_asked],
    sensitivity: [
        sensitivity_of_a_constant_gradient_is_0,
        sensitivity_is_the_largest_and_grows_with_draws,
        sensitivity_is_relative,
        sensitivity_does_not_measure_the_methods_own_noise,
        sensitivity_of_zeros_is_no_number,
    ],
    logit: [
        logit_is_1_for_a_method_that_knows_no_class,
        logit_is_minus_1_for_opposite_classes,
        logit_counts_ranks_only,
        logit_of_constant_maps_is_no_number,
    ],
    cascade: [
        cascade_of_the_same_model_is_1,
        cascade_holds_every_depth_against_the_original,
        cascade_explains_the_same_class,
        cascade_keeps_the_methods_random_numbers,
        cascade_to_a_dead_model_is_no_number,
    ],
}


@pytest.mark.parametrize(
    ("metric", "law"), [pytest.param(m, law, id=law.__name__) for m, laws in LAWS.items() for law in laws]
)
def test_our_metrics_obey(metric, law):
    law(metric)


# ---- wrong on purpose ----


def objective(toy, x, target):
    return toy.logits(x)[target]


def forgets_the_value_at_the_start(toy, a, target=0, start=START):
    change = objective(toy, X, target)
    return abs(a.sum() - change) / max(abs(change), 1e-6)


def gap_is_absolute(toy, a, target=0, start=START):
    return abs(a.sum() - objective(toy, X, target) + objective(toy, start, target))


def gap_divides_by_any_change(toy, a, target=0, start=START):
    with np.errstate(divide="ignore", invalid="ignore"):
        change = objective(toy, X, target) - objective(toy, start, target)
        return abs(a.sum() - change) / np.abs(change)


def weak_holds_the_map_itself_against_w(toy, a, target=0, start=START):
    return weak(toy, a * (X - start), target, start)


def weak_looks_at_magnitudes(toy, a, target=0, start=START):
    return weak(toy, abs(a) * np.sign(W[target] * (X - start)), target, start)


def weak_looks_at_the_ends_of_the_path_only(toy, a, target=0, start=START):
    """And takes the gradient at x for w anyway."""
    w = toy.pull_back(X, np.eye(toy.classes)[target])
    return abs(a / (X - start) - w).max() / abs(w).max()


def infidelity_adds_the_perturbation(toy, a, target=0, samples=60, noise=0.1, normalise=False):
    i = noise * draws().normal(size=(samples, 6))
    change = np.array([objective(toy, X, target) - objective(toy, X + one, target) for one in i])
    beta = (i @ a) @ change / ((i @ a) @ (i @ a)) if normalise else 1
    return ((beta * (i @ a) - change) ** 2).mean()


def infidelity_takes_a_map_with_the_input_in_it(toy, a, target=0, **changes):
    return infid(toy, a * X, target, **changes)


def infidelity_is_a_sum(toy, a, target=0, samples=60, **changes):
    return samples * infid(toy, a, target, samples=samples, **changes)


def infidelity_always_scales(toy, a, target=0, **changes):
    return infid(toy, a, target, **changes | {"normalise": True})


def infidelity_scales_by_a_norm(toy, a, target=0, normalise=False, **changes):
    return infid(toy, a / np.linalg.norm(a) if normalise else a, target, **changes)


def drawn_maps(toy, method, samples, radius, shared=True):
    """A(x) and A(x + d), with the same random numbers of the method each time or going on."""
    d = draws(1).uniform(-1, 1, size=(samples, 6)) * radius
    rng = draws(0)

    def explain(x):
        own = draws(0) if shared else rng
        return run(method(x, Task(0, SPACE, own)), toys.model_of(toy)).values

    return explain(X), np.stack([explain(X + one) for one in d])


def sensitivity_is_the_mean(toy, method, samples=12, radius=0.1):
    a, b = drawn_maps(toy, method, samples, radius)
    return np.linalg.norm(b - a, axis=1).mean() / np.linalg.norm(a)


def sensitivity_is_absolute(toy, method, samples=12, radius=0.1):
    a, b = drawn_maps(toy, method, samples, radius)
    return np.linalg.norm(b - a, axis=1).max()


def sensitivity_goes_on_with_the_methods_random_numbers(toy, method, samples=12, radius=0.1):
    a, b = drawn_maps(toy, method, samples, radius, shared=False)
    return np.linalg.norm(b - a, axis=1).max() / np.linalg.norm(a)


def sensitivity_counts_the_image_into_the_change(toy, method, samples=12, radius=0.1):
    a, b = drawn_maps(toy, method, samples, radius)
    return (np.linalg.norm(b - a, axis=1) + radius).max() / np.linalg.norm(a)


def sensitivity_divides_by_1_where_the_map_is_0(toy, method, samples=12, radius=0.1):
    found = sensitivity(toy, method, samples, radius)
    return 0.0 if math.isnan(found) else found


def logit_draws_the_same_class(toy, method, target=0):
    return logit(toy, the_image, target)


def logit_goes_on_with_the_methods_random_numbers(toy, method, target=0):
    model, rng = toys.model_of(toy), draws(0)
    a, b = (run(method(X, Task(c, SPACE, rng)), model).values for c in (target, (target + 1) % toy.classes))
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def logit_correlates_values(toy, method, target=0):
    model = toys.model_of(toy)
    a, b = (run(method(X, toys.task(toy, c)), model).values for c in (target, (target + 1) % toy.classes))
    return np.corrcoef(a, b)[0, 1]


def logit_breaks_ties_by_index(toy, method, target=0):
    """So that constant maps correlate perfectly."""
    found = logit(toy, method, target)
    return 1.0 if math.isnan(found) else found


def correlated(a, b):
    with np.errstate(invalid="ignore"):
        return [np.corrcoef(a, b)[0, 1], np.corrcoef(abs(a), abs(b))[0, 1]]


def maps_of(models, method, targets, rng):
    return [
        run(method(X, Task(c, SPACE, rng if rng is not None else draws(0))), toys.model_of(toy)).values
        for toy, c in zip(models, targets, strict=True)
    ]


def cascade_compares_with_the_depth_before(models, method):
    maps = maps_of(models, method, [0] * len(models), None)
    return [value for a, b in pairwise(maps) for value in correlated(a, b)]


def cascade_explains_what_each_model_predicts(models, method):
    maps = maps_of(models, method, [int(toy.logits(X).argmax()) for toy in models], None)
    return [value for b in maps[1:] for value in correlated(maps[0], b)]


def cascade_goes_on_with_the_methods_random_numbers(models, method):
    maps = maps_of(models, method, [0] * len(models), draws(0))
    return [value for b in maps[1:] for value in correlated(maps[0], b)]


def cascade_compares_a_map_with_itself_shifted(models, method):
    maps = maps_of(models, method, [0] * len(models), None)
    return [value for b in maps[1:] for value in correlated(maps[0], np.roll(b, 1))]


def cascade_takes_no_correlation_for_0(models, method):
    return np.nan_to_num(cascade(models, method))


WRONG = [
    (forgets_the_value_at_the_start, gap_of_a_complete_map_is_0),
    (gap_is_absolute, gap_is_relative_to_the_change),
    (gap_divides_by_any_change, gap_of_no_change_is_finite),
    (weak_holds_the_map_itself_against_w, weak_of_gradient_times_change_is_0),
    (weak_looks_at_magnitudes, weak_sees_a_constant_and_a_sign),
    (weak_looks_at_the_ends_of_the_path_only, weak_says_nothing_across_regions),
    (infidelity_adds_the_perturbation, infidelity_of_a_linear_model_is_0_for_its_weights_only),
    (infidelity_takes_a_map_with_the_input_in_it, infidelity_of_a_linear_model_is_0_for_its_weights_only),
    (infidelity_is_a_sum, infidelity_of_a_linear_model_is_0_for_its_weights_only),
    (infidelity_always_scales, infidelity_is_scaled_only_if_it_is_asked),
    (infidelity_scales_by_a_norm, infidelity_is_scaled_only_if_it_is_asked),
    (sensitivity_counts_the_image_into_the_change, sensitivity_of_a_constant_gradient_is_0),
    (sensitivity_is_the_mean, sensitivity_is_the_largest_and_grows_with_draws),
    (sensitivity_is_absolute, sensitivity_is_relative),
    (sensitivity_goes_on_with_the_methods_random_numbers, sensitivity_does_not_measure_the_methods_own_noise),
    (sensitivity_divides_by_1_where_the_map_is_0, sensitivity_of_zeros_is_no_number),
    (logit_goes_on_with_the_methods_random_numbers, logit_is_1_for_a_method_that_knows_no_class),
    (logit_draws_the_same_class, logit_is_minus_1_for_opposite_classes),
    (logit_correlates_values, logit_counts_ranks_only),
    (logit_breaks_ties_by_index, logit_of_constant_maps_is_no_number),
    (cascade_compares_a_map_with_itself_shifted, cascade_of_the_same_model_is_1),
    (cascade_compares_with_the_depth_before, cascade_holds_every_depth_against_the_original),
    (cascade_explains_what_each_model_predicts, cascade_explains_the_same_class),
    (cascade_goes_on_with_the_methods_random_numbers, cascade_keeps_the_methods_random_numbers),
    (cascade_takes_no_correlation_for_0, cascade_to_a_dead_model_is_no_number),
]


@pytest.mark.parametrize(("metric", "law"), WRONG, ids=[metric.__name__ for metric, _ in WRONG])
def test_a_wrong_metric_is_rejected(metric, law):
    with pytest.raises(AssertionError):
        law(metric)


def test_every_law_has_rejected_something():
    assert {law for laws in LAWS.values() for law in laws} == {law for _, law in WRONG}
