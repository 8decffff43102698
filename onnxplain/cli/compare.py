"""`onnxplain compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.tables import as_json, as_text
from onnxplain.cli.terminal import downloads, result, terminal

if TYPE_CHECKING:
    from onnxplain.comparison import Comparison, MethodAgreement
    from onnxplain.engine.explanation import Explanation
    from onnxplain.engine.requests import Array

GRADIENTS = {"side": "against", "logits": "logits off by", "gradient": "gradient off by", "cosine": "cosine",
             "cosine_least": "least", "length": "length", "verdict": "verdict"}  # fmt: skip
METHODS = {
    "method": "method", "side": "against", "spearman": "spearman", "cosine": "cosine", "top": "top 1%",
    "insertion": "insertion", "insertion_theirs": "theirs", "deletion": "deletion", "deletion_theirs": "theirs ",
    "speed": "speed", "memory": "MiB", "memory_theirs": "theirs  ", "verdict": "verdict",
}  # fmt: skip
IMAGES = {
    "image": "image", "method": "method", "side": "against", "spearman": "spearman", "cosine": "cosine",
    "top": "top 1%", "insertion": "insertion", "insertion_theirs": "theirs", "deletion": "deletion",
    "deletion_theirs": "theirs ",
}  # fmt: skip


@options.command("compare")
@options.model
@click.option(
    "--reference",
    metavar="SOURCE",
    help="The same classifier in PyTorch: torchvision:NAME, timm:NAME, hf:NAME-or-folder, or module:factory.",
)
@click.option("--trust-code", is_flag=True, help="Run the Python code that module:factory names.")
@click.option("--against", metavar="DEVICE", help="Another runtime to compare with, as --on names it.")
@click.option("--against-precision", type=click.Choice(("fp32", "tf32", "fp16", "bf16")), help="The precision there.")
@click.option("--captum", is_flag=True, help="Compare with Captum too, for the methods that it has.")
@click.option(
    "--images", "photos", type=options.FILE, multiple=True, required=True, metavar="DIR|PHOTO", help="May be repeated."
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="The first N images. [default: all]")
@click.option(
    "--method",
    "ids",
    default="ig,saliency,isa,credible",
    show_default=True,
    metavar="ID,...",
    help="Methods with commas between: isa, credible, ig, saliency, gradient-x-input, agi, big, gig, fig; against "
    "another runtime any.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A parameter of the method; METHOD.K=V of one of several."
)
@click.option("--protocol", default="rise", show_default=True, metavar="NAME", help=f"One of {options.PROTOCOLS}.")
@click.option("--step", type=click.IntRange(1), help="Pixels that are changed at once. [default: the protocol's]")
@click.option(
    "--float64/--no-float64",
    default=True,
    show_default=True,
    help="Run sign-step methods of the reference in float64 too, to tell what float32 alone does to them.",
)
@click.option("--max-logits-difference", type=float, default=1e-3, show_default=True, help="Over the largest logit.")
@click.option("--min-gradient-cosine", type=float, default=0.9999, show_default=True, help="In the median.")
@click.option(
    "--min-spearman", type=float, default=0.999, show_default=True, help="Of every image, but for sign-step methods."
)
@click.option(
    "--max-auc-difference", type=float, default=0.01, show_default=True,
    help="Of the mean insertion AUC of sign-step methods, over 20 images or more.",
)  # fmt: skip
@click.option("-o", "--output", type=options.FILE, metavar="DIR", help="A folder for compare.json and pictures.")
@options.opening
@options.overwrite
@options.format("text", "json")
def command(
    model: Path, reference: str | None, trust_code: bool, against: str | None, against_precision: str | None,
    captum: bool, photos: tuple[Path, ...], count: int | None, ids: str, settings: tuple[str, ...], protocol: str,
    step: int | None, float64: bool, max_logits_difference: float, min_gradient_cosine: float, min_spearman: float,
    max_auc_difference: float, output: Path | None, opening: Mapping[str, Any], overwrite: bool, form: str,
) -> int:  # fmt: skip
    """Compare this engine with the same classifier in PyTorch, and the same algorithms written as plain loops there.

    Logits, gradients, attributions, insertion and deletion, time and memory; on the same photos. It ends with 1 if
    something misses its threshold. Methods that take steps by the sign of a gradient are judged by the gradients that
    they meet and by their mean score, since rounding alone sends them elsewhere.

    \b
    Example:
      onnxplain compare model.onnx --reference torchvision:resnet50 --images photos/
      onnxplain compare model.onnx --reference nets:make --trust-code \\
        --method isa,ig --images photos/ --count 20 -o compared
      onnxplain compare model.onnx --against openvino --method ig --images photos/
    """
    from onnxplain.adapters.sources import load_module
    from onnxplain.comparison import Thresholds, compare
    from onnxplain.comparison.picture import pictures_in, write_picture
    from onnxplain.engine.atomic import refuse_existing, writable_folder, write_atomically
    from onnxplain.engine.methods import from_options
    from onnxplain.files import find_photos, plan_results

    names = [name.strip() for name in ids.split(",")]
    given = options.settings_of(names, settings, "method")
    methods = [from_options(name, given[name]) for name in names]
    if captum and reference is None:
        raise click.UsageError("--captum explains a classifier in PyTorch: give --reference too")
    found, skipped = find_photos(photos)
    for path in skipped:
        terminal().say(f"skipped {path}: not an image")
    found = found[:count]
    if output is not None:
        plan_results(found, names, output, overwrite=True)  # refuses what would have one name
        refuse_existing([output / "compare.json", *pictures_in(output, found, names)], overwrite=overwrite)
        writable_folder(output)

    def finished(one: MethodAgreement, ours: Sequence[Explanation], theirs: Array) -> None:
        terminal().say(f"{one.method} against {one.side}: {verdict(one)}; {'; '.join(one.why)}")
        if output is not None:
            for photo, explanation, their in zip(found, ours, theirs, strict=True):
                write_picture(output, photo, one, explanation, their, overwrite=overwrite)

    thresholds = Thresholds(
        logits=max_logits_difference, cosine=min_gradient_cosine, spearman=min_spearman, auc=max_auc_difference
    )
    with downloads("getting weights"):
        module = None if reference is None else load_module(reference, trust_code=trust_code)
    compared = compare(
        model,
        module,
        found,
        methods,
        against=against,
        against_precision=against_precision,
        captum=captum,
        float64=float64,
        protocol=protocol,
        step=step,
        thresholds=thresholds,
        say=terminal().say,
        finished=finished,
        **opening,
    )
    document = as_json(asdict(compared) | {"passed": compared.passed})
    if output is not None:
        write_atomically(output / "compare.json", document.encode(), overwrite=overwrite)
    result(document if form == "json" else text(compared, images=terminal().verbosity > 0))
    return 0 if compared.passed else 1


def text(found: Comparison, *, images: bool) -> str:
    """The tables of a comparison: gradients, methods and, if wanted, images."""
    gradients = [
        {**asdict(one), "verdict": "passed" if one.passed else "failed", "logits": f"{one.logits:.1e}",
         "gradient": f"{one.gradient:.1e}", "cosine": f"{one.cosine:.7f}", "cosine_least": f"{one.cosine_least:.7f}",
         "length": f"{one.length:.4f}"}
        for one in found.gradients
    ]  # fmt: skip
    methods = [
        asdict(one) | {"speed": f"{one.speed:.2f}x", "verdict": verdict(one)} | whole(one) for one in found.methods
    ]
    parts = [as_text(gradients, GRADIENTS), as_text(methods, METHODS)]
    if images:
        rows = [
            {"image": at.image, "side": one.side, "logits": f"{at.logits:.1e}", "gradient": f"{at.gradient:.1e}",
             "cosine": f"{at.cosine:.7f}"}
            for one in found.gradients for at in one.images
        ]  # fmt: skip
        parts.append(as_text(rows, {"image": "image"} | {name: GRADIENTS[name] for name in rows[0] if name != "image"}))
        parts.append(as_text([asdict(one) for one in found.images], IMAGES))
    return "\n\n".join([*parts, f"{found.model} on {found.on}: {'passed' if found.passed else 'failed'}"])


def whole(one: MethodAgreement) -> dict[str, str | None]:
    """Memory without decimals."""
    return {
        name: None if (value := getattr(one, name)) is None else f"{value:.0f}" for name in ("memory", "memory_theirs")
    }


def verdict(one: MethodAgreement) -> str:
    return {True: "passed", False: "failed", None: "not judged"}[one.verdict]
