"""Occlusion: how much the score falls when a window of the image is covered."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import ClassVar

import numpy as np

from onnxplain.engine.methods.baselines import Baseline, baseline_of, require_baseline
from onnxplain.engine.methods.masked import chunks, masked_values, picture_shape
from onnxplain.engine.methods.method import CLASS_KINDS, Array, Task, require, require_one_of, require_whole, spread
from onnxplain.engine.requests import Attribution, Kind, Logits, Program
from onnxplain.errors import UsageError

MOST_WINDOW = 10_000  # pixels


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """A_i = mean over the windows W that cover pixel i of F(x) - F(x with W replaced by the baseline).

    The windows are squares of `window` pixels, all channels of them, `stride` pixels apart from the top left corner on;
    those that stick out at the far ends are cut off there, so that every pixel is covered. F is `objective` of the
    class, by default its probability. A has the units of F. One forward row a window and one for x.

    Source: Zeiler and Fergus, ECCV 2014, section 4.2, who slide a grey square and do not say how large; the mean over
    windows that overlap is Captum's.
    """

    forward_only: ClassVar[bool] = True
    id: str = "occlusion"
    window: int = 15
    stride: int = 8
    baseline: Baseline | Array = Baseline.MEAN_COLOUR
    objective: Kind = Kind.PROB

    def __post_init__(self) -> None:
        require_whole("Occlusion: window", self.window, 1, MOST_WINDOW)
        require_whole("Occlusion: stride", self.stride, 1, MOST_WINDOW)
        gapless = f"at most the window ({self.window}), so that every pixel is covered"
        require(self.stride <= self.window, "Occlusion: stride", gapless, self.stride)
        require_baseline("Occlusion", self.baseline)
        require_one_of("Occlusion: objective", self.objective, CLASS_KINDS)

    def counts(self, picture: tuple[int, ...]) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return tuple(1 + max(0, -(-(size - self.window) // self.stride)) for size in picture)

    def rows(self, shape: tuple[int, ...]) -> int:
        # the channels are at either end of three axes
        pictures = (shape[1:], shape[:-1]) if len(shape) > 2 else (shape,)
        return 1 + max(prod(self.counts(picture)) for picture in pictures)

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        picture = picture_shape(x, task.space)
        if self.window > min(picture):
            raise UsageError(
                f"Occlusion: a window of {self.window} pixels does not fit a picture of shape {list(picture)}; "
                f"next: choose a window of at most {min(picture)}"
            )
        baseline = baseline_of(x, self.baseline, task, "Occlusion")
        at_x = task.objective(self.objective).value((yield Logits(x[None])))[0]

        corners = list(product(*(range(0, count * self.stride, self.stride) for count in self.counts(picture))))
        falls, covered = np.zeros(picture), np.zeros(picture)
        for at in chunks(len(corners)):
            windows = [tuple(slice(start, start + self.window) for start in corner) for corner in corners[at]]
            masks = np.ones((len(windows), *picture), x.dtype)
            for mask, window in zip(masks, windows, strict=True):
                mask[window] = 0
            values = yield from masked_values(x, baseline, masks, self.objective, task)
            for value, window in zip(values, windows, strict=True):
                falls[window] += at_x - value
                covered[window] += 1
        return Attribution(spread(falls / covered, x, task.space), {"value": float(at_x), "windows": len(corners)})
