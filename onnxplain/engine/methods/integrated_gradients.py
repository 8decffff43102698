"""Integrated gradients, for any quadrature rule and baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onnxplain.engine.methods.baselines import Baseline, baseline_of, require_baseline
from onnxplain.engine.methods.completeness import completeness
from onnxplain.engine.methods.method import CLASS_KINDS, Array, Task, require_one_of
from onnxplain.engine.methods.quadrature import Rule, quadrature
from onnxplain.engine.requests import Attribution, Kind, Line, Program


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients:
    """A = (x - x') * sum_k w_k grad F(x' + t_k (x - x')): `steps` gradient rows and two forward rows.

    F is `objective` of the class, by default its logit; x' is `baseline`: one that has a name, or an array that
    broadcasts against the image (in the units of the model's input). A has the units of F and sums to F(x) - F(x') up
    to the error of the quadrature `rule`; how far it does is the diagnostic `completeness_gap`, relative to
    max(|F(x) - F(x')|, 1e-6).

    Source: Sundararajan, Taly and Yan, ICML 2017, section 3 (whose sum is the rule `right`).
    """

    id: str = "ig"
    steps: int = 50
    rule: Rule = Rule.MIDPOINT
    baseline: Baseline | Array = Baseline.BLACK
    objective: Kind = Kind.LOGIT

    @classmethod
    def average(cls, **changes: Any) -> IntegratedGradients:
        """From the average pixel of the image: IG(A)."""
        return replace(cls(id="ig-average", baseline=Baseline.AVERAGE), **changes)

    @classmethod
    def gaussian(cls, **changes: Any) -> IntegratedGradients:
        """From Gaussian noise: IG(G)."""
        return replace(cls(id="ig-gaussian", baseline=Baseline.GAUSSIAN), **changes)

    def __post_init__(self) -> None:
        require_one_of("IG: rule", self.rule, Rule)
        require_one_of("IG: objective", self.objective, CLASS_KINDS)
        quadrature(self.rule, self.steps)
        require_baseline("IG", self.baseline)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.steps + 2

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        objective = task.objective(self.objective)
        start = baseline_of(x, self.baseline, task, "IG")
        t, w = quadrature(self.rule, self.steps)
        path = yield Line(start[None], (x - start)[None], t[None], w[None], objective)
        values = (x - start) * path.gradient[0]
        return Attribution(values, (yield from completeness(values, x, start, objective)))
