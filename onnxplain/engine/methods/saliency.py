"""Saliency: the gradient itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxplain.engine.methods.method import CLASS_KINDS, Array, require_one_of
from onnxplain.engine.requests import Attribution, Head, Kind, Objective, Points, Program
from onnxplain.engine.space import Space


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """A = |grad F(x)|, or grad F(x) itself if `signed`: one gradient row.

    F is `objective` of the class, by default its logit; with `prob` the map of a saturated prediction is all zero.
    Units: F per unit of the input. Source: Simonyan, Vedaldi and Zisserman, 2014, section 3.
    """

    id: ClassVar[str] = "saliency"
    objective: Kind = Kind.LOGIT
    signed: bool = False

    def __post_init__(self) -> None:
        require_one_of("Saliency: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 1

    def __call__(
        self,
        x: Array,
        target: int | Array,
        *,
        space: Space,  # noqa: ARG002 (has no values in pixel units)
        rng: np.random.Generator,  # noqa: ARG002 (draws nothing)
        head: Head = Head.SOFTMAX,
    ) -> Program[Attribution]:
        at_x = yield Points(x[None], Objective(self.objective, target, head))
        gradient = at_x.gradient[0]
        return Attribution(gradient if self.signed else np.abs(gradient), {"value": float(at_x.value[0])})
