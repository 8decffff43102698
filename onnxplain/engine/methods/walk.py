"""What sign-gradient walks share: the step, and the class that some of them walk away from."""

from __future__ import annotations

import numpy as np

from onnxplain.engine.methods.method import Array, Task
from onnxplain.errors import UsageError


def sign_step(x: Array, gradient: Array, step: Array, path_sum: Array | None = None) -> None:
    """D = step * sign(g);  x <- x + D;  path_sum <- path_sum + D * g, all in place.

    `path_sum` is the first-order change of the objective, feature by feature. `step` broadcasts against `x`; its sign
    is the direction (ascent or descent). A feature without gradient does not move.
    """
    displacement = step * np.sign(gradient)
    x += displacement
    if path_sum is not None:
        path_sum += displacement * gradient


def explained_class(task: Task, who: str) -> int:
    """The class of a task, for methods that ask whether a point is of that class; weights must be of one class."""
    if not isinstance(task.target, np.ndarray):
        return int(task.target)
    (several,) = np.nonzero(task.target)
    if several.size != 1 or task.target[several[0]] != 1:
        raise UsageError(
            f"{who} walks from one class to another, so it explains one class, not weights of several; "
            "next: give the class as a number, or use a path method for weights"
        )
    return int(several[0])


def require_classes(logits: Array, who: str) -> None:
    """Raise unless there is another class to walk to. `logits` (..., K) are those of the model."""
    if logits.shape[-1] < 2:
        raise UsageError(f"{who} walks to another class, but this model has one output only; next: use another method")
