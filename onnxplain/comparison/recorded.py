"""Where a method asks for gradients, and what it is told there: a sample, to be asked of somebody else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from onnxplain.engine.methods.walk import on_host
from onnxplain.engine.requests import Array, Kind, Line, Points, Program

Result = TypeVar("Result")
ON_A_LINE = 2  # points of a path that are asked for beside it, for a line tells only their sum


@dataclass
class Record:
    """Points, evenly spread over all that a program asked for: at most `most`, and half as many at least."""

    most: int = 16
    every: int = 1  # which of the points are kept
    seen: int = 0
    points: list[tuple[Array, int, Kind, Array]] = field(default_factory=list)  # x, class, objective, gradient

    def keep(self, x: Array, classes: Array, kind: Kind, gradient: Array) -> None:
        for row, target, slope in zip(x, classes, gradient, strict=True):
            if self.seen % self.every == 0:
                self.points.append((row.copy(), int(target), kind, slope.copy()))
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
                record.keep(request.x, classes_of(request), request.objective.kind, answer.gradient)
            elif isinstance(request, Line):
                beside = Points(some_of(request), request.objective)
                found = yield beside
                record.keep(beside.x, classes_of(beside), beside.objective.kind, found.gradient)
    finally:
        program.close()


def classes_of(request: Points) -> Array:
    """The class of each point, (n,). What explains weights of several classes is not recorded."""
    if request.classes is not None:
        return request.classes
    target = request.objective.target
    return np.full(len(request.x), -1 if isinstance(target, np.ndarray) else int(target))


def some_of(line: Line) -> Array:
    """Points on each path: at thirds of it, where two are asked for."""
    at = np.linspace(0, line.t.shape[1] - 1, ON_A_LINE + 2)[1:-1].round().astype(int)
    shape = (-1, *(1,) * (line.start.ndim - 1))
    points = [line.start + line.t[:, j].reshape(shape).astype(line.start.dtype) * line.step for j in at]
    return np.concatenate(points)
