"""The driver: turns what many programs ask into full batches, and the batches' results into answers.

    programs --requests--> rows, queued by role --batches--> executors --outputs--> answers --> programs

Rows of one role wait in one queue, whoever asked for them. A batch is run when it is full, when no program can go on
without it, or when its rows have waited long, so that programs end one by one and not all at the end. So data-dependent
loops of many images keep the batches full, and no program knows of any other.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.batching import LARGEST, fastest
from onnxplain.engine.executors.function import FunctionExecutor
from onnxplain.engine.executors.protocol import Executor, OnDevice, TensorSpec
from onnxplain.engine.methods.walk import on_host
from onnxplain.engine.requests import (
    Activations,
    Biases,
    BiasGradients,
    Blends,
    Gradients,
    Head,
    LayerGradients,
    Line,
    Logits,
    Multipliers,
    Objective,
    PathSum,
    Points,
    Program,
    Request,
    Validity,
    Walk,
    Walked,
)
from onnxplain.engine.resident import Convoy, LineRig, Names, Ray, Traverse, Walker, WalkRig, convoy_of, even_split
from onnxplain.errors import FeedMismatch, NonFinite, OnnxplainError, OutOfMemory, UsageError

Array: TypeAlias = NDArray[Any]
Result = TypeVar("Result")
log = logging.getLogger(__name__)

# The roles: the classifier, its gradient model, that with inner layers, that with the bias-gradients of all layers, and
# the multipliers against a reference; then the step models of walks and lines whose state stays on the device.
ROLES = LOGITS, GRADIENT, LAYERS, BIASES, MULTIPLIERS, WALK, LINE = (
    *("logits", "gradient", "layers", "biases", "multipliers"),
    *("walk", "line"),
)
# The outputs that may hold no NaN and no Inf; where nothing is said, none of them may.
FINITE = {LOGITS: ("logits",), GRADIENT: ("logits", "gradient")}
NEEDED = {
    GRADIENT: "a gradient is",
    LAYERS: "inner layers are",
    BIASES: "bias-gradients are",
    MULTIPLIERS: "a reference is",
}
PATIENCE = 4  # batches: a few rows of one role are not kept waiting for ever by the many of another
TARGET, OBJECTIVE = "onnxplain_target", "onnxplain_objective"  # the extra inputs of a gradient model
REFERENCE = "onnxplain_reference"  # and of one of multipliers
ACTIVATION, ACTIVATION_GRADIENT = "activation_{}", "activation_gradient_{}"  # and its extra outputs, of layer i,
BIAS_GRADIENT, BIAS_SUM = "bias_gradient_{}", "bias_sum"  # and of biases


@dataclass
class Usage:
    """What has been spent: rows and runtime calls by role, seconds inside the runtime and in all.

    The gradients of walks and lines on the device count as gradients, and their steps beside.
    """

    rows: Counter[str] = field(default_factory=lambda: Counter({LOGITS: 0, GRADIENT: 0}))
    calls: Counter[str] = field(default_factory=lambda: Counter({LOGITS: 0, GRADIENT: 0}))
    runtime_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """How program number `index` ended: with a result or an error; `rows` is what it asked for, by role."""

    index: int
    rows: Mapping[str, int]
    result: Result | None = None
    error: OnnxplainError | None = None

    def unwrap(self) -> Result:
        """The result; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class Model:
    """One model as the driver sees it: its executors by role, and the buffers that each batch is written into.

    `start` makes the executor of a role, when that is first needed; whoever gives it closes what it has made. Several
    threads may drive programs on one model; they take turns, batch by batch.

    `batch_size` falls where an executor takes fewer rows, or the device has no memory for so many.

    `step_graphs` says whether walks and lines keep their state on the device, for which there have to be executors for
    their steps, and all have to be `OnDevice`; None: if they can, and the device has memory of its own.
    """

    def __init__(
        self,
        start: Mapping[str, Callable[[], Executor]],
        *,
        batch_size: int = 8,
        head: Head = Head.SOFTMAX,
        step_graphs: bool | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size: expected at least 1, got {batch_size}")
        self.start = start
        self.executors: dict[str, Executor] = {}
        logits = self.executor(LOGITS)
        ((self.input, spec),) = logits.inputs.items()
        self.fixed = isinstance(spec.shape[0], int)  # the batch of the model itself
        (classes,) = (s.shape[-1] for s in logits.outputs.values())
        sizes = [d for d in spec.shape[1:] if isinstance(d, int)]
        if len(sizes) != len(spec.shape) - 1 or not isinstance(classes, int):
            raise FeedMismatch(f"input {self.input}: only the batch may be symbolic, got {spec}")
        self.image_shape = tuple(sizes)
        self.classes = classes
        self.head = head
        self.dtype = spec.dtype
        self.lock = RLock()
        own_memory = None  # whether the device has it; None where nothing can stay there
        if isinstance(logits, OnDevice) and {WALK, LINE} <= start.keys():
            own_memory = logits.own_memory
        if step_graphs and own_memory is None:
            raise UsageError("step_graphs: this runtime keeps nothing on its device; next: leave step_graphs out")
        self.on_device = bool(own_memory if step_graphs is None else step_graphs)
        self.resize(spec.shape[0] if isinstance(spec.shape[0], int) else batch_size)

    def resize(self, batch_size: int) -> None:
        """Batches of `batch_size` rows from now on, or of as many as the executors take."""
        self.batch_size = min([batch_size, *(most_rows(executor) for executor in self.executors.values())])
        self.x = np.zeros((self.batch_size, *self.image_shape), self.dtype)
        self.reference = np.zeros_like(self.x)
        self.target = np.zeros((self.batch_size, self.classes), np.float32)
        self.code = np.zeros(self.batch_size, np.int64)
        self.walk_rigs: dict[bool, list[WalkRig]] = {False: [], True: []}  # of full batches, those that are free
        self.line_rigs: list[LineRig] = []

    def executor(self, role: str) -> Executor:
        """The executor of a role."""
        if role not in self.start:
            raise UsageError(f"{NEEDED[role]} needed here, but only a forward model was given")
        if role not in self.executors:
            self.executors[role] = self.start[role]()
        return self.executors[role]

    def ready(self, role: str) -> None:
        """Start the executor of a role, if it is not, and respect how many rows it takes."""
        if self.batch_size > most_rows(self.executor(role)):
            self.resize(self.batch_size)

    def fastest(self, role: str, room: Callable[[], float]) -> int:
        """The batch size that is fastest for calls of a role, tried on black images; see `batching.fastest`."""

        def call(rows: int) -> None:
            if self.batch_size != rows:
                self.resize(rows)
            self.run(role, rows)

        with self.lock:
            most = 1 if self.fixed else min(LARGEST, most_rows(self.executor(role)))
            return fastest(call, most=most, room=room)

    def shrink(self, rows: int, error: OutOfMemory) -> None:
        """The device had no memory for `rows`: batches are halved until they are smaller. Raises if it was one row."""
        if rows == 1 or self.fixed:
            raise OutOfMemory(
                f"{error}: there is no memory for a batch of {rows}, which is the smallest; "
                "next: free memory on the device, use a smaller precision, or another device"
            ) from error
        size = self.batch_size
        while size >= rows:
            size //= 2
        self.resize(size)
        log.warning("out of memory with a batch of %d: going on with %d", rows, self.batch_size)

    def walk_rig(self, rows: int, *, along: bool) -> WalkRig:
        """Buffers for `rows` walks on the device. Those of full batches are kept, for whoever needs them next."""
        free = self.walk_rigs[along] if rows == self.batch_size else []
        return free.pop() if free else WalkRig(*self.residents(WALK), rows, along=along, kept=rows == self.batch_size)

    def line_rig(self, rows: int) -> LineRig:
        """Buffers for `rows` points of a line; likewise."""
        free = self.line_rigs if rows == self.batch_size else []
        return free.pop() if free else LineRig(*self.residents(LINE), rows, kept=rows == self.batch_size)

    def residents(self, role: str) -> tuple[OnDevice, OnDevice, Names]:
        """The gradient model and a step model, where they can be bound, and names."""
        gradient, step = self.executor(GRADIENT), self.executor(role)
        assert isinstance(gradient, OnDevice)
        assert isinstance(step, OnDevice)
        return gradient, step, Names(self.input, TARGET, OBJECTIVE)

    def give_back(self, rig: WalkRig | LineRig) -> None:
        """Let others have a rig."""
        if rig.rows == self.batch_size:
            free: list[Any] = self.walk_rigs[rig.along] if isinstance(rig, WalkRig) else self.line_rigs
            free.append(rig)

    def run(self, role: str, count: int) -> Mapping[str, Array]:
        """Outputs for the first `count` rows of the buffers."""
        executor = self.executor(role)
        feeds = {self.input: self.x[:count]}
        if role != LOGITS:
            feeds |= {TARGET: self.target[:count], OBJECTIVE: self.code[:count]}
        if role == MULTIPLIERS:
            feeds |= {REFERENCE: self.reference[:count]}
        return executor(feeds)


def most_rows(executor: Executor) -> int:
    """How many rows an executor takes at most."""
    limit: int | None = getattr(executor, "most_rows", None)
    return sys.maxsize if limit is None else limit


def forward_model(fn: Callable[[Array], Array], example: Array, *, batch_size: int = 8) -> Model:
    """A forward-only model made from any callable: images (n, ...) -> logits (n, K).

    It is called once, on `example` (1, ...), which tells the shape and dtype of the images, and K.
    """

    def logits(images: Array) -> Array:
        answer = np.asarray(fn(images))
        if answer.ndim != 2 or len(answer) != len(images):
            raise FeedMismatch(
                f"the model answered {list(answer.shape)} to {len(images)} images, expected (n, K) logits"
            )
        return answer

    (classes,) = logits(example).shape[1:]
    executor = FunctionExecutor(
        lambda feeds: {LOGITS: logits(feeds["images"])},
        {"images": TensorSpec(example.dtype, ("n", *example.shape[1:]))},
        {LOGITS: TensorSpec(example.dtype, ("n", classes))},
    )
    return Model({LOGITS: lambda: executor}, batch_size=batch_size)


def as_model(model: Model | Callable[[Array], Array], example: Array, *, batch_size: int) -> Model:
    """The driver's model, or one made of a callable as `forward_model` does."""
    return model if isinstance(model, Model) else forward_model(model, example, batch_size=batch_size)


class LogitsWork:
    """`Logits` under way."""

    role = LOGITS

    def __init__(self, request: Logits, model: Model) -> None:
        self.request = request
        self.count = len(request.x)
        self.logits = np.empty((self.count, model.classes), model.dtype)

    def write(self, row: int, out: Array) -> None:
        out[...] = self.request.x[row]

    def read(self, row: int, at: int, outputs: Mapping[str, Array]) -> None:
        self.logits[row] = outputs["logits"][at]

    def answer(self) -> Array:
        return self.logits


class BlendsWork:
    """`Blends` under way: a blend is written straight into the batch.

    It is chosen bit by bit, start ^ (shown * (start ^ finish)), which is exact, whatever the values, and several times
    faster than `numpy.where`.
    """

    role = LOGITS

    def __init__(self, request: Blends, model: Model) -> None:
        self.request = request
        self.count = len(request.shown)
        self.bits = np.dtype(f"u{model.dtype.itemsize}")
        self.start = np.ascontiguousarray(request.start).view(self.bits)
        self.change = self.start ^ np.ascontiguousarray(request.finish).view(self.bits)
        self.logits = np.empty((self.count, model.classes), model.dtype)

    def write(self, row: int, out: Array) -> None:
        bits = out.view(self.bits)
        np.multiply(self.change, self.request.shown[row], out=bits)
        bits ^= self.start

    def read(self, row: int, at: int, outputs: Mapping[str, Array]) -> None:
        self.logits[row] = outputs["logits"][at]

    def answer(self) -> Array:
        return self.logits


class PointsWork:
    """`Points` under way."""

    role: str = GRADIENT

    def __init__(self, request: Points, model: Model) -> None:
        self.request = request
        self.count = len(request.x)
        self.kind, self.target = request.objective.kind, request.objective.row(model.classes)
        if request.classes is not None:
            if len(request.classes) != self.count:
                raise FeedMismatch(f"{self.count} points with {len(request.classes)} classes: expected one for each")
            self.target = rows_for(request.objective, request.classes, model)
        self.result = Gradients(
            logits=np.empty((self.count, model.classes), model.dtype),
            value=np.empty(self.count, model.dtype),
            gradient=np.empty((self.count, *model.image_shape), model.dtype),
        )

    def write(self, row: int, out: Array) -> None:
        out[...] = self.request.x[row]

    def read(self, row: int, at: int, outputs: Mapping[str, Array]) -> None:
        self.result.logits[row] = outputs["logits"][at]
        self.result.value[row] = outputs["value"][at]
        self.result.gradient[row] = outputs["gradient"][at]

    def answer(self) -> Gradients:
        return self.result


class LayersWork(PointsWork):
    """`Activations` or `Biases` under way: `Points`, and whole outputs of the model beside."""

    def __init__(self, request: Activations | Biases, model: Model) -> None:
        super().__init__(Points(request.x, request.objective), model)
        self.role = LAYERS if isinstance(request, Activations) else BIASES
        self.found: dict[str, Array] = {}

    def read(self, row: int, at: int, outputs: Mapping[str, Array]) -> None:
        super().read(row, at, outputs)
        for name in outputs.keys() - {"logits", "value", "gradient"}:
            if name not in self.found:
                self.found[name] = np.empty((self.count, *outputs[name].shape[1:]), outputs[name].dtype)
            self.found[name][row] = outputs[name][at]

    def all(self, name: str) -> tuple[Array, ...]:
        """The outputs that are called so, with 0, 1, 2, ..."""
        numbers = itertools.takewhile(lambda i: name.format(i) in self.found, itertools.count())
        return tuple(self.found[name.format(i)] for i in numbers)

    def answer(self) -> Any:
        common = (self.result.logits, self.result.value, self.result.gradient)
        if self.role == LAYERS:
            return LayerGradients(*common, self.all(ACTIVATION), self.all(ACTIVATION_GRADIENT))
        return BiasGradients(*common, self.all(BIAS_GRADIENT), self.found[BIAS_SUM])


class MultipliersWork(PointsWork):
    """`Multipliers` under way: `Points`, each with its reference."""

    role = MULTIPLIERS

    def __init__(self, request: Multipliers, model: Model) -> None:
        super().__init__(Points(request.x, request.objective), model)
        self.references = request.reference


class LineWork:
    """`Line` under way: points are made when a batch has room for them, gradients are summed as they come."""

    role = GRADIENT

    def __init__(self, request: Line, model: Model) -> None:
        lines, self.steps = request.t.shape
        self.request = request
        self.points = request.start
        self.count = lines * self.steps
        self.kind, self.target = request.objective.kind, request.objective.row(model.classes)
        self.value = np.empty((lines, self.steps), model.dtype)
        self.sum = np.zeros((lines, *model.image_shape), model.dtype)
        self.valid = np.zeros_like(self.sum) if request.validity else None
        self.credible = Credible(request) if request.validity else None
        self.scratch = np.empty(model.image_shape, model.dtype)

    def write(self, row: int, out: Array) -> None:
        i, j = divmod(row, self.steps)
        np.multiply(self.request.step[i], self.points.dtype.type(self.request.t[i, j]), out=out)
        out += self.request.start[i]

    def read(self, row: int, at: int, outputs: Mapping[str, Array]) -> None:
        i, j = divmod(row, self.steps)
        gradient = outputs["gradient"][at]
        self.value[i, j] = outputs["value"][at]
        np.multiply(gradient, self.points.dtype.type(self.request.weights[i, j]), out=self.scratch)
        if self.valid is not None and self.credible is not None:
            valid = self.credible.valid(i, j, gradient)
            self.scratch *= valid
            self.valid[i] += valid
        self.sum[i] += self.scratch

    def answer(self) -> PathSum:
        count = self.valid if self.valid is not None else np.full_like(self.sum, self.steps)
        return PathSum(value=self.value, gradient=self.sum, count=count)


class Credible:
    """Which points of the paths of a line are valid, feature by feature; see `Validity`."""

    def __init__(self, line: Line) -> None:
        assert line.reference is not None
        self.line = line
        ours = line.step * line.reference if line.validity is Validity.PATH else line.reference[None]
        self.sign = np.broadcast_to(np.sign(ours), line.step.shape)
        self.magnitude = np.broadcast_to(np.abs(ours), line.step.shape)

    def valid(self, i: int, j: int, gradient: Array) -> Array:
        """The features for which point `j` of path `i` is."""
        line, theirs = self.line, gradient
        if line.validity in (Validity.LITERAL, Validity.PATH):
            remaining = line.step[i] * line.step.dtype.type(1 - line.t[i, j])  # x - x~
            theirs = np.multiply(remaining, gradient, out=remaining)
        if line.validity is Validity.SIGN_ONLY:
            return np.asarray(self.sign[i] == np.sign(theirs))
        turned = theirs * self.sign[i]  # of our sign where it is positive, and then smaller where it is below ours
        return np.asarray((turned > 0) & (turned < self.magnitude[i]))


def rows_for(objective: Objective, classes: Array, model: Model) -> Array:
    """The targets (n, K) of an objective of these classes."""
    rows = [replace(objective, target=int(one)).row(model.classes) for one in classes]
    return np.array(rows, np.float32).reshape(len(classes), model.classes)


class RaysWork:
    """`Line` under way on the device, path by path."""

    role = LINE

    def __init__(self, request: Line, model: Model) -> None:
        self.count = len(request.t)
        target = request.objective.row(model.classes)
        zero, steps = np.zeros_like(request.start[0]), request.t.shape[1]
        self.members = [
            Ray(request, i, target, request.objective.kind, np.empty(steps, model.dtype), zero, zero)
            for i in range(self.count)
        ]
        self.steps = None if request.validity else steps  # how many points are valid, if all are

    def answer(self) -> PathSum:
        sums = np.stack([ray.sum for ray in self.members])
        return PathSum(
            value=np.stack([ray.value for ray in self.members]),
            gradient=sums,
            count=np.full_like(sums, self.steps) if self.steps else np.stack([ray.count for ray in self.members]),
        )


class WalkWork:
    """`Walk` under way on the device."""

    role = WALK

    def __init__(self, request: Walk, model: Model) -> None:
        self.count = len(request.steps)
        objective, along = request.objective, request.along
        if request.classes is None:
            targets = np.repeat(objective.row(model.classes)[None], self.count, axis=0)
        else:
            targets = rows_for(objective, request.classes, model)
        beside = None if along is None else (along.row(model.classes), int(along.kind))
        bounds = None
        if request.low is not None and request.high is not None:
            bounds = request.low.tobytes(), request.high.tobytes()
        here, zero, logits = request.start, np.zeros_like(request.start), np.zeros(model.classes, model.dtype)
        self.members = [
            Walker(request, i, targets[i], objective.kind, beside, bounds, here, zero, logits, logits)
            for i in range(self.count)
        ]

    def answer(self) -> Walked:
        return Walked(
            point=np.stack([walker.point for walker in self.members]),
            path_sum=np.stack([walker.path_sum for walker in self.members]),
            first=np.stack([walker.first for walker in self.members]),
            last=np.stack([walker.last for walker in self.members]),
            iterations=np.array([walker.iterations for walker in self.members]),
            stopped=np.array([walker.stopped for walker in self.members]),
        )


RowWork: TypeAlias = LogitsWork | BlendsWork | PointsWork | LayersWork | MultipliersWork | LineWork
Work: TypeAlias = RowWork | RaysWork | WalkWork


def begin(request: Request, model: Model) -> Work:
    """The work that a request makes; wrong dtypes, shapes, targets and heads are caught here, once a request."""
    for points in rows_of(request):
        if points.dtype != model.dtype or points.shape[1:] != model.image_shape:
            raise FeedMismatch(
                f"input {model.input}: expected rows of {model.dtype.name}{list(model.image_shape)}, "
                f"got {points.dtype.name}{list(points.shape[1:])}"
            )
    if not isinstance(request, (Logits, Blends)) and request.objective.head is not model.head:
        raise UsageError(
            f"an objective of a {request.objective.head} head was asked for, but the model's is {model.head}; "
            "next: let the method pass on the head that it is given"
        )
    match request:
        case Logits():
            return LogitsWork(request, model)
        case Blends():
            return BlendsWork(request, model)
        case Points():
            return PointsWork(request, model)
        case Line() if model.on_device and 2 * request.t.shape[1] >= model.batch_size:
            return RaysWork(request, model)
        case Line():
            return LineWork(request, model)
        case Walk():
            return WalkWork(request, model)
        case Activations() | Biases():
            return LayersWork(request, model)
        case Multipliers():
            return MultipliersWork(request, model)


def rows_of(request: Request) -> tuple[Array, ...]:
    """The arrays of a request that have a row for each of its images."""
    match request:
        case Line():
            return request.start, request.step
        case Multipliers():
            return request.x, request.reference
        case Blends():
            return request.start[None], request.finish[None]
        case Walk():
            return (request.start[None],)
        case _:
            return (request.x,)


@dataclass(eq=False)
class Job(Generic[Result]):
    """A program that is open."""

    index: int
    program: Program[Result]
    rows: Counter[str] = field(default_factory=lambda: Counter({LOGITS: 0, GRADIENT: 0}))
    asked: int = 0
    waiting: int = 0
    work: Work | None = None


Item: TypeAlias = tuple[Job[Result], int]  # a row of what a program has asked for


@dataclass(eq=False)
class Voyage(Generic[Result]):
    """What is on the device, whose it is, and whose of it has failed."""

    items: list[Item[Result]]
    state: Convoy | Traverse
    failed: set[int] = field(default_factory=set)


def embark(queue: deque[Item[Result]], model: Model) -> Voyage[Result]:
    """Bring what is at the head of a queue to the device: one path, or as many walks as fit into a batch."""

    def member(item: Item[Result]) -> Any:
        job, row = item
        assert isinstance(job.work, (RaysWork, WalkWork))
        return job.work.members[row]

    head = member(queue[0])
    chosen = [0] if isinstance(head, Ray) else convoy_of([member(item) for item in queue], model.batch_size)
    aboard = [queue[at] for at in chosen]
    for at in reversed(chosen):
        del queue[at]
    try:
        if isinstance(head, Ray):
            return Voyage(aboard, Traverse(model.line_rig(even_split(head.left, model.batch_size)), head))
        rig = model.walk_rig(len(aboard), along=head.along is not None)
        return Voyage(aboard, Convoy(rig, [member(item) for item in aboard]))
    except OutOfMemory:
        queue.extendleft(reversed(aboard))
        raise


def drive(
    programs: Iterable[Program[Result]],
    model: Model,
    *,
    usage: Usage | None = None,
    observe: Callable[[Mapping[str, int]], None] | None = None,
) -> Iterator[Outcome[Result]]:
    """Run programs to their end and yield their outcomes, in the order in which they finish.

    `programs` is read lazily: only as many are open as it takes to fill a batch. A program that fails (its own error,
    NaN or Inf from the model) ends with an `Outcome` that holds the error; the others go on. A runtime that fails ends
    everything. `observe` is called after every batch with the rows that it had, by role; `usage` is added to.
    """
    usage = usage if usage is not None else Usage()
    source = enumerate(programs)
    queues: dict[str, deque[Item[Result]]] = {role: deque() for role in ROLES}
    under_way: dict[str, Voyage[Result]] = {}  # what is on the device now, by role: WALK or LINE
    passed_over = dict.fromkeys(ROLES, 0)  # batches that a role's rows have waited for others
    exhausted = False

    def begun(index: int, program: Program[Result]) -> Job[Result]:
        return Job(index, program if model.on_device else on_host(program))

    def advance(job: Job[Result], answer: Any) -> Outcome[Result] | None:
        """Send a program its answer and queue the rows of what it asks next; its outcome if it has ended."""
        try:
            while True:
                job.work = begin(job.program.send(answer), model)
                job.asked += 1
                job.waiting = job.work.count
                if job.waiting:
                    break
                answer = job.work.answer()
        except StopIteration as end:
            return Outcome(job.index, job.rows, result=end.value)
        except OnnxplainError as error:
            return fail(job, error)
        queues[job.work.role].extend((job, row) for row in range(job.work.count))
        if not isinstance(job.work, (RaysWork, WalkWork)):
            job.rows[job.work.role] += job.work.count
        return None

    def fail(job: Job[Result], error: OnnxplainError) -> Outcome[Result]:
        job.program.close()
        for queue in queues.values():
            kept = [item for item in queue if item[0] is not job]
            queue.clear()
            queue.extend(kept)
        return Outcome(job.index, job.rows, error=error)

    def run_batch(role: str) -> Iterator[Outcome[Result]]:
        """Run the rows at the head of one queue, hand out what comes back, and let go on whoever has all of it."""
        queue = queues[role]
        failed: set[int] = set()
        ended: list[Outcome[Result]] = []
        with model.lock:  # another thread may be driving other programs on the same buffers
            model.ready(role)
            batch = [queue.popleft() for _ in range(min(len(queue), model.batch_size))]
            for at, (job, row) in enumerate(batch):
                assert isinstance(job.work, RowWork)
                job.work.write(row, model.x[at])
                if not isinstance(job.work, (LogitsWork, BlendsWork)):
                    target = job.work.target  # one for all rows, or one for each
                    model.target[at], model.code[at] = target if target.ndim == 1 else target[row], job.work.kind
                if isinstance(job.work, MultipliersWork):
                    model.reference[at] = job.work.references[row]
            started = time.perf_counter()
            try:
                outputs = model.run(role, len(batch))
            except OutOfMemory as error:
                queue.extendleft(reversed(batch))
                model.shrink(len(batch), error)
                return
            usage.runtime_seconds += time.perf_counter() - started
            usage.calls[role] += 1
            usage.rows[role] += len(batch)
            finite = np.logical_and.reduce([rows_finite(outputs[name]) for name in FINITE.get(role, outputs)])
            for at, (job, row) in enumerate(batch):
                if job.index in failed:
                    continue
                assert isinstance(job.work, RowWork)
                if not finite[at]:
                    failed.add(job.index)
                    spoilt = {name for name, y in outputs.items() if not np.isfinite(y[at]).all()}
                    ended.append(fail(job, non_finite(job.asked, spoilt)))
                    continue
                job.work.read(row, at, outputs)
                job.waiting -= 1
                if not job.waiting:
                    outcome = advance(job, job.work.answer())
                    if outcome is not None:
                        ended.append(outcome)
        if observe is not None:
            observe({role: len(batch)})
        # only now: whoever takes an outcome may use the model, whose next call overwrites these outputs
        yield from ended

    def run_step(role: str) -> Iterator[Outcome[Result]]:
        """One step of what is on the device; what has come to its end there is handed out, and goes on."""
        with model.lock:
            rows, ended = step(role)
        if observe is not None and rows:
            observe({GRADIENT: rows})
        yield from ended

    def step(role: str) -> tuple[int, list[Outcome[Result]]]:
        """The gradient rows that a step took, and the outcomes of those who have ended with it."""
        for needed in (GRADIENT, role):
            model.ready(needed)
        try:
            if role not in under_way:
                under_way[role] = embark(queues[role], model)
            voyage = under_way[role]
            started = time.perf_counter()
            spent = voyage.state.step()
        except OutOfMemory as error:
            rows = under_way[role].state.rig.rows if role in under_way else model.batch_size
            ended = land(role) if role in under_way else []
            model.shrink(rows, error)
            return 0, ended
        usage.runtime_seconds += time.perf_counter() - started
        rows = int(spent.rows.sum())
        usage.calls.update({GRADIENT: spent.calls, role: 1})
        usage.rows.update({GRADIENT: rows, role: rows})
        for (job, _), count in zip(voyage.items, spent.rows.tolist(), strict=True):
            job.rows[GRADIENT] += count
        ended = []
        for at, name in spent.failed.items():
            job, _ = voyage.items[at]
            if job.index not in voyage.failed:
                voyage.failed.add(job.index)
                ended.append(fail(job, non_finite(job.asked, {name})))
        for at, (job, _) in enumerate(voyage.items):
            if job.index in voyage.failed:
                voyage.state.drop(at)
        return rows, ended + (land(role) if voyage.state.over else [])

    def land(role: str) -> list[Outcome[Result]]:
        """Take everything of a role off the device: what is not at its end goes to the head of the queue again."""
        voyage = under_way.pop(role)
        voyage.state.land()
        model.give_back(voyage.state.rig)
        members: Sequence[Walker | Ray] = voyage.state.members
        left = [
            (job, row, member)
            for (job, row), member in zip(voyage.items, members, strict=True)
            if job.index not in voyage.failed
        ]
        queues[role].extendleft(reversed([(job, row) for job, row, member in left if member.goes_on]))
        ended = []
        for job, _, member in left:
            job.waiting -= not member.goes_on
            if not job.waiting:
                assert job.work is not None
                if (outcome := advance(job, job.work.answer())) is not None:
                    ended.append(outcome)
        return ended

    def waiting(role: str) -> int:
        """How many rows of a role there are to run: a path is a batch at least, and so is what is on the device."""
        rows = len(queues[role]) * (model.batch_size if role == LINE else 1)
        return max(rows, model.batch_size) if role in under_way else rows

    def turns() -> Iterator[Outcome[Result]]:
        nonlocal exhausted
        while True:
            overdue = next((r for r in queues if waiting(r) and passed_over[r] >= PATIENCE), None)
            role = overdue or max(queues, key=waiting)
            if overdue is None and waiting(role) < model.batch_size and not exhausted:
                index, program = next(source, (-1, None))
                if program is None:
                    exhausted = True
                elif (outcome := advance(begun(index, program), None)) is not None:
                    yield outcome
            elif waiting(role):
                for other in queues:
                    passed_over[other] = 0 if other == role else passed_over[other] + bool(waiting(other))
                yield from run_step(role) if role in (WALK, LINE) else run_batch(role)
            else:
                return

    clock = time.perf_counter()
    try:
        for outcome in turns():
            usage.seconds += time.perf_counter() - clock
            yield outcome
            clock = time.perf_counter()
        usage.seconds += time.perf_counter() - clock
    finally:
        for voyage in under_way.values():  # whoever takes the outcomes has seen enough
            model.give_back(voyage.state.rig)


def rows_finite(x: Array) -> Array:
    """For each row, whether it is free of NaN and Inf."""
    return np.asarray(np.isfinite(x).reshape(len(x), -1).all(axis=-1))


def non_finite(step: int, spoilt: Collection[str]) -> NonFinite:
    what = next((name for name in ("logits", "gradient") if name in spoilt), "inner layers")
    return NonFinite(
        f"the model gave NaN or Inf in its {what} at request {step} of the method; "
        "next: check the image and the model's weights, or use another objective; in fp16 numbers may overflow"
    )


def run(program: Program[Result], model: Model, *, usage: Usage | None = None) -> Result:
    """Run one program alone and return its result."""
    (outcome,) = drive([program], model, usage=usage)
    return outcome.unwrap()


def in_order(programs: Iterable[Program[Result]], model: Model, *, usage: Usage | None = None) -> Iterator[Result]:
    """The results of programs in their own order, run together; raises the first error."""
    for outcome in sorted(drive(programs, model, usage=usage), key=lambda outcome: outcome.index):
        yield outcome.unwrap()
