"""Metrics of attributions and of methods: what they must say of models and maps whose answer is known on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import Model, drive, run
from onnxplain.engine.methods import GradientXInput, IntegratedGradients, Saliency, SmoothGrad
from onnxplain.engine.methods.method import generator
from onnxplain.engine.metrics import (
    Cascade,
    CompletenessGap,
    Infidelity,
    MaxSensitivity,
    ParameterRandomisation,
    Perturbation,
    RandomLogit,
    Scores,
    WeakDependence,
)
from onnxplain.engine.metrics.infidelity import infidelity
from onnxplain.engine.requests import Attribution, Kind, Logits
from onnxplain.engine.space import Space
from onnxplain.errors import InputError, NonFinite, UsageError

X, START = toys.X, 0.5 * np.ones(6)
SHAPE = (3, 8, 8)
PICTURE = np.random.default_rng(0).random(SHAPE)
PICTURES = toys.picture_net(0, SHAPE)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def of(program, toy=toys.TOY_T, batch_size=8):
    return run(program, toys.model_of(toy, batch_size=batch_size))


# ---- completeness ----


@pytest.mark.parametrize("seed", range(5))
def test_integrated_gradients_of_a_quadratic_are_complete(seed):
    """The midpoint rule is exact on a quadratic."""
    toy = toys.quadratic(seed)
    a = toys.explain(IntegratedGradients(steps=1), toy, X, 1).values
    assert of(CompletenessGap()(X, a, start=np.zeros(6), target=1), toy).value < 1e-12


def test_completeness_gap_by_hand():
    """Toy-L, class 1, x' = 0: F(x) - F(x') = 1.4."""
    gap = of(CompletenessGap()(X, np.full(6, 0.35), start=np.zeros(6), target=1), toys.TOY_L)
    np.testing.assert_allclose([gap.value, gap.facts["sum"], gap.facts["change"]], [0.5, 2.1, 1.4])
    (row,) = gap.rows()
    assert row["direction"] == "lower"
    assert row["protocol"] == "objective=logit"


def test_a_change_of_0_is_held_against_1e_6():
    gap = of(CompletenessGap()(X, np.full(6, 1e-6), start=X, target=0))
    np.testing.assert_allclose(gap.value, 6)


def test_completeness_asks_for_the_sum_only_so_that_a_heatmap_will_do():
    a = toys.explain(IntegratedGradients(steps=3), PICTURES, PICTURE, 1).values
    whole, heatmap = (
        of(CompletenessGap()(PICTURE, m, start=0 * PICTURE, target=1), PICTURES).value for m in (a, a.sum(0))
    )
    np.testing.assert_allclose(whole, heatmap)


# ---- weak dependence ----


def kinked(x):
    """relu(x_0 - 0.7) + x . w: one kink, between x and x' = 0.5 where x_0 > 0.7."""
    return max(x[0] - 0.7, 0)


W = np.array([1, -2, 0.5, 3, -1, 0.25])
KINKED = toys.Toy(
    lambda x: np.array([kinked(x) + W @ x, 0.0]),
    lambda x, v: v[0] * (W + np.eye(6)[0] * (x[0] > 0.7)),
    (6,),
    2,
)


def test_gradient_times_change_is_weakly_dependent_on_an_affine_model():
    for target, w in enumerate(toys.W):
        found = of(WeakDependence()(X, w * (X - START), start=START, target=target), toys.TOY_L)
        assert found.value < 1e-12
        assert found.undefined is None


def test_a_constant_more_is_not_weakly_dependent():
    """A + c: the ratio is off by c / (x_i - x'_i), most where x is nearest to x' (0.1)."""
    w = toys.W[0]
    found = of(WeakDependence()(X, w * (X - START) + 0.03, start=START, target=0), toys.TOY_L)
    np.testing.assert_allclose(found.value, 0.3 / 3)


