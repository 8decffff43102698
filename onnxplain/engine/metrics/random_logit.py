"""Random logit: is an explanation of one class another than that of any other class?"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy as np

from onnxplain.engine.heatmap import reduction
from onnxplain.engine.methods.method import Array, Task
from onnxplain.engine.metrics.max_sensitivity import Explain
from onnxplain.engine.metrics.measured import Measured
from onnxplain.engine.metrics.ranks import CONSTANT, as_ranked, reduced_how, spearman
from onnxplain.engine.requests import Logits, Program
from onnxplain.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RandomLogit:
    """Spearman's correlation of the map of the class with that of another, drawn uniformly; lower is better.

    1 means that the method does not look at the class. Maps are compared after `reduce` over channels (`sum`,
    `abs_sum`, `max_abs`; "none" compares every feature by itself). A map that is constant has no ranks: the value is
    NaN. Random numbers of the method are the same for both classes. Costs two explanations and one forward row.

    Source: Sixt, Granz and Landgraf, When Explanations Lie: Why Many Modified BP Attributions Fail, ICML 2020, section
    4. They compare images of the maps (SSIM); here ranks are compared, as Adebayo et al. (NeurIPS 2018) do.
    """

    id: str = "random_logit"
    reduce: str = "sum"

    def __post_init__(self) -> None:
        if self.reduce != "none":
            reduction(self.reduce)

    def __call__(self, x: Array, method: Explain, task: Task, rng: np.random.Generator) -> Program[Measured]:
        """The correlation at one image; `rng` draws the other class.

        Raises `UsageError` for a target that is not a class, and for a model with one class.
        """
        target = task.target
        if not isinstance(target, (int, np.integer)):
            raise UsageError("random logit: the target must be one class, not weights of classes")
        classes = (yield Logits(x[None])).shape[1]
        if classes < 2:
            raise UsageError("random logit: the model has one class, and no other to explain")
        other = int(rng.integers(classes - 1))
        other += other >= target
        maps = []
        for one in (target, other):
            answer = yield from method(x, replace(task, target=one, rng=copy.deepcopy(task.rng)))
            maps.append(as_ranked(answer.values, x, task.space, self.reduce))
        value = spearman(*maps)
        return Measured(
            metric="random_logit",
            value=value,
            direction="lower",
            protocol="spearman",
            target=int(target),
            **reduced_how(x, task.space, self.reduce),
            undefined=CONSTANT if math.isnan(value) else None,
            facts={"other": other},
        )
