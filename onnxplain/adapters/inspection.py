"""What is in a model file, and whether it can be explained; nothing is run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxplain.adapters.gradient.classifier import (
    BIASES_KEY,
    HEAD_KEY,
    LAYOUT_KEY,
    OUTPUTS,
    gradient_model,
    logits_model,
    source_sha256,
)
from onnxplain.adapters.gradient.differentiate import stopped_at
from onnxplain.adapters.gradient.layers import Layers
from onnxplain.adapters.gradient.portability import TABLES, Note, Runtime, notes
from onnxplain.adapters.gradient.read import files_of, read
from onnxplain.adapters.gradient.sweep import kind
from onnxplain.adapters.onnx_file import (
    AUTO,
    gradient_model_problem,
    layers_of,
    notes_of,
    objectives_of,
)
from onnxplain.engine.drive import OBJECTIVE, TARGET
from onnxplain.errors import (
    Gap,
    NotDifferentiable,
    OnnxplainError,
    UsageError,
    by_operator,
)
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, find


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
    layer: dict[str, Any] | None  # the inner layer that class activation maps take where none is named
    layers: list[dict[str, Any]]  # all that they could take: name, node, operator, channels, grid
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
    layer, layers = (None, []) if made is None or problems else layers_in(made)
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
        layer=layer,
        layers=layers,
        notes=notes_of(found),
        runtimes={} if made is None else {runtime: notes(made, runtime, "logits") for runtime in TABLES},
        problems=problems,
    )


def layers_in(made: ir.Model) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The usual choice among the inner layers of a gradient model, or of its forward half, and all of them."""
    x = next(v for v in made.graph.inputs if v.name not in (TARGET, OBJECTIVE))
    z = next(v for v in made.graph.outputs if v.name == OUTPUTS[0])
    layers = Layers(made.graph, x, z, last=made.metadata_props.get(LAYOUT_KEY) == "NHWC")
    try:
        chosen = layers.automatic().facts
    except UsageError:
        chosen = None
    return chosen, [layer.facts for layer in layers.all()]


def tensor(value: ir.Value) -> Tensor:
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return Tensor(str(value.name), str(value.dtype).lower(), shape)


def gradient_facts(meta: dict[str, str]) -> dict[str, Any]:
    return {
        "space": meta.get("onnxplain.space"),
        "objectives": objectives_of(meta),
        "source_sha256": meta.get("onnxplain.source_sha256"),
        "version": meta.get("onnxplain.version"),
        "stopped": by_operator(stopped_at(meta)),
        "layers": [layer.get("name") for layer in layers_of(meta)],
        "bias_gradients": BIASES_KEY in meta,
    }