def test_nothing_is_said_across_a_kink():
    a = W * (X - START)
    across = of(WeakDependence()(X, a, start=START, target=0), KINKED)
    assert math.isnan(across.value)
    assert "affine region" in across.undefined
    (row,) = across.rows()
    assert row["value"] is None
    within = np.where(np.arange(6) == 0, 0.6, X)
    assert of(WeakDependence()(within, W * (within - START), start=START, target=0), KINKED).value < 1e-12


def test_a_kink_that_both_ends_do_not_see_is_found_on_the_way():
    """A bump between the ends: the gradients at x and x' are equal, those between them are not."""
    toy = toys.Toy(
        lambda x: np.array([W @ x + max(0.15 - abs(x[0] - 0.7), 0), 0.0]),
        lambda x, v: v[0] * (W - np.eye(6)[0] * np.sign(x[0] - 0.7) * (abs(x[0] - 0.7) < 0.15)),
        (6,),
        2,
    )
    assert math.isnan(of(WeakDependence()(X, W * (X - START), start=START, target=0), toy).value)


def test_weak_dependence_where_nothing_moves_or_nothing_matters():
    same = of(WeakDependence()(X, 0 * X, start=X, target=0), toys.TOY_L)
    dead = of(WeakDependence()(X, 0 * X, start=START, target=0), toys.affine(0 * toys.W))
    assert math.isnan(same.value)
    assert math.isnan(dead.value)
    assert {same.undefined, dead.undefined} == {"x equals x'", "the gradient is 0"}
    partly = of(WeakDependence()(X, toys.W[0] * 0.9 * np.eye(6)[0], start=X - 0.9 * np.eye(6)[0], target=0), toys.TOY_L)
    assert partly.facts["skipped"] == 5
    assert partly.value < 1e-12


def test_undefined_values_are_counted_and_change_no_mean():
    rows = of(WeakDependence()(X, W * (X - START), start=START, target=0), KINKED).rows()
    rows += [rows[0] | {"value": 0.5}, rows[0] | {"value": 1.5}]
    for order in (rows, rows[::-1]):
        (summary,) = Scores.of(order).compute()
        assert (summary["mean"], summary["n"], summary["undefined"]) == (1.0, 2, 1)


# ---- infidelity ----


@pytest.mark.parametrize("perturbation", Perturbation)
@pytest.mark.parametrize("normalise", [False, True])
def test_the_gradient_of_a_linear_model_has_no_infidelity(perturbation, normalise):
    weights = draws(3).normal(size=(4, 192))
    metric = Infidelity(perturbation=perturbation, side=3, samples=20, normalise=normalise)
    a = weights[2].reshape(SHAPE)
    ask = {"space": Space.pixels(), "target": 2}
    toy = toys.affine(weights, 0.3, SHAPE)
    assert of(metric(PICTURE, a, rng=draws(), **ask), toy).value < 1e-20
    assert of(metric(PICTURE, a + 1, rng=draws(), **ask), toy).value > 1e-4


def test_a_map_with_the_input_in_it_is_as_faithful():
    weights = draws(3).normal(size=(4, 192))
    toy, start = toys.affine(weights, 0.3, SHAPE), np.full(SHAPE, 0.5)
    a = weights[2].reshape(SHAPE) * (PICTURE - start)
    ask = {"space": Space.pixels(), "target": 2, "start": start}
    for perturbation in Perturbation:
        metric = Infidelity(perturbation=perturbation, side=3, samples=20)
        assert of(replace(metric, times_input=True)(PICTURE, a, rng=draws(), **ask), toy).value < 1e-20
        assert of(metric(PICTURE, a, rng=draws(), **ask), toy).value > 1e-4


def test_infidelity_of_a_map_of_zeros_is_the_mean_square_of_the_changes():
    metric = Infidelity(samples=10, noise=0.1)
    toy, space = toys.TOY_L, Space.pixels(rank=1)
    i = 0.1 * draws().normal(size=(10, 6))
    for normalise in (False, True):
        found = of(replace(metric, normalise=normalise)(X, 0 * X, space=space, target=0, rng=draws()), toy)
        np.testing.assert_allclose(found.value, ((i @ toys.W[0]) ** 2).mean(), rtol=1e-6)
    assert found.facts["scaling"] == 0


