"""Classifiers that are ONNX already: what is in one, its gradient model, and the gradient model as a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.classifier import (
    forward_model,
    gradient_model,
    image_input,
    logits_model,
    logits_output,
)
from onnxplain.adapters.gradient.differentiate import coverage
from onnxplain.adapters.gradient.expr import PREFIX
from onnxplain.adapters.gradient.prepare import ModelLike, prepare, read
from onnxplain.adapters.gradient.sweep import FLOATS, kind
from onnxplain.engine.atomic import refuse_existing, write_atomically
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.requests import log_softmax, softmax
from onnxplain.errors import ExecutionError, Gap, ModelError, OnnxplainError, UsageError
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, PREPROCESS_KEY, PreprocessSpec, find

Preprocess: TypeAlias = PreprocessSpec | str | os.PathLike[str] | None

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Halves:
    """What runs of a classifier: `logits`, forward only, and the gradient model, None where it is not wanted."""

    logits: onnx.ModelProto
    gradient: onnx.ModelProto | None


def halves(
    model: ModelLike, preprocess: Preprocess = AUTO, output: str | None = None, *, gradient: bool = True
) -> Halves:
    """The halves of whatever was given, a classifier or a gradient model; without `gradient` the forward one only."""
    ours = read(model)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    is_gradient = GRADIENT_MODEL_KEY in ours.metadata_props
    given = Path(preprocess) if isinstance(preprocess, str | os.PathLike) and preprocess != AUTO else None
    if is_gradient:
        if isinstance(preprocess, PreprocessSpec) or output is not None:
            raise UsageError("a gradient model has its preprocessing and its output built in; next: leave them out")
        if given is not None:
            find(path, given=given, metadata=ours.metadata_props)  # which says so if they differ
        own = ir.to_proto(ours)
        return Halves(forward_model(own), own if gradient else None)
    if given is not None or preprocess == AUTO:
        spec: PreprocessSpec | None = find(path, given=given, metadata=ours.metadata_props)[0]
    else:
        assert preprocess is None or isinstance(preprocess, PreprocessSpec)
        spec = preprocess
    if not gradient:
        return Halves(logits_model(model, preprocess=spec, output=output), None)
    made = gradient_model(model, preprocess=spec, output=output)
    return Halves(forward_model(made), made)


# What is in a model


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model; a free dimension is a name, or None."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` found. A `problem` is whatever keeps the model from being explained."""

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
    gradient_model: dict[str, Any] | None  # space, objectives, source and version, if it is a gradient model
    problems: list[str]


def inspect(path: str | os.PathLike[str], *, preprocess: str | os.PathLike[str] | None = None) -> Inspection:
    """Look into a model file without running it. `preprocess` is the path of a specification, if it has one elsewhere.

    Raises:
        InvalidModel: the file is missing or cannot be read. Anything less is listed under `problems`.
    """
    ours = read(path)
    meta = ours.metadata_props
    is_gradient = GRADIENT_MODEL_KEY in meta
    problems: list[str] = []
    gaps: list[Gap] = []
    if not is_gradient:
        try:
            graph = prepare(path).graph
            image_input(graph)
            logits_output(graph, None)
            gaps = list(coverage(path).gaps)
        except ModelError as error:
            problems.append(str(error))
    spec, where = None, None
    try:
        spec, where = find(Path(path), given=None if preprocess is None else Path(preprocess), metadata=meta)
    except UsageError as error:
        where = str(error)
    except OnnxplainError as error:
        problems.append(str(error))
    content = Path(path).read_bytes()
    return Inspection(
        model=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
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
        problems=problems,
    )


def tensor(value: ir.Value) -> Tensor:
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return Tensor(str(value.name), str(value.dtype).lower(), shape)


def gradient_facts(meta: dict[str, str]) -> dict[str, Any]:
    return {
        "space": meta.get("onnxplain.space"),
        "objectives": json.loads(meta.get("onnxplain.objectives", "{}")),
        "source_sha256": meta.get("onnxplain.source_sha256"),
        "version": meta.get("onnxplain.version"),
    }


# A gradient model as a file


@dataclass(frozen=True)
class WrittenModel:
    """A model file that was written."""

    path: str
    bytes: int
    nodes: int
    sha256: str


@dataclass(frozen=True)
class Exported:
    """What `write_gradient_model` wrote, and by how much its logits differ from the source's (None: not verified)."""

    files: list[WrittenModel]
    difference: float | None


