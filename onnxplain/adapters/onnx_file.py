"""What runs of a classifier that is ONNX already, or of a gradient model that was made of one."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.classifier import (
    BIASES_KEY,
    DEEPLIFT_ID,
    HEAD_KEY,
    LAYERS_KEY,
    NOTES_KEY,
    OBJECTIVES,
    OUTPUTS,
    RULES_KEY,
    SOURCE_KEY,
    forward_model,
    gradient_model,
    logits_model,
)
from onnxplain.adapters.gradient.differentiate import OnUnsupported, as_message, stopped_at
from onnxplain.adapters.gradient.read import ModelLike, read, refusing
from onnxplain.adapters.gradient.rules.deeplift import DEEPLIFT
from onnxplain.adapters.gradient.sweep import FLOATS
from onnxplain.engine.arguments import check_model, expect
from onnxplain.engine.drive import ACTIVATION, ACTIVATION_GRADIENT, BIAS_SUM, OBJECTIVE, REFERENCE, TARGET
from onnxplain.engine.requests import Head
from onnxplain.errors import (
    InvalidModel,
    PartialGradientWarning,
    UsageError,
)
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, PREPROCESS_KEY, PreprocessSpec, find

Preprocess: TypeAlias = PreprocessSpec | str | os.PathLike[str] | None

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Halves:
    """What runs of a classifier: `logits`, forward only, and the gradient model, None where it is not wanted.

    `layers` and `biases` make the gradient models with inner layers and with the bias-gradients of all layers, which
    few methods ask for, and `multipliers` the one with a reference. `folder` is where weights lie that are not in the
    graphs themselves.
    """

    logits: onnx.ModelProto
    gradient: onnx.ModelProto | None
    folder: Path | None = None
    layers: Callable[[], onnx.ModelProto] | None = None
    biases: Callable[[], onnx.ModelProto] | None = None
    multipliers: Callable[[], onnx.ModelProto] | None = None


def halves(
    model: ModelLike,
    preprocess: Preprocess = AUTO,
    output: str | None = None,
    *,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    layers: str | Sequence[str] = AUTO,
    gradient: bool = True,
    on_unsupported: OnUnsupported = "error",
) -> Halves:
    """The halves of whatever was given, a classifier or a gradient model; without `gradient` the forward one only.

    `layers` are those of `gradient_model`; `on_unsupported` is that of `differentiate`.

    Raises:
        ModelError: the model cannot be read, is neither, or cannot be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict the model.
    """
    check_model(output=output, head=head, input_shape=input_shape, layers=layers, gradient=gradient)
    expect(
        preprocess is None or isinstance(preprocess, str | os.PathLike | PreprocessSpec),
        *("preprocess", "'auto', a file, a PreprocessSpec or None", preprocess, "use PreprocessSpec.from_dict"),
    )
    ours = read(model)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    is_gradient = GRADIENT_MODEL_KEY in ours.metadata_props
    given = Path(preprocess) if isinstance(preprocess, str | os.PathLike) and preprocess != AUTO else None
    if is_gradient:
        if problem := gradient_model_problem(ours):
            raise InvalidModel(problem)
        given_too = (output, head, input_shape, None if layers in (AUTO, [AUTO], (AUTO,)) else layers)
        if isinstance(preprocess, PreprocessSpec) or any(v is not None for v in given_too):
            raise UsageError(
                "a gradient model has its preprocessing, output, head, input shape and layers built in; next: leave "
                "them out, or export the classifier again"
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
        with refusing("the model"):
            own = as_message(ours) if path is None else ir.to_proto(ours)
        folder = None if path is None else path.parent
        if RULES_KEY in ours.metadata_props:
            return Halves(forward_model(own), None, folder, multipliers=lambda: own)
        return with_roles(own, folder) if gradient else Halves(forward_model(own), None, folder)
    spec = specification(ours, path, preprocess)
    how: dict[str, Any] = {"preprocess": spec, "output": output, "head": head, "input_shape": input_shape}
    if not gradient:
        return Halves(logits_model(model, **how), None)
    how |= {"on_unsupported": on_unsupported}
    made = gradient_model(model, **how)

    def again(**inside: Any) -> onnx.ModelProto:
        """The gradient model with more outputs, or by other rules, of what must be the same classifier still."""
        with warnings.catch_warnings():
            if "rules" not in inside:
                warnings.simplefilter("ignore", PartialGradientWarning)  # it has been said
            more = gradient_model(model, **how, **inside)
        if properties(more)[SOURCE_KEY] != properties(made)[SOURCE_KEY]:
            raise InvalidModel("the model has changed since it was opened; next: open it again")
        return more

    return Halves(
        forward_model(made),
        made,
        layers=lambda: again(layers=layers),
        biases=lambda: again(bias_gradients=True),
        multipliers=lambda: again(rules=DEEPLIFT),
    )


def with_roles(made: onnx.ModelProto, folder: Path | None) -> Halves:
    """The halves of a gradient model that was exported, whose layers are those that it was exported with."""

    def no_multipliers() -> onnx.ModelProto:
        raise UsageError(
            "a gradient model has no multipliers against a reference; next: give the classifier, or the model that "
            "gradient_model(classifier, rules=onnxplain.DEEPLIFT) makes"
        )

    def having(key: str, what: str, option: str) -> Callable[[], onnx.ModelProto]:
        def give() -> onnx.ModelProto:
            if key not in properties(made):
                raise UsageError(
                    f"the gradient model was exported without {what}; next: export it again with {option}, or give "
                    "the classifier"
                )
            return made

        return give

    return Halves(
        forward_model(made),
        made,
        folder,
        layers=having(LAYERS_KEY, "inner layers", "--layer auto"),
        biases=having(BIASES_KEY, "bias-gradients", "--bias-gradients"),
        multipliers=no_multipliers,
    )


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
    extra = (TARGET, OBJECTIVE, REFERENCE) if RULES_KEY in meta else (TARGET, OBJECTIVE)
    outputs = {v.name: v for v in model.graph.outputs}
    missing = [
        *(f"the input {name}" for name in extra if name not in inputs),
        *(f"the output {name}" for name in (*OUTPUTS, *inner_outputs(meta)) if name not in outputs),
        *(f"{key} in its metadata" for key in ("onnxplain.space", SOURCE_KEY) if key not in meta),
    ]
    images = [v for name, v in inputs.items() if name not in extra]
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
    elif meta.get(RULES_KEY, DEEPLIFT_ID) != DEEPLIFT_ID:
        problem = f"was made by the unknown rules {meta[RULES_KEY]!r}"
    elif objectives_of(meta) != OBJECTIVES:
        problem = "has objectives that are not those of this version"
    else:
        return None
    return f"the model says that it is a gradient model, but {problem}; next: export the classifier again"


def inner_outputs(meta: Mapping[str, str]) -> list[str]:
    """The outputs of inner layers that a gradient model has, by its metadata."""
    names = [name.format(at) for at in range(len(layers_of(meta))) for name in (ACTIVATION, ACTIVATION_GRADIENT)]
    return [*names, BIAS_SUM] if BIASES_KEY in meta else names


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


def layers_of(meta: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the metadata of a gradient model say of its layers; nothing if that is not in our form."""
    try:
        layers = json.loads(meta.get(LAYERS_KEY, "[]"))
    except (ValueError, RecursionError):
        return []
    return layers if isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers) else []


def notes_of(meta: Mapping[str, str]) -> list[str]:
    """What generating the gradient model had to say; nothing if it is not a list of texts."""
    try:
        notes = json.loads(meta.get(NOTES_KEY, "[]"))
    except ValueError:
        return []
    return [str(note) for note in notes] if isinstance(notes, list) else []
