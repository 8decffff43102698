"""Superpixels: the parts of a picture that are kept or replaced as one."""

from __future__ import annotations

from enum import Enum

import numpy as np

from onnxplain.engine.methods.masked import picture_shape
from onnxplain.engine.methods.method import Array, Task, channel_axis, require
from onnxplain.errors import UsageError, importing

EXTRA = "superpixels"  # of the package: scikit-image and scikit-learn


class Segments(Enum):
    """The algorithms that cut a picture into superpixels, from scikit-image."""

    QUICKSHIFT = "quickshift"  # kernel_size=4, max_dist=200, ratio=0.2: those of LIME's released code
    SLIC = "slic"  # about 50 of compactness 10


def require_segments(who: str, segments: Segments | Array) -> None:
    known = isinstance(segments, Segments) or (isinstance(segments, np.ndarray) and segments.dtype.kind in "iu")
    names = ", ".join(f"Segments.{member.name}" for member in Segments)
    got = f"an array of {segments.dtype}" if isinstance(segments, np.ndarray) else segments
    require(known, f"{who}: segments", f"{names} or an array of integers", got)


def superpixels(x: Array, segments: Segments | Array, task: Task, who: str) -> Array:
    """The superpixel of each pixel, integers (H, W) from 0 to M - 1. `who` names the method in errors.

    Raises:
        UsageError: a given map does not fit the picture; the input is no picture of 1 or 3 channels, or its range is
            unknown, so that there is nothing to cut.
        BackendMissing: scikit-image is not installed.
    """
    picture = picture_shape(x, task.space)
    if isinstance(segments, np.ndarray):
        if segments.shape != picture:
            raise UsageError(
                f"{who}: a map of superpixels of shape {list(segments.shape)} does not fit "
                f"a picture of shape {list(picture)}"
            )
        return np.unique(segments, return_inverse=True)[1].reshape(picture)
    rgb = as_rgb(x, task, f"{who} with {segments.value} superpixels")
    with importing("scikit-image", EXTRA):
        from skimage.segmentation import quickshift, slic
    if segments is Segments.QUICKSHIFT:
        cut = quickshift(rgb, kernel_size=4, max_dist=200, ratio=0.2)  # type: ignore[no-untyped-call, unused-ignore]
    else:
        cut = slic(rgb, n_segments=50, compactness=10, start_label=0)
    return np.unique(cut, return_inverse=True)[1].reshape(picture)


def as_rgb(x: Array, task: Task, who: str) -> Array:
    """An image as RGB in [0, 1], float64 (H, W, 3)."""
    space, channel = task.space, channel_axis(x, task.space)
    planes = x[None] if channel is None else np.moveaxis(x, channel, 0)
    if planes.ndim != 3 or len(planes) not in (1, 3):
        raise UsageError(
            f"{who}: expected a picture of 1 or 3 channels, got an input of shape {list(x.shape)}; "
            "next: give a map of integers as segments"
        )
    space.require_range(who)
    scaled = (x.astype(np.float64) - space.low) / space.span
    picture = scaled[..., None] if channel is None else np.moveaxis(scaled, channel, -1)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)).clip(0, 1))


def mean_colours(x: Array, cut: Array, task: Task) -> Array:
    """`x` with every superpixel in its own mean colour."""
    channel = channel_axis(x, task.space)
    sizes = np.bincount(cut.reshape(-1))
    planes = x[None] if channel is None else np.moveaxis(x, channel, 0)
    means = np.stack([(np.bincount(cut.reshape(-1), plane.reshape(-1)) / sizes)[cut] for plane in planes])
    return np.asarray(means[0] if channel is None else np.moveaxis(means, 0, channel), x.dtype)


def subsets(rng: np.random.Generator, sizes: Array, count: int) -> Array:
    """One random subset of `count` things for each size, all subsets of that size alike: bool (n, count)."""
    ranks = rng.random((len(sizes), count)).argsort(axis=1).argsort(axis=1)
    return np.asarray(ranks < sizes[:, None])
