"""Classifiers that are ONNX already: what is in one, its gradient model, and the gradient model as a file."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.classifier import (
    HEAD_KEY,
    LAYOUT_KEY,
    NOTES_KEY,
    OBJECTIVES,
    OUTPUTS,
    forward_model,
    gradient_graph,
    gradient_model,
    logits_model,
    source_sha256,
)
from onnxplain.adapters.gradient.differentiate import OnUnsupported, as_message, stopped_at
from onnxplain.adapters.gradient.head import ACTIVATIONS, find_logits
from onnxplain.adapters.gradient.portability import TABLES, Note, Runtime, notes
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.adapters.gradient.read import ModelLike, files_of, read
from onnxplain.adapters.gradient.registry import DEFAULT, Rules
from onnxplain.adapters.gradient.sweep import FLOATS, kind
from onnxplain.adapters.gradient.write import WrittenModel, staged, write_model, written
from onnxplain.adapters.verify import verify_gradient
from onnxplain.engine.atomic import refuse_existing, writable_file
from onnxplain.engine.drive import OBJECTIVE, TARGET
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.requests import Head
from onnxplain.engine.verify import Verification
from onnxplain.errors import (
    ExecutionError,
    Gap,
    InvalidModel,
    NotDifferentiable,
    OnnxplainError,
    PartialGradientWarning,
    UsageError,
    by_operator,
)
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, PREPROCESS_KEY, PreprocessSpec, find, normalise

Preprocess: TypeAlias = PreprocessSpec | str | os.PathLike[str] | None

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Halves:
    """What runs of a classifier: `logits`, forward only, and the gradient model, None where it is not wanted.

    `folder` is where weights lie that are not in the graphs themselves.
    """

    logits: onnx.ModelProto
    gradient: onnx.ModelProto | None
    folder: Path | None = None


def halves(
    model: ModelLike,
    preprocess: Preprocess = AUTO,
    output: str | None = None,
    *,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    gradient: bool = True,
    on_unsupported: OnUnsupported = "error",
) -> Halves:
    """The halves of whatever was given, a classifier or a gradient model; without `gradient` the forward one only.

    `on_unsupported` is that of `differentiate`.

    Raises:
        ModelError: the model cannot be read, is neither, or cannot be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict the model.
    """
    ours = read(model)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    is_gradient = GRADIENT_MODEL_KEY in ours.metadata_props
    given = Path(preprocess) if isinstance(preprocess, str | os.PathLike) and preprocess != AUTO else None
    if is_gradient:
        if problem := gradient_model_problem(ours):
            raise InvalidModel(problem)
        if isinstance(preprocess, PreprocessSpec) or any(v is not None for v in (output, head, input_shape)):
            raise UsageError(
                "a gradient model has its preprocessing, output, head and input shape built in; next: leave them out"
            )
        if preprocess is None and PREPROCESS_KEY in ours.metadata_props:
            raise UsageError(
                "the gradient model has its preprocessing folded in, which cannot be taken out by `none`; "
                "next: leave it out, or export the classifier again without preprocessing"
            )
        if given is not None:
            find(path, given=given, metadata=ours.metadata_props)  # which says so if they differ
        if gradient and (stopped := stopped_at(ours.metadata_props)):
            warnings.warn(PartialGradientWarning(stopped), stacklevel=2)
        own = as_message(ours) if path is None else ir.to_proto(ours)
        return Halves(forward_model(own), own if gradient else None, None if path is None else path.parent)
    spec = specification(ours, path, preprocess)
    how: dict[str, Any] = {"preprocess": spec, "output": output, "head": head, "input_shape": input_shape}
    if not gradient:
        return Halves(logits_model(model, **how), None)
    made = gradient_model(model, **how, on_unsupported=on_unsupported)
    return Halves(forward_model(made), made)


def specification(ours: ir.Model, path: Path | None, preprocess: Preprocess) -> PreprocessSpec | None:
    """The preprocessing of a classifier: as it is given, or as it is found. Raises `UsageError` if it is not."""
    if preprocess is None or isinstance(preprocess, PreprocessSpec):
        return preprocess
    given = None if preprocess == AUTO else Path(preprocess)
    return find(path, given=given, metadata=ours.metadata_props)[0]


def properties(model: onnx.ModelProto) -> dict[str, str]:
    """The `metadata_props` of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}


