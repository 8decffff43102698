"""The adjoint test on models of a few lines of NumPy: what it must pass, must catch, and must leave open."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import OBJECTIVE, TARGET, Model
from onnxplain.engine.executors.function import FunctionExecutor
from onnxplain.engine.executors.protocol import Array, TensorSpec
from onnxplain.engine.requests import Kind, Objective
from onnxplain.engine.verify import Finding, Ladder, parts, random_images, verify
from onnxplain.errors import NonFinite

SHAPE, CLASSES = (3, 6, 6), 5
rng = np.random.default_rng(0)
A = rng.normal(size=(20, 108)) / np.sqrt(108)
B = rng.normal(size=(CLASSES, 20))

Net = tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]  # images to logits; images and cotangents to Jᵀv


def smooth(a: Array = A, b: Array = B) -> Net:
    def hidden(x: Array) -> Array:
        return np.tanh(x.reshape(len(x), -1) @ a.T)

    return lambda x: hidden(x) @ b.T, lambda x, v: (((v @ b) * (1 - hidden(x) ** 2)) @ a).reshape(x.shape)


def kinked() -> Net:
    def hidden(x: Array) -> Array:
        return x.reshape(len(x), -1) @ A.T

    return lambda x: np.maximum(hidden(x), 0) @ B.T, lambda x, v: (((v @ B) * (hidden(x) > 0)) @ A).reshape(x.shape)


def model(
    net: Net | None = None,
    spoil: Callable[[Array], Array] = lambda g: g,
    forward: Callable[[Array], Array] | None = None,
    dtype: str = "float32",
) -> Model:
    """A gradient model whose gradient is spoilt, and its forward half, which may be another one."""
    logits, pull_back = net or smooth()
    kind = np.dtype(dtype)
    images = {"x": TensorSpec(kind, ("N", *SHAPE))}
    extra = {TARGET: TensorSpec(np.dtype("float32"), ("N", CLASSES)), OBJECTIVE: TensorSpec(np.dtype("int64"), ("N",))}

    def cotangent(z: Array, code: int, t: Array) -> Array:
        """By differences in float64, so that no formula of ours is needed."""
        up, down = (z + s * 1e-6 * np.eye(CLASSES) for s in (1, -1))
        objective = Objective(Kind(code), t)
        return np.asarray(objective.value(up) - objective.value(down)) / 2e-6

    def gradient(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        x, rows = feeds["x"].astype(np.float64), list(zip(feeds[OBJECTIVE].tolist(), feeds[TARGET], strict=True))
        z = logits(x)
        v = np.stack([cotangent(row, code, t) for row, (code, t) in zip(z, rows, strict=True)])
        values = np.stack([Objective(Kind(code), t).value(row) for row, (code, t) in zip(z, rows, strict=True)])
        outputs = {"logits": z, "value": values, "gradient": spoil(pull_back(x, v))}
        return {name: value.astype(kind) for name, value in outputs.items()}

    return toys.joined(
        FunctionExecutor(
            lambda feeds: {"logits": (forward or logits)(feeds["x"].astype(np.float64)).astype(kind)},
            images,
            {"logits": TensorSpec(kind, ("N", CLASSES))},
        ),
        FunctionExecutor(
            gradient,
            images | extra,
            {name: TensorSpec(kind, ()) for name in ("logits", "value", "gradient")},
        ),
    )


IMAGES = random_images(SHAPE, 0, 1)


CASES = {"smooth": smooth(), "kinked": kinked()}


@pytest.mark.parametrize(("net", "dtype"), [("smooth", "float32"), ("smooth", "float64"), ("kinked", "float32")])
def test_a_right_gradient_passes_and_tells_what_would_have_been_noticed(net: str, dtype: str) -> None:
    found = verify(model(CASES[net], dtype=dtype), IMAGES)
    assert found.verdict == "passed"
    assert found.along < (0.01 if dtype == "float32" else 1e-5)
    assert found.along <= min(look.along.noticeable for look in found.looks)
    assert {look.target for look in found.looks if look.target == "random weights"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("net", CASES)
def test_what_is_said_to_be_noticeable_is_noticed(net: str, seed: int) -> None:
    """Errors of twice that size fail, along and across; one of a tenth of it passes."""
    right = verify(model(CASES[net]), IMAGES, seed=seed)
    along = max(look.along.noticeable for look in right.looks)
    across = max(look.across.noticeable for look in right.looks)
    error = np.random.default_rng(seed).normal(size=SHAPE) / np.sqrt(np.prod(SHAPE))

    def scaled(g: Array, by: float) -> Array:
        return g * (1 + by)

    def disturbed(g: Array, by: float) -> Array:
        return g + by * error * np.linalg.norm(g.reshape(len(g), -1), axis=1).reshape(-1, 1, 1, 1)

    cases = ((scaled, 2 * along, "failed"), (scaled, 0.1 * right.along, "passed"), (disturbed, 2 * across, "failed"))
    for spoil, size, verdict in cases:
        assert verify(model(CASES[net], partial(spoil, by=size)), IMAGES, seed=seed).verdict == verdict


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: g * 0,
        lambda g: -g,
        lambda g: g * 1.05,
        lambda g: g[:, ::-1],
        lambda g: g.transpose(0, 1, 3, 2),
        lambda g: g * (np.arange(6) > 0),
        lambda g: np.where(np.arange(3).reshape(3, 1, 1) == 1, 0, g),
        lambda g: g + 1.0,
        lambda g: np.abs(g),
        lambda g: np.sign(g),
        lambda g: g * 1e12,
        lambda g: g * 1e-12,
    ],
)  # fmt: skip
def test_a_wrong_gradient_fails(spoil: Callable[[Array], Array]) -> None:
    assert verify(model(spoil=spoil), IMAGES).verdict == "failed"


def test_a_gradient_of_other_weights_fails() -> None:
    other = smooth(A[:, ::-1])[1]
    assert verify(model((smooth()[0], other)), IMAGES).verdict == "failed"


def test_logits_of_another_model_fail() -> None:
    found = verify(model(forward=lambda x: smooth()[0](x) * 1.001), IMAGES)
    assert found.verdict == "failed"
    assert any("logits differ" in failure for failure in found.failures)


def test_logits_within_rounding_pass() -> None:
    """What another order of summation changes is no error."""
    assert verify(model(forward=lambda x: smooth()[0](x) * (1 + 1e-7)), IMAGES).passed


def test_a_saturated_model_is_inconclusive() -> None:
    """Its logits do not move, and its gradient says so: nothing is wrong, and nothing is proved."""
    flat = (lambda x: np.tile(np.arange(CLASSES) * 1.0, (len(x), 1)), lambda x, v: np.zeros_like(x))
    found = verify(model(flat), IMAGES)
    assert found.verdict == "inconclusive"
    assert all(look.flat for look in found.looks)
    assert found.along == math.inf


def test_a_gradient_of_a_model_that_stands_still_fails() -> None:
    still = (lambda x: np.tile(np.arange(CLASSES) * 1.0, (len(x), 1)), smooth()[1])
    assert verify(model(still), IMAGES).verdict == "failed"


def test_a_gradient_of_zero_of_a_model_that_moves_fails() -> None:
    assert verify(model((smooth()[0], lambda x, v: np.zeros_like(x))), IMAGES).verdict == "failed"


def test_a_staircase_does_not_look_like_a_model_that_stands_still() -> None:
    """A model that rounds its input: small steps change nothing, and the test goes on to longer ones."""
    logits, pull_back = smooth()

    def stairs(x: Array) -> Array:
        return logits(np.round(x * 256) / 256)

    found = verify(model((stairs, pull_back)), IMAGES)
    assert found.failures == ()
    assert all(look.along.step > 1e-4 for look in found.looks)
    assert verify(model((stairs, pull_back), lambda g: 2 * g), IMAGES).verdict == "failed"


def test_an_image_on_a_kink_passes() -> None:
    """On a tie every subgradient is right, and none is the mean of what is seen from both sides."""
    zero = {"grey": np.zeros(SHAPE), "white": np.ones(SHAPE)}
    assert verify(model(kinked()), zero).failures == ()


def test_nan_is_an_error() -> None:
    with pytest.raises(NonFinite):
        verify(model(spoil=lambda g: g * np.nan), IMAGES)


@pytest.mark.parametrize("low", [-2.0, 0.0])
@pytest.mark.parametrize("shape", [SHAPE, (6, 6, 3), (1, 5, 9), (7,)])
def test_random_images_fill_the_range(shape: tuple[int, ...], low: float) -> None:
    images = random_images(shape, low, 1.0)
    assert all(x.shape == shape and low <= x.min() and x.max() <= 1 for x in images.values())
    assert len({x.tobytes() for x in images.values()}) == 2


@pytest.mark.parametrize(("shape", "count"), [(SHAPE, 8), ((6, 6, 3), 8), ((1, 6, 6), 5), ((7,), 3), ((2,), 3)])
def test_parts_are_channels_and_quadrants(shape: tuple[int, ...], count: int) -> None:
    """And all of it, in either layout; a part that is empty is none."""
    g = np.random.default_rng(1).normal(size=shape)
    found = list(parts(g))
    assert len(found) == count
    assert np.array_equal(found[0], g)
    g[..., 0] = 0
    assert all(part.any() for part in parts(g))
    assert list(parts(np.zeros(shape))) == []


def test_nothing_passes_by_nan() -> None:
    assert not Finding(gap=math.nan, noise=1.0, step=1.0, directions=1).passed
    assert not Finding(gap=1.0, noise=math.nan, step=1.0, directions=1).passed


def test_the_ladder_stops_where_kinks_begin_to_matter() -> None:
    """Rounding falls with the step and kinks grow: the finding is of the pair before the best."""
    ladder, draw = Ladder(1.0, 0.0), np.random.default_rng(0)
    steps = [1e-6 * 4**k for k in range(9)]
    for step in steps:
        noise = draw.normal(size=8) * (1e-9 + 2e-2 * step**1.5)
        ladder.climb(step, 2 * step + noise, np.full(8, 2 * step), 0.0)
    assert ladder.done
    found = ladder.finding(8)
    assert found.passed
    assert steps[0] < found.step < steps[5]
