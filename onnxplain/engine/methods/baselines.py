"""Images that say nothing: where a path begins."""

from __future__ import annotations

from enum import Enum

import cv2
import numpy as np

from onnxplain.engine.methods.method import Array, Task, channel_axis, require
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError


class Baseline(Enum):
    """The baselines that have a name."""

    BLACK = "black"  # the low end of the valid range: 0 in pixel space
    MEAN_COLOUR = "mean_colour"  # the point that normalisation maps to 0
    AVERAGE = "average"  # the average pixel: the mean over the picture, channel by channel
    AVERAGE_SCALAR = "average_scalar"  # the mean over picture and channels: a grey
    GAUSSIAN = "gaussian"  # independent draws from N(0, 1) in model space, clipped to the valid range
    UNIFORM = "uniform"  # independent draws from the valid range
    BLUR = "blur"  # the image under a Gaussian of 31 x 31 taps, sigma 5


BLUR_KERNEL = 31


def require_baseline(who: str, baseline: Baseline | Array) -> None:
    names = ", ".join(f"Baseline.{member.name}" for member in Baseline)
    require(isinstance(baseline, (Baseline, np.ndarray)), f"{who}: baseline", f"{names} or an array", baseline)


def baseline_of(x: Array, baseline: Baseline | Array, task: Task, who: str) -> Array:
    """The baseline of image `x`, in its shape and dtype. `who` names the method in errors.

    Random baselines are one draw from the generator of the task.
    """
    return np.broadcast_to(point(x, baseline, task, who), x.shape).astype(x.dtype)


def point(x: Array, baseline: Baseline | Array, task: Task, who: str) -> Array:
    """The same, of a shape that broadcasts against that of `x`."""
    space = task.space
    if isinstance(baseline, np.ndarray):
        try:
            return np.broadcast_to(baseline, x.shape)
        except ValueError:
            raise UsageError(
                f"{who}: a baseline of shape {list(baseline.shape)} does not fit an image of shape {list(x.shape)}"
            ) from None
    if baseline in (Baseline.BLACK, Baseline.UNIFORM):
        space.require_range(f"{who} with a {baseline.value} baseline")
    match baseline:
        case Baseline.BLACK:
            return space.low
        case Baseline.MEAN_COLOUR:
            return space.zero
        case Baseline.AVERAGE:
            picture = tuple(axis for axis in range(x.ndim) if axis != channel_axis(x, space))
            return np.asarray(x.mean(axis=picture, keepdims=True))
        case Baseline.AVERAGE_SCALAR:
            return np.asarray(x.mean())
        case Baseline.GAUSSIAN:
            return np.clip(space.zero + space.scale * task.rng.normal(size=x.shape), space.low, space.high)
        case Baseline.UNIFORM:
            return space.low + space.span * task.rng.random(x.shape)
        case Baseline.BLUR:
            return blurred(x, BLUR_KERNEL, space)


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