def gradient_model_problem(model: ir.Model) -> str | None:
    """Why a model that says of itself that it is a gradient model cannot be used as one, in a sentence; None if it can.

    Everything that opening it relies on is looked at, since anything may have edited the file.
    """
    meta = model.metadata_props
    inputs = {v.name: v for v in model.graph.inputs if v.name not in model.graph.initializers}
    outputs = {v.name: v for v in model.graph.outputs}
    missing = [
        *(f"the input {name}" for name in (TARGET, OBJECTIVE) if name not in inputs),
        *(f"the output {name}" for name in OUTPUTS if name not in outputs),
        *(f"{key} in its metadata" for key in ("onnxplain.space", "onnxplain.source_sha256") if key not in meta),
    ]
    images = [v for name, v in inputs.items() if name not in (TARGET, OBJECTIVE)]
    if missing:
        problem = f"lacks {', '.join(missing)}"
    elif len(images) != 1 or images[0].dtype not in FLOATS or not fixed(images[0], least=2):
        problem = "has not one image input of floats whose sizes, but for the batch, are fixed"
    elif not fixed(outputs["logits"], least=2, most=2):
        problem = "has no logits of shape (N, K) with a fixed K"
    elif meta["onnxplain.space"] not in ("pixel", "model"):
        problem = f"has the unknown space {meta['onnxplain.space']!r} in its metadata"
    elif meta.get(HEAD_KEY) not in list(Head):
        problem = f"has the unknown head {meta.get(HEAD_KEY)!r} in its metadata"
    elif (meta["onnxplain.space"] == "pixel") != (PREPROCESS_KEY in meta):
        problem = f"has the space {meta['onnxplain.space']} with{'' if PREPROCESS_KEY in meta else 'out'} preprocessing"
    elif objectives_of(meta) != OBJECTIVES:
        problem = "has objectives that are not those of this version"
    else:
        return None
    return f"the model says that it is a gradient model, but {problem}; next: export the classifier again"


def fixed(value: ir.Value, least: int, most: int = 99) -> bool:
    """Whether a value has `least` to `most` axes, all of a fixed length but for the batch."""
    shape = value.shape
    return shape is not None and least <= len(shape) <= most and all(isinstance(d, int) for d in list(shape)[1:])


def objectives_of(meta: dict[str, str]) -> Any:
    """The codes of the objectives in a gradient model's metadata; None if they are not JSON."""
    try:
        return json.loads(meta.get("onnxplain.objectives", "{}"))
    except (ValueError, RecursionError):
        return None


