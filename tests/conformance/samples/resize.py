"""Resize: every mode, along one axis and along several."""

from __future__ import annotations

from typing import Any

import numpy as np
from conformance.samples.sample import Const, Sample, ints, node, normal


def by(x: tuple[int, ...], scales: list[float], **more: Any) -> Sample:
    """Resize with scales, which are float32 in every model."""
    return node("Resize", normal(*x), None, Const(np.asarray(scales, np.float32)), **more)


def to(x: tuple[int, ...], sizes: list[int], **more: Any) -> Sample:
    return node("Resize", normal(*x), None, None, ints(*sizes), **more)


def crop(x: tuple[int, ...], region: list[float], sizes: list[int], **more: Any) -> Sample:
    """The region is what tf_crop_and_resize reads."""
    more |= {"coordinate_transformation_mode": "tf_crop_and_resize"}
    return node("Resize", normal(*x), Const(np.asarray(region, np.float32)), None, ints(*sizes), **more)


PICTURE, BIG = (2, 3, 4, 5), (2, 3, 5, 6)
PYTORCH = {"coordinate_transformation_mode": "pytorch_half_pixel"}
CORNERS = {"coordinate_transformation_mode": "align_corners"}
ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric"}
SYMMETRIC = {"coordinate_transformation_mode": "half_pixel_symmetric"}

SAMPLES = [
    by(PICTURE, [1, 1, 2, 3]),
    by(PICTURE, [1, 1, 2, 2], nearest_mode="floor", **ASYMMETRIC, label="as PyTorch"),
    by(PICTURE, [1, 1, 1.5, 0.75], nearest_mode="round_prefer_ceil"),
    by(PICTURE, [1, 1, 1.5, 0.75], nearest_mode="ceil", **ASYMMETRIC),
    to((2, 1, 6, 9), [2, 1, 11, 4], nearest_mode="floor", free=()),
    to((2, 1, 6, 9), [2, 1, 11, 4], **CORNERS, free=()),
    to((2, 9), [20], axes=[1], nearest_mode="floor", **ASYMMETRIC),
    to((2, 3, 5), [2, 9, 5], nearest_mode="round_prefer_floor", **PYTORCH, free=()),
    by(PICTURE, [1, 1, 2, 2], mode="linear"),
    by(PICTURE, [1, 1, 1.5, 0.6], mode="linear", **PYTORCH),
    to((2, 3, 6, 7), [9, 4], axes=[2, 3], mode="linear", **CORNERS),
    to((2, 3, 6, 7), [9, 1], axes=[2, -1], mode="linear", **CORNERS, label="to one"),
    by((2, 6, 7, 3), [1, 2, 0.5, 1], mode="linear", label="channels last", **ASYMMETRIC),
    by((2, 3, 7), [1, 1, 0.6], mode="linear", **SYMMETRIC, label="line"),
    by((1, 2, 3, 4, 3), [1, 1, 2, 1, 1.5], mode="linear", label="volume"),
    by((2, 3, 6, 7), [1, 1, 0.5, 0.6], mode="linear", antialias=1),
    to((2, 3, 9, 7), [4, 3], axes=[2, 3], mode="linear", antialias=1, exclude_outside=1, **PYTORCH),
    by(PICTURE, [1, 1, 2, 1.5], mode="cubic"),
    by(PICTURE, [1, 1, 2, 1.5], mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    to((2, 3, 6, 7), [9, 4], axes=[2, 3], mode="cubic", **CORNERS),
    to((2, 3, 6, 7), [3, 11], axes=[2, 3], mode="cubic", antialias=1, cubic_coeff_a=-0.5, exclude_outside=1),
    to((2, 3, 6, 7), [4, 4], axes=[2, 3], mode="cubic", antialias=1, **PYTORCH),
    to((2, 3, 4, 6), [9, 9], axes=[2, 3], mode="linear", keep_aspect_ratio_policy="not_larger"),
    to((2, 3, 4, 6), [9, 9], axes=[3, 2], mode="linear", keep_aspect_ratio_policy="not_smaller"),
    crop(BIG, [0.25, 0.1, 0.85, 0.75], [4, 3], axes=[2, 3], mode="linear"),
    crop(BIG, [0, 0, -0.3, 0.1, 1, 1, 0.85, 1.4], [2, 3, 4, 4], mode="linear", extrapolation_value=9.0, free=()),
    crop(BIG, [-0.3, 0.15, 0.8, 1.4], [7, 4], axes=[2, 3]),
    by(PICTURE, [1, 1, 1, 1], label="nothing"),
]
