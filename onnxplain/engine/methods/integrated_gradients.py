"""Integrated gradients, for any quadrature rule and baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxplain.engine.methods.baselines import Baseline, baseline_of
from onnxplain.engine.methods.method import CLASS_KINDS, Array, Task, require, require_one_of
from onnxplain.engine.methods.quadrature import Rule, quadrature
from onnxplain.engine.requests import Attribution, Kind, Line, Logits, Program


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients:
    """A = (x - x') * sum_k w_k grad F(x' + t_k (x - x')): `steps` gradient rows and two forward rows.

    F is `objective` of the class, by default its logit; x' is `baseline`: black, the average pixel, or an array that
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

    def __post_init__(self) -> None:
        require_one_of("IG: rule", self.rule, Rule)
        require_one_of("IG: objective", self.objective, CLASS_KINDS)
        quadrature(self.rule, self.steps)
        known = isinstance(self.baseline, (Baseline, np.ndarray))
        require(known, "IG: baseline", "Baseline.BLACK, Baseline.AVERAGE or an array", self.baseline)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.steps + 2

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        objective = task.objective(self.objective)
        start = baseline_of(x, self.baseline, task.space, "IG")
        t, w = quadrature(self.rule, self.steps)
        path = yield Line(start[None], (x - start)[None], t[None], w[None], objective)
        values = (x - start) * path.gradient[0]

        at_x, at_start = objective.value((yield Logits(np.stack([x, start]))))
        total, change = float(values.sum(dtype=np.float64)), float(at_x - at_start)
        gap = abs(total - change) / max(abs(change), 1e-6)
        return Attribution(values, {"sum": total, "change": change, "completeness_gap": gap})
