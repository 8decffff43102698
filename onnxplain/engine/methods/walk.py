"""What sign-gradient walks share: the step, a whole walk on the host, the class that some of them walk away from."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np

from onnxplain.engine.methods.method import Array, Task
from onnxplain.engine.requests import Gradients, Points, Program, Request, Stop, Walk, Walked
from onnxplain.errors import UsageError

Result = TypeVar("Result")


def sign_step(
    x: Array,
    gradient: Array,
    step: Array,
    path_sum: Array | None = None,
    *,
    along: Array | None = None,
    low: Array | None = None,
    high: Array | None = None,
) -> None:
    """x <- clip(x + step * sign(g));  path_sum <- path_sum + D * h, with D what has been added to x; all in place.

    `path_sum` is the first-order change of the objective whose gradient h is, feature by feature: `along`, or g itself.
    `step` broadcasts against `x`; its sign is the direction (ascent or descent). A feature without gradient does not
    move. Without `low` and `high` nothing is clipped.
    """
    displacement = step * np.sign(gradient)
    if low is None or high is None:
        x += displacement
    else:
        before = x.copy()
        x += displacement
        np.clip(x, low, high, out=x)
        displacement = x - before
    if path_sum is not None:
        path_sum += displacement * (gradient if along is None else along)


def ended(stop: Stop, classes: Array | None, logits: Array) -> Array:
    """Which of n walks end where the logits (n, K) are."""
    predicted = logits.argmax(axis=-1)
    match stop:
        case Stop.ARRIVED:
            return np.asarray(predicted == classes)
        case Stop.LEFT:
            return np.asarray(predicted != classes)
        case _:
            return np.zeros(len(logits), bool)


def stepped(walk: Walk, *, restart: bool = False) -> Program[Walked]:
    """`Walk` as a loop that asks for `Points`.

    Where all walks have one objective, they share their first gradient, since they begin in one place. With `restart`
    each step is one from the start again: x <- clip(start + step * sign(g)).
    """
    count = len(walk.steps)
    point = np.repeat(walk.start[None], count, axis=0)
    path_sum = np.zeros_like(point)
    step, moving = one_each(walk.step, walk.start), None
    if walk.moving is not None:
        moving = one_each(walk.moving, walk.start)
    iterations, stopped = np.zeros(count, int), np.zeros(count, bool)
    first = last = np.empty((count, 0))
    while (on := np.flatnonzero(~stopped & (iterations < walk.steps))).size:
        begins = not iterations[on[0]]  # all that are on have taken as many steps
        met = yield from look(walk, point, on, begins)
        if begins:
            first, last = met.logits.copy(), met.logits.copy()
        last[on] = met.logits
        over = ended(walk.stop, None if walk.classes is None else walk.classes[on], met.logits)
        stopped[on[over]] = True
        gradient = met.gradient[~over] if over.any() else met.gradient
        on = on[~over]
        if not on.size:
            break
        along = gradient if walk.along is None else (yield from look_along(walk, point, on, begins))
        rows: Any = slice(None) if len(on) == count else on  # a view, or a copy that is written back
        x, sums = point[rows], path_sum[rows]
        if restart:
            x[...] = walk.start
        if moving is not None:
            gradient = gradient * moving[rows]
        sign_step(x, gradient, step[rows], sums, along=along, low=walk.low, high=walk.high)
        if len(on) < count:
            point[rows], path_sum[rows] = x, sums
        iterations[on] += 1
    return Walked(point, path_sum, first, last, iterations, stopped)


def one_each(values: Array, image: Array) -> Array:
    """(n, ...), of which each broadcasts against an image, as an array that broadcasts against n images."""
    return values.reshape(len(values), *(1,) * (image.ndim + 1 - values.ndim), *values.shape[1:])


def look(walk: Walk, point: Array, on: Array, begins: bool) -> Generator[Request, Any, Gradients]:
    """Logits and gradients where the walks `on` are."""
    if begins and walk.classes is None:
        answer = yield Points(walk.start[None], walk.objective)
        parts = (answer.logits, answer.value, answer.gradient)
        return Gradients(*(np.broadcast_to(part, (len(on), *part.shape[1:])) for part in parts))
    answer = yield Points(
        point if len(on) == len(point) else point[on],
        walk.objective,
        None if walk.classes is None else walk.classes[on],
    )
    return answer  # type: ignore[no-any-return]


def look_along(walk: Walk, point: Array, on: Array, begins: bool) -> Generator[Request, Any, Array]:
    """The gradients of `along` where the walks `on` are."""
    assert walk.along is not None
    if begins and walk.along_at_start is not None:
        return walk.along_at_start
    answer = yield Points(walk.start[None] if begins else point[on], walk.along)
    return answer.gradient  # type: ignore[no-any-return]


def on_host(program: Program[Result]) -> Program[Result]:
    """The same program, which takes the steps of its walks itself."""
    answer = None
    try:
        while True:
            try:
                request = program.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer = (yield from stepped(request)) if isinstance(request, Walk) else (yield request)
    finally:
        program.close()


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
