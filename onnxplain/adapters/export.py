"""The gradient model of a classifier, from file to file, verified before it takes its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.classifier import HEAD_KEY, forward_model, gradient_graph
from onnxplain.adapters.gradient.differentiate import OnUnsupported
from onnxplain.adapters.gradient.read import read
from onnxplain.adapters.gradient.registry import DEFAULT, Rules, needs_reference
from onnxplain.adapters.gradient.write import WrittenModel, staged, write_model, written
from onnxplain.adapters.onnx_file import AUTO, Halves, Preprocess, layers_of, notes_of, specification
from onnxplain.adapters.verify import verified, verify_gradient
from onnxplain.engine.atomic import refuse_existing, writable_file
from onnxplain.engine.executors.setup import Setup
from onnxplain.engine.verify import Verification
from onnxplain.errors import ExecutionError, UsageError
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, PREPROCESS_KEY


@dataclass(frozen=True)
class Exported:
    """What `write_gradient_model` wrote; and, if it was verified, by how much the logits differ from the source's."""

    files: list[WrittenModel]
    difference: float | None
    verification: Verification | None
    head: str  # softmax or sigmoid
    notes: list[str]  # what was cut off or passed over
    layers: list[dict[str, Any]]  # the inner layers: name, operator, channels, grid


def write_gradient_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preprocess: Preprocess = AUTO,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    layers: str | Sequence[str] = (),
    bias_gradients: bool = False,
    classifier: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    rules: Rules = DEFAULT,
    on_unsupported: OnUnsupported = "error",
) -> Exported:
    """Write the gradient model of a classifier file, and to `classifier` the classifier itself.

    The latter is the source as it is, with its preprocessing in the metadata and, up to 2 GB, its weights inside.
    Folders are made if need be. With `verify` the gradient model must give the logits of the source, and its gradient
    must not be found wrong, before anything is written; see the function `verify`. `layers` and
    `bias_gradients` are those of `gradient_model`, `rules` and `on_unsupported` those of `differentiate`. Beyond 2 GB
    the weights go to a file beside `out`, `<out>.data`.

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
    if verify and needs_reference(rules):
        raise UsageError("multipliers are no derivative of the logits, to verify; next: write them with verify=False")
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
        layers=layers,
        bias_gradients=bias_gradients,
        rules=rules,
        on_unsupported=on_unsupported,
    )
    difference = verification = None
    with staged(made, targets[0], overwrite=overwrite) as file:
        if verify:
            graph = onnx.load(file, load_external_data=False)
            ready = Halves(forward_model(graph), graph, file.parent)
            difference = verified(source, ready, output)
            verification = verify_gradient(ready, Setup())
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
    return Exported(files, difference, verification, meta[HEAD_KEY], notes_of(meta), layers_of(meta))


def plain_classifier(ours: ir.Model, gradient: ir.Model) -> ir.Model:
    """The source as it is, with the preprocessing of its gradient model in its metadata, so that both score alike."""
    ours.metadata_props.pop(PREPROCESS_KEY, None)
    ours.metadata_props.update({k: v for k, v in gradient.metadata_props.items() if k == PREPROCESS_KEY})
    return ours
