"""How far an attribution along a path is from the change that it explains."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from onnxplain.engine.methods.method import Array
from onnxplain.engine.requests import Logits, Objective, Request


def completeness(
    values: Array, x: Array, start: Array, objective: Objective
) -> Generator[Request, Any, dict[str, float]]:
    """`sum` of A, `change` F(x) - F(x'), and `completeness_gap` |sum - change| / max(|change|, 1e-6).

    Asks for two forward rows, the image and the start of its path.
    """
    at_x, at_start = objective.value((yield Logits(np.stack([x, start]))))
    total, change = float(values.sum(dtype=np.float64)), float(at_x - at_start)
    return {"sum": total, "change": change, "completeness_gap": abs(total - change) / max(abs(change), 1e-6)}
