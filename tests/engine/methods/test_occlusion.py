"""Occlusion: by hand, and against Captum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from frameworks import framework

import onnxplain as ox
from onnxplain.engine.methods import Baseline, Occlusion
from onnxplain.engine.requests import Array, Kind
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError
from onnxplain.models.preprocess import PreprocessSpec, load_image, to_input

DATA = Path(__file__).parents[4] / "shared" / "data"


def captums(logits: Any, x: Array, baseline: Array, target: int, window: int, stride: int) -> Array:
    """Captum's occlusion of images `x` (N, C, H, W)."""
    attr, torch = framework("captum.attr"), framework("torch")
    occlusion = attr.Occlusion(lambda t: torch.from_numpy(logits(t.numpy())))
    channels = x.shape[1]
    return occlusion.attribute(  # type: ignore[no-any-return]
        torch.from_numpy(x),
        sliding_window_shapes=(channels, window, window),
        strides=(channels, stride, stride),
        baselines=torch.from_numpy(baseline),
        target=target,
        perturbations_per_eval=16,
    ).numpy()


def test_by_hand() -> None:
    """Windows of 2 at stride 1 on four features, F = <w, x>, x' = 0: an inner feature is in two windows."""
    w, x = np.array([[1.0, 2, 3, 4]]), np.array([1.0, 1, 1, 1])
    method = Occlusion(window=2, stride=1, baseline=0 * x, objective=Kind.LOGIT)
    answer = toys.explain(method, toys.affine(w), x, 0)
    assert answer.values.tolist() == [3, 4, 6, 7]
    assert answer.diagnostics == {"value": 10.0, "windows": 3}


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 2), (3, 2), (3, 3), (5, 4), (8, 8), (8, 3), (7, 2)])
def test_it_is_captums(window: int, stride: int) -> None:
    """In float64, windows cut off at the ends and all. Captum gives the map to each channel, we share it out."""
    toy = toys.picture_net(1, (3, 8, 10))
    draw = np.random.default_rng(2)
    x, baseline = draw.random((3, 8, 10)), draw.random((3, 8, 10))
    method = Occlusion(window=window, stride=stride, baseline=baseline, objective=Kind.LOGIT)
    ours = toys.explain(method, toy, x, 2).values

    def logits(rows: Array) -> Array:
        return np.stack([toy.logits(row) for row in rows])

    theirs = captums(logits, x[None], baseline[None], 2, window, stride)[0]
    # Captum keeps its sums in float32
    np.testing.assert_allclose(3 * ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "photos", "window", "stride"),
    [
        ("imagenet/models/mobilenet_v1_0.25_128", "imagenet/images/nips17_100", 15, 8),
        ("cifar10/models/resnet20_cifar10", "cifar10/images/test100", 5, 2),
    ],
)
def test_it_is_captums_on_real_classifiers(model: str, photos: str, window: int, stride: int) -> None:
    """Two photos in float32: the same ranks, Spearman of at least 0.999."""
    stats = framework("scipy.stats")
    path = DATA / f"{model}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand (../shared/data)")
    spec = PreprocessSpec.from_json_file(DATA / f"{model}.preprocessor_config.json")
    x = np.stack([to_input(load_image(photo, spec)) for photo in sorted((DATA / photos).glob("*.*"))[:2]])
    with ox.open(path, preprocess=spec, gradient=False) as explainer:
        for image in x:
            (ours,) = explainer.explain(image[None], Occlusion(window=window, stride=stride, objective=Kind.LOGIT))
            zero = np.broadcast_to(explainer.space.zero, image.shape).astype(np.float32)
            theirs = captums(explainer.logits, image[None], zero[None], ours.target, window, stride)[0]
            assert stats.spearmanr(ours.attribution.sum(0).ravel(), theirs[0].ravel()).statistic > 0.999


def test_cost_and_layout() -> None:
    assert Occlusion().rows((3, 224, 224)) == Occlusion().rows((224, 224, 3)) == 1 + 28 * 28
    assert Occlusion(window=3, stride=1).rows((6,)) == 1 + 4
    x = np.random.default_rng(0).random((3, 8, 8))
    weights = np.random.default_rng(1).normal(size=(2, 192))
    first = toys.affine(weights, shape=(3, 8, 8))
    last = toys.affine(weights.reshape(2, 3, 8, 8).transpose(0, 2, 3, 1).reshape(2, -1), shape=(8, 8, 3))
    method = Occlusion(window=3, stride=2)
    one = toys.explain(method, first, x).values
    other = toys.explain(method, last, x.transpose(1, 2, 0), space=Space.pixels(channel_axis=-1)).values
    np.testing.assert_allclose(other.transpose(2, 0, 1), one, atol=1e-14)


def test_an_image_that_is_its_baseline_gives_nothing() -> None:
    x = np.full((3, 8, 8), 0.5)
    for baseline in (Baseline.AVERAGE, x):
        assert not toys.explain(Occlusion(window=3, stride=2, baseline=baseline), toys.picture_net(), x).values.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "Occlusion: window: expected a whole number from 1 to 10000, got 0"),
        ({"stride": 16}, "Occlusion: stride: expected at most the window (15), so that every pixel is covered, got 16"),
        ({"baseline": None}, "Occlusion: baseline: expected "),
        ({"objective": Kind.SOFT_CE}, "Occlusion: objective: expected one of "),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Occlusion(**wrong)
    assert str(caught.value).startswith(message)


def test_a_window_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(UsageError, match=r"does not fit a picture of shape \[8, 8\]; next: .* at most 8"):
        toys.explain(Occlusion(), toys.picture_net(), np.zeros((3, 8, 8)))
    with pytest.raises(UsageError, match=r"a picture of shape \[6\]"):
        toys.explain(Occlusion(), toys.TOY_L, toys.X)
    with pytest.raises(UsageError, match="baseline of shape"):
        toys.explain(Occlusion(window=2, stride=1, baseline=np.zeros(5)), toys.TOY_L, toys.X)