def test_the_scaling_is_the_best_one():
    p, d = draws(0).normal(size=(2, 50))
    least, beta = infidelity(p, d, normalise=True)
    grid = [((b * p - d) ** 2).mean() for b in np.linspace(beta - 1, beta + 1, 2001)]
    assert least <= min(grid)
    np.testing.assert_allclose(least, min(grid), rtol=1e-9)


def test_noise_of_pixel_units_is_the_same_in_any_space():
    weights = draws(3).normal(size=(4, 192))
    mean, std = np.array([0.4, 0.5, 0.3]).reshape(3, 1, 1), np.array([0.2, 0.3, 0.25]).reshape(3, 1, 1)
    bounds = [np.asarray(v, np.float64) for v in (-mean / std, (1 - mean) / std)]
    model_space = Space(*bounds, np.zeros(1), np.ones(1), 0)
    pixel_space = Space(np.zeros(1), np.ones(1), mean, std, 0)
    in_pixels = toys.affine(weights, 0.0, SHAPE)
    in_model = toys.affine((weights.reshape(4, *SHAPE) * std).reshape(4, -1), 0.0, SHAPE)
    for perturbation in Perturbation:
        metric = Infidelity(perturbation=perturbation, side=3, samples=9)
        a = of(metric(PICTURE, 0 * PICTURE, space=pixel_space, target=1, rng=draws()), in_pixels)
        b = of(metric((PICTURE - mean) / std, 0 * PICTURE, space=model_space, target=1, rng=draws()), in_model)
        np.testing.assert_allclose(a.value, b.value, rtol=1e-9)


@pytest.mark.parametrize("axis", [0, -1])
def test_squares_are_squares(axis):
    x = np.moveaxis(PICTURE, 0, axis)
    metric = Infidelity(perturbation=Perturbation.SQUARE, side=3)
    space = Space.pixels(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), channel_axis=axis)
    i = np.moveaxis(metric.perturbations(x, space, draws(), 400), axis if axis < 0 else 1, 1)
    assert ((i != 0).sum(axis=(1, 2, 3)) == 27).all()
    gone = PICTURE - i
    assert np.allclose(gone[i != 0].reshape(400, 3, 9), np.array([0.1, 0.2, 0.3])[:, None])
    corners = {tuple(np.argwhere(one[0] != 0)[0]) for one in i}
    assert corners == {(r, c) for r in range(6) for c in range(6)}  # anywhere, up to the border


def test_infidelity_of_any_callable_and_in_any_batch():
    weights = draws(3).normal(size=(192, 4))
    images = draws(1).random((3, *SHAPE))
    maps = draws(2).normal(size=images.shape)

    def net(batch):
        return np.stack([np.tanh(x.ravel() @ weights) for x in batch])

    metric = Infidelity(samples=20)
    told = {"space": Space.pixels(), "targets": [0, 1, 2], "seed": 5}
    rows = [[one.value for one in metric.score(net, images, maps, batch_size=b, **told)] for b in (1, 3, 8)]
    assert rows[0] == rows[1] == rows[2]
    alone = run(
        metric(images[1], maps[1], space=Space.pixels(), target=1, rng=generator(5, images[1], metric)),
        toys.model_of(toys.Toy(lambda x: np.tanh(x.ravel() @ weights), lambda x, v: x, SHAPE, 4)),
    )
    assert alone.value == rows[0][1]
    backwards = metric.score(net, images[::-1], maps[::-1], **told | {"targets": [2, 1, 0]})
    assert [one.value for one in backwards] == rows[0][::-1]  # an image's draws are its own
    assert metric.score(net, images[:0], [], space=Space.pixels(), targets=[]) == []


def test_infidelity_costs_what_it_says():
    for samples in (1, 16, 40):
        metric = Infidelity(samples=samples)
        (outcome,) = drive(
            [metric(PICTURE, PICTURE, space=Space.pixels(), target=0, rng=draws())], toys.model_of(PICTURES)
        )
        assert sum(outcome.rows.values()) == metric.rows()


