"""Maps (h, w) of a layer: brought to the size of the image, and to values from 0 to 1."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

ROUNDING = 64  # units in the last place: values that differ by no more are equal


def bilinear(map: Array, size: tuple[int, int], *, align_corners: bool = False) -> Array:
    """A map (h, w) as one of `size` (H, W), in its dtype, as PyTorch's `interpolate` makes it.

    Values lie at the centres of their pixels, and what lies further out is the border's; or, with `align_corners`, the
    outermost values lie on the outermost pixels of the result. (OpenCV has the first convention only, and coefficients
    of single precision.)
    """
    for axis, length in enumerate(size):
        last = map.shape[axis] - 1
        if align_corners:
            at = np.linspace(0, last, length) if length > 1 else np.zeros(1)
        else:
            at = np.clip((np.arange(length) + 0.5) * ((last + 1) / length) - 0.5, 0, last)
        below = at.astype(int)
        part = np.expand_dims((at - below).astype(map.dtype), 1 - axis)
        map = map.take(below, axis) * (1 - part) + map.take(np.minimum(below + 1, last), axis) * part
    return map


def stretched(m: Array, axis: tuple[int, ...] | None = None) -> Array:
    """(m - min m) / (max m - min m), over some axes or all; 0 where m is constant, up to rounding.

    Without that allowance the rounding noise of a constant would become a pattern of full strength.
    """
    low, high = m.min(axis=axis, keepdims=True), m.max(axis=axis, keepdims=True)
    varied = high - low > ROUNDING * np.finfo(m.dtype).eps * np.maximum(abs(low), abs(high))
    return np.where(varied, (m - low) / np.where(varied, high - low, 1), 0).astype(m.dtype)
