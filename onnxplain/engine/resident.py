"""Walks and lines whose state stays in the memory of the device: per step only scalars and logits cross the bus.

A gradient model and a step model (`adapters.gradient.steps`) of one runtime share buffers. State that changes has two
of them, and the step goes from one to the other, since no model may write to what it reads:

    point 0 ──gradient model──► gradient ──step model──► point 1 ──gradient model──► gradient ──step model──► point 0

The driver makes the steps one by one, between batches of other things, and hands out what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.executors.protocol import Buffer, OnDevice, TensorSpec
from onnxplain.engine.methods.walk import ended
from onnxplain.engine.requests import Line, Stop, Validity, Walk

Array: TypeAlias = NDArray[Any]

# Inputs and outputs of the step models: state, which becomes `NEXT` of itself,
POINT, PATH_SUM, SUM, COUNT, NEXT = "point", "path_sum", "sum", "count", "next_{}"
GRADIENT, ALONG, SPOILT = "gradient", "along", "spoilt"  # what the gradient model gave, and whether that is sound,
STEP, LOW, HIGH, BOUNDED, ACTIVE = "step", "low", "high", "bounded", "active"  # hyper-parameters of walks,
START, REFERENCE, RULE = "start", "reference", "rule"  # and of lines,
AT, WEIGHT, REST, USED = "t", "weight", "rest", "used"  # and of their points.
RULES = (None, *Validity)  # the values of `rule`


class Names(NamedTuple):
    """What the inputs of a gradient model are called."""

    image: str
    target: str
    objective: str


class Spent(NamedTuple):
    """What a step took: the gradient rows of each member, and how many calls of the gradient model they came in.

    `failed` names, for members whose numbers are not finite, what holds them: "logits" or "gradient".
    """

    rows: Array
    calls: int
    failed: Mapping[int, str]


def sized(spec: TensorSpec, rows: int) -> TensorSpec:
    """The spec with its free dimension, the batch, fixed."""
    return TensorSpec(spec.dtype, tuple(d if isinstance(d, int) else rows for d in spec.shape))


class Side:
    """A gradient model bound to buffers: one call for each of `points`, all with the same targets and outputs."""

    def __init__(self, model: OnDevice, names: Names, points: Sequence[Buffer], rows: int, *, kept: bool) -> None:
        def buffer(spec: TensorSpec) -> Buffer:
            return model.buffer(sized(spec, rows))

        self.target, self.code = buffer(model.inputs[names.target]), buffer(model.inputs[names.objective])
        outputs = {name: buffer(spec) for name, spec in model.outputs.items()}
        self.logits, self.value, self.gradient = outputs["logits"], outputs["value"], outputs["gradient"]
        told = {names.target: self.target, names.objective: self.code}
        self.calls = [model.bind({names.image: point, **told, **outputs}, kept=kept) for point in points]


@dataclass(eq=False)
class Walker:
    """One walk of a request, and where it is, as of when it last landed."""

    walk: Walk
    at: int  # which of the walks of the request
    target: Array  # (K,) float32, and the code of its kind
    code: int
    along: tuple[Array, int] | None  # the same of `along`
    bounds: tuple[bytes, bytes] | None  # of the request: those on one device are told apart by them
    point: Array
    path_sum: Array
    first: Array  # (K,)
    last: Array
    iterations: int = 0
    stopped: bool = False

    @property
    def goes_on(self) -> bool:
        return not self.stopped and self.iterations < int(self.walk.steps[self.at])

    @property
    def step(self) -> Array:
        """The step of each feature, like an image: 0 where it may not move."""
        step, moving = self.walk.step[self.at], self.walk.moving
        return np.broadcast_to(step if moving is None else step * moving[self.at], self.point.shape)

    @property
    def label(self) -> int:
        """The class that `stop` asks for."""
        return -1 if self.walk.classes is None else int(self.walk.classes[self.at])


def convoy_of(walkers: Sequence[Walker], most: int) -> list[int]:
    """Which walkers may step together, the first one among them: `most` at most.

    They take as many gradients a step, and those that have bounds have the same.
    """
    chosen: list[int] = []
    bounds = None
    for i, walker in enumerate(walkers):
        alike = (walker.along is None) == (walkers[0].along is None)
        if len(chosen) < most and alike and (not walker.bounds or not bounds or walker.bounds == bounds):
            chosen.append(i)
            bounds = bounds or walker.bounds
    return chosen


class WalkRig:
    """The buffers of a convoy of `rows` walks, and the models bound to them. `along`: they ask two gradients a step."""

    def __init__(self, gradient: OnDevice, step: OnDevice, names: Names, rows: int, *, along: bool, kept: bool) -> None:
        def buffer(name: str) -> Buffer:
            return step.buffer(sized(step.inputs[name], rows))

        self.rows, self.along = rows, along
        self.told = {name: buffer(name) for name in (STEP, LOW, HIGH, BOUNDED, ACTIVE)}
        self.points, self.sums = [buffer(POINT), buffer(POINT)], [buffer(PATH_SUM), buffer(PATH_SUM)]
        self.spoilt = step.buffer(sized(step.outputs[SPOILT], rows))
        self.climb = Side(gradient, names, self.points, rows, kept=kept)
        self.fall = Side(gradient, names, self.points, rows, kept=kept) if along else self.climb
        gradients = {GRADIENT: self.climb.gradient, ALONG: self.fall.gradient}
        self.update = [
            step.bind(
                {
                    **{**self.told, **gradients, POINT: self.points[i], PATH_SUM: self.sums[i]},
                    NEXT.format(POINT): self.points[1 - i],
                    NEXT.format(PATH_SUM): self.sums[1 - i],
                    SPOILT: self.spoilt,
                },
                kept=kept,
            )
            for i in range(2)
        ]


class Convoy:
    """Walks that step together, from aboard to land.

    One that has ended stands still; where fewer than half are on their way, the convoy is `over`, so that the others
    may make up a smaller or fuller one.
    """

    def __init__(self, rig: WalkRig, walkers: Sequence[Walker]) -> None:
        self.rig, self.members = rig, list(walkers)
        self.side = 0  # which of the two buffers holds the state
        self.active: Array | None = None  # what the device was told last
        self.on = np.ones(len(walkers), bool)
        self.taken = np.array([walker.iterations for walker in walkers])
        self.most = np.array([walker.walk.steps[walker.at] for walker in walkers])
        self.stopped = np.zeros(len(walkers), bool)
        self.labels = np.array([walker.label for walker in walkers])
        self.stops = {stop: np.array([walker.walk.stop is stop for walker in walkers]) for stop in Stop}
        self.first = np.stack([walker.first for walker in walkers])
        self.last = np.stack([walker.last for walker in walkers])
        self.embark(walkers[0].walk.start)

    def embark(self, image: Array) -> None:
        """Tell the device all that does not change on the way, and where the walks are; in the dtype of an image."""
        rig, walkers = self.rig, self.members
        bounded = np.array([walker.bounds is not None for walker in walkers])
        if bounded.any():
            walk = walkers[int(bounded.argmax())].walk
            for name, bound in ((LOW, walk.low), (HIGH, walk.high)):
                rig.told[name].write(np.broadcast_to(np.asarray(bound, image.dtype), image.shape))
        rig.told[BOUNDED].write(bounded)
        rig.told[STEP].write(np.stack([walker.step for walker in walkers]).astype(image.dtype, copy=False))
        rig.points[0].write(np.stack([walker.point for walker in walkers]))
        rig.sums[0].write(np.stack([walker.path_sum for walker in walkers]))
        rig.climb.target.write(np.stack([walker.target for walker in walkers]))
        rig.climb.code.write(np.array([walker.code for walker in walkers]))
        if rig.along:
            along = [walker.along for walker in walkers if walker.along is not None]
            rig.fall.target.write(np.stack([target for target, _ in along]))
            rig.fall.code.write(np.array([code for _, code in along]))

    def step(self) -> Spent:
        """One step of all that are on their way, or less where the logits end a walk."""
        rig, asked = self.rig, self.on
        rig.climb.calls[self.side]()
        logits = rig.climb.logits.read()
        self.meet(logits, asked)
        stepping = asked & ~self.stopped
        falls = rig.along and bool(stepping.any())
        if falls:
            rig.fall.calls[self.side]()
        if self.active is None or (stepping != self.active).any():
            rig.told[ACTIVE].write(stepping)
            self.active = stepping
        rig.update[self.side]()  # although all may have stopped: it looks at the gradients too
        spoilt = rig.spoilt.read()
        self.side = 1 - self.side
        self.taken = self.taken + stepping
        self.on = stepping & (self.taken < self.most)
        finite = np.asarray(np.isfinite(logits).all(axis=-1))
        wrong = np.flatnonzero(asked & (spoilt | ~finite)).tolist()
        failed = {i: "gradient" if finite[i] else "logits" for i in wrong}
        return Spent(asked.astype(int) + (stepping if falls else 0), 1 + falls, failed)

    def meet(self, logits: Array, asked: Array) -> None:
        """Note the logits where the walks are, and which of them end there."""
        begin = asked & (self.taken == 0)
        self.first[begin], self.last[asked] = logits[begin], logits[asked]
        for stop, of_these in self.stops.items():
            here = asked & of_these
            self.stopped[here] = ended(stop, self.labels[here], logits[here])

    def drop(self, i: int) -> None:
        """Member `i` goes no further."""
        self.on[i] = False

    @property
    def over(self) -> bool:
        """Whether it is time to land."""
        return not self.on.any() or 2 * int(self.on.sum()) < len(self.on)

    def land(self) -> None:
        """Bring the state back to the walkers. It may be done between any two steps, and after one that failed."""
        points, sums = self.rig.points[self.side].read(), self.rig.sums[self.side].read()
        for i, walker in enumerate(self.members):
            walker.point, walker.path_sum = points[i], sums[i]
            walker.first, walker.last = self.first[i], self.last[i]
            walker.iterations, walker.stopped = int(self.taken[i]), bool(self.stopped[i])


@dataclass(eq=False)
class Ray:
    """One path of a `Line`, and what became of it; `sum` and `count` as of when it last landed."""

    line: Line
    at: int  # which of the paths
    target: Array
    code: int
    value: Array  # (T)
    sum: Array
    count: Array
    done: int = 0  # points

    @property
    def left(self) -> int:
        """How many points there are to go."""
        return len(self.value) - self.done

    @property
    def goes_on(self) -> bool:
        return self.left > 0


class LineRig:
    """The buffers of a line that is traversed by `rows` points at a time, and the models bound to them."""

    def __init__(self, gradient: OnDevice, step: OnDevice, names: Names, rows: int, *, kept: bool) -> None:
        def buffer(name: str) -> Buffer:
            return step.buffer(sized(step.inputs[name], rows))

        self.rows = rows
        self.told = {name: buffer(name) for name in (START, STEP, REFERENCE, RULE, AT, WEIGHT, REST, USED)}
        self.sums, self.counts = [buffer(SUM), buffer(SUM)], [buffer(COUNT), buffer(COUNT)]
        point, self.spoilt = (step.buffer(sized(step.outputs[name], rows)) for name in (POINT, SPOILT))
        self.side = Side(gradient, names, [point], rows, kept=kept)
        self.update = [
            step.bind(
                {
                    **{**self.told, GRADIENT: self.side.gradient, SUM: self.sums[i], COUNT: self.counts[i]},
                    **{POINT: point, SPOILT: self.spoilt},
                    NEXT.format(SUM): self.sums[1 - i],
                    NEXT.format(COUNT): self.counts[1 - i],
                },
                kept=kept,
            )
            for i in range(2)
        ]


class Traverse:
    """A line under way, in as few batches as there may be, all of one size but for what the last one leaves unused."""

    def __init__(self, rig: LineRig, ray: Ray) -> None:
        self.rig, self.members = rig, [ray]
        line, start = ray.line, ray.line.start[ray.at]
        self.side = 0
        self.dropped = False
        rig.told[START].write(start)
        rig.told[STEP].write(line.step[ray.at])
        rig.told[RULE].write(np.array([RULES.index(line.validity)]))
        if line.reference is not None:
            rig.told[REFERENCE].write(line.reference.astype(start.dtype))
        rig.side.target.write(np.repeat(ray.target[None], rig.rows, axis=0))
        rig.side.code.write(np.full(rig.rows, ray.code))
        rig.sums[0].write(ray.sum)
        rig.counts[0].write(ray.count)
        self.update(0)

    def update(self, count: int) -> None:
        """Add up `count` points that were done now, and make the next ones."""
        (ray,), told = self.members, self.rig.told
        t, weights = ray.line.t[ray.at], ray.line.weights[ray.at]
        here, then = slice(ray.done, ray.done + count), slice(ray.done + count, ray.done + count + self.rig.rows)
        told[USED].write(np.arange(self.rig.rows) < count)
        told[WEIGHT].write(self.padded(weights[here]))
        told[REST].write(self.padded(1 - t[here]))
        told[AT].write(self.padded(t[then]))
        self.rig.update[self.side]()
        self.side = 1 - self.side
        ray.done += count

    def padded(self, values: Array) -> Array:
        """Numbers of points in the dtype of images, as many as the rig has rows."""
        full = np.zeros(self.rig.rows, self.members[0].value.dtype)
        full[: len(values)] = values
        return full

    def step(self) -> Spent:
        """One batch of points."""
        (ray,), rig = self.members, self.rig
        count = min(rig.rows, ray.left)
        rig.side.calls[0]()
        logits, value = rig.side.logits.read()[:count], rig.side.value.read()[:count]
        ray.value[ray.done : ray.done + count] = value
        self.update(count)
        failed = "logits" if not np.isfinite(logits).all() else "gradient" if rig.spoilt.read()[:count].any() else None
        return Spent(np.array([count]), 1, {} if failed is None else {0: failed})

    def drop(self, i: int) -> None:  # noqa: ARG002 (there is but one)
        """The path is not wanted any more."""
        self.dropped = True

    @property
    def over(self) -> bool:
        """Whether it is time to land."""
        return self.dropped or not self.members[0].goes_on

    def land(self) -> None:
        """Bring back what was added up. It may be done between any two steps, and after one that failed."""
        (ray,) = self.members
        ray.sum = self.rig.sums[self.side].read()
        if ray.line.validity is not None:
            ray.count = self.rig.counts[self.side].read()


def even_split(count: int, most: int) -> int:
    """How many points go into each batch, if there are as few batches as can be."""
    return math.ceil(count / math.ceil(count / most))
