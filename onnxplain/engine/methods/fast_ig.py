"""Fast integrated gradients, also called X-gradient: integrated gradients of nets that need one point only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from onnxplain.engine.methods.method import CLASS_KINDS, Array, Task, require_one_of
from onnxplain.engine.requests import Attribution, Kind, Points, Program


class Zero(Enum):
    """The image that counts as nothing."""

    MODEL = "model"  # zero in model space: the mean colour
    INPUT = "input"  # zero of the model's input: black in pixel space


@dataclass(frozen=True, kw_only=True)
class FastIG:
    """A = u * grad_u F, u the image in model space: one gradient row.

    F is `objective` of the class, by default its logit. With u = (x - zero) / scale that is (x - zero) * grad F(x). If
    the net has no biases and F(c u) = c F(u) for c > 0, A is exactly IG from the baseline u = 0 and sums to F(x), which
    is the diagnostic `value`; of any other net it is not, and the diagnostics tell by how much. `zero` says which
    image is zero. A has the units of F.

    Source: Hesse, Schaub-Meyer and Roth, Fast axiomatic attribution for neural networks, NeurIPS 2021.
    """

    id: str = "fig"
    objective: Kind = Kind.LOGIT
    zero: Zero = Zero.MODEL

    @classmethod
    def isa(cls, **changes: Any) -> FastIG:
        """The comparison in the code of ISA: a loss in the place of the score, which turns all signs, and zero black.

        The loss is the cross-entropy of probabilities that have gone through a softmax twice.
        """
        return replace(cls(id="fig-isa", objective=Kind.CE_ON_PROBS, zero=Zero.INPUT), **changes)

    def __post_init__(self) -> None:
        require_one_of("FastIG: objective", self.objective, CLASS_KINDS)
        require_one_of("FastIG: zero", self.zero, Zero)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 1

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        at_x = yield Points(x[None], task.objective(self.objective))
        zero = task.space.zero.astype(x.dtype) if self.zero is Zero.MODEL else 0
        values = (x - zero) * at_x.gradient[0]
        return Attribution(values, {"sum": float(values.sum(dtype=np.float64)), "value": float(at_x.value[0])})
