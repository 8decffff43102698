"""Reduction over channels, and overlays."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.engine.heatmap import overlay, reduce_channels, require_finite
from onnxplain.errors import InputError, UsageError

A = np.array([[[1, -4]], [[-3, 2]], [[1, 1]]], np.float32)  # (C, H, W) = (3, 1, 2)


@pytest.mark.parametrize(("how", "expected"), [("sum", [-1, -1]), ("abs_sum", [5, 7]), ("max_abs", [3, 4])])
def test_reductions(how, expected):
    for heatmap in (reduce_channels(A, how), reduce_channels(np.moveaxis(A, 0, -1), how, -1)):
        assert heatmap.dtype == np.float32
        np.testing.assert_array_equal(heatmap, [expected])


def test_what_cannot_be_reduced():
    with pytest.raises(UsageError, match="use one of sum, abs_sum, max_abs"):
        reduce_channels(A, "mean")
    with pytest.raises(UsageError, match=r"3 axes .* got shape \[1, 2\]"):
        reduce_channels(A[0])


def test_nan_and_inf_are_counted():
    with pytest.raises(InputError, match=r"cat\.npy: 2 of 4 values are NaN or Inf; next: "):
        require_finite(np.array([1, np.nan, -np.inf, 0]), "cat.npy")


GREY = np.full((20, 20, 3), 100, np.uint8)


def test_a_map_with_signs_is_red_and_blue():
    heatmap = np.zeros((20, 20), np.float32)
    heatmap[:, :5], heatmap[:, 15:] = 1, -1
    drawn = overlay(heatmap, GREY).astype(int)
    red, _, blue = drawn[0, 0]
    assert red > blue + 30
    red, _, blue = drawn[0, -1]
    assert blue > red + 30
    assert np.ptp(drawn[0, 10]) == 0  # nothing there: grey


def test_a_map_without_signs_goes_from_dark_to_bright():
    heatmap = np.tile(np.linspace(0, 1, 20, dtype=np.float32), (20, 1))
    drawn = overlay(heatmap, GREY).astype(int).sum(-1)
    assert (np.diff(drawn[0, 5:]) > 0).all()
    assert (drawn == drawn[0]).all()


def test_one_outlier_does_not_hide_the_rest():
    heatmap = np.tile(np.linspace(0, 1, 20, dtype=np.float32), (20, 1))
    spiked = heatmap.copy()
    spiked[0, 0] = 1e6
    np.testing.assert_array_equal(overlay(spiked, GREY)[1:], overlay(heatmap, GREY)[1:])


@pytest.mark.parametrize("value", [0, 1e-30, -1e30, 5])
def test_constant_and_sparse_maps_are_drawn(value):
    constant = np.full((20, 20), value, np.float32)
    sparse = np.where(np.arange(400).reshape(20, 20) == 7, constant, 0).astype(np.float32)
    for heatmap in (constant, sparse):
        drawn = overlay(heatmap, GREY)
        assert drawn.dtype == np.uint8
        assert drawn.shape == GREY.shape
    assert value == 0 or (overlay(sparse, GREY)[0, 7] != overlay(sparse, GREY)[0, 8]).any()
