"""`open` a model and explain images with it: the one place that joins generation, preprocessing and execution."""

from __future__ import annotations

import itertools
import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxplain.adapters.gradient.classifier import HEAD_KEY, LAYOUT_KEY, without_layers
from onnxplain.adapters.gradient.differentiate import OnUnsupported, stopped_at
from onnxplain.adapters.gradient.precision import in_precision, precision_of
from onnxplain.adapters.gradient.read import ModelLike
from onnxplain.adapters.gradient.steps import line_step, walk_step
from onnxplain.adapters.onnx_file import AUTO, Halves, Preprocess, halves, layers_of, notes_of, properties
from onnxplain.engine.arguments import check_range, expect
from onnxplain.engine.batching import Remembered, host_memory
from onnxplain.engine.drive import (
    BIASES,
    GRADIENT,
    LAYERS,
    LINE,
    LOGITS,
    MULTIPLIERS,
    WALK,
    Model,
    Outcome,
    Usage,
    drive,
    in_order,
    run,
)
from onnxplain.engine.executors.protocol import Closing, Executor
from onnxplain.engine.executors.setup import Setup
from onnxplain.engine.explanation import Explanation
from onnxplain.engine.methods import Method, Task, to_dict
from onnxplain.engine.methods.method import generator
from onnxplain.engine.requests import Array, Gradients, Head, Kind, Logits, Objective, Points, Program
from onnxplain.engine.space import Space
from onnxplain.errors import ExecutionError, FeedMismatch, NonFinite, UsageError, by_operator
from onnxplain.models.labels import labels_for
from onnxplain.models.preprocess import PREPROCESS_KEY, PreprocessSpec, find, load_image, to_input

log = logging.getLogger(__name__)

ROUNDING = 0.01  # how far a pixel may lie out of range: images are resized and scaled by others
Target: TypeAlias = int | Sequence[int] | Array | None


def open(
    model: ModelLike,
    *,
    on: str = "cpu",
    precision: str | None = None,
    batch_size: int | Literal["auto"] = 8,
    preprocess: Preprocess = AUTO,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    layers: str | Sequence[str] = "auto",
    gradient: bool = True,
    range: tuple[float, float] | None = None,
    threads: int = 0,
    provider_options: Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | None = AUTO,
    step_graphs: bool | None = None,
    on_unsupported: OnUnsupported = "error",
) -> Explainer:
    """Open a classifier or a gradient model for explaining. Use it as a context manager, or call `close`.

    Args:
        model: a path, a `ModelProto` or an onnx-ir model.
        on: the runtime and its device: "cpu" and "cuda" (ONNX Runtime), "tensorrt", "tensorrt-rtx", "openvino", or
            another provider of ONNX Runtime by its name; "cuda:1" is the second of several. Another one is never taken
            in its place.
        precision: what it is computed in: "fp32"; "tf32", products rounded to 10 bits by a GPU; "fp16" or "bf16",
            see `adapters.gradient.precision`. Images, logits and gradients are float32 in all of them. None: what a
            gradient model was written in, float32 otherwise.
        batch_size: how many samples go into one call of the runtime. "auto" tries which size is fastest, and remembers
            it. Where the device has no memory for so many, it is halved, and the work goes on.
        preprocess: where a classifier's preprocessing comes from: "auto" looks beside the model and in its metadata
            (see `models.preprocess.find`), otherwise a specification, the path of one, or None for a classifier whose
            input is to be taken as it is.
        output: the name of the logits, where the model has several float outputs.
        head: "softmax" or "sigmoid"; None: as the model ends, see `gradient_model`.
        input_shape: the sizes that a classifier leaves open, such as (3, 224, 224).
        layers: for methods that look inside, as in `gradient_model`. They cost nothing until such a method asks.
        gradient: False opens the forward half only, for scoring heatmaps and for methods that ask no gradient; the
            model need not be differentiable then.
        range: the valid values of an input without preprocessing, for methods that work in pixel units.
        threads: of the runtime inside one operator; 0 lets it decide.
        provider_options: those of the runtime or its provider, by their names there.
        cache: the folder for engines and the batch sizes that were found; "auto" is the platform's own cache folder,
            None keeps nothing.
        step_graphs: whether walks and path integrals keep their state on the device, where small graphs make their
            steps, so that images and gradients do not cross the bus; None: where the device has memory of its own.
        on_unsupported: what an operator without a gradient is, as in `differentiate`.

    Raises:
        ModelError: the model cannot be read, is no classifier, or cannot be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict the model.
        BackendMissing: the runtime is not installed.
        DeviceMissing: there is no such device, or its driver does not fit.
    """
    check_range(range)
    expect(
        step_graphs is None or isinstance(step_graphs, bool),
        *("step_graphs", "True, False or None", step_graphs, "leave it out"),
    )
    setup = Setup.of(
        on=on,
        precision="fp32" if precision is None else precision,
        threads=threads,
        provider_options=provider_options,
        cache=cache,
        batch_size=batch_size,
    )
    how: dict[str, Any] = {"head": head, "input_shape": input_shape, "layers": layers, "gradient": gradient}
    made = halves(model, preprocess, output, **how, on_unsupported=on_unsupported)
    if precision is None:
        setup = replace(setup, precision=precision_of(made.logits))
    return Explainer(made, setup, batch_size=batch_size, range=range, step_graphs=step_graphs)


