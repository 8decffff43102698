"""What metrics of maps share: the check of a map, and what they answer."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.heatmap import reduce_channels, require_finite
from onnxplain.engine.requests import Head, Program
from onnxplain.engine.space import Space
from onnxplain.errors import InputError

Array: TypeAlias = NDArray[Any]


class Scored(Protocol):
    """What a metric says of one map."""

    @property
    def target(self) -> int:
        """The class that was followed: the one that the model predicts."""
        ...

    @property
    def constant(self) -> bool:
        """Whether the map is the same everywhere, so that it says nothing."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """Result rows: `metric`, `value` (None: undefined), `protocol`, `reduction`, `target`, `direction`, ..."""
        ...


class MapMetric(Protocol):
    """A metric of saved maps, which runs the model forward only.

    `rows` is the most that a map of this size costs.
    """

    @property
    def id(self) -> str: ...

    def rows(self, height: int, width: int) -> int: ...

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        space: Space,
        head: Head = Head.SOFTMAX,
        channel_axis: int = 0,
        name: str = "heatmap",
    ) -> Program[Scored]: ...


def require_map(x: Array, heatmap: Array, channel_axis: int, name: str) -> None:
    """Raise `InputError` unless `heatmap` is a finite map (H, W) of image `x`, or has its shape."""
    if not isinstance(heatmap, np.ndarray) or heatmap.dtype.kind not in "biuf":
        what = heatmap.dtype.name if isinstance(heatmap, np.ndarray) else type(heatmap).__name__
        raise InputError(f"{name}: expected an array of real numbers, got {what}; next: numpy.asarray makes one")
    size = tuple(np.delete(x.shape, channel_axis))
    if heatmap.shape not in (x.shape, size):
        raise InputError(
            f"{name}: expected shape {list(map(int, size))} or {list(x.shape)}, got {list(heatmap.shape)}; "
            "next: make the map for this model, maps are never resized"
        )
    require_finite(heatmap, name)


def per_pixel(heatmap: Array, reduce: str, channel_axis: int) -> tuple[Array, str]:
    """One number a pixel, (HW,), and how it came from the channels: `reduce`, or "none" if there are none."""
    if heatmap.ndim == 2:
        return heatmap.reshape(-1), "none"
    return reduce_channels(heatmap, reduce, channel_axis).reshape(-1), reduce


def on_picture(of_pixels: Array, x: Array, channel_axis: int) -> Array:
    """Something of each pixel, (n, HW), as it broadcasts against images like `x`."""
    picture = np.delete(x.shape, channel_axis)
    axis = channel_axis if channel_axis < 0 else channel_axis + 1
    return np.expand_dims(of_pixels.reshape(-1, *picture), axis)
