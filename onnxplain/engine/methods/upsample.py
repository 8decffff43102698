"""Maps enlarged bilinearly, as PyTorch's `interpolate` does it, in either of its two conventions.

OpenCV has one of the two only, and its coefficients are of single precision.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


def bilinear(map: Array, size: tuple[int, int], *, align_corners: bool = False) -> Array:
    """A map (h, w) as one of `size` (H, W), in its dtype.

    Values lie at the centres of their pixels, and what lies further out is the border's; or, with `align_corners`, the
    outermost values lie on the outermost pixels of the result.
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