# What is in a model


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model; a free dimension is a name, or None."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` found. A `problem` is whatever keeps the model from being explained.

    `sha256` and `bytes` are of the model's file together with those that its weights lie in.
    """

    model: str
    sha256: str
    bytes: int
    parameters: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    operators: dict[str, int]
    gaps: list[Gap]  # nodes that the gradient cannot pass
    preprocess: dict[str, Any] | None
    preprocess_from: str | None  # where it was found; or, if it was not, what was looked for
    gradient_model: dict[str, Any] | None  # space, objectives, source, version and stops, if it is a gradient model
    head: str | None  # softmax or sigmoid
    layout: str | None  # NCHW or NHWC
    notes: list[str]  # what is cut off or passed over, and what becomes of the input, in the gradient model
    runtimes: dict[Runtime, list[Note]]  # what each would not run, in either half; empty if neither could be made
    problems: list[str]


def inspect(
    path: str | os.PathLike[str],
    *,
    preprocess: str | os.PathLike[str] | None = AUTO,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
) -> Inspection:
    """Look into a model file without running it, and see whether a gradient model can be made of it.

    `preprocess` is "auto", the path of a specification, or None for an input that is ready as it is; `output`, `head`
    and `input_shape` are those of `gradient_model`.

    Raises:
        InvalidModel: the file is missing or cannot be read. Anything less is listed under `problems`.
    """
    ours = read(path)
    meta = ours.metadata_props
    is_gradient = GRADIENT_MODEL_KEY in meta
    problems: list[str] = []
    gaps: list[Gap] = []
    spec, where = None, None
    if preprocess is None:
        where = "none: the input is ready as it is"
    else:
        try:
            spec, where = find(Path(path), given=None if preprocess == AUTO else Path(preprocess), metadata=meta)
        except UsageError as error:
            where = str(error)
        except OnnxplainError as error:
            problems.append(str(error))
    made: ir.Model | None = None
    if is_gradient:
        problems += filter(None, [gradient_model_problem(ours)])
        made = ours
    else:
        how: dict[str, Any] = {"preprocess": spec, "output": output, "head": head, "input_shape": input_shape}
        try:
            made = ir.from_proto(gradient_model(path, **how))
        except NotDifferentiable as error:
            gaps = list(error.gaps)
            made = ir.from_proto(logits_model(path, **how))
        except OnnxplainError as error:
            problems.append(str(error))
    found = {} if made is None else made.metadata_props
    return Inspection(
        model=str(path),
        sha256=source_sha256(path),
        bytes=sum(file.stat().st_size for file in files_of(path)),
        parameters=sum(v.const_value.size for v in ours.graph.initializers.values() if v.const_value is not None),
        ir_version=ours.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in ours.graph.opset_imports.items()},
        producer=" ".join(filter(None, (ours.producer_name, ours.producer_version))),
        inputs=[tensor(v) for v in ours.graph.inputs if v.name not in ours.graph.initializers],
        outputs=[tensor(v) for v in ours.graph.outputs],
        operators=dict(Counter(kind(node) for node in ours.graph).most_common()),
        gaps=gaps,
        preprocess=spec.to_dict() if spec is not None else None,
        preprocess_from=where,
        gradient_model=gradient_facts(meta) if is_gradient else None,
        head=found.get(HEAD_KEY),
        layout=found.get(LAYOUT_KEY),
        notes=notes_of(found),
        runtimes={} if made is None else {runtime: notes(made, runtime, "logits") for runtime in TABLES},
        problems=problems,
    )


def tensor(value: ir.Value) -> Tensor:
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return Tensor(str(value.name), str(value.dtype).lower(), shape)


def notes_of(meta: Mapping[str, str]) -> list[str]:
    """What generating the gradient model had to say; nothing if it is not a list of texts."""
    try:
        notes = json.loads(meta.get(NOTES_KEY, "[]"))
    except ValueError:
        return []
    return [str(note) for note in notes] if isinstance(notes, list) else []


def gradient_facts(meta: dict[str, str]) -> dict[str, Any]:
    return {
        "space": meta.get("onnxplain.space"),
        "objectives": objectives_of(meta),
        "source_sha256": meta.get("onnxplain.source_sha256"),
        "version": meta.get("onnxplain.version"),
        "stopped": by_operator(stopped_at(meta)),
    }


# A gradient model as a file


@dataclass(frozen=True)
class Exported:
    """What `write_gradient_model` wrote; and, if it was verified, by how much the logits differ from the source's."""

    files: list[WrittenModel]
    difference: float | None
    verification: Verification | None
    head: str  # softmax or sigmoid
    notes: list[str]  # what was cut off or passed over