def test_what_infidelity_refuses():
    ask = {"space": Space.pixels(), "target": 0, "rng": draws()}
    square = Infidelity(perturbation=Perturbation.SQUARE, side=9)
    for program, error, words in (
        (Infidelity()(PICTURE, PICTURE[0], **ask), InputError, "expected an attribution of shape"),
        (Infidelity()(PICTURE, PICTURE * np.nan, **ask), InputError, "NaN or Inf"),
        (Infidelity(times_input=True)(PICTURE, PICTURE, **ask), UsageError, "give `start`"),
        (Infidelity()(PICTURE, PICTURE, **ask | {"space": Space.model()}), UsageError, "range"),
        (square(PICTURE, PICTURE, **ask), UsageError, "does not fit"),
    ):
        with pytest.raises(error, match=words):
            of(program, PICTURES)
    with pytest.raises(UsageError, match="height and width"):
        of(square(X, X, **ask | {"space": Space.pixels(rank=1)}))
    with pytest.raises(UsageError, match="one heatmap and one target"):
        Infidelity().score(lambda b: b, PICTURE[None], [], space=Space.pixels(), targets=[0])


# ---- max-sensitivity ----


def test_the_gradient_of_a_linear_model_never_changes():
    found = of(MaxSensitivity()(X, Saliency(signed=True), toys.task(toys.TOY_L), draws()), toys.TOY_L)
    assert found.value == 0


def test_max_sensitivity_of_the_image_itself_is_that_of_the_largest_draw():
    def image(x, task):
        yield Logits(x[None])
        return Attribution(3 * x)

    metric = MaxSensitivity(radius=0.1, samples=7)
    found = of(metric(X, image, toys.task(toys.TOY_L), draws()), toys.TOY_L)
    d = draws().uniform(-1, 1, size=(7, 6)) * 0.1
    np.testing.assert_allclose(found.value, np.linalg.norm(d, axis=1).max() / np.linalg.norm(X), rtol=1e-6)
    wide = Space.model((0.0, 255.0))
    scaled = of(metric(X, image, toys.task(toys.TOY_L, space=wide), draws()), toys.TOY_L)
    np.testing.assert_allclose(scaled.value, 255 * found.value, rtol=1e-6)


def test_the_noise_of_a_method_does_not_count():
    """SmoothGrad of a linear model plus its own random numbers: the same for every x + d."""

    def noise(x, task):
        yield Logits(x[None])
        return Attribution(task.rng.normal(size=x.shape))

    task = toys.task(toys.TOY_L)
    assert of(MaxSensitivity()(X, noise, task, draws()), toys.TOY_L).value == 0
    assert task.rng.normal() == toys.task(toys.TOY_L).rng.normal()  # and those of the task are left as they were


def test_max_sensitivity_of_nothing_is_undefined():
    dead = toys.affine(0 * toys.W)
    (row,) = of(MaxSensitivity()(X, Saliency(), toys.task(dead), draws()), dead).rows()
    assert row["value"] is None
    assert row["undefined"] == "the map of the image is 0"


def test_max_sensitivity_needs_pixel_units():
    with pytest.raises(UsageError, match="range"):
        of(MaxSensitivity()(X, Saliency(), toys.task(toys.TOY_T, space=Space.model()), draws()))


def test_max_sensitivity_costs_its_samples_and_one():
    program = MaxSensitivity(samples=4)(X, IntegratedGradients(steps=3), toys.task(toys.TOY_T), draws())
    (alone,) = drive([IntegratedGradients(steps=3)(X, toys.task(toys.TOY_T))], toys.model_of(toys.TOY_T))
    (outcome,) = drive([program], toys.model_of(toys.TOY_T))
    assert sum(outcome.rows.values()) == 5 * sum(alone.rows.values())


# ---- random logit ----


def of_no_class(x, task):
    yield Logits(x[None])
    return Attribution(np.sin(7 * x) + task.rng.normal(size=x.shape))