def write_gradient_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preprocess: Preprocess = AUTO,
    output: str | None = None,
    classifier: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> Exported:
    """Write the gradient model of a classifier file, and with `classifier` its forward half too.

    The forward half takes what the gradient model takes (RGB in [0,1] if there is preprocessing), so a copy of it can
    be deployed beside. With `verify` both must give the logits of the source, on ONNX Runtime, before anything is
    written.

    Raises:
        ModelError: the source cannot be read, is no classifier, or cannot be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict each other.
        BackendMissing: `verify` without ONNX Runtime.
        ExecutionError: the logits differ by more than float noise.
        OutputError: a file is there already (without `overwrite`) or cannot be written.
    """
    targets = [Path(path) for path in (out, classifier) if path is not None]
    places = [path.resolve() for path in (Path(source), *targets)]
    if len(set(places)) < len(places):
        raise UsageError("the source, the gradient model and the classifier are three files; next: give other names")
    refuse_existing(targets, overwrite=overwrite)
    if GRADIENT_MODEL_KEY in read(source).metadata_props:
        raise UsageError(f"{source} is a gradient model already; next: use it as it is, or export its classifier")
    made = halves(source, preprocess, output)
    assert made.gradient is not None
    gradient, forward = made.gradient, plain_classifier(made.logits)
    difference = verified(source, gradient, forward, output) if verify else None
    written = [write_model(gradient, targets[0], overwrite)]
    if classifier is not None:
        written.append(write_model(forward, targets[1], overwrite))
    return Exported(written, difference)


def plain_classifier(logits: onnx.ModelProto) -> onnx.ModelProto:
    """The forward half as a model of its own: it says what preprocessing is left to do.

    Its input is RGB in [0,1], so zero in its model space is black. Protocols that fill with zero fill with the mean
    colour in the source, and with black here.
    """
    ours = ir.from_proto(logits)
    for node in ours.graph:
        node.name = plain_name(node.name)
    for value in [*ours.graph.initializers.values(), *(y for node in ours.graph for y in node.outputs)]:
        value.name = plain_name(value.name)
    model = ir.to_proto(ours)
    meta = {entry.key: entry.value for entry in model.metadata_props}
    for key in (GRADIENT_MODEL_KEY, "onnxplain.objectives", "onnxplain.space", "onnxplain.head"):
        meta.pop(key, None)
    if PREPROCESS_KEY in meta:
        spec = PreprocessSpec.from_dict(json.loads(meta[PREPROCESS_KEY]))
        left = replace(
            spec, rescale_factor=1 / 255, image_mean=(0.0,) * 3, image_std=(1.0,) * 3, do_flip_channel_order=False
        )
        meta[PREPROCESS_KEY] = json.dumps(left.to_dict())
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, meta)
    return model


def plain_name(name: str | None) -> str | None:
    """A name without the prefix that belongs to gradient models, so that one can be made of this model again."""
    return f"preprocess/{name.removeprefix(PREFIX)}" if name is not None and name.startswith(PREFIX) else name


TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # times the largest logit, or 1


def verified(
    source: str | os.PathLike[str], gradient: onnx.ModelProto, forward: onnx.ModelProto, output: str | None
) -> float:
    """The largest difference of the logits from the source's over four random images.

    Everything runs without the optimiser, so that the two graphs are compared and not what is made of them.
    """
    meta = {entry.key: entry.value for entry in gradient.metadata_props}
    spec = PreprocessSpec.from_dict(json.loads(meta[PREPROCESS_KEY])) if PREPROCESS_KEY in meta else None
    prepared = prepare(source).graph
    (named,) = [v for v in prepared.outputs if v.name == output or (output is None and v.dtype in FLOATS)]
    last = named.producer()
    after = {"Softmax": softmax, "LogSoftmax": log_softmax}.get(last.op_type if last is not None else "")
    with (
        OnnxRuntimeExecutor(onnx.load(source), optimise=False) as theirs,
        OnnxRuntimeExecutor(forward, optimise=False) as ours,
    ):
        ((name, input),) = ours.inputs.items()
        (given,) = theirs.inputs
        draw = np.random.default_rng(0)
        worst, largest = 0.0, 1.0
        for _ in range(4):
            x = draw.random((1, *(int(d or 1) for d in input.shape[1:])))
            model_space = x
            if spec is not None:
                space = spec.space()
                model_space = (x - space.zero.astype(np.float64)) / space.scale.astype(np.float64)
                model_space = model_space[:, ::-1] if spec.do_flip_channel_order else model_space
            (mine,) = ours({name: x.astype(input.dtype)}).values()
            mine = mine if after is None else after(mine)
            answer = theirs({given: np.ascontiguousarray(model_space, input.dtype)})[str(named.name)]
            worst = max(worst, float(np.abs(mine.astype(np.float64) - answer).max()))
            largest = max(largest, float(np.abs(answer).max()))
    if not worst <= TOLERANCE[input.dtype.name] * largest:  # NaN is a failure too
        raise ExecutionError(
            f"{source}: the logits of its gradient model differ from its own by up to {worst:.3g}, which is more than "
            "float noise; nothing was written; next: report this with the model, it is a bug of onnxplain"
        )
    return worst


def write_model(model: onnx.ModelProto, path: Path, overwrite: bool) -> WrittenModel:
    content = model.SerializeToString()
    write_atomically(path, content, overwrite=overwrite)
    return WrittenModel(str(path), len(content), len(model.graph.node), hashlib.sha256(content).hexdigest())