class Explainer(Closing):
    """A gradient model on a device. Made by `open`.

    `space` says how its input relates to pixels, `preprocess` how photos become inputs (None if the model does not
    say), `head` what makes probabilities of its logits, `labels` names the classes (None if unknown), `notes` says what
    was cut off or passed over of the classifier, `usage` counts what has been spent. Threads may share it: they take
    turns.
    """

    def __init__(
        self,
        model: Halves,
        setup: Setup,
        *,
        batch_size: int | Literal["auto"] = 8,
        range: tuple[float, float] | None = None,
        step_graphs: bool | None = None,
    ) -> None:
        self.metadata = properties(model.logits)
        self.preprocess: PreprocessSpec | None = None
        if PREPROCESS_KEY in self.metadata:
            self.preprocess = find(None, metadata=self.metadata)[0]
        pixel = self.metadata["onnxplain.space"] == "pixel"
        if pixel and range is not None:
            raise UsageError("range: this model's input is RGB in [0,1] already; next: leave range out")
        self.head = Head(self.metadata[HEAD_KEY])
        axis = {"NCHW": 0, "NHWC": -1}.get(self.metadata.get(LAYOUT_KEY, "NCHW" if pixel else ""))
        self.space = (
            self.preprocess.space(channel_axis=axis or 0)
            if pixel and self.preprocess
            else replace(Space.model(range), channel_axis=axis)
        )
        self.labels = labels_for(self.metadata)
        self.notes = notes_of(self.metadata)
        self.usage = Usage()
        self.setup = setup
        self._wanted = batch_size
        self._step_graphs = step_graphs
        self._halves = model
        self._opened: list[Executor] = []
        self._found: list[dict[str, Any]] = []  # of the layers, once they are there
        self._closed = False
        self._logits = self._start(model.logits)
        self.forward = self._model({LOGITS: lambda: self._logits}, LOGITS)

    def _start(self, model: ModelProto) -> Executor:
        """A model of the classifier, in the precision that was asked for."""
        return self._run(in_precision(model, self.setup.precision, folder=self._halves.folder))

    def _run(self, model: ModelProto) -> Executor:
        if self._closed:
            raise ExecutionError("this explainer is closed; next: open the model again")
        executor = self.setup.start(model, folder=self._halves.folder)
        self._opened.append(executor)
        return executor

    def _model(self, start: Mapping[str, Callable[[], Executor]], role: str) -> Model:
        """The driver's model, with the batch size that was given, or that is fastest for calls of a role."""
        how: dict[str, Any] = {"head": self.head, "step_graphs": self._step_graphs if WALK in start else None}
        if self._wanted != AUTO:
            return Model(start, batch_size=self._wanted, **how)
        model = Model(start, batch_size=1, **how)
        setup = self.setup
        key = {
            "model": self.metadata["onnxplain.source_sha256"],
            "role": role,
            "on": str(setup.place),
            "facts": self._logits.facts,
            "threads": setup.threads,
            "precision": setup.precision,
            "options": setup.options,
        }
        known = Remembered(setup.cache)
        size = known.get(key)
        found = "remembered" if size is not None else "tried"
        if size is None:
            size = model.fastest(role, host_memory)
            known.put(key, size)
        model.resize(size)
        log.info("batch size for %s: %d rows, which is fastest here (%s)", role, model.batch_size, found)
        return model

    @cached_property
    def model(self) -> Model:
        """The model with its gradient, and with what methods ask of its inside; each starts when it is first needed."""
        start = {
            LOGITS: lambda: self._logits,
            GRADIENT: self._start_gradient,
            LAYERS: self._start_layers,
            BIASES: self._start_biases,
            MULTIPLIERS: self._start_multipliers,
            WALK: lambda: self._run(walk_step(self.forward.image_shape, self.forward.dtype)),
            LINE: lambda: self._run(line_step(self.forward.image_shape, self.forward.dtype)),
        }
        return self._model(start, LOGITS if self._halves.gradient is None else GRADIENT)

    def _start_gradient(self) -> Executor:
        if self._halves.gradient is None and self._halves.multipliers is not None:
            raise UsageError("the model has multipliers, and no gradients; next: give the classifier")
        if self._halves.gradient is None:
            raise UsageError("opened forward only: there are no gradients; next: open it with gradient=True")
        return self._start(without_layers(self._halves.gradient))

    def _start_layers(self) -> Executor:
        if self._halves.layers is None:
            raise UsageError("opened forward only: there are no inner layers; next: open it with gradient=True")
        made = self._halves.layers()
        self._found = layers_of(properties(made))
        return self._start(made)

    def _start_biases(self) -> Executor:
        if self._halves.biases is None:
            raise UsageError("opened forward only: there are no bias-gradients; next: open it with gradient=True")
        return self._start(self._halves.biases())

    def _start_multipliers(self) -> Executor:
        if self._halves.multipliers is None:
            raise UsageError("opened forward only: there are no multipliers; next: open it with gradient=True")
        return self._start(self._halves.multipliers())

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The inner layers that methods look at: name, operator, channels, grid. Makes their gradient model if need be.

        Raises `UsageError` if there are none: see `open`.
        """
        self.model.executor(LAYERS)
        return self._found

    @property
    def channel_axis(self) -> int:
        """Where an image has its channels: 0, or -1 for channels last."""
        return -1 if self.space.channel_axis == -1 else 0

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image. Raises `UsageError` if the model's input is none."""
        sizes = [size for axis, size in enumerate(self.forward.image_shape) if axis != self.channel_axis % 3]
        if len(sizes) != 2:
            raise no_image(self.forward.image_shape)
        return sizes[0], sizes[1]

    @property
    def photos(self) -> PreprocessSpec:
        """How photos become inputs. Raises `UsageError` if the model does not say."""
        if self.preprocess is None:
            if len(self.forward.image_shape) != 3:
                raise no_image(self.forward.image_shape)
            raise UsageError(
                "photos have no defined way into a model without preprocessing; "
                "next: give its specification with --preprocess FILE, or explain arrays from Python"
            )
        return self.preprocess

    def read(self, photo: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """A photo file as the model sees it, uint8 (H, W, 3), RGB. Raises `InputError` if it cannot be read."""
        return load_image(photo, self.photos)

    def to_input(self, image: NDArray[np.uint8]) -> Array:
        """A photo uint8 (H, W, 3), as `load_image` gives it, in the shape, layout and dtype of one image."""
        channels = self.forward.image_shape[self.channel_axis]
        return to_input(image, channels=channels, channel_axis=self.channel_axis).astype(self.forward.dtype, copy=False)

    def close(self) -> None:
        """Free the runtime's sessions. Idempotent; nothing runs afterwards."""
        self._closed = True
        for executor in self._opened:
            executor.close()

    def logits(self, x: Array) -> Array:
        """Logits (N, K) of images `x` (N, ...), in the dtype of the model."""

        def program() -> Program[Array]:
            answer: Array = yield Logits(self._fit(x))
            return answer

        return run(program(), self.forward, usage=self.usage)

    def gradients(self, x: Array, target: Target = None, objective: str | Kind = "logit") -> Gradients:
        """Logits (N, K), values (N) and input gradients (as `x`) at images `x` (N, ...).

        `target`: None for the predicted class of each image, a class, one class for each image, or weights (N, K) (for
        `soft_ce` probabilities, for `logit_l2` logits). `objective` is the name of a `Kind`.
        """
        kind = as_kind(objective)

        def program(x: Array, target: int | Array | None) -> Program[Gradients]:
            if target is None:
                target = int((yield Logits(x[None]))[0].argmax())
            answer: Gradients = yield Points(x[None], Objective(kind, target, self.head))
            return answer

        rows = self._fit(x)
        if not len(rows):
            raise UsageError("gradients: expected at least one image, got none")
        programs = [program(row, t) for row, t in zip(rows, each_target(target, len(rows)), strict=True)]
        parts = list(in_order(programs, self.model, usage=self.usage))
        return Gradients(
            logits=np.concatenate([part.logits for part in parts]),
            value=np.concatenate([part.value for part in parts]),
            gradient=np.concatenate([part.gradient for part in parts]),
        )

    def explain(self, x: Array, method: Method, target: Target = None, seed: int = 0) -> list[Explanation]:
        """Explain images `x` (N, ...), float, in the space of the model; see `stream`. Raises the first error."""
        outcomes = sorted(self.stream(x, method, target, seed), key=lambda outcome: outcome.index)
        return [outcome.unwrap() for outcome in outcomes]

    def stream(
        self,
        x: Iterable[Array],
        method: Method,
        target: Target = None,
        seed: int = 0,
        *,
        observe: Callable[[Mapping[str, int]], None] | None = None,
    ) -> Iterator[Outcome[Explanation]]:
        """Explain images one by one as they finish; `outcome.index` tells which one, `outcome.error` whether it failed.

        `x` is read lazily, so a data set need not fit into memory. `target` as in `gradients`. An image gives the same
        attribution alone and in any company: its random numbers depend on `seed`, its pixels and the method only.
        `observe` is called after every call of the runtime with the rows that it had.
        """
        if isinstance(method, str | type):
            raise UsageError(f"method: expected one of methods.*, made with its parameters, got {method!r}")
        rows = (self._fit(image[None])[0] for image in x)
        count = len(x) if isinstance(x, np.ndarray | list | tuple) else None
        programs = (
            self._explain(row, method, t, seed) for row, t in zip(rows, each_target(target, count), strict=False)
        )
        for outcome in drive(programs, self.model, usage=self.usage, observe=observe):
            if outcome.error is not None:
                outcome.error.args = (f"image {outcome.index}: {outcome.error}",)
            yield outcome

    def program(
        self, x: Array, method: Method, target: int | Array | None = None, seed: int = 0
    ) -> Program[Explanation]:
        """One image `x` explained as a program, for `engine.drive.drive` to run beside others on `model`."""
        return self._explain(self._fit(x[None])[0], method, target, seed)

    def _explain(self, x: Array, method: Method, target: int | Array | None, seed: int) -> Program[Explanation]:
        low, high = float(np.min(self.space.low)), float(np.max(self.space.high))
        if x.min() < low - ROUNDING or x.max() > high + ROUNDING:
            raise FeedMismatch(
                f"pixels from {x.min():.4g} to {x.max():.4g}: the model takes {low:g} to {high:g}; "
                "next: scale the image (models.preprocess.to_input does)"
            )
        logits = (yield Logits(x[None]))[0]
        target = int(logits.argmax()) if target is None else target
        attribution = yield from method(x, Task(target, self.space, generator(seed, x, method), self.head))
        values = attribution.values.astype(np.float32)
        if not np.isfinite(values).all():
            raise NonFinite(f"method {method.id}: its attribution holds NaN or Inf; next: try another objective")
        origin = self.provenance | {"seed": seed}
        if (layer := getattr(method, "layer", None)) is not None:
            origin["layer"] = self.layers[layer]["name"]
        return Explanation(
            attribution=values,
            target=target,
            logits=logits,
            value=float(Objective(getattr(method, "objective", Kind.LOGIT), target, self.head).value(logits)),
            method=method.id,
            params=to_dict(method),
            diagnostics=attribution.diagnostics,
            provenance=origin,
            channel_axis=self.channel_axis,
        )

    @property
    def batch_size(self) -> int:
        """How many samples go into one call of the runtime, now."""
        return (self.model if "model" in self.__dict__ else self.forward).batch_size

    @property
    def provenance(self) -> dict[str, Any]:
        """What an explanation depends on besides image, method and seed."""
        facts = dict(self._logits.facts)
        ran = {"name": facts.pop("runtime"), **facts}
        return {
            "model_sha256": self.metadata["onnxplain.source_sha256"],
            "space": self.metadata["onnxplain.space"],
            "head": str(self.head),
            "preprocess": self.preprocess.to_dict() if self.preprocess else None,
            "stopped": by_operator(stopped_at(self.metadata)),
            "on": str(self.setup.place),
            "precision": str(self.setup.precision),
            "batch_size": self.batch_size,
            "threads": self.setup.threads,
            "provider_options": dict(self.setup.options),
            "step_graphs": self._step_graphs,
            "versions": {
                "onnxplain": version("onnxplain"),
                ran["name"]: ran["version"],
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "runtime": ran,
        }

    def _fit(self, x: Array) -> Array:
        """Images as the model takes them, (n, ...)."""
        x = np.asarray(x)
        if x.dtype.kind != "f" or x.shape[1:] != self.forward.image_shape:
            raise FeedMismatch(
                f"images: expected floats of shape (n, {', '.join(map(str, self.forward.image_shape))}), "
                f"got {x.dtype.name}{list(x.shape)}; next: models.preprocess.load_image and to_input make them"
            )
        return x.astype(self.forward.dtype, copy=False)


def no_image(shape: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"the model takes samples of shape {list(shape)}, which are no images (C, H, W) or (H, W, C); "
        "next: explain arrays from Python, with Explainer.explain"
    )


def as_kind(objective: str | Kind) -> Kind:
    if isinstance(objective, Kind):
        return objective
    if objective.upper() not in Kind.__members__:
        names = ", ".join(kind.lower() for kind in Kind.__members__)
        raise UsageError(f"objective {objective!r} is unknown; next: use one of {names}")
    return Kind[objective.upper()]


def each_target(target: Target, count: int | None) -> Iterable[int | Array | None]:
    """The target of each image in turn."""
    given = np.asarray(target)
    if target is None or (given.ndim == 0 and given.dtype.kind in "iu"):
        one = None if target is None else int(given)
        return itertools.repeat(one) if count is None else [one] * count
    if not (given.ndim == 1 and given.dtype.kind in "iu") and not (given.ndim == 2 and given.dtype.kind in "iuf"):
        raise UsageError(f"target: expected None, a class, one class for each image, or weights (N, K), got {target!r}")
    if count is not None and len(given) != count:
        raise UsageError(f"target: expected one for each of {count} images, got {len(given)}")
    return list(given) if given.ndim == 2 else given.tolist()
