"""`onnxplain score`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.collect import Observe, collect
from onnxplain.cli.tables import WIDE, as_text, metric_columns, wide
from onnxplain.cli.terminal import result, terminal

if TYPE_CHECKING:
    from onnxplain.engine.drive import Outcome
    from onnxplain.engine.metrics import MapMetric
    from onnxplain.files import Scored

INSERTION_DELETION = "insertion-deletion"
LISTS = ("curve", "ratios")  # of a row
SUMMARY = {"method": "method", "protocol": "protocol", "reduction": "reduction", "metric": "metric",
           "mean": "mean", "standard_error": "s.e.", "n": "n", "direction": "direction"}  # fmt: skip


@options.command("score")
@options.model
@click.argument(
    "heatmaps", type=options.FILE, nargs=-1, required=True, metavar="HEATMAP...", help=".npz or .npy files."
)
@click.option(
    "--metric", "ids", multiple=True, default=(INSERTION_DELETION,), show_default=True, metavar="ID",
    help=f"One of {options.METRICS}; may be repeated.",
)  # fmt: skip
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A parameter of the metric; METRIC.K=V of one of several."
)
@click.option(
    "--protocol", "protocols", multiple=True, metavar="NAME",
    help=f"Of insertion-deletion, one of {options.PROTOCOLS}; may be repeated. [default: rise]",
)  # fmt: skip
@click.option(
    "--step", type=click.IntRange(1), help="Pixels that change at a step of it. [default: the protocol's]"
)  # fmt: skip
@click.option(
    "--reduce",
    type=click.Choice(options.REDUCTIONS),
    help="How the channels of a map become one number a pixel. [default: the metric's; sum, of diffid abs_sum]",
)
@click.option("--key", metavar="NAME", help="The array to take from an archive of several.")
@click.option(
    "--image", "images", type=options.FILE, multiple=True, metavar="FILE",
    help="The photo that arrays of other tools explain: one for all, or one for each heatmap in order.",
)  # fmt: skip
@click.option("--curves", is_flag=True, help="Keep the curves in JSON.")
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    metavar="FILE",
    help="Write the rows too; .json, .jsonl or .csv, by its ending.",
)
@options.opening
@options.overwrite
@options.format("text", "json", "jsonl", "csv")
def command(
    model: Path, heatmaps: tuple[Path, ...], ids: tuple[str, ...], settings: tuple[str, ...],
    protocols: tuple[str, ...], step: int | None, reduce: str | None, key: str | None, images: tuple[Path, ...],
    curves: bool, output: Path | None, opening: Mapping[str, Any], overwrite: bool, form: str,
) -> int:  # fmt: skip
    """Score saved heatmaps: by insertion and deletion (does the class appear, or vanish, with the pixels ranked first?)
    or by other metrics.

    Takes heatmap files of onnxplain and plain arrays (H,W) or (C,H,W) of other tools, which need --image.
    Every score says its protocol and its reduction: without them it means nothing.

    \b
    Example:
      onnxplain score model.onnx out/*.npz --protocol rise
      onnxplain score model.onnx cam.npy --image photo.jpg --protocol agi_isa --format json --curves
      onnxplain score model.onnx out/*.npz --metric sensitivity-n --set subsets=50
    """
    from onnxplain.engine.atomic import refuse_existing, writable_file, write_atomically
    from onnxplain.engine.metrics import Scores
    from onnxplain.explainer import open
    from onnxplain.files import score_heatmaps

    metrics = metrics_of(ids, settings, protocols, step, reduce)
    if output is not None:
        if output.suffix not in (".json", ".jsonl", ".csv"):
            raise click.BadParameter(
                f"expected a name that ends in .json, .jsonl or .csv, got {output}", param_hint="-o"
            )
        refuse_existing([output], overwrite=overwrite)
    with open(model, **opening, gradient=False) as explainer:
        for note in explainer.notes:
            terminal().say(note, 1)

        def start(observe: Observe) -> Iterator[Outcome[Scored]]:
            outcomes = score_heatmaps(explainer, heatmaps, metrics, photos=images, key=key, observe=observe)
            if output is not None:
                writable_file(output)
            return outcomes

        def take(_: int, scored: Scored) -> list[dict[str, Any]]:
            for note in scored.notes:
                terminal().say(f"warning: {note}", -1)
            return [row if curves else {k: v for k, v in row.items() if k not in LISTS} for row in scored.rows]

        done = collect(
            f"scoring {len(heatmaps)} heatmap{'s' * (len(heatmaps) != 1)}",
            start,
            take,
            names=[str(path) for path in heatmaps for _ in metrics],
            costs=[metric.rows(*explainer.image_size) for metric in metrics],
            usage=explainer.usage,
            stream=form == "jsonl",
        )
    means = {"summary": Scores.of(done.rows).compute()} if len(heatmaps) > 1 else {}
    try:
        if output is not None and done.rows:
            write_atomically(output, f"{done.document(output.suffix[1:], **means)}\n".encode(), overwrite=overwrite)
    finally:  # hours of scoring are not lost with a disk that filled up meanwhile
        if form == "text" and done.rows:
            result(as_text(wide(done.rows), WIDE | metric_columns(done.rows)))
            if means:
                result("\nmeans\n" + as_text(means["summary"], SUMMARY))
        elif form in ("json", "csv"):
            result(done.document(form, **means))
    return done.exit_code


def metrics_of(
    ids: Sequence[str], settings: Sequence[str], protocols: Sequence[str], step: int | None, reduce: str | None
) -> list[MapMetric]:
    """The metrics that were asked for; insertion-deletion is one for each protocol. `--set` outranks other options."""
    from onnxplain.engine.metrics import from_options

    given = options.settings_of(ids, settings, "metric")
    if INSERTION_DELETION not in given and (protocols or step is not None):
        raise click.UsageError(
            f"--protocol and --step belong to {INSERTION_DELETION}, which is not measured; "
            f"next: leave them out, or add --metric {INSERTION_DELETION}"
        )
    reduced = {} if reduce is None else {"reduce": reduce}
    stepped = {} if step is None else {"step": str(step)}
    made: list[MapMetric] = []
    for id, settings_of_it in given.items():
        games = [{"protocol": name, **stepped} for name in protocols or ("rise",)] if id == INSERTION_DELETION else [{}]
        made += [from_options(id, game | reduced | settings_of_it) for game in games]
    return list(dict.fromkeys(made))
