"""Resize. In every mode y is linear in x, and separable: along each axis  y = M x,  so  x̄ = Mᵀ ȳ.

M is made here, in float64, as ONNX defines it. The nearest element is a selection and needs no matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase
from onnxplain.adapters.gradient.facts import Array
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.places import LARGEST, constant, pull, put_back


@dataclass(frozen=True, kw_only=True)
class Line:
    """An axis that is resized from `size` elements to `count`."""

    axis: int
    size: int
    count: int
    scale: float  # may differ from count / size, which is whole numbers
    start: float = 0.0  # the region that tf_crop_and_resize takes, as parts of the axis
    end: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How an element of y comes from x's elements around its place."""

    name: str
    nearest: str
    cubic: float
    antialias: bool
    exclude_outside: bool
    extrapolate: bool  # what lies outside of x is not x's

    def map(self, where: Array, line: Line) -> Array:
        """M as a matrix (outputs, inputs); for the nearest element as places, -1 where y is not x's."""
        beyond = (where < 0) | (where > line.size - 1) if self.extrapolate else np.zeros(len(where), bool)
        if self.name == "nearest":
            if self.antialias or self.exclude_outside:
                raise UnsupportedCase("antialias or exclude_outside in mode nearest")
            places = np.clip(ROUND[self.nearest](where), 0, line.size - 1)
            return np.where(beyond, -1, places).astype(np.int64)
        weigh, reach = (linear, 1) if self.name == "linear" else (cubic(self.cubic), 2)
        stretch = min(line.scale, 1.0) if self.antialias else 1.0
        inside = np.where(beyond, 0, where).astype(np.float64)
        matrix = interpolation(inside, line.size, weigh, reach, stretch, self.exclude_outside)
        matrix[beyond] = 0
        return matrix


