"""Whether a gradient model is right on this machine, on the runtime that it is to run on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxplain.adapters.gradient.classifier import HEAD_KEY, LAYOUT_KEY
from onnxplain.adapters.gradient.differentiate import OnUnsupported, stopped_at
from onnxplain.adapters.gradient.head import ACTIVATIONS, find_logits
from onnxplain.adapters.gradient.narrow import HEAVY
from onnxplain.adapters.gradient.precision import in_precision, precision_of, widened
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.adapters.gradient.read import read
from onnxplain.adapters.onnx_file import AUTO, Halves, Preprocess, halves, properties
from onnxplain.engine import rounding
from onnxplain.engine import verify as engine
from onnxplain.engine.arguments import check_range
from onnxplain.engine.drive import GRADIENT, LOGITS, Model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.setup import Precision, Setup
from onnxplain.engine.requests import Head
from onnxplain.engine.rounding import Rounding
from onnxplain.engine.space import Space
from onnxplain.engine.verify import ROUNDING, Verification
from onnxplain.errors import ExecutionError, UsageError
from onnxplain.models.preprocess import (
    GRADIENT_MODEL_KEY,
    PREPROCESS_KEY,
    PreprocessSpec,
    load_image,
    normalise,
    to_input,
)

UNKNOWN = (-2.0, 2.0)  # the range of an input without preprocessing, unless it is given: that of normalised pixels


def verify_gradient(
    made: Halves,
    setup: Setup,
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    range: tuple[float, float] | None = None,
    seed: int = 0,
) -> Verification:
    """The verification of a gradient model against its forward half, at photos or else at random images.

    Raises:
        UsageError: photos for a model without preprocessing.
        InputError: a photo cannot be read.
        BackendMissing, BackendFailed: the runtime is not installed, or failed.
        NonFinite: NaN or Inf came out of the model.
    """
    with started(made, setup) as model:
        meta, (low, high) = properties_of(made), range_of(made, range)
        points = photos(meta, model, images) if images else engine.random_images(model.image_shape, low, high, seed)
        return engine.verify(model, points, span=high - low, seed=seed, stopped=stopped_at(meta))


UNITS = {Precision.TF32: 2.0**-11, Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}  # what they round by, at most


def verify_rounding(
    made: Halves,
    single: Halves,
    setup: Setup,
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    range: tuple[float, float] | None = None,
    seed: int = 0,
) -> Rounding:
    """The gradient of `made`, in the precision of `setup`, held against that of `single`, the same model in float32.

    The images are those of `verify_gradient`, and so are the errors.
    """
    meta, (low, high) = properties_of(made), range_of(made, range)
    assert made.gradient is not None
    with started(single, replace(setup, precision=Precision.FP32)) as exact, started(made, setup) as coarse:
        points = photos(meta, exact, images) if images else engine.random_images(exact.image_shape, low, high, seed)
        return rounding.hold_against(
            exact,
            coarse,
            points,
            unit=UNITS[setup.precision],
            products=sum(node.op_type in HEAVY for node in made.gradient.graph.node),
            span=high - low,
            seed=seed,
        )


@contextmanager
def started(made: Halves, setup: Setup) -> Iterator[Model]:
    """A gradient model and its forward half, as the driver has them."""
    assert made.gradient is not None
    with (
        setup.start(in_precision(made.logits, setup.precision, folder=made.folder), folder=made.folder) as logits,
        setup.start(in_precision(made.gradient, setup.precision, folder=made.folder), folder=made.folder) as both,
    ):
        start = {LOGITS: lambda: logits, GRADIENT: lambda: both}
        yield Model(start, batch_size=setup.batch_size, head=Head(properties_of(made)[HEAD_KEY]))


def properties_of(made: Halves) -> dict[str, str]:
    assert made.gradient is not None
    return properties(made.gradient)


def range_of(made: Halves, given: tuple[float, float] | None) -> tuple[float, float]:
    """The values that the input may have. Raises `UsageError` if they are given in the wrong order."""
    low, high = (0.0, 1.0) if PREPROCESS_KEY in properties_of(made) else given or UNKNOWN
    Space.model((low, high))  # which complains
    return low, high


def in_float32(made: Halves) -> Halves:
    """The same model in float32, though it may have been written in half precision."""
    assert made.gradient is not None
    if precision_of(made.gradient) is Precision.FP32:
        return made
    folder = made.folder
    return replace(made, logits=widened(made.logits, folder=folder), gradient=widened(made.gradient, folder=folder))


def photos(
    meta: Mapping[str, str], model: Model, paths: Sequence[str | os.PathLike[str]]
) -> dict[str, NDArray[np.float32]]:
    """Photos as the model takes them, by their paths."""
    if PREPROCESS_KEY not in meta:
        raise UsageError("photos: the model has no preprocessing; next: export it with one, or verify at random images")
    spec = PreprocessSpec.from_dict(json.loads(meta[PREPROCESS_KEY]))
    axis = -1 if meta.get(LAYOUT_KEY) == "NHWC" else 0
    channels = model.image_shape[axis]
    loaded = {os.fspath(path): load_image(Path(path), spec) for path in paths}
    return {name: to_input(image, channels=channels, channel_axis=axis) for name, image in loaded.items()}


TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-9}  # times the largest logit, or 1


def verified(source: str | os.PathLike[str], made: Halves, output: str | None, *, unit: float = 0.0) -> float:
    """The largest difference of the logits from the source's over four random images.

    Everything runs in float32 on ONNX Runtime's CPU, without the optimiser, so that the two graphs are compared and not
    what is made of them. `unit` is what the weights of `made` were rounded by, at most.
    """
    meta = properties(made.logits)
    spec = PreprocessSpec.from_dict(json.loads(meta[PREPROCESS_KEY])) if PREPROCESS_KEY in meta else None
    axis = -1 if meta.get(LAYOUT_KEY) == "NHWC" else 0
    prepared = prepare(source).graph
    tail = find_logits(prepared, prepared.inputs[0], output).tail
    head = ACTIVATIONS.get(tail.activation or "")
    with (
        OnnxRuntimeExecutor(Path(source).read_bytes(), optimise=False, folder=Path(source).parent) as theirs,
        OnnxRuntimeExecutor(made.logits, optimise=False, folder=made.folder) as ours,
    ):
        ((name, input),) = ours.inputs.items()
        ((given, wanted),) = theirs.inputs.items()
        draw = np.random.default_rng(0)
        worst, largest = 0.0, 1.0
        count = wanted.shape[0] if isinstance(wanted.shape[0], int) else 1
        whole = wanted.dtype.kind in "iu"
        for _ in range(4):
            x = draw.random((count, *input.shape[1:]))  # type: ignore[arg-type]
            if whole:
                x = np.rint(255 * x) / (255 if spec is not None else 1)
            x = x.astype(input.dtype)
            model_space = x if spec is None else normalise(x, spec, channel_axis=axis)
            model_space = np.rint(model_space) if whole else model_space
            (mine,) = ours({name: x}).values()
            if head is not None:
                mine = head.log_probability(mine) if tail.logarithm else head.probability(mine)
            answer = theirs({given: np.ascontiguousarray(model_space, wanted.dtype)})[str(tail.output.name)]
            if isinstance(answer, list):  # of a ZipMap: a dictionary for each image
                answer = np.asarray([list(row.values()) for row in answer])
            answer = answer.reshape(mine.shape).astype(np.float64)
            worst = max(worst, float(np.abs(mine - answer).max()))
            largest = max(largest, float(np.abs(answer).max()))
    precision = wanted.dtype if wanted.dtype == np.float16 else input.dtype
    if not worst <= max(TOLERANCE[precision.name], ROUNDING * unit) * largest:  # NaN is a failure too
        raise ExecutionError(
            f"{source}: the logits of the gradient model differ from its own by up to {worst:.3g}, which is more than "
            "float noise; next: if the gradient model was made of this file by this version, report it, it is a bug"
        )
    return worst


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found.

    `difference` is by how much the logits differ from the classifier's, over four random images, in float32 on ONNX
    Runtime's CPU with its optimiser off, wherever the rest was run; None where there was no classifier to compare with.
    `gradient` is the verification in float32, and `rounding` what another precision makes of that gradient; None where
    there is no other.
    """

    model: str
    on: str
    precision: str
    difference: float | None
    gradient: Verification
    rounding: Rounding | None = None

    @property
    def verdict(self) -> str:
        """That of the gradient in float32, unless it passed and another precision did not."""
        if self.rounding is not None and (self.gradient.passed or self.rounding.verdict == "failed"):
            return self.rounding.verdict
        return self.gradient.verdict

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def verify(
    path: str | os.PathLike[str],
    *,
    on: str = "cpu",
    preprocess: Preprocess = AUTO,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    classifier: str | os.PathLike[str] | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    range: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = 8,
    precision: str | None = None,
    threads: int = 0,
    provider_options: Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | None = AUTO,
    on_unsupported: OnUnsupported = "error",
) -> Verified:
    """Prove a gradient model on this machine, without any framework: that its gradient is the derivative of its logits.

    `path` is a gradient model, or a classifier, whose gradient model is made and compared with it. `classifier` is the
    file that a gradient model is to be compared with; `output` names its logits. The test is done at `images`, photos,
    or at random ones, drawn from `range` where the input is not pixels. How it is run is told as in `open`. See
    `engine.verify` for what it proves, and `engine.rounding` for what in precisions other than fp32: there the gradient
    is proved in float32, and what rounding makes of it is judged by that.

    Raises:
        ModelError: the model cannot be read, or not be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict the model.
        InputError: a photo cannot be read.
        BackendMissing, BackendFailed: the runtime is not installed, or failed.
        ExecutionError: the logits differ from the classifier's by more than float noise, or NaN or Inf came out.
    """
    check_range(range)
    setup = Setup.of(
        on=on,
        precision="fp32" if precision is None else precision,
        threads=threads,
        provider_options=provider_options,
        cache=cache,
        batch_size=8 if batch_size == AUTO else batch_size,  # there are too few rows for any other to be worth a search
    )
    ready = GRADIENT_MODEL_KEY in read(path).metadata_props
    if not ready and classifier is not None:
        raise UsageError(f"{path} is a classifier itself, and compared with; next: leave the other classifier out")
    how: dict[str, Any] = {"head": head, "input_shape": input_shape, "on_unsupported": on_unsupported}
    made = halves(path, preprocess, None if ready else output, **how)
    if made.gradient is None:
        raise UsageError(f"{path} holds multipliers, which are no derivative of its logits; next: give its classifier")
    if precision is None:
        setup = replace(setup, precision=precision_of(made.gradient))
    source = classifier if ready else path
    where: dict[str, Any] = {"images": images, "range": range, "seed": seed}
    single, exact = in_float32(made), setup.precision is Precision.FP32
    unit = UNITS.get(precision_of(made.gradient), 0.0)
    return Verified(
        model=str(path),
        on=str(setup.place),
        precision=str(setup.precision),
        difference=None if source is None else verified(source, single, output, unit=unit),
        gradient=verify_gradient(single, replace(setup, precision=Precision.FP32), **where),
        rounding=None if exact else verify_rounding(made, single, setup, **where),
    )
