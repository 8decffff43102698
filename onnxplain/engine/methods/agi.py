"""AGI: adversarial gradient integration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxplain.engine.methods.method import (
    MOST_ETA,
    MOST_WALK,
    Array,
    Task,
    require_one_of,
    require_positive,
    require_whole,
)
from onnxplain.engine.methods.walk import explained_class, require_classes, stepped
from onnxplain.engine.requests import Attribution, Kind, Points, Program, Stop, Walk

MOST_CLASSES = 10**6


@dataclass(frozen=True, kw_only=True)
class AGI:
    """A = sum over k other classes i of the integral of -grad p_c along a walk that climbs p_i; c is explained.

    For each class i, from x_0 = x, until the model predicts i, at most m times:
        x_t+1 = clip(x_t + epsilon * sign(grad p_i(x_t)))       A += -grad p_c(x_t) * (x_t+1 - x_t)

    With `restart` (the released code) each step starts from the image again: x_t+1 = clip(x + epsilon * sign(...)), and
    A += -grad p_c(x_t) * (x_t+1 - x). No point is then further than epsilon from x, so the walk may never arrive, and
    all m terms are of full size.

    The classes are `k` different ones that are not c, drawn from the random generator of the task; all of them if there
    are no more than k. p is `objective`: `prob`, or `prob_on_probs` (the softmax of the softmax, in a script of the
    released code). `epsilon` is in pixel units (1 = black to white). A has the units of p, and sums to the fall of p_c
    along all walks, to first order in epsilon and without `restart`. A class that the model predicts at x gives 0.

    Cost: 2 gradient rows a step, one for p_i and one for p_c, less the one that all walks share at x; and one more
    where a walk arrives. At most 1 + k * (2 m - 1) rows; the walks go side by side, in at most 2 m requests.

    Diagnostics: `classes`; the `iterations` (steps) of each walk; whether it `arrived`. A walk that took all m steps is
    not asked where it has come, and counts as not arrived.

    Source: Pan, Li and Zhu, Explaining Deep Neural Network Models with Adversarial Gradient Integration, IJCAI 2021.
    """

    id: str = "agi"
    k: int = 20
    m: int = 20
    epsilon: float = 0.05
    objective: Kind = Kind.PROB
    restart: bool = False

    def __post_init__(self) -> None:
        require_whole("AGI: k", self.k, 1, MOST_CLASSES)
        require_whole("AGI: m", self.m, 1, MOST_WALK)
        require_positive("AGI: epsilon", self.epsilon, MOST_ETA)
        require_one_of("AGI: objective", self.objective, (Kind.PROB, Kind.PROB_ON_PROBS))

    @classmethod
    def repo(cls, **changes: Any) -> AGI:
        """The released code: each step starts from the image again."""
        return replace(cls(id="agi-repo", restart=True), **changes)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 1 + self.k * (2 * self.m - 1)

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        task.space.require_range("AGI")
        low, high, span = (fact.astype(x.dtype) for fact in (task.space.low, task.space.high, task.space.span))
        explained, objective = explained_class(task, "AGI"), task.objective(self.objective)
        at_x = yield Points(x[None], objective)
        require_classes(at_x.logits, "AGI")
        classes = self.draw(at_x.logits.shape[-1], explained, task.rng)

        on = np.flatnonzero(classes != at_x.logits[0].argmax())
        iterations, arrived = np.zeros(len(classes), int), np.ones(len(classes), bool)
        attribution = np.zeros_like(x)
        if on.size:
            walk = Walk(
                start=x,
                step=np.repeat((self.epsilon * span)[None], on.size, axis=0),
                steps=np.full(on.size, self.m),
                objective=objective,
                classes=classes[on],
                low=low,
                high=high,
                along=objective,
                along_at_start=at_x.gradient[0],
                stop=Stop.ARRIVED,
            )
            walked = (yield from stepped(walk, restart=True)) if self.restart else (yield walk)
            attribution -= walked.path_sum.sum(axis=0)
            iterations[on], arrived[on] = walked.iterations, walked.stopped
        return Attribution(
            attribution,
            {"classes": classes.tolist(), "iterations": iterations.tolist(), "arrived": arrived.tolist()},
        )

    def draw(self, count: int, explained: int, rng: np.random.Generator) -> Array:
        """At most k of `count` classes, without the explained one."""
        others = np.delete(np.arange(count), explained)
        return np.sort(rng.choice(others, self.k, replace=False)) if self.k < len(others) else others
