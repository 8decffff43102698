"""Expected gradients: which images it compares with, where on the paths, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import GRADIENT, LOGITS, drive
from onnxplain.engine.methods import Alphas, ExpectedGradients, from_options, to_dict
from onnxplain.engine.methods.method import AT_ONCE
from onnxplain.engine.requests import Attribution, Kind, Line, PathSum
from onnxplain.errors import UsageError

BACKGROUND = np.random.default_rng(7).random((40, 6))


def ask(method: ExpectedGradients, x: toys.Array = toys.X, seed: int = 0) -> tuple[list[Line], Attribution]:
    """The lines that are asked for, all gradients being one."""
    program, lines = method(x, toys.task(toys.TOY_T, seed=seed)), []
    request = next(program)
    while True:
        assert isinstance(request, Line)
        lines.append(request)
        ones = np.ones_like(request.start) * request.weights.sum(axis=1, keepdims=True)
        try:
            request = program.send(PathSum(request.t, ones, ones))
        except StopIteration as end:
            return lines, end.value


def test_golden_sum_over_references_and_points() -> None:
    """The formula, written out with the draws that were asked for."""
    method = ExpectedGradients(background=BACKGROUND, references=20, points=3)
    lines, _ = ask(method)
    expected = np.zeros(6)
    for line in lines:
        for start, step, t in zip(line.start, line.step, line.t, strict=True):
            assert start + step == pytest.approx(toys.X)
            gradients = [toys.TOY_T.pull_back(start + a * step, np.eye(3)[0]) for a in t]
            expected += step * np.mean(gradients, axis=0) / 20
    assert toys.explain(method, toys.TOY_T, toys.X).values == pytest.approx(expected, abs=1e-13)


def test_every_image_is_used_before_any_is_used_again() -> None:
    lines, answer = ask(ExpectedGradients(background=BACKGROUND, references=100, points=1))
    used = np.concatenate([line.start for line in lines])
    assert sorted(np.unique(used, axis=0, return_counts=True)[1]) == [2] * 20 + [3] * 20
    assert answer.diagnostics["references"] == 40


def test_a_few_images_are_drawn_by_the_seed() -> None:
    method = ExpectedGradients(background=BACKGROUND, references=3, points=50)
    drawn = [ask(method, seed=seed)[0][0].start for seed in (1, 1, 2)]
    assert len(np.unique(drawn[0], axis=0)) == 3
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_points_are_independent_draws() -> None:
    lines, _ = ask(ExpectedGradients(background=BACKGROUND, references=150, points=50))
    t = np.concatenate([line.t for line in lines])
    assert t.shape == (150, 50)
    assert len(np.unique(t)) == t.size
    assert (t.min(), t.max()) == pytest.approx((0, 1), abs=1e-3)
    assert t.mean() == pytest.approx(0.5, abs=0.01)


def test_stratified_points_lie_one_in_each_part() -> None:
    lines, _ = ask(ExpectedGradients(background=BACKGROUND, references=4, points=10, alphas=Alphas.STRATIFIED))
    assert (np.floor(lines[0].t * 10) == np.arange(10)).all()


def test_stratified_points_from_one_image_approach_ig() -> None:
    from onnxplain.engine.methods import IntegratedGradients

    method = ExpectedGradients(background=BACKGROUND[:1], references=1, points=2000, alphas=Alphas.STRATIFIED)
    same = toys.explain(IntegratedGradients(steps=2000, baseline=BACKGROUND[0]), toys.TOY_T, toys.X)
    assert toys.explain(method, toys.TOY_T, toys.X).values == pytest.approx(same.values, abs=1e-5)


def test_the_sum_is_complete_on_average() -> None:
    """E[sum A] = F(x) - E[F(x')] with independent draws, 4 standard errors wide."""
    method = ExpectedGradients(background=BACKGROUND, references=40, points=1)
    sums = [toys.explain(method, toys.TOY_T, toys.X, seed=seed).values.sum() for seed in range(200)]
    change = toys.TOY_T.logits(toys.X)[0] - np.mean([toys.TOY_T.logits(other)[0] for other in BACKGROUND])
    assert np.mean(sums) == pytest.approx(change, abs=4 * np.std(sums) / np.sqrt(200))


def test_the_image_itself_is_left_out() -> None:
    with_x = np.concatenate([BACKGROUND[:3], toys.X[None], toys.X[None]])
    lines, answer = ask(ExpectedGradients(background=with_x, references=9, points=1))
    assert answer.diagnostics["references"] == 3
    assert (lines[0].step != 0).any(axis=1).all()
    with pytest.raises(UsageError, match="EG: the background has no image other than the one to explain"):
        ask(ExpectedGradients(background=toys.X[None]))


def test_images_are_asked_in_small_parts() -> None:
    method = ExpectedGradients(background=BACKGROUND)
    lines, _ = ask(method)
    assert [len(line.start) for line in lines] == [AT_ONCE] * 9 + [6]
    (outcome,) = drive([method(toys.X, toys.task(toys.TOY_T))], toys.model_of(toys.TOY_T))
    assert outcome.rows == {GRADIENT: 150, LOGITS: 0}


def test_without_a_background() -> None:
    with pytest.raises(UsageError, match=r"EG needs images to compare with; next: .*background=, .* --background DIR"):
        toys.explain(ExpectedGradients(), toys.TOY_T, toys.X)
    with pytest.raises(UsageError, match=r"EG: background: expected images of shape \[6\], got \[5\]"):
        toys.explain(ExpectedGradients(background=np.zeros((2, 5))), toys.TOY_T, toys.X)
    assert from_options("eg", {"references": "3", "points": "50"}) == ExpectedGradients(references=3, points=50)


def test_the_background_is_on_record_by_its_hash() -> None:
    told = to_dict(ExpectedGradients(background=BACKGROUND))["background"]
    assert (told["shape"], told["dtype"], len(told["sha256"])) == ([40, 6], "float64", 64)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"references": 0}, "EG: references"),
        ({"points": 0}, "EG: points"),
        ({"alphas": "uniform"}, "EG: alphas: expected one of uniform, stratified, midpoint"),
        ({"background": [1.0]}, "EG: background: expected images"),
        ({"background": np.zeros(3)}, "EG: background: expected images"),
        ({"objective": Kind.LOGIT_L2}, "EG: objective"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExpectedGradients(**parameters)
