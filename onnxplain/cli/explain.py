"""`onnxplain explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.collect import Observe, collect
from onnxplain.cli.tables import as_text
from onnxplain.cli.terminal import result, terminal

if TYPE_CHECKING:
    from onnxplain.adapters.gradient.differentiate import OnUnsupported
    from onnxplain.engine.drive import Outcome
    from onnxplain.engine.explanation import Explanation

COLUMNS = {
    "image": "image", "method": "method", "target": "target", "label": "label", "probability": "probability",
    "logit": "logit", "value": "value", "completeness_gap": "gap", "heatmap": "heatmap",
}  # fmt: skip


@options.command("explain")
@options.model
@click.argument(
    "images", type=options.FILE, nargs=-1, required=True, metavar="IMAGE...", help="Photos, or folders of photos."
)
@click.option("-o", "--output", type=options.FILE, required=True, metavar="DIR", help="The folder for the results.")
@click.option(
    "--method", "ids", multiple=True, required=True, metavar="ID", help=f"One of {options.METHODS}; may be repeated."
)
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A parameter of the method; METHOD.K=V of one of several."
)
@click.option(
    "--target", type=click.IntRange(0), help="The class to explain, by its index. [default: the predicted one]"
)
@click.option(
    "--background",
    type=options.FILE,
    metavar="DIR",
    help="Photos that eg compares with; of more than 100, 100 are drawn. Photos that are explained may be among them.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random numbers.")
@options.layers
@options.reduce
@options.on_unsupported
@options.opening
@options.overwrite
@options.format("text", "json", "jsonl", "csv")
def command(
    model: Path, images: tuple[Path, ...], output: Path, ids: tuple[str, ...], settings: tuple[str, ...],
    target: int | None, background: Path | None, seed: int, layers: tuple[str, ...], reduce: str,
    opening: Mapping[str, Any],
    on_unsupported: OnUnsupported, overwrite: bool, form: str,
) -> int:  # fmt: skip
    """Explain photos: a heatmap file (.npz) and an overlay picture (.png) for each photo and method.

    Each file is written when its photo is done. A photo that cannot be read does not stop the others.

    \b
    Example:
      onnxplain explain model.onnx photo.jpg --method isa -o out
      onnxplain explain model.onnx photos/ --method isa --method ig --set ig.steps=100 -o out --format csv
      onnxplain explain model.onnx photo.jpg --method grad-cam --layer auto -o out
      onnxplain explain model.onnx photos/ --method eg --background photos/ -o out
    """
    from onnxplain.engine.atomic import writable_folder
    from onnxplain.engine.methods import forward_only, from_options
    from onnxplain.explainer import open
    from onnxplain.files import explain_photos, find_photos, plan_results, summary, with_background

    given = options.settings_of(ids, settings)
    methods = [from_options(id, given[id]) for id in ids]
    photos, skipped = find_photos(images)
    for path in skipped:
        terminal().say(f"skipped {path}: not an image")
    results = list(plan_results(photos, ids, output, overwrite=overwrite).values())
    with options.warnings_said():
        gradient = not all(map(forward_only, methods))
        inside = layers or "auto"
        opened = open(model, **opening, layers=inside, gradient=gradient, on_unsupported=on_unsupported)
    with opened as explainer:
        for note in explainer.notes:
            terminal().say(note, 1)
        if background is not None:
            methods, count = with_background(methods, background, explainer, seed)
            terminal().say(f"background: {count} photos of {background}", 1)

        def start(observe: Observe) -> Iterator[Outcome[Explanation]]:
            outcomes = explain_photos(explainer, photos, methods, target, seed, observe=observe)
            writable_folder(output)
            return outcomes

        def take(at: int, explanation: Explanation) -> list[dict[str, Any]]:
            heatmap, overlay = results[at]
            explanation.save(heatmap, overwrite=overwrite)
            explanation.save_overlay(overlay, reduce=reduce, overwrite=overwrite)
            row = summary(explanation, explainer.labels)
            return [{"image": str(photos[at // len(ids)])} | row | {"heatmap": str(heatmap), "overlay": str(overlay)}]

        done = collect(
            f"explaining {len(photos)} image{'s' * (len(photos) != 1)}",
            start,
            take,
            names=[str(photo) for photo in photos for _ in ids],
            costs=[method.rows(explainer.forward.image_shape) for method in methods],
            usage=explainer.usage,
            stream=form == "jsonl",
        )
    if form == "text" and done.rows:
        result(as_text(done.rows, COLUMNS))
    elif form in ("json", "csv"):
        result(done.document(form))
    return done.exit_code
