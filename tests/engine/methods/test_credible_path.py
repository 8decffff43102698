"""Credible path attribution: golden searches and paths, the laws of the validity rules, and the edge cases."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.drive import GRADIENT, LOGITS, Usage, drive, run
from onnxplain.engine.methods import Alphas, Baseline, Constraint, CrediblePath, IntegratedGradients
from onnxplain.engine.methods.baselines import blurred
from onnxplain.engine.methods.credible_path import Fence, Search
from onnxplain.engine.methods.quadrature import positions
from onnxplain.engine.requests import Head, Kind, Validity
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

GREY = np.full((1, 6), toys.X.mean())
FOUND = np.array([[0.679412, 0.389216, 0.287255, 0.648039, 0.593137, 0.287255]])  # the golden logit_l2 baseline
LOSSES = [Kind.CE, Kind.SOFT_CE, Kind.LOGIT_L2]
WHITE, BLACK = np.ones(1), np.zeros(1)


def golden(kind: Kind, **parameters: Any) -> CrediblePath:
    return CrediblePath(
        starts=GREY, epsilon=0.01, epsilon_relative=False, max_iter=200, baseline_objective=kind, **parameters
    )


def search(method: CrediblePath, toy: toys.Toy, x: toys.Array, target: int = 0) -> list[Search]:
    return run(method.search(x, toy.logits(x), toys.task(toy, target)), toys.model_of(toy, x.dtype))


@pytest.mark.parametrize(
    ("kind", "distance", "iteration"),
    [(Kind.CE, 0.662487, 4), (Kind.SOFT_CE, 0.021118, 51), (Kind.LOGIT_L2, 0.020025, 50)],
)
def test_golden_searches(kind: Kind, distance: float, iteration: int) -> None:
    (found,) = search(golden(kind), toys.TOY_T, toys.X)
    assert found.distance == pytest.approx(distance, abs=1e-5)
    assert found.iteration == iteration
    assert (found.converged, found.iterations) == (False, 200)
    if kind is Kind.LOGIT_L2:
        assert found.best == pytest.approx(FOUND[0], abs=1e-5)


@pytest.mark.parametrize(
    ("validity", "values", "count", "total"),
    [
        (None, [-0.029976, 0.072541, 0.150300, -0.105069, -0.036671, -0.068141], [50] * 6, -0.017016),
        (Validity.LITERAL, [-0.029976, 0, 0.150300, 0, -0.036671, 0], [50, 0, 50, 0, 50, 0], 0.083653),
        (
            Validity.PATH,
            [-0.029200, 0.072541, 0.150300, -0.105069, -0.036671, -0.068141],
            [40, 50, 50, 50, 50, 50],
            -0.016240,
        ),
        (Validity.GRAD, [0, 0.072541, 0.150300, -0.105069, -0.036671, -0.068141], [0, 50, 50, 50, 50, 50], 0.012960),
    ],
)
def test_golden_paths(validity: Validity | None, values: list[float], count: list[int], total: float) -> None:
    method = golden(Kind.LOGIT_L2, validity=validity, steps=50, alphas=Alphas.MIDPOINT)
    answer = toys.explain(method, toys.TOY_T, toys.X)
    assert answer.values == pytest.approx(values, abs=1e-5)
    assert answer.values.sum() == pytest.approx(total, abs=1e-5)
    assert answer.diagnostics["fraction_valid"] == pytest.approx(sum(count) / 300)
    assert ((answer.values == 0) == (np.array(count) == 0)).all()


def test_signs_alone_accept_more_than_signs_and_magnitudes() -> None:
    method = golden(Kind.CE, validity=Validity.SIGN_ONLY, steps=50, alphas=Alphas.MIDPOINT)
    fractions = [
        toys.explain(m, toys.TOY_T, toys.X).diagnostics["fraction_valid"]
        for m in (golden(Kind.CE, validity=Validity.GRAD, steps=50, alphas=Alphas.MIDPOINT), method)
    ]
    assert 0 < fractions[0] < fractions[1] < 1


@given(seed=st.integers(0, 2**32 - 1), loss=st.sampled_from(LOSSES))
def test_baselines_keep_their_distance_and_come_no_further_in_logits(seed: int, loss: Kind) -> None:
    draw = np.random.default_rng(seed)
    x = draw.random(6).round(1)  # often at the very ends of the range
    starts = np.stack([x, np.clip(x + draw.normal(size=6) / 20, 0, 1), draw.random(6)])
    found = search(CrediblePath(starts=starts, baseline_objective=loss, max_iter=20), toys.TOY_T, x)
    for one in found:
        # a difference of two numbers below 1 that were each rounded: off by 2^-53 twice
        assert np.abs(one.best - x).min() >= 5 / 255 - 2.3e-16
        assert 0 <= one.best.min() <= one.best.max() <= 1
        assert one.credible
        assert one.distance <= one.start_distance
        assert one.distance == pytest.approx(np.linalg.norm(toys.TOY_T.logits(one.best) - toys.TOY_T.logits(x)))


def test_float32_baselines_count_as_distant_enough() -> None:
    x = np.random.default_rng(0).random(6).astype(np.float32)
    (found,) = search(CrediblePath(starts=x[None], steps=1), toys.TOY_T, x)
    assert found.credible


def test_without_validity_it_is_ig_from_the_baseline() -> None:
    method = golden(Kind.LOGIT_L2, validity=None, steps=50, alphas=Alphas.MIDPOINT)
    (found,) = search(method, toys.TOY_T, toys.X)
    same = toys.explain(IntegratedGradients(baseline=found.best), toys.TOY_T, toys.X)
    assert toys.explain(method, toys.TOY_T, toys.X).values == pytest.approx(same.values, abs=1e-15)


def test_several_baselines_are_averaged() -> None:
    starts = np.stack([GREY[0], GREY[0] / 2, 1 - GREY[0]])
    together = toys.explain(CrediblePath(starts=starts, alphas=Alphas.MIDPOINT, steps=30), toys.TOY_T, toys.X)
    alone = [
        toys.explain(CrediblePath(starts=s[None], alphas=Alphas.MIDPOINT, steps=10), toys.TOY_T, toys.X).values
        for s in starts
    ]
    assert together.values == pytest.approx(np.mean(alone, axis=0), abs=1e-15)


def test_rows_are_one_and_the_iterations_and_the_paths() -> None:
    starts = np.stack([toys.X + 0.01, GREY[0], toys.X - 0.01])
    method = CrediblePath(starts=starts, baseline_objective=Kind.LOGIT_L2, epsilon=0.05, epsilon_relative=False)
    usage = Usage()
    program = method(toys.X, toys.task(toys.TOY_T))
    (outcome,) = drive([program], toys.model_of(toys.TOY_T, batch_size=150), usage=usage)
    iterations = outcome.unwrap().diagnostics["iterations"]
    assert outcome.unwrap().diagnostics["converged"] == [True] * 3
    assert len(set(iterations)) > 1  # some were done while others went on
    assert outcome.rows == usage.rows == {GRADIENT: 1 + sum(iterations) + 150, LOGITS: 0}
    assert usage.calls == {GRADIENT: max(iterations) + 2, LOGITS: 0}
    assert sum(outcome.rows.values()) <= method.rows((6,)) == 1 + 3 * 50 + 150


def test_epsilon_is_relative_to_the_start_unless_told_otherwise() -> None:
    (far,) = search(CrediblePath(starts=GREY, baseline_objective=Kind.LOGIT_L2, epsilon=0.5), toys.TOY_T, toys.X)
    assert far.converged
    assert 0.4 * far.start_distance < far.distance <= 0.5 * far.start_distance
    absolute = CrediblePath(starts=GREY, baseline_objective=Kind.LOGIT_L2, epsilon=0.5, epsilon_relative=False)
    (near,) = search(absolute, toys.TOY_T, toys.X)
    assert near.converged
    assert 0.4 < near.distance <= 0.5 < near.start_distance


def test_a_start_that_is_good_enough_still_keeps_away() -> None:
    (found,) = search(
        CrediblePath(starts=toys.X[None], steps=1, epsilon=10, epsilon_relative=False), toys.TOY_T, toys.X
    )
    assert (found.iterations, found.iteration, found.converged) == (1, 0, True)
    assert np.abs(found.best - toys.X) == pytest.approx(np.full(6, 5 / 255), abs=1e-15)
    literal = CrediblePath(starts=toys.X[None], steps=1, epsilon=10, epsilon_relative=False, literal=True)
    (printed,) = search(literal, toys.TOY_T, toys.X)
    assert (printed.best == toys.X).all()
    assert not printed.credible


def test_literal_returns_the_last_point_not_the_best() -> None:
    (best,) = search(golden(Kind.CE), toys.TOY_T, toys.X)
    (last,) = search(golden(Kind.CE, literal=True), toys.TOY_T, toys.X)
    assert (best.iteration, last.iteration) == (4, 199)
    assert last.distance > 2 > best.start_distance > best.distance


@pytest.mark.parametrize("constraint", Constraint)
def test_a_feature_that_equals_the_image_goes_inward(constraint: Constraint) -> None:
    x = np.array([0, 0.3, 0.5, 0.6, 1])
    points = x.copy()
    Fence(x, BLACK, WHITE, 0.1, constraint).keep_away(points)
    assert points == pytest.approx([0.1, 0.4, 0.6, 0.5, 0.9])


def test_projection() -> None:
    x = np.array([0.99, 0.99, 0.5, 0.5, 0.5, 0.02, 0.5])
    points = np.array([1.0, 0.97, 0.55, 0.47, 0.7, 0.01, 1.2])
    Fence(x, BLACK, WHITE, 0.1, Constraint.PROJECTED).keep_away(points)
    # no room above; below; above; below; far enough; no room below; stepped out of the range
    assert points == pytest.approx([0.89, 0.89, 0.6, 0.4, 0.7, 0.12, 1])


def test_the_printed_constraint_may_be_undone_by_clipping() -> None:
    x, points = np.array([0.99, 0.5]), np.array([1.0, 0.55])
    Fence(x, BLACK, WHITE, 0.1, Constraint.LITERAL).keep_away(points)
    assert points == pytest.approx([1, 0.65])  # moved by delta, to distance |d| + delta, and clipped
    bright = np.full(6, 0.99)
    method = CrediblePath(starts=bright[None] + 0.01, steps=1, constraint=Constraint.LITERAL, eta=1e-6, max_iter=3)
    (found,) = search(method, toys.TOY_T, bright)
    assert not found.credible


def test_the_best_point_is_one_that_keeps_away() -> None:
    """A nearer one that does not is taken only while there is no other."""
    one, method = Search(point=GREY[0], best=GREY[0]), CrediblePath(starts=GREY)
    best = []
    for i, (distance, credible) in enumerate([(0.5, False), (0.3, False), (0.9, True), (0.2, False), (0.8, True)]):
        method.judge(one, i, distance, credible)
        best.append(one.iteration)
    assert best == [0, 1, 2, 2, 4]


@pytest.mark.parametrize("validity", [*Validity, None])
def test_a_constant_image_gives_numbers(validity: Validity | None) -> None:
    """Its blur is the image itself; the baselines move inward."""
    for grey in (0, 0.5, 1):
        x = np.full((3, 8, 8), float(grey))
        answer = toys.explain(CrediblePath(steps=6, max_iter=3, validity=validity), toys.picture_net(), x)
        assert np.isfinite(answer.values).all()
        assert answer.diagnostics["delta_kept"] == [True] * 3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0, 1e4], ids=["no gradient", "saturated"])
def test_extreme_models_give_numbers(loss: Kind, scale: float) -> None:
    answer = toys.explain(CrediblePath(starts=GREY, baseline_objective=loss), toys.affine(scale * toys.W), toys.X, 1)
    assert np.isfinite(answer.values).all()
    if not scale:
        assert not answer.values.any()
        assert answer.diagnostics["converged"] == [True]


@pytest.mark.parametrize("target", [1, 2, np.array([-1, 0.5, 0.5], np.float32)])
def test_baselines_do_not_depend_on_what_is_explained(target: Any) -> None:
    """`ce` too descends towards the class that is predicted for the image."""
    assert toys.TOY_T.logits(toys.X).argmax() == 0
    (same,), (expected,) = (search(golden(Kind.CE), toys.TOY_T, toys.X, t) for t in (target, 0))
    assert (same.best == expected.best).all()
    assert toys.explain(golden(Kind.CE), toys.TOY_T, toys.X, target).values.any()


def test_labels_each_by_itself_are_kept() -> None:
    """With a sigmoid head `ce` is the cross-entropy with the labels of the image: a label that it lacks stays away."""
    loss = CrediblePath().loss(np.array([2.0, -1.0, 0.5]), Head.SIGMOID)
    assert (loss.kind, loss.target.tolist()) == (Kind.SOFT_CE, [1, 0, 1])  # type: ignore[union-attr]
    z = np.array([2.0, -1.0, 0.5])
    p = 1 / (1 + np.exp(-z))
    assert loss.value(z) == pytest.approx(-np.log(p[0]) - np.log(1 - p[1]) - np.log(p[2]))
    assert CrediblePath().loss(np.array([-3.0]), Head.SIGMOID).target.tolist() == [0]  # type: ignore[union-attr]


def test_a_given_baseline_is_not_searched() -> None:
    """Algorithm 2 from the baseline of IG: one path of all steps, exactly from black."""
    method = CrediblePath(baseline=Baseline.BLACK, validity=None, alphas=Alphas.MIDPOINT, steps=50)
    (outcome,) = drive([method(toys.X, toys.task(toys.TOY_T))], toys.model_of(toys.TOY_T))
    same = toys.explain(IntegratedGradients(steps=50), toys.TOY_T, toys.X)
    assert outcome.unwrap().values == pytest.approx(same.values, abs=1e-15)
    assert outcome.unwrap().diagnostics["converged"] == []
    assert outcome.rows == {GRADIENT: 1 + 50, LOGITS: 0}
    assert method.rows((6,)) == 51
    # with black every x_i >= x'_i, so that `literal` keeps what is affine
    affine = toys.explain(CrediblePath(baseline=Baseline.BLACK), toys.TOY_L, toys.X, 1)
    assert affine.values == pytest.approx(toys.W[1] * toys.X, abs=1e-13)
    assert toys.explain(CrediblePath(baseline=Baseline.BLACK), toys.TOY_T, np.zeros(6)).values.tolist() == [0] * 6


def test_literal_with_the_image_as_its_own_baseline_says_that_it_kept_no_distance() -> None:
    """Its logits are as near as can be: algorithm 1 as printed stops there, and A = 0."""
    answer = toys.explain(CrediblePath(literal=True, starts=toys.X[None]), toys.TOY_T, toys.X)
    assert not answer.values.any()
    assert (answer.diagnostics["delta_kept"], answer.diagnostics["iterations"]) == ([False], [1])


def test_alphas() -> None:
    def at(alphas: Alphas, seed: int = 0) -> toys.Array:
        return positions(alphas, 3, 10, np.random.default_rng(seed))

    for alphas in Alphas:
        assert at(alphas).shape == (3, 10)
        assert (at(alphas) == at(alphas)).all()
        assert (at(alphas) == at(alphas, seed=1)).all() == (alphas is Alphas.MIDPOINT)
    assert at(Alphas.MIDPOINT)[0] == pytest.approx(np.arange(0.05, 1, 0.1))
    assert (np.floor(10 * at(Alphas.STRATIFIED)) == np.arange(10)).all()
    assert not (np.floor(10 * at(Alphas.UNIFORM)) == np.arange(10)).all()


@pytest.mark.parametrize("shape", [(3, 40, 30), (40, 30, 3)])
def test_blur(shape: tuple[int, ...]) -> None:
    """Against convolution by hand: taps of the normal density, the picture mirrored about its outermost pixels."""
    x = np.random.default_rng(0).random(shape)
    axes = [axis for axis in range(3) if shape[axis] != 3]
    sigma = 0.3 * (5 - 1) + 0.8
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * sigma**2))
    expected = x
    for axis in axes:
        padded = np.pad(expected, [(5, 5) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        expected = np.apply_along_axis(np.convolve, axis, padded, taps / taps.sum(), mode="valid")
    space = Space.pixels(channel_axis=0 if shape[0] == 3 else -1)
    assert blurred(x, 11, space) == pytest.approx(expected, abs=1e-14)
    assert blurred(x, 11, Space.model()) == pytest.approx(expected, abs=1e-14)  # the shorter end
    assert blurred(x.astype(np.float32), 11, space) == pytest.approx(expected, abs=1e-6)
    assert cv2.getGaussianKernel(11, 0)[:, 0] == pytest.approx(taps / taps.sum())  # the width is OpenCV's own choice


def test_pixel_units_follow_the_range() -> None:
    """The same model in levels of 0 to 255: the same attributions, of a rule that has no units."""
    in_levels = toys.tanh_net(toys.W / 255, toys.B, toys.V)
    levels = Space(*(np.array([v], np.float64) for v in (0, 255, 0, 1)))
    unit, level = (CrediblePath(starts=s, validity=Validity.PATH) for s in (GREY, 255 * GREY))
    expected = toys.explain(unit, toys.TOY_T, toys.X)
    got = toys.explain(level, in_levels, 255 * toys.X, space=levels)
    assert got.values == pytest.approx(expected.values, abs=1e-9)
    assert got.diagnostics["best_iteration"] == expected.diagnostics["best_iteration"]


def test_what_it_needs() -> None:
    with pytest.raises(UsageError, match="CrediblePath works in pixel units"):
        toys.explain(CrediblePath(starts=GREY), toys.TOY_T, toys.X, space=Space.model())
    with pytest.raises(UsageError, match=r"blurring needs an image of shape .* got \[6\]"):
        toys.explain(CrediblePath(), toys.TOY_T, toys.X)
    with pytest.raises(UsageError, match=r"starts: expected images of shape \[6\], got \[5\]"):
        toys.explain(CrediblePath(starts=GREY[:, :5]), toys.TOY_T, toys.X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kernels": ()}, "kernels: expected 1 to 100 sizes"),
        ({"kernels": (11,) * 101}, "kernels: expected 1 to 100 sizes"),
        ({"kernels": (1003,)}, "kernels: expected odd"),
        ({"steps": 10**11}, "steps: expected a whole number from 1 to 100000"),
        ({"max_iter": 10_001}, "max_iter"),
        ({"eta": 1.1}, "eta: expected a positive number, at most 1, got 1.1"),
        ({"epsilon": 10**400}, "epsilon: expected a positive number, at most 1e.06"),
        ({"kernels": (11, 20)}, r"kernels: expected odd sizes from 3 to 1001, got \(11, 20\)"),
        ({"kernels": (1,)}, "kernels: expected odd"),
        ({"steps": 2}, "steps: expected at least one for each of 3 paths, got 2"),
        ({"starts": GREY, "steps": 0}, "steps: expected a whole number from 1"),
        ({"max_iter": 0}, "max_iter"),
        ({"eta": 0.0}, "eta"),
        ({"delta": 0.6}, "delta: expected a number above 0, at most 0.5, got 0.6"),
        ({"delta": 0.0}, "delta"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"baseline_objective": Kind.LOGIT}, "baseline_objective: expected one of ce, soft_ce, logit_l2"),
        ({"constraint": "projected"}, "constraint"),
        ({"baseline": "black"}, "baseline: expected one of black, "),
        ({"baseline": Baseline.BLACK, "starts": GREY}, "starts: expected none beside a baseline"),
        ({"validity": "path"}, "validity: expected one of literal, path, grad, sign_only"),
        ({"alphas": "uniform"}, "alphas"),
        ({"objective": Kind.CE}, "objective: expected one of logit, logprob, prob .* got 'ce'"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"CrediblePath: {message}"):
        CrediblePath(**parameters)