@pytest.mark.parametrize("reduce", ["none", "sum", "abs_sum"])
def test_a_method_that_knows_no_class_has_1(reduce):
    found = of(RandomLogit(reduce=reduce)(PICTURE, of_no_class, toys.task(PICTURES, 1), draws()), PICTURES)
    assert found.value == pytest.approx(1, abs=1e-12)
    assert found.reduction == reduce


def test_opposite_classes_have_minus_1():
    toy = toys.affine(np.stack([W, -W]))
    found = of(RandomLogit()(X, Saliency(signed=True), toys.task(toy), draws()), toy)
    assert found.value == pytest.approx(-1)
    assert found.reduction == "none"


def test_every_other_class_is_drawn_and_never_the_same():
    task = toys.task(PICTURES, 1)
    others = [of(RandomLogit()(PICTURE, of_no_class, task, draws(s)), PICTURES).facts["other"] for s in range(300)]
    count = np.bincount(others, minlength=4)
    assert count[1] == 0
    assert (count[[0, 2, 3]] > 70).all()


def test_random_logit_of_a_constant_map_is_undefined():
    dead = toys.affine(0 * toys.W)
    (row,) = of(RandomLogit()(X, Saliency(), toys.task(dead), draws()), dead).rows()
    assert row["value"] is None
    assert "constant" in row["undefined"]


def test_what_random_logit_refuses():
    single = toys.affine(toys.W[:1])
    with pytest.raises(UsageError, match="no other"):
        of(RandomLogit()(X, Saliency(), toys.task(single), draws()), single)
    with pytest.raises(UsageError, match="one class"):
        of(RandomLogit()(X, Saliency(), toys.task(toys.TOY_T, np.ones(3)), draws()))


# ---- parameter randomisation ----

LAYERS = ["outer", "inner"]
INNER, OUTER = draws(1).normal(size=(16, 192)) / 8, draws(2).normal(size=(4, 16))


def drawn(layers: Sequence[str], seed: int = 9) -> toys.Toy:
    """A net with two layers, some of them drawn anew."""
    inner = draws(seed).normal(size=INNER.shape) / 8 if "inner" in layers else INNER
    outer = draws(seed + 1).normal(size=OUTER.shape) if "outer" in layers else OUTER
    return toys.tanh_net(inner, np.zeros(16), outer, SHAPE)


@contextmanager
def reopen(layers: Sequence[str]) -> Iterator[Model]:
    yield toys.model_of(drawn(layers))


def randomise(metric, method, opened=reopen, images=PICTURE[None], seed=0):
    tasks = [toys.task(PICTURES, 1, seed=seed + i) for i in range(len(images))]
    return metric.score(toys.model_of(drawn([])), opened, LAYERS, images, method, tasks)


def test_nothing_drawn_anew_changes_nothing():
    (found,) = randomise(
        ParameterRandomisation(), SmoothGrad(samples=3), lambda layers: nullcontext(toys.model_of(drawn([])))
    )
    assert [row["value"] for row in found.rows()] == pytest.approx([1.0] * 4)
    assert [row["metric"] for row in found.rows()] == ["randomisation", "randomisation_magnitude"] * 2
    assert [row["depth"] for row in found.rows()] == [1, 1, 2, 2]


def test_a_map_that_learns_nothing_has_1_and_a_gradient_has_not():
    (edges,) = randomise(ParameterRandomisation(), of_no_class)
    assert [row["value"] for row in edges.rows()] == pytest.approx([1.0] * 4)
    (gradient,) = randomise(ParameterRandomisation(), Saliency(signed=True))
    assert abs(gradient.rows()[2]["value"]) < 0.4


def test_the_sign_does_not_count_in_the_magnitude():
    @contextmanager
    def opposite(layers):
        yield toys.model_of(toys.tanh_net(INNER, np.zeros(16), -OUTER, SHAPE))

    (found,) = randomise(ParameterRandomisation(depths=(1,), reduce="none"), Saliency(signed=True), opposite)
    assert [row["value"] for row in found.rows()] == pytest.approx([-1.0, 1.0])


