"""One number that a metric gives, with all that fixes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from onnxplain.engine.heatmap import require_finite
from onnxplain.engine.methods.method import Array
from onnxplain.errors import InputError

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A `value` of a `metric` for one image, and which `direction` is better (None: neither).

    `protocol` is all that fixes the number, in words; `reduction` what was made of the channels. Where the metric has
    no value, `value` is NaN and `undefined` says why. `facts` are further columns of the result row.
    """

    metric: str
    value: float
    direction: str | None
    protocol: str
    target: int | None
    reduction: str = "none"
    undefined: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The result row; a value that is undefined is None in it."""
        row = {
            "metric": self.metric,
            "value": None if math.isnan(self.value) else self.value,
            "protocol": self.protocol,
            "reduction": self.reduction,
            "target": self.target,
            "direction": self.direction,
            **self.facts,
        }
        return [row | ({"undefined": self.undefined} if self.undefined is not None else {})]


def require_attribution(x: Array, heatmap: Array, name: str) -> None:
    """Raise `InputError` unless a map is an attribution of every feature of `x`, and finite."""
    if heatmap.shape != x.shape:
        raise InputError(
            f"{name}: expected an attribution of shape {list(x.shape)}, got {list(heatmap.shape)}; "
            "next: give the attribution itself, not the map that was made of it"
        )
    require_finite(heatmap, name)


def class_of(target: int | Array) -> int | None:
    """The class that a target is; None for weights of several."""
    return int(target) if isinstance(target, (int, np.integer)) else None
