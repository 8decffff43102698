"""Max-sensitivity: how much does an explanation change when the image hardly does?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from onnxplain.engine.methods.method import MOST_STEPS, Array, Task, require_positive, require_whole
from onnxplain.engine.metrics.measured import Measured, class_of
from onnxplain.engine.requests import Attribution, Program

Explain: TypeAlias = Callable[[Array, Task], Program[Attribution]]  # a method is one


@dataclass(frozen=True, kw_only=True)
class MaxSensitivity:
    """max_d |A(x + d) - A(x)|_2 / |A(x)|_2, the largest of `samples` draws of d; lower is better.

    d is uniform in [-r, r] in every feature: an L-infinity ball of the `radius` r, in pixel units (1 is from black to
    white). x + d is not clipped. A method that draws random numbers draws the same for every x + d, so that its own
    noise does not count. Of a map that is 0, the value is NaN. A maximum of draws is a lower bound of the true one, and
    grows with their number. Costs `samples` + 1 explanations.

    Source: Yeh, Hsieh, Suggala, Inouye and Ravikumar, On the (In)fidelity and Sensitivity of Explanations, NeurIPS
    2019, definition 3.1; the division by |A(x)| is that of the paper's code, and of Captum.
    """

    id: str = "max_sensitivity"
    radius: float = 0.02
    samples: int = 10

    def __post_init__(self) -> None:
        require_positive("MaxSensitivity: radius", self.radius, 1.0)
        require_whole("MaxSensitivity: samples", self.samples, 1, MOST_STEPS)

    def __call__(self, x: Array, method: Explain, task: Task, rng: np.random.Generator) -> Program[Measured]:
        """The sensitivity of a method at one image.

        Args:
            x: one image, in the space and dtype of the model's input.
            method: called with images near x.
            task: what the method is told; its random numbers are left as they are.
            rng: draws the d; one of its own for each image.

        Raises:
            UsageError: the input's range is unknown.
        """
        task.space.require_range("max-sensitivity")
        a = yield from explained(method, x, task)
        norm = np.linalg.norm(a)
        largest = 0.0
        for _ in range(self.samples):
            b = yield from explained(method, x + self.perturbation(x, task, rng), task)
            largest = max(largest, float(np.linalg.norm(b - a)))
        return Measured(
            metric="max_sensitivity",
            value=float(largest / norm) if norm else math.nan,
            direction="lower",
            protocol=f"radius={self.radius}, samples={self.samples}",
            target=class_of(task.target),
            undefined=None if norm else "the map of the image is 0",
        )

    def perturbation(self, x: Array, task: Task, rng: np.random.Generator) -> Array:
        """A draw of d, in the shape and dtype of x."""
        return np.asarray(self.radius * task.space.span * rng.uniform(-1, 1, size=x.shape), x.dtype)


def explained(method: Explain, x: Array, task: Task) -> Program[Array]:
    """A(x) in float64, flat, with random numbers that are those of the task whenever it is asked."""
    answer = yield from method(x, replace(task, rng=copy.deepcopy(task.rng)))
    return answer.values.astype(np.float64).reshape(-1)
