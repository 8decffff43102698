"""Images that say nothing: where a path begins."""

from __future__ import annotations

from enum import Enum

import cv2
import numpy as np

from onnxplain.engine.methods.method import Array, channel_axis
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError


class Baseline(Enum):
    """The baselines that have a name."""

    BLACK = "black"  # the low end of the valid range: 0 in pixel space
    AVERAGE = "average"  # the average pixel: the mean over the picture, channel by channel


def baseline_of(x: Array, baseline: Baseline | Array, space: Space, who: str) -> Array:
    """The baseline of image `x`, in its shape and dtype. `who` names the method in errors."""
    if isinstance(baseline, np.ndarray):
        try:
            return np.broadcast_to(baseline, x.shape).astype(x.dtype)
        except ValueError:
            raise UsageError(
                f"{who}: a baseline of shape {list(baseline.shape)} does not fit an image of shape {list(x.shape)}"
            ) from None
    if baseline is Baseline.BLACK:
        space.require_range(f"{who} with a black baseline")
        return np.broadcast_to(space.low, x.shape).astype(x.dtype)
    picture = tuple(axis for axis in range(x.ndim) if axis != channel_axis(x, space))
    return np.broadcast_to(x.mean(axis=picture, keepdims=True), x.shape).astype(x.dtype)


def blurred(x: Array, kernel: int, space: Space) -> Array:
    """`x` under a Gaussian of `kernel` x `kernel` taps, each channel alone, reflected at the borders.

    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8, which is OpenCV's own choice for a kernel of this size.
    """
    channel = channel_axis(x, space)
    if channel is None or x.ndim != 3:
        raise UsageError(f"blurring needs an image of shape (C,H,W) or (H,W,C), got {list(x.shape)}; next: give starts")
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    out = np.empty(x.shape, x.dtype)
    for plane, into in zip(np.moveaxis(x, channel, 0), np.moveaxis(out, channel, 0), strict=True):
        into[...] = cv2.GaussianBlur(
            np.ascontiguousarray(plane), (kernel, kernel), sigmaX=sigma, borderType=cv2.BORDER_REFLECT_101
        )
    return out
