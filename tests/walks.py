"""Walks of all kinds, drawn at random, for tests on the host and on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import toys

from onnxplain.engine.requests import Kind, Line, Objective, Program, Request, Stop, Validity, Walk

TOY = toys.TOY_T
IMAGES = np.random.default_rng(7).random((12, 6))


def plain(**changes: Any) -> Walk:
    """Two walks of two steps, up a logit; `changes` are those of `Walk`, `steps` and `count` may be numbers."""
    count = changes.pop("count", 2)
    known: dict[str, Any] = {"start": IMAGES[0], "objective": Objective(Kind.LOGIT, 0), "steps": 2}
    known |= {"step": np.full((count, 1), 0.02)} | changes
    if isinstance(known["steps"], int):
        known["steps"] = np.full(count, known["steps"])
    if known.get("classes") is not None:
        known["classes"] = np.asarray(known["classes"])
    return Walk(**known)


def drawn(seed: int, start: Any = None, classes: int = 3) -> Walk:
    """One of any kind, from an image (of TOY, unless another is given)."""
    draw = np.random.default_rng(seed)
    start = IMAGES[seed % 12] if start is None else start
    count, rank = int(draw.integers(1, 6)), start.ndim
    stop = draw.choice([Stop.NEVER, Stop.ARRIVED, Stop.LEFT])
    labels = draw.integers(0, classes, count) if stop is not Stop.NEVER or draw.random() < 0.5 else None
    bounded, along = draw.random() < 0.5, Objective(Kind.PROB, 1) if draw.random() < 0.5 else None
    size = (count, *(1,) * rank) if draw.random() < 0.7 else (count, *start.shape)
    low = np.asarray(0.1 if draw.random() < 0.5 else np.full(start.shape, 0.1), start.dtype)
    known = None
    if along is not None and start.size == 6 and draw.random() < 0.5:
        cotangent = toys.objective(Kind.PROB, TOY.logits(start), np.eye(3)[1])[1]
        known = TOY.pull_back(start, cotangent).astype(start.dtype)
    return Walk(
        start=start,
        step=(draw.choice([-1, 1], (count, *(1,) * rank)) * draw.uniform(0.01, 0.2, size)).astype(start.dtype),
        steps=draw.integers(1, 7, count),
        objective=Objective(Kind(draw.choice([Kind.CE, Kind.LOGIT, Kind.PROB])), int(draw.integers(classes))),
        classes=labels,
        moving=draw.random((count, *start.shape)) < 0.7 if draw.random() < 0.5 else None,
        low=low if bounded else None,
        high=low + start.dtype.type(0.7) if bounded else None,
        along=along,
        along_at_start=known,
        stop=stop,
    )


def line(
    seed: int, validity: Validity | None, points: int = 9, shape: tuple[int, ...] = (6,), dtype: Any = float
) -> Line:
    """Two paths."""
    draw = np.random.default_rng(seed)
    full = (2, *shape)
    return Line(
        start=draw.random(full).astype(dtype),
        step=draw.normal(size=full).astype(dtype),
        t=draw.random((2, points)),
        weights=draw.normal(size=(2, points)),
        objective=Objective(Kind.PROB, 1),
        validity=validity,
        reference=draw.normal(size=shape).astype(dtype) / 10 if validity is not None else None,
    )


def asks(*requests: Request) -> Program[Any]:
    """A program that asks one thing after the other; its result is the last answer, or all if there are several."""
    answers: list[Any] = []
    for request in requests:
        answer = yield request
        answers.append(answer)
    return answers[0] if len(answers) == 1 else answers
