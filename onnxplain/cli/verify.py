"""`onnxplain verify`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.tables import as_json, as_text
from onnxplain.cli.terminal import result

if TYPE_CHECKING:
    from onnxplain.adapters.gradient.differentiate import OnUnsupported
    from onnxplain.adapters.verify import Verified
    from onnxplain.engine.rounding import Deviation, Rounding
    from onnxplain.engine.verify import Finding, Verification

Found = TypeVar("Found", "Finding", "Deviation")

COLUMNS = {
    "image": "image", "target": "target", "test": "test", "gap": "gap", "noticeable": "noticeable", "step": "step",
}  # fmt: skip


@options.command("verify")
@options.model
@click.option(
    "--image", "images", type=options.FILE, multiple=True, metavar="FILE",
    help="A photo to test at; may be repeated. [default: two random images]",
)  # fmt: skip
@click.option(
    "--classifier", type=options.FILE, metavar="FILE", help="The classifier that a gradient model has to agree with."
)
@click.option(
    "--range", "range_", type=(float, float), metavar="LOW HIGH",
    help="The values of an input without preprocessing. [default: -2 2]",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random images and directions.")
@options.opening
@options.on_unsupported
@options.format("text", "json")
def command(
    model: Path, images: tuple[Path, ...], classifier: Path | None, range_: tuple[float, float] | None, seed: int,
    opening: dict[str, Any], on_unsupported: OnUnsupported, form: str,
) -> int:  # fmt: skip
    """Prove a gradient model on this machine, without the framework of its classifier.

    Its logits are held against the classifier's, and its gradient against differences of its logits. The test fails if
    they disagree by more than four times the noise that it measures; it says the smallest error that it could have
    noticed. Of a classifier the gradient model is made first. In another precision than fp32 the gradient is proved in
    fp32, and what rounding makes of it is judged by that.

    \b
    Example:
      onnxplain verify model.onnx
      onnxplain verify model.grad.onnx --classifier model.onnx --image photo.jpg
    """
    from onnxplain.adapters.verify import verify

    with options.warnings_said():
        found = verify(
            model,
            classifier=classifier,
            images=images,
            range=range_,
            seed=seed,
            on_unsupported=on_unsupported,
            **opening,
        )
    result(as_json(asdict(found)) if form == "json" else text(found))
    return 0 if found.passed else 1


def text(found: Verified) -> str:
    rounding, precision = found.rounding, found.precision
    said = logits(found.difference)
    if found.difference is not None and (found.on != "cpu" or rounding is not None):
        said += " (compared in fp32 on cpu)"
    lines = [f"{found.model}: {found.verdict} on {found.on} in {precision}", f"logits: {said}"]
    lines += [f"gradient{' in fp32' * (rounding is not None)}: {line}" for line in summary(found.gradient)]
    rows = [
        {
            "image": look.image,
            "target": look.target,
            "test": test,
            "gap": f"{finding.gap:.2e}",
            "noticeable": f"{finding.noticeable:.2e}",
            "step": f"{finding.step:.0e}",
        }
        for look in found.gradient.looks
        for test, finding in {
            "along": look.along,
            "across": look.across,
            "objectives": worst(look.objectives.values()),
        }.items()
    ]
    if rounding is not None:
        lines += [f"gradient in {precision}: {line}" for line in rounded(rounding)]
        rows += [
            {
                "image": one.image,
                "target": one.target,
                "test": test,
                "gap": f"{deviation.gap:.2e}",
                "noticeable": f"{deviation.noticeable:.2e}",
            }
            for one in rounding.comparisons
            for test, deviation in {
                precision: one.logit,
                f"{precision} objectives": worst(one.objectives.values()),
            }.items()
        ]
    return "\n".join([*lines, "", as_text(rows, COLUMNS)])


def worst(objectives: Iterable[Found]) -> Found:
    """Of the objectives other than `logit`, the one that comes closest to failing."""
    return max(objectives, key=lambda found: found.gap / (found.noise or 1e-30))


def logits(difference: float | None) -> str:
    """How they compare with the classifier's."""
    if difference is None:
        return "not compared with a classifier; next: --classifier FILE"
    if difference == 0:
        return "those of the classifier, bit for bit, on 4 random images"
    return f"those of the classifier within {difference:.2g}, which is float noise, on 4 random images"


def summary(found: Verification) -> Iterator[str]:
    """What was found out about a gradient, line by line."""
    from onnxplain.engine.verify import percent
    from onnxplain.errors import by_operator

    count = len(found.looks)
    directions = sum(look.along.directions + look.across.directions for look in found.looks)
    where = f"{count} image{'s' * (count != 1)}, {directions} directions"
    bounds = f"{percent(found.along)} of its size, or of {percent(found.across)} of any form"
    match found.verdict:
        case "passed":
            yield f"the derivative of the logits ({where}); an error of {bounds} would have been noticed"
        case "inconclusive":
            yield (
                f"nothing contradicts it ({where}), but only an error of {bounds} would have been noticed; "
                "next: try photos of the model's own kind (--image FILE)"
            )
        case "partial":
            yield "not that of the model: it was told to stop, and cannot pass"
            yield from (f"stops at {line}" for line in by_operator(found.stopped))
        case "failed":
            yield from found.failures


def rounded(found: Rounding) -> Iterator[str]:
    """What was found out about a gradient in another precision, line by line."""
    from onnxplain.engine.verify import percent

    if found.verdict == "failed":
        yield from found.failures
        return
    of = f"off by {percent(found.typical)} of its size at a single image"
    bound = f"an error of {percent(found.noticeable)} of any form would have been noticed"
    if found.verdict == "passed":
        yield f"that of fp32 but for rounding, {of}; {bound}"
    else:
        yield (
            f"{of}; nothing but rounding shows, but only {bound}; "
            "next: compute in fp32, or in fp16, which has three binary digits more than bf16"
        )
