"""The gradient model of a classifier, verified before it takes its place.

classifier.onnx ──gradient_graph──► gradient model ──verify──► its file
Original ──write──► classifier.onnx ── ... ──► agreement with the original ──► their files
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir as ir
from onnx import helper

from onnxplain.adapters.agreement import Agreement, agreement
from onnxplain.adapters.gradient.classifier import HEAD_KEY, forward_model, gradient_graph
from onnxplain.adapters.gradient.differentiate import OnUnsupported
from onnxplain.adapters.gradient.read import read
from onnxplain.adapters.gradient.registry import DEFAULT, Rules, needs_reference
from onnxplain.adapters.gradient.write import WrittenModel, staged, written
from onnxplain.adapters.onnx_file import AUTO, Halves, Preprocess, layers_of, notes_of, properties, specification
from onnxplain.adapters.original import Original
from onnxplain.adapters.verify import verified, verify_gradient
from onnxplain.engine.atomic import refuse_existing, writable_file
from onnxplain.engine.executors.setup import Setup
from onnxplain.engine.verify import Verification
from onnxplain.errors import ExecutionError, UsageError
from onnxplain.models.labels import LABELS_KEY
from onnxplain.models.preprocess import GRADIENT_MODEL_KEY, PREPROCESS_KEY

SOURCE = "onnxplain.source"


@dataclass(frozen=True)
class Exported:
    """What was written, and what verifying it has found.

    `difference` is by how much the logits of the gradient model differ from the classifier file's; None if it was not
    verified. `agreement` is how far both agree with the framework that the classifier comes from, if any.
    """

    files: list[WrittenModel]
    difference: float | None
    verification: Verification | None
    head: str  # softmax or sigmoid
    notes: list[str]  # what was cut off or passed over
    layers: list[dict[str, Any]]  # the inner layers: name, operator, channels, grid
    agreement: Agreement | None = None


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
    images: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    verify: bool = True,
    rules: Rules = DEFAULT,
    on_unsupported: OnUnsupported = "error",
) -> Exported:
    """Write the gradient model of a classifier file, and to `classifier` the classifier itself.

    The latter is the source as it is, with its preprocessing in the metadata and, up to 2 GB, its weights inside.
    Folders are made if need be. With `verify` the gradient model must give the logits of the source, and its gradient
    must not be found wrong, before anything is written; see the function `verify`, whose `images` are these. `layers`
    and `bias_gradients` are those of `gradient_model`, `rules` and `on_unsupported` those of `differentiate`. Beyond
    2 GB the weights go to a file beside `out`, `<out>.data`.

    Raises:
        ModelError: the source cannot be read, is no classifier, or cannot be differentiated.
        UsageError: no preprocessing was found, or the arguments contradict each other.
        BackendMissing: `verify` without ONNX Runtime.
        ExecutionError: the logits differ by more than float noise, or the gradient is wrong.
        OutputError: a file is there already (without `overwrite`) or cannot be written.
    """
    targets = Targets.of(out, classifier, overwrite=overwrite)
    targets.beside(Path(source))
    if verify and needs_reference(rules):
        raise UsageError("multipliers are no derivative of the logits, to verify; next: write them with verify=False")
    ours = read(source)
    if GRADIENT_MODEL_KEY in ours.metadata_props:
        raise UsageError(f"{source} is a gradient model already; next: use it as it is, or export its classifier")
    how: dict[str, Any] = {"head": head, "input_shape": input_shape, "layers": layers, "bias_gradients": bias_gradients}
    made = gradient_graph(
        source,
        preprocess=specification(ours, Path(source), preprocess),
        output=output,
        rules=rules,
        on_unsupported=on_unsupported,
        **how,
    )

    def check(ready: Halves) -> Checked:
        return Checked(verified(source, ready, output), verify_gradient(ready, Setup(), images=images))

    return written_when(check if verify else None, str(source), ours, made, targets)


def export_original(
    original: Original,
    out: str | os.PathLike[str],
    *,
    output: str | None = None,
    head: str | None = None,
    input_shape: Sequence[int] | None = None,
    layers: str | Sequence[str] = (),
    bias_gradients: bool = False,
    classifier: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    on_unsupported: OnUnsupported = "error",
) -> Exported:
    """Write the gradient model of a classifier that is in its own framework, and to `classifier` the classifier.

    Both carry its preprocessing, labels and provenance. With `verify` the exported classifier must give the outputs of
    the original at its images, and the gradient model the gradient that the framework itself computes, before anything
    is written. The other arguments are those of `write_gradient_model`.

    Raises:
        ExportError: the framework cannot export it, or its export is another classifier.
        Otherwise as `write_gradient_model`.
    """
    targets = Targets.of(out, classifier, overwrite=overwrite)
    head = head or original.head
    how: dict[str, Any] = {"head": head, "input_shape": input_shape, "layers": layers, "bias_gradients": bias_gradients}
    with TemporaryDirectory(prefix="onnxplain-") as folder:
        file = Path(folder, "classifier.onnx")
        said = write_classifier(original, file)
        ours = read(file)
        spec = original.preprocess
        made = gradient_graph(file, preprocess=spec, output=output, on_unsupported=on_unsupported, **how)
        require_labels(original, made)

        def check(ready: Halves) -> Checked:
            agreed = agreement(original, file, ready, output)
            return Checked(verified(file, ready, output), verify_gradient(ready, Setup()), agreed)

        done = written_when(check if verify else None, original.name, ours, made, targets)
    return replace(done, notes=[*said, *done.notes])


def require_labels(original: Original, made: ir.Model) -> None:
    """Raise `UsageError` unless there is a label for each class."""
    (classes,) = (v.shape[1] for v in made.graph.outputs if v.name == "logits" and v.shape is not None)
    if original.labels is not None and len(original.labels) != classes:
        raise UsageError(
            f"{original.name}: {len(original.labels)} labels for {classes} classes; next: give one for each class"
        )


def write_classifier(original: Original, file: Path) -> Sequence[str]:
    """Write the classifier of an original as ONNX, with what is known of it in the metadata; what there is to say."""
    said = original.write(file)
    model = onnx.load(file, load_external_data=False)
    known = {SOURCE: original.name, "onnxplain.framework": original.framework}
    known |= {f"onnxplain.{key}": value for key, value in original.provenance.items()}
    if original.preprocess is not None:
        known[PREPROCESS_KEY] = json.dumps(original.preprocess.to_dict())
    if original.labels is not None:
        known[LABELS_KEY] = json.dumps(list(original.labels))
    helper.set_model_props(model, properties(model) | known)
    onnx.save(model, file)
    return said


@dataclass(frozen=True)
class Targets:
    """Where a gradient model and its classifier go."""

    gradient: Path
    classifier: Path | None
    overwrite: bool

    @classmethod
    def of(cls, out: str | os.PathLike[str], classifier: str | os.PathLike[str] | None, *, overwrite: bool) -> Targets:
        """Raises `OutputError` where something lies already, or nothing can be written; `UsageError` if one is both."""
        made = cls(Path(out), None if classifier is None else Path(classifier), overwrite)
        made.beside()
        refuse_existing(made.all, overwrite=overwrite)
        for path in made.all:
            writable_file(path)
        return made

    @property
    def all(self) -> list[Path]:
        return [path for path in (self.gradient, self.classifier) if path is not None]

    def beside(self, *sources: Path) -> None:
        """Raise `UsageError` if two of these files and the sources are one."""
        places = [path.resolve() for path in (*sources, *self.all)]
        if len(set(places)) < len(places):
            raise UsageError(
                "the source, the gradient model and the classifier are three files; next: give other names"
            )


@dataclass(frozen=True)
class Checked:
    """What was found out about a gradient model before it takes its place."""

    difference: float
    verification: Verification
    agreement: Agreement | None = None


def written_when(
    check: Callable[[Halves], Checked] | None, name: str, ours: ir.Model, made: ir.Model, targets: Targets
) -> Exported:
    """Write a gradient model and its classifier, once the check has passed. `name` is what the user calls the source.

    Raises `ExecutionError` if its gradient was found wrong, and what the check raises.
    """
    found = None
    plain = None if targets.classifier is None else plain_classifier(ours, made)
    with ExitStack() as stages:
        file = stages.enter_context(staged(made, targets.gradient, overwrite=targets.overwrite))
        if plain is not None and targets.classifier is not None:
            stages.enter_context(staged(plain, targets.classifier, overwrite=targets.overwrite))
        if check is not None:
            graph = onnx.load(file, load_external_data=False)
            found = check(Halves(forward_model(graph), graph, file.parent))
            if found.verification.verdict == "failed":
                raise ExecutionError(
                    f"{name}: the gradient model that was made of it is wrong, and nothing was written: "
                    f"{found.verification.failures[0]}; "
                    "next: report this with the model, it is a bug of onnxplain or the runtime"
                )
    files = [written(made, targets.gradient)]
    if plain is not None and targets.classifier is not None:
        files.append(written(plain, targets.classifier))
    meta = made.metadata_props
    return Exported(
        files,
        None if found is None else found.difference,
        None if found is None else found.verification,
        meta[HEAD_KEY],
        notes_of(meta),
        layers_of(meta),
        None if found is None else found.agreement,
    )


def plain_classifier(ours: ir.Model, gradient: ir.Model) -> ir.Model:
    """The source as it is, with the preprocessing of its gradient model in its metadata, so that both score alike."""
    ours.metadata_props.pop(PREPROCESS_KEY, None)
    ours.metadata_props.update({k: v for k, v in gradient.metadata_props.items() if k == PREPROCESS_KEY})
    return ours
