"""How the input of a gradient model relates to pixels: its valid range, and where model space has its zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Space:
    """Per-channel facts about an input, each an array that broadcasts against one image.

    `low`, `high`: the valid range (0 and 1 in pixel space; -inf and inf where it is unknown).
    `zero`: the point that normalisation maps to 0 (the mean colour). `scale`: one unit of model space.
    Model space is `(x - zero) / scale`. `channel_axis`: where an image has its channels, 0 or -1; None: nobody says.
    """

    low: Array
    high: Array
    zero: Array
    scale: Array
    channel_axis: int | None = None

    @classmethod
    def pixels(
        cls, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), *, rank: int = 3, channel_axis: int = 0
    ) -> Space:
        """RGB or grey in [0,1], of images with `rank` axes; `mean` and `std` as normalisation uses them."""
        shape = np.ones(rank, int)
        shape[channel_axis] = -1

        def per_channel(values: Sequence[float]) -> Array:
            return np.asarray(values, np.float32).reshape(shape)

        one = np.ones_like(per_channel(mean))
        return cls(0 * one, one, per_channel(mean), per_channel(std), channel_axis if rank > 2 else None)

    @classmethod
    def model(cls, range: tuple[float, float] | None = None) -> Space:
        """Whatever the model wants, nothing folded in; `range` tells its valid values if the user knows them."""
        low, high = range if range is not None else (-np.inf, np.inf)
        if not low < high:
            raise UsageError(f"range: the low end must lie below the high end, got ({low}, {high})")
        low_, high_, zero, scale = (np.asarray(v, np.float32) for v in (low, high, 0.0, 1.0))
        return cls(low_, high_, zero, scale)

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())

    def require_range(self, who: str) -> None:
        """Raise unless the valid range is known. `who` names the method or metric that has values in pixel units."""
        if not self.bounded:
            raise UsageError(
                f"{who} works in pixel units, but the range of this model's input is unknown; "
                "next: export it with its preprocessing, or give range=(low, high)"
            )

    @property
    def span(self) -> Array:
        """high - low: what one pixel unit (the whole way from black to white) is in units of the input."""
        return self.high - self.low
