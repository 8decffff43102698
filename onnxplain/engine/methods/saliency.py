"""Saliency: the gradient itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxplain.engine.methods.method import CLASS_KINDS, Array, Task, require_one_of
from onnxplain.engine.requests import Attribution, Kind, Points, Program


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """A = |grad F(x)|, or grad F(x) itself if `signed`: one gradient row.

    F is `objective` of the class, by default its logit; with `prob` the map of a saturated prediction is all zero.
    Units: F per unit of the input. Source: Simonyan, Vedaldi and Zisserman, 2014, section 3.
    """

    id: str = "saliency"
    objective: Kind = Kind.LOGIT
    signed: bool = False

    @classmethod
    def isa(cls, **changes: Any) -> Saliency:
        """Of the probability: the comparison in the code of ISA."""
        return replace(cls(id="saliency-isa", objective=Kind.PROB), **changes)

    def __post_init__(self) -> None:
        require_one_of("Saliency: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 1

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        at_x = yield Points(x[None], task.objective(self.objective))
        gradient = at_x.gradient[0]
        return Attribution(gradient if self.signed else np.abs(gradient), {"value": float(at_x.value[0])})
