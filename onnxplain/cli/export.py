"""`onnxplain export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.tables import as_json, described
from onnxplain.cli.terminal import downloads, result, terminal
from onnxplain.cli.verify import logits, summary

if TYPE_CHECKING:
    from onnxplain.adapters.agreement import Agreement
    from onnxplain.adapters.gradient.differentiate import OnUnsupported


@options.command("export")
@click.argument(
    "source",
    metavar="SOURCE",
    help="The classifier: FILE.onnx, FILE.keras, FILE.tflite, FILE.pt2, a SavedModel folder, torchvision:NAME, "
    "timm:NAME, hf:NAME-or-folder, or module:factory.",
)
@click.option("-o", "--output", type=options.FILE, required=True, metavar="OUT.onnx", help="The gradient model.")
@click.option(
    "--classifier", type=options.FILE, metavar="FILE", help="Write the classifier too, with its preprocessing in it."
)
@options.preprocess
@options.output_name
@options.head
@options.input_shape
@click.option(
    "--labels", type=options.FILE, metavar="FILE", help="Names of the classes, one a line, where SOURCE has none."
)
@click.option(
    "--image",
    "images",
    type=options.FILE,
    multiple=True,
    metavar="PHOTO",
    help="A photo at which the export is checked; may be repeated. [default: random pictures]",
)
@click.option(
    "--trust-code", is_flag=True, help="Run the Python code that module:factory names, or that a .pt2 file may hold."
)
@options.layers
@click.option("--bias-gradients", is_flag=True, help="Add the bias-gradients of all layers, which fullgrad needs.")
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Prove it before it is written, as the command `verify` does.",
)
@options.on_unsupported
@options.overwrite
@options.format("text", "json")
def command(
    source: str,
    output: Path,
    classifier: Path | None,
    preprocess: str | None,
    output_name: str | None,
    head: str | None,
    input_shape: tuple[int, ...] | None,
    labels: Path | None,
    images: tuple[Path, ...],
    trust_code: bool,
    layers: tuple[str, ...],
    bias_gradients: bool,
    verify: bool,
    on_unsupported: OnUnsupported,
    overwrite: bool,
    form: str,
) -> None:
    """Write the gradient model of a classifier: logits, the explained value and its input gradient in one graph.

    The preprocessing's normalisation is folded in, so that its input is RGB in the range 0 to 1. What comes from
    another framework is checked against it, outputs and gradient, before anything is written.

    \b
    Example:
      onnxplain export model.onnx -o model.grad.onnx
      onnxplain export torchvision:resnet50 -o resnet50.grad.onnx
      onnxplain export model.keras -o model.grad.onnx --preprocess spec.json
      onnxplain export nets:make -o nets.grad.onnx --trust-code --image 1.jpg
    """
    from onnxplain.adapters.sources import export
    from onnxplain.models.labels import read_labels

    with options.warnings_said(), downloads("getting weights"):
        done = export(
            source,
            output,
            preprocess=options.preprocess_of(preprocess),
            output=output_name,
            head=head,
            input_shape=input_shape,
            labels=None if labels is None else read_labels(labels),
            images=images,
            trust_code=trust_code,
            layers=layers,
            bias_gradients=bias_gradients,
            classifier=classifier,
            overwrite=overwrite,
            verify=verify,
            on_unsupported=on_unsupported,
        )
    found = done.verification
    if found is None:
        terminal().say("warning: not verified (--no-verify)", -1)
    elif not found.passed:
        for line in summary(found):
            terminal().say(f"warning: the gradient is not verified: {line}", -1)
    for layer in done.layers:
        terminal().say(f"layer: {described(layer)}")
    if form == "json":
        result(as_json(asdict(done)))
        return
    for note in done.notes:
        terminal().say(note)
    for file in done.files:
        result(f"{file.path}  {file.bytes:,} bytes, {file.nodes} nodes, SHA-256 {file.sha256}")
    if done.agreement is not None:
        result(f"{done.agreement.framework}: {agreed(done.agreement)}")
    if found is not None:
        result(f"logits: {logits(done.difference)}")
    if found is not None and found.passed:
        result("\n".join(f"gradient: {line}" for line in summary(found)))


def agreed(found: Agreement) -> str:
    """How an export compares with the classifier in its own framework."""
    where = f"{found.images} {'photo' if found.given else 'random image'}{'s' * (found.images != 1)}"
    said = f"its outputs within {found.outputs:.2g}"
    if found.cosine is None:
        return f"{said}, on {where}; there is no gradient to compare with (none, or probabilities that are saturated)"
    return f"{said}, and its gradient within {found.gradient:.2g} of its size (cosine {found.cosine:.7f}), on {where}"
