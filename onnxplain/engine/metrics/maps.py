"""Metrics of saved maps: what all of them are, and how a map becomes one number a pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from onnxplain.engine.drive import Model, as_model, in_order
from onnxplain.engine.heatmap import reduce_channels, require_finite
from onnxplain.engine.requests import Array, Head, Program
from onnxplain.engine.space import Space
from onnxplain.errors import InputError, UsageError

Result = TypeVar("Result")


class MapScore(Protocol):
    """What a metric says of one map: `target` is the class that it followed; `constant` tells of a map that ranks
    nothing."""

    @property
    def target(self) -> int: ...

    @property
    def constant(self) -> bool: ...

    def rows(self) -> list[dict[str, Any]]:
        """Result rows: `metric`, `value`, `protocol`, `reduction`, `target`, `direction` and more."""
        ...


class MapMetric(Protocol):
    """A metric that needs an image, a map of it and the classifier, and no gradient."""

    @property
    def id(self) -> str: ...

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        space: Space,
        head: Head = Head.SOFTMAX,
        channel_axis: int = 0,
        name: str = "heatmap",
    ) -> Program[MapScore]: ...

    def rows(self, height: int, width: int) -> int:
        """How many rows one map of this size costs: for progress bars."""
        ...


def require_map(x: Array, heatmap: Array, channel_axis: int, name: str) -> None:
    """Raise `InputError` unless `heatmap` is (H, W), or in the shape of the image `x`, and has finite real values."""
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


def one_a_pixel(heatmap: Array, reduce: str, channel_axis: int) -> tuple[Array, str]:
    """The map as (HW,) and the reduction that made it: "none" for a map (H, W)."""
    if heatmap.ndim == 2:
        return heatmap.reshape(-1), "none"
    return reduce_channels(heatmap, reduce, channel_axis).reshape(-1), reduce


def score_maps(
    metric: Callable[..., Program[Result]],
    model: Model | Callable[[Array], Array],
    images: Array,
    heatmaps: Sequence[Array],
    *,
    space: Space,
    head: Head = Head.SOFTMAX,
    channel_axis: int = 0,
    batch_size: int = 8,
    names: Iterable[str] | None = None,
) -> list[Result]:
    """Score one map for each image: the method `score` of each of these metrics.

    Args:
        model: the driver's, or any callable images (n, C, H, W) -> logits (n, K); it gets at most `batch_size`.
        images: (N, C, H, W), as the model wants them.
        heatmaps: N maps, each (H, W) or in the shape of its image.
        space: of the images, e.g. `Space.pixels(mean, std)` if the model normalises them itself.
        head: what makes probabilities of logits.
        channel_axis: 0 for images (C, H, W), -1 for (H, W, C).
        names: of the heatmaps, for errors.
    """
    names = list(names) if names is not None else [f"heatmap {i}" for i in range(len(heatmaps))]
    if not len(images) == len(heatmaps) == len(names):
        raise UsageError(f"expected one heatmap for each image, got {len(heatmaps)} for {len(images)}")
    if not len(images):
        return []
    programs = (
        metric(x, heatmap, space=space, head=head, channel_axis=channel_axis, name=name)
        for x, heatmap, name in zip(images, heatmaps, names, strict=True)
    )
    return list(in_order(programs, as_model(model, images[:1], batch_size=batch_size)))
