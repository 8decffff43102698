"""Completeness: does an attribution sum to the change that it explains?"""

from __future__ import annotations

from dataclasses import dataclass

from onnxplain.engine.heatmap import require_finite
from onnxplain.engine.methods.completeness import completeness
from onnxplain.engine.methods.method import CLASS_KINDS, Array, require_one_of, word
from onnxplain.engine.metrics.measured import Measured, class_of
from onnxplain.engine.requests import Head, Kind, Objective, Program


@dataclass(frozen=True, kw_only=True)
class CompletenessGap:
    """|sum A - (F(x) - F(x'))| / max(|F(x) - F(x')|, 1e-6), lower is better; 0 for a complete attribution.

    F is `objective` of the explained class: it must be the one that the method explained, and x' the one that it
    started from. Costs two forward rows.

    Source: the axiom is that of Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, ICML 2017,
    proposition 1.
    """

    id: str = "completeness"
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        require_one_of("CompletenessGap: objective", self.objective, CLASS_KINDS)

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        start: Array,
        target: int | Array,
        head: Head = Head.SOFTMAX,
        name: str = "heatmap",
    ) -> Program[Measured]:
        """The gap of an attribution, or of a map that has the same sum.

        Args:
            x: one image, in the space and dtype of the model's input.
            heatmap: what is summed.
            start: x', in the shape of x.
            target: the class that is explained, or weights of classes.
            head: what makes probabilities of logits.
            name: of the heatmap, for errors.
        """
        require_finite(heatmap, name)
        found = yield from completeness(heatmap, x, start, Objective(self.objective, target, head))
        return Measured(
            metric="completeness_gap",
            value=found["completeness_gap"],
            direction="lower",
            protocol=f"objective={word(self.objective)}",
            target=class_of(target),
            facts={"sum": found["sum"], "change": found["change"]},
        )