def write_gradient_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preprocess: Preprocess = AUTO,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    classifier: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    rules: Rules = DEFAULT,
    on_unsupported: OnUnsupported = "error",
) -> Exported:
    """Write the gradient model of a classifier file, and to `classifier` the classifier itself.

    The latter is the source as it is, with its preprocessing in the metadata and, up to 2 GB, its weights inside.
    Folders are made if need be. With `verify` the gradient model must give the logits of the source, and its gradient
    must not be found wrong, before anything is written; see the function `verify`. `rules` and `on_unsupported` are
    those of `differentiate`. Beyond 2 GB the weights go to a file beside `out`, `<out>.data`.

    Raises:
        ModelError: the source cannot be read, is no classifier, or cannot be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict each other.
        BackendMissing: `verify` without ONNX Runtime.
        ExecutionError: the logits differ by more than float noise, or the gradient is wrong.
        OutputError: a file is there already (without `overwrite`) or cannot be written.
    """
    targets = [Path(path) for path in (out, classifier) if path is not None]
    places = [path.resolve() for path in (Path(source), *targets)]
    if len(set(places)) < len(places):
        raise UsageError("the source, the gradient model and the classifier are three files; next: give other names")
    refuse_existing(targets, overwrite=overwrite)
    ours = read(source)
    if GRADIENT_MODEL_KEY in ours.metadata_props:
        raise UsageError(f"{source} is a gradient model already; next: use it as it is, or export its classifier")
    for path in targets:
        writable_file(path)
    made = gradient_graph(
        source,
        preprocess=specification(ours, Path(source), preprocess),
        output=output,
        head=head,
        input_shape=input_shape,
        rules=rules,
        on_unsupported=on_unsupported,
    )
    difference = verification = None
    with staged(made, targets[0], overwrite=overwrite) as file:
        if verify:
            graph = onnx.load(file, load_external_data=False)
            ready = Halves(forward_model(graph), graph, file.parent)
            difference = verified(source, ready, output)
            verification = verify_gradient(graph, ready.logits, folder=ready.folder)
            if verification.verdict == "failed":
                raise ExecutionError(
                    f"{source}: the gradient model that was made of it is wrong, and nothing was written: "
                    f"{verification.failures[0]}; "
                    "next: report this with the model, it is a bug of onnxplain or the runtime"
                )
    files = [written(made, targets[0])]
    if classifier is not None:
        files.append(write_model(plain_classifier(ours, made), targets[1], overwrite=overwrite))
    meta = made.metadata_props
    return Exported(files, difference, verification, meta[HEAD_KEY], notes_of(meta))


def plain_classifier(ours: ir.Model, gradient: ir.Model) -> ir.Model:
    """The source as it is, with the preprocessing of its gradient model in its metadata, so that both score alike."""
    ours.metadata_props.pop(PREPROCESS_KEY, None)
    ours.metadata_props.update({k: v for k, v in gradient.metadata_props.items() if k == PREPROCESS_KEY})
    return ours


TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-9}  # times the largest logit, or 1


def verified(source: str | os.PathLike[str], made: Halves, output: str | None) -> float:
    """The largest difference of the logits from the source's over four random images.

    Everything runs without the optimiser, so that the two graphs are compared and not what is made of them.
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
    if not worst <= TOLERANCE[precision.name] * largest:  # NaN is a failure too
        raise ExecutionError(
            f"{source}: the logits of the gradient model differ from its own by up to {worst:.3g}, which is more than "
            "float noise; next: if the gradient model was made of this file by this version, report it, it is a bug"
        )
    return worst


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found.

    `difference` is by how much the logits differ from the classifier's, with the runtime's optimiser off, over four
    random images; None where there was no classifier to compare with.
    """

    model: str
    on: str
    difference: float | None
    gradient: Verification

    @property
    def passed(self) -> bool:
        return self.gradient.passed


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
    batch_size: int = 8,
    threads: int = 0,
    on_unsupported: OnUnsupported = "error",
) -> Verified:
    """Prove a gradient model on this machine, without any framework: that its gradient is the derivative of its logits.

    `path` is a gradient model, or a classifier, whose gradient model is made and compared with it. `classifier` is the
    file that a gradient model is to be compared with; `output` names its logits. The test is done at `images`, photos,
    or at random ones, drawn from `range` where the input is not pixels. See `engine.verify` for what it proves.

    Raises:
        ModelError: the model cannot be read, or not be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict the model.
        InputError: a photo cannot be read.
        BackendMissing, BackendFailed: the runtime is not installed, or failed.
        ExecutionError: the logits differ from the classifier's by more than float noise, or NaN or Inf came out.
    """
    if on != "cpu":
        raise UsageError(f"on={on!r}: this version runs on 'cpu' only")
    ready = GRADIENT_MODEL_KEY in read(path).metadata_props
    if not ready and classifier is not None:
        raise UsageError(f"{path} is a classifier itself, and compared with; next: leave the other classifier out")
    how: dict[str, Any] = {"head": head, "input_shape": input_shape, "on_unsupported": on_unsupported}
    made = halves(path, preprocess, None if ready else output, **how)
    assert made.gradient is not None
    source = classifier if ready else path
    return Verified(
        model=str(path),
        on=on,
        difference=None if source is None else verified(source, made, output),
        gradient=verify_gradient(
            made.gradient,
            made.logits,
            folder=made.folder,
            images=images,
            range=range,
            seed=seed,
            batch_size=batch_size,
            threads=threads,
        ),
    )
