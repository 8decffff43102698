"""Superpixels: cut from pictures of every layout, or given."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import toys
from frameworks import framework

from onnxplain.engine.methods import Segments, Task
from onnxplain.engine.methods.superpixels import mean_colours, superpixels
from onnxplain.engine.space import Space
from onnxplain.errors import BackendMissing, UsageError


def told(space: Space) -> Task:
    return Task(0, space, np.random.default_rng(0))


def quarters(size: int = 40) -> toys.Array:
    """RGB (3, H, W): four quarters of plain colours, with a little noise."""
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32)
    where = np.add.outer(2 * (np.arange(size) // (size // 2)), np.arange(size) // (size // 2))
    noise = np.random.default_rng(0).normal(0, 0.01, (3, size, size))
    return (colours[where].transpose(2, 0, 1) + noise).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("segments", list(Segments))
def test_they_follow_the_picture_whatever_its_layout(segments: Segments) -> None:
    """No superpixel has more than a few pixels of a second quarter; channels last gives the same."""
    framework("skimage.segmentation")
    x = quarters()
    cut = superpixels(x, segments, told(Space.pixels()), "LIME")
    assert cut.shape == (40, 40)
    assert sorted(np.unique(cut)) == list(range(cut.max() + 1))
    assert 4 <= cut.max() + 1 <= 100
    quarter = np.add.outer(2 * (np.arange(40) // 20), np.arange(40) // 20)
    shares = np.stack([np.bincount(cut[quarter == q], minlength=cut.max() + 1) for q in range(4)])
    assert shares.max(axis=0).sum() > 0.97 * 1600
    last = superpixels(x.transpose(1, 2, 0), segments, told(Space.pixels(channel_axis=-1)), "LIME")
    np.testing.assert_array_equal(cut, last)
    scaled = superpixels(255 * x, segments, told(Space.model((0, 255))), "LIME")
    np.testing.assert_array_equal(cut, scaled)


@pytest.mark.parametrize("segments", list(Segments))
def test_grey_pictures_with_and_without_a_channel(segments: Segments) -> None:
    framework("skimage.segmentation")
    grey = quarters().mean(axis=0)
    one = superpixels(grey[None], segments, told(Space.pixels()), "LIME")
    two = superpixels(grey, segments, told(Space.pixels(rank=2)), "LIME")
    np.testing.assert_array_equal(one, two)
    assert one.max() > 0


def test_a_given_map_is_numbered_anew() -> None:
    x = np.zeros((3, 2, 2))
    cut = superpixels(x, np.array([[7, -1], [7, 40]]), told(Space.pixels()), "LIME")
    assert cut.tolist() == [[1, 0], [1, 2]]
    with pytest.raises(UsageError, match=r"LIME: a map of superpixels of shape \[3\] does not fit a picture of shape"):
        superpixels(x, np.arange(3), told(Space.pixels()), "LIME")


def test_mean_colours() -> None:
    x = np.arange(12.0).reshape(3, 2, 2)
    cut = np.array([[0, 0], [0, 1]])
    expected = x.copy()
    expected[:, cut == 0] = x[:, cut == 0].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(mean_colours(x, cut, told(Space.pixels())), expected)
    vector = mean_colours(np.array([1.0, 3, 5]), np.array([0, 0, 1]), told(Space.pixels(rank=1)))
    assert vector.tolist() == [2, 2, 5]


@pytest.mark.parametrize(
    ("x", "space", "message"),
    [
        (np.zeros(6), Space.pixels(rank=1), "expected a picture of 1 or 3 channels, got an input of shape"),
        (np.zeros((4, 8, 8)), Space.pixels(), "expected a picture of 1 or 3 channels"),
        (np.zeros((3, 4, 8, 8)), Space.pixels(rank=4), "expected a picture of 1 or 3 channels"),
        (np.zeros((3, 8, 8)), Space.model(), "LIME with slic superpixels works in pixel units"),
    ],
)
def test_what_cannot_be_cut(x: toys.Array, space: Space, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        superpixels(x, Segments.SLIC, told(space), "LIME")


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(BackendMissing, match=r"scikit-image is not installed; .*onnxplain\[superpixels\]"):
        superpixels(quarters(), Segments.SLIC, told(Space.pixels()), "LIME")