@vjp("Resize")
def resize(
    g: Expr,
    y: Expr,
    x: Expr,
    roi: Expr | None = None,
    scales: Expr | None = None,
    sizes: Expr | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> tuple[Any, ...]:
    """y = M x along each axis;  x̄ = Mᵀ ȳ. What is extrapolated does not depend on x."""
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    how = Mode(
        name=mode,
        nearest=nearest_mode,
        cubic=cubic_coeff_a,
        antialias=bool(antialias),
        exclude_outside=bool(exclude_outside),
        extrapolate=crop,
    )
    over = [a % x.rank for a in axes] if axes is not None else list(range(x.rank))
    for line in lines(x, y, over, roi if crop else None, scales, sizes, keep_aspect_ratio_policy):
        if mode != "nearest" and line.size * line.count > LARGEST:
            raise UnsupportedCase(f"from {line.size:,} to {line.count:,} elements: too many to write out")
        first, *readings = [how.map(where, line) for where in coordinates(coordinate_transformation_mode, line)]
        if not all(np.abs(other - first).max() < CONTESTED for other in readings):
            raise UnsupportedCase(
                f"from {line.size} to {line.count} elements in mode {mode}, {coordinate_transformation_mode}, where "
                "runtimes or rounding differ about an element; next: give a scale that makes whole sizes"
            )
        g = put_back(g, line.axis, first, line.size) if mode == "nearest" else pull(g, line.axis, first)
    return g.like(x), None, None, None


CONTESTED = 1e-3  # rounding in float32 changes a weight by some 1e-5; another reading of the text by 1e-2 and more
SLACK = 1e-4  # of an element: what rounding in float32 may do to its place


def lines(
    x: Expr, y: Expr, over: list[int], roi: Expr | None, scales: Expr | None, sizes: Expr | None, policy: str
) -> list[Line]:
    """The axes that Resize does not leave as they are."""
    scaled = scales is not None and (scales.constant is None or scales.constant.size > 0)
    factors: list[float | None] = constant(scales, "scales").tolist() if scaled else [None] * len(over)
    if not scaled and policy != "stretch":
        wanted = constant(sizes, "sizes").tolist()
        ratios = [want / x.size(a) for want, a in zip(wanted, over, strict=True)]
        factors = [min(ratios) if policy == "not_larger" else max(ratios)] * len(over)
    ends = [0.0] * len(over) + [1.0] * len(over) if roi is None else constant(roi, "regions").tolist()
    found = []
    for axis, factor, start, end in zip(over, factors, ends[: len(over)], ends[len(over) :], strict=True):
        same = factor == 1 or (factor is None and x.shape[axis] is not None and x.shape[axis] == y.shape[axis])
        if same and (start, end) == (0.0, 1.0):
            continue
        size, count = x.size(axis), y.size(axis)
        if not size * count:
            raise UnsupportedCase("a tensor without elements")
        scale = count / size if factor is None else factor
        if scaled and not count == math.floor(scale * size) == math.floor(np.float32(scale) * np.float32(size)):
            raise UnsupportedCase(
                f"{size} elements times {scale}, which rounding makes {count} or another number; next: use sizes"
            )
        found.append(Line(axis=axis, size=size, count=count, scale=scale, start=start, end=end))
    return found


def coordinates(kind: str, line: Line) -> list[Array]:
    """Where in x each element of y lies: exactly, as runtimes round it, and as ONNX's reference evaluator has it.

    They differ where rounding jumps over an element, and about a size after scaling that is no whole number. Where the
    formula is long, in what order runtimes round is not known: anything near an element's end is in doubt.
    """
    exact = locate(kind, line, np.float64, line.count, 0.0)
    readings = [
        exact,
        locate(kind, line, np.float32, line.count, 0.0),
        locate(kind, line, np.float64, line.scale * line.size, -0.5),
    ]
    part = (line.start, line.end) != (0.0, 1.0)
    if part and line.scale == 1:
        readings.append(np.arange(line.count, dtype=np.float64))  # ONNX Runtime leaves such an axis as it is
    if part or kind == "half_pixel_symmetric":
        readings += [exact - SLACK, exact + SLACK]
    return readings


def locate(kind: str, line: Line, dtype: type[np.floating[Any]], width: float, single: float) -> Array:
    """The coordinates of y's elements in x by the formulas of the operator's page, for y of `width` elements."""
    t = np.arange(line.count, dtype=dtype)
    numbers = (line.size, line.count, line.scale, line.start, line.end, width)
    size, count, scale, start, end, span = (np.asarray(number, dtype) for number in numbers)
    where: Any = (t + dtype(0.5)) / scale - dtype(0.5)
    if kind == "pytorch_half_pixel" and width == 1:
        where = np.full_like(t, single)
    elif kind == "asymmetric":
        where = t / scale
    elif kind == "align_corners":
        where = t * (size - 1) / (span - 1) if width != 1 else 0 * t
    elif kind == "half_pixel_symmetric":
        where = size / 2 * (1 - count / (scale * size)) + where
    elif kind == "tf_crop_and_resize" and width == 1:
        where = np.full_like(t, (start + end) * (size - 1) / 2)
    elif kind == "tf_crop_and_resize":
        where = start * (size - 1) + t * (end - start) * (size - 1) / (span - 1)
    elif kind not in ("half_pixel", "pytorch_half_pixel"):
        raise UnsupportedCase(f"coordinate_transformation_mode {kind}")
    return np.asarray(where)


ROUND: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda where: np.ceil(where - where.dtype.type(0.5)),
    "round_prefer_ceil": lambda where: np.floor(where + where.dtype.type(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def linear(distance: Array) -> Array:
    """1 - |d|, the weight of an element at the distance d."""
    return np.asarray(np.maximum(1 - np.abs(distance), 0))


def cubic(a: float) -> Callable[[Array], Array]:
    """Keys' cubic convolution."""

    def weigh(distance: Array) -> Array:
        d = np.abs(distance)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return weigh


def interpolation(
    where: Array, size: int, weigh: Callable[[Array], Array], reach: int, stretch: float, exclude_outside: bool
) -> Array:
    """The weights of all elements of x for each place. What lies outside of x is its nearest element, or excluded."""
    furthest = max(-where.min(), where.max() - (size - 1), 0)
    border = math.ceil(furthest + reach / stretch) + 1
    weights = weigh(stretch * (np.arange(-border, size + border) - where[:, None]))
    if stretch < 1:
        weights /= weights.sum(axis=1, keepdims=True)
    matrix = weights[:, border : border + size].copy()
    if exclude_outside:
        return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))
    matrix[:, 0] += weights[:, :border].sum(axis=1)
    matrix[:, -1] += weights[:, border + size :].sum(axis=1)
    return matrix
