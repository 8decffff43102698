"""Attributions reduced over channels, and painted over their image."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError, UsageError

Array: TypeAlias = NDArray[Any]


class Reduction(StrEnum):
    """How the channels of an attribution become one number a pixel. Scores depend on it: it is always recorded."""

    SUM = "sum"  # keeps completeness
    ABS_SUM = "abs_sum"
    MAX_ABS = "max_abs"  # Simonyan et al. 2013


def reduction(how: str) -> Reduction:
    """The reduction of that name."""
    try:
        return Reduction(how)
    except ValueError:
        raise UsageError(f"reduction {how!r} is unknown; next: use one of {', '.join(Reduction)}") from None


def reduce_channels(attribution: Array, how: str = "sum", channel_axis: int = 0) -> Array:
    """Heatmap (H, W) float32 of an attribution with the axes C, H, W.

    `sum_c A_c`, `sum_c |A_c|` or `max_c |A_c|`, as `how` says; `channel_axis` is 0 for (C, H, W) and -1 for (H, W, C).
    """
    if attribution.ndim != 3:
        raise UsageError(
            f"a heatmap is made from 3 axes (channels, height, width), got shape {list(attribution.shape)}"
        )
    match reduction(how):
        case Reduction.SUM:
            heatmap = attribution.sum(axis=channel_axis)
        case Reduction.ABS_SUM:
            heatmap = np.abs(attribution).sum(axis=channel_axis)
        case Reduction.MAX_ABS:
            heatmap = np.abs(attribution).max(axis=channel_axis)
    return np.asarray(heatmap, np.float32)


def require_finite(values: Array, name: str) -> None:
    """Raise `InputError` if there is NaN or Inf: a ranking would put NaN anywhere, even first."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {values.size} values are NaN or Inf; next: make the heatmap again")


def overlay(heatmap: Array, image: Array) -> Array:
    """Paint a heatmap (H, W) over its image, uint8 (H, W, 3); returns uint8 (H, W, 3), RGB.

    Values are divided by the 99th percentile of their magnitude and clipped. A map with negative values is drawn from
    blue (negative) to red (positive), any other from dark to bright. The stronger a value, the less of the image,
    which is turned grey, shines through.
    """
    import cv2

    strength = normalised(heatmap)
    if heatmap.min() < 0:
        colours = cv2.applyColorMap(to_bytes(127.5 + 127.5 * strength), diverging())
    else:
        colours = cv2.applyColorMap(to_bytes(255 * strength), cv2.COLORMAP_INFERNO)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    alpha = 0.2 + 0.7 * np.abs(strength)[..., None]
    return to_bytes(alpha * colours[..., ::-1] + (1 - alpha) * grey)


def to_bytes(levels: Array) -> Array:
    return np.asarray(np.round(levels), np.uint8)


def normalised(heatmap: Array) -> Array:
    """`heatmap` in units of the 99th percentile of its magnitude, clipped to [-1, 1]."""
    magnitude = np.abs(heatmap.astype(np.float64))
    unit = np.percentile(magnitude, 99) or magnitude.max() or 1.0  # a sparse map; a map of zeros
    return np.clip(heatmap / unit, -1, 1)


def diverging() -> Array:
    """256 colours from blue over white to red, as OpenCV wants them: (256, 1, 3), blue first."""
    anchors = np.array([[172, 102, 33], [247, 247, 247], [43, 24, 178]])
    at = np.linspace(0, 2, 256)
    return np.stack([np.interp(at, range(3), channel) for channel in anchors.T], axis=-1).astype(np.uint8)[:, None]