def test_which_layers_are_drawn():
    wanted = {
        Cascade.CASCADING: [["outer"], ["outer", "inner"]],
        Cascade.INDEPENDENT: [["outer"], ["inner"]],
    }
    for cascade, expected in wanted.items():
        asked = []

        def opened(layers, asked=asked):
            asked.append(list(layers))
            return reopen(layers)

        (found,) = randomise(ParameterRandomisation(cascade=cascade), Saliency(), opened)
        assert asked == expected
        assert [m.facts["layer"] for m in found.measured[::2]] == LAYERS
        (last,) = randomise(ParameterRandomisation(cascade=cascade, depths=(2,)), Saliency(), opened)
        assert asked[-1] == expected[-1]
        assert last.rows() == found.rows()[2:]


def test_rows_of_different_depths_never_mix():
    images = draws(4).random((3, *SHAPE))
    found = randomise(ParameterRandomisation(), Saliency(), images=images)
    scores = Scores.of(row for one in found for row in one.rows()).compute()
    assert [(s["metric"], s["n"]) for s in scores] == [("randomisation", 3), ("randomisation_magnitude", 3)] * 2
    assert len({s["protocol"] for s in scores}) == 2
    alone = randomise(ParameterRandomisation(), Saliency(), images=images[2:], seed=2)
    assert alone[0].rows() == found[2].rows()


def test_a_randomised_model_that_is_dead_or_overflows_is_reported():
    @contextmanager
    def dead(layers):
        yield toys.model_of(toys.affine(np.zeros((4, 192)), 0.0, SHAPE))

    @contextmanager
    def broken(layers):
        yield toys.model_of(toys.affine(np.full((4, 192), np.nan), 0.0, SHAPE))

    for opened, words in ((dead, "constant"), (broken, "NaN or Inf")):
        (found,) = randomise(ParameterRandomisation(), GradientXInput(), opened)
        assert [row["value"] for row in found.rows()] == [None] * 4
        assert all(words in row["undefined"] for row in found.rows())
    metric, tasks = ParameterRandomisation(), [toys.task(PICTURES)]
    with broken([]) as model, pytest.raises(NonFinite):  # the original one must work
        metric.score(model, reopen, LAYERS, PICTURE[None], Saliency(), tasks)


def test_what_randomisation_refuses():
    with pytest.raises(UsageError, match="increasing"):
        ParameterRandomisation(depths=(2, 1))
    with pytest.raises(UsageError, match="has 2 layers"):
        randomise(ParameterRandomisation(depths=(3,)), Saliency())
    with pytest.raises(UsageError, match="one task"):
        ParameterRandomisation().score(toys.model_of(PICTURES), reopen, LAYERS, PICTURE[None], Saliency(), [])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Infidelity(noise=0.0),
        lambda: Infidelity(samples=0),
        lambda: Infidelity(side=0),
        lambda: Infidelity(objective=Kind.SOFT_CE),
        lambda: MaxSensitivity(radius=-0.1),
        lambda: MaxSensitivity(samples=0),
        lambda: RandomLogit(reduce="mean"),
        lambda: ParameterRandomisation(reduce="mean"),
        lambda: WeakDependence(points=7),
        lambda: WeakDependence(tolerance=0.0),
        lambda: CompletenessGap(objective=Kind.LOGIT_L2),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_only_weak_dependence_asks_gradients_of_its_own():
    model = Model({"logits": lambda: toys.executors(PICTURES)[0]})
    ask = {"space": Space.pixels(), "target": 0}
    run(Infidelity(samples=2)(PICTURE, PICTURE, rng=draws(), **ask), model)
    run(CompletenessGap()(PICTURE, PICTURE, start=0 * PICTURE, target=0), model)
    with pytest.raises(UsageError, match="forward model"):
        run(WeakDependence()(PICTURE, PICTURE, start=0 * PICTURE, target=0), model)
