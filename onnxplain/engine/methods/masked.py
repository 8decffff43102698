"""Images with parts of them replaced: all that methods ask for which only run the model forward."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from onnxplain.engine.methods.method import AT_ONCE, Array, Task, channel_axis
from onnxplain.engine.requests import Kind, Logits, Request
from onnxplain.engine.space import Space


def picture_shape(x: Array, space: Space) -> tuple[int, ...]:
    """The shape of an image without its channels: (H, W), or (n,) of a vector."""
    return tuple(size for axis, size in enumerate(x.shape) if axis != channel_axis(x, space))


def chunks(count: int) -> Iterator[slice]:
    """0 ... count in runs of as many images as are asked at once."""
    return (slice(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE))


def masked_values(x: Array, baseline: Array, masks: Array, kind: Kind, task: Task) -> Generator[Request, Any, Array]:
    """F(m * x + (1 - m) * baseline) for each mask m, float64 (n,), in one request.

    `masks` (n, H, W), or (n, ...) in the shape of the picture, is 1 where the image stays and 0 where it is replaced.
    """
    channel = channel_axis(x, task.space)
    m = masks.astype(x.dtype, copy=False)
    if channel is not None:
        m = np.expand_dims(m, channel + 1)
    logits = yield Logits(m * x + (1 - m) * baseline)
    return task.objective(kind).value(logits)


def coalition_values(
    x: Array, baseline: Array, coalitions: Array, superpixels: Array, kind: Kind, task: Task
) -> Generator[Request, Any, Array]:
    """F with only the superpixels of each coalition kept, float64 (n,).

    `coalitions` bool (n, M); `superpixels` (H, W), numbered from 0 to M - 1.
    """
    values = np.empty(len(coalitions))
    for at in chunks(len(coalitions)):
        values[at] = yield from masked_values(x, baseline, coalitions[at][:, superpixels], kind, task)
    return values
