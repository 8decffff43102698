"""DeepLIFT by the rescale rule."""

from __future__ import annotations

from dataclasses import dataclass

from onnxplain.engine.methods.baselines import Baseline, baseline_of, require_baseline
from onnxplain.engine.methods.completeness import completeness
from onnxplain.engine.methods.method import Array, Task
from onnxplain.engine.requests import Attribution, Gradients, Kind, Multipliers, Program


@dataclass(frozen=True, kw_only=True)
class DeepLift:
    """A = (x - x') * m, with m the DeepLIFT multipliers of the logit F of the class: one row of them, two forward.

    x' is `baseline`: one that has a name, or an array that broadcasts against the image (in the units of the model's
    input). Multipliers carry the change from x' to x through every operator as it is (`rules/deeplift.py` has them), so
    that A has the units of F and sums to F(x) - F(x') up to rounding; the diagnostic `completeness_gap` shows it,
    relative to max(|F(x) - F(x')|, 1e-6).

    Source: Shrikumar, Greenside and Kundaje, ICML 2017, section 3.5: the linear rule and the rescale rule.
    """

    id: str = "deeplift"
    baseline: Baseline | Array = Baseline.BLACK

    def __post_init__(self) -> None:
        require_baseline("DeepLIFT", self.baseline)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 3

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        objective = task.objective(Kind.LOGIT)
        start = baseline_of(x, self.baseline, task, "DeepLIFT")
        answer: Gradients = yield Multipliers(x[None], start[None], objective)
        values = (x - start) * answer.gradient[0]
        return Attribution(values, (yield from completeness(values, x, start, objective)))
