"""RISE: which pixels are visible when the score is high."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from onnxplain.engine.methods.baselines import Baseline, baseline_of, require_baseline
from onnxplain.engine.methods.masked import chunks, masked_values, picture_shape
from onnxplain.engine.methods.method import (
    CLASS_KINDS,
    Array,
    Task,
    require_one_of,
    require_positive,
    require_whole,
    spread,
)
from onnxplain.engine.requests import Attribution, Kind, Program

MOST_MASKS = 1_000_000
MOST_CELLS = 1000  # along an axis


@dataclass(frozen=True, kw_only=True)
class RISE:
    """A = 1/(p N) * sum_i F(x * m_i) m_i over N = `masks` random masks m_i: N forward rows.

    A mask is a grid of `grid` x `grid` cells, each visible with probability `p`, enlarged bilinearly to one cell more
    than the image has and shifted by less than a cell, at random. What is hidden is `baseline`: the mean colour, which
    is 0 where the paper multiplies. F is `objective` of the class, by default its probability. A estimates the expected
    F given that a pixel is visible, in the units of F; it is not 0 where a pixel does not matter.

    Source: Petsiuk, Das and Saenko, BMVC 2018, sections 3.2 and 3.3; the numbers are those of its ResNet-50
    (`RISE.repo()`: those of the released code).
    """

    forward_only: ClassVar[bool] = True
    id: str = "rise"
    masks: int = 8000
    grid: int = 7
    p: float = 0.5
    baseline: Baseline | Array = Baseline.MEAN_COLOUR
    objective: Kind = Kind.PROB

    def __post_init__(self) -> None:
        require_whole("RISE: masks", self.masks, 1, MOST_MASKS)
        require_whole("RISE: grid", self.grid, 1, MOST_CELLS)
        require_positive("RISE: p", self.p, 1)
        require_baseline("RISE", self.baseline)
        require_one_of("RISE: objective", self.objective, CLASS_KINDS)

    @classmethod
    def repo(cls, **changes: Any) -> RISE:
        """The numbers of the released code: 6000 masks of 8 x 8 cells, a tenth of them visible."""
        return replace(cls(id="rise-repo", masks=6000, grid=8, p=0.1), **changes)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.masks

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        picture = picture_shape(x, task.space)
        baseline = baseline_of(x, self.baseline, task, "RISE")
        cells = [-(-size // self.grid) for size in picture]  # in pixels
        enlarge = [bilinear(self.grid, (self.grid + 1) * cell).astype(x.dtype) for cell in cells]
        # all shifts before all grids, so that the draws do not depend on how they are cut into chunks
        shifts = task.rng.integers(0, cells, (self.masks, len(cells)))

        total, values_sum = np.zeros(picture), 0.0
        for at in chunks(self.masks):
            grids = task.rng.random((len(shifts[at]), *(self.grid,) * len(picture))) < self.p
            masks = np.empty((len(grids), *picture), x.dtype)
            for mask, grid, shift in zip(masks, grids, shifts[at], strict=True):
                enlarged = grid.astype(x.dtype)
                for matrix, start, size in zip(enlarge, shift, picture, strict=True):
                    enlarged = np.tensordot(enlarged, matrix[start : start + size], axes=(0, 1))
                mask[...] = enlarged
            values = yield from masked_values(x, baseline, masks, self.objective, task)
            total += np.tensordot(values, masks, axes=1)
            values_sum += values.sum()
        map = total / (self.masks * self.p)
        return Attribution(spread(map, x, task.space), {"mean_value": float(values_sum / self.masks)})


def bilinear(cells: int, size: int) -> Array:
    """The matrix (size, cells) that enlarges an axis linearly between the centres of cells, mirrored at its ends."""
    at = (np.arange(size) + 0.5) * cells / size - 0.5
    below = np.floor(at).astype(int)
    share = at - below
    matrix = np.zeros((size, cells))
    for index, weight in ((below, 1 - share), (below + 1, share)):
        mirrored = np.abs(index)
        mirrored = np.minimum(mirrored, 2 * (cells - 1) - mirrored) if cells > 1 else 0 * mirrored
        np.add.at(matrix, (np.arange(size), mirrored), weight)
    return matrix
