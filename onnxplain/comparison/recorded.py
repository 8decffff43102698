"""Where a method asks for gradients, and what it is told there: a sample, to be asked of somebody else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from onnxplain.engine.methods.walk import on_host
from onnxplain.engine.requests import Array, Gradients, Kind, Line, Points, Program

Result = TypeVar("Result")
ON_A_LINE = 2  # points of a path that are asked for beside it, for a line tells only their sum
# float32 knows 1 - p to 6e-8: where it is smaller than this, the gradient of p and of log p is made of rounding
SATURATED = 1e-4


@dataclass
class Record:
    """Points, evenly spread over all that a program asked for: at most `most`, and half as many at least."""

    most: int = 16
    every: int = 1  # which of the points are kept
    seen: int = 0
    saturated: int = 0  # points that are passed over
    points: list[tuple[Array, int, Kind, Array]] = field(default_factory=list)  # x, class, objective, gradient

    def keep(self, asked: Points, told: Gradients) -> None:
        """Of what was asked and told, what the record keeps. What explains weights of several classes is not kept."""
        classes, kind = classes_of(asked), asked.objective.kind
        if classes is None:
            return
        left = 1 - asked.objective.head.probability(told.logits.astype(np.float64))
        for row, target, slope, rest in zip(asked.x, classes.tolist(), told.gradient, left, strict=True):
            if kind is not Kind.LOGIT and rest[target] < SATURATED:
                self.saturated += 1
                continue
            if self.seen % self.every == 0:
                self.points.append((row.copy(), target, kind, slope.copy()))
                if len(self.points) > self.most:
                    self.points, self.every = self.points[::2], 2 * self.every
            self.seen += 1


def recorded(program: Program[Result], record: Record) -> Program[Result]:
    """The same program, which takes the steps of its walks itself, and keeps a record."""
    program = on_host(program)
    answer = None
    try:
        while True:
            try:
                request = program.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer = yield request
            if isinstance(request, Points):
                record.keep(request, answer)
            elif isinstance(request, Line):
                beside = Points(some_of(request), request.objective)
                record.keep(beside, (yield beside))
    finally:
        program.close()


def classes_of(asked: Points) -> Array | None:
    """The class of each point, (n,); None for weights."""
    if asked.classes is not None:
        return asked.classes
    target = asked.objective.target
    return None if isinstance(target, np.ndarray) else np.full(len(asked.x), int(target))


def some_of(line: Line) -> Array:
    """Points on each path: at thirds of it, where two are asked for."""
    at = np.linspace(0, line.t.shape[1] - 1, ON_A_LINE + 2)[1:-1].round().astype(int)
    shape = (-1, *(1,) * (line.start.ndim - 1))
    points = [line.start + line.t[:, j].reshape(shape).astype(line.start.dtype) * line.step for j in at]
    return np.concatenate(points)
