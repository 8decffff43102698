"""Gradient times input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxplain.engine.methods.method import CLASS_KINDS, Array, Task, require_one_of
from onnxplain.engine.requests import Attribution, Kind, Points, Program


@dataclass(frozen=True, kw_only=True)
class GradientXInput:
    """A = x * grad F(x), x as the model's input has it: one gradient row.

    F is `objective` of the class, by default its logit. In pixel space a black pixel gets nothing; `FastIG` multiplies
    by the input in model space instead, where it is the mean colour that gets nothing. A has the units of F.

    Source: Shrikumar, Greenside, Shcherbina and Kundaje, Not just a black box, arXiv 1605.01713, 2016.
    """

    id: str = "gradient-x-input"
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        require_one_of("GradientXInput: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 1

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        at_x = yield Points(x[None], task.objective(self.objective))
        values = x * at_x.gradient[0]
        return Attribution(values, {"sum": float(values.sum(dtype=np.float64)), "value": float(at_x.value[0])})
