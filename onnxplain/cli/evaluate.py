"""`onnxplain evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.tables import as_csv, as_json, as_text
from onnxplain.cli.terminal import progress, result, terminal

if TYPE_CHECKING:
    from onnxplain.engine.summary import Summary
    from onnxplain.errors import OnnxplainError

KIND = {"model": "model", "protocol": "protocol", "metric": "metric"}
MEANS = KIND | {"reduction": "reduction", "method": "method", "mean": "mean", "low": "low", "high": "high", "n": "n",
                "rank": "rank", "published": "published", "published_rank": "its rank"}  # fmt: skip
PAIRS = KIND | {"first": "first", "second": "second", "difference": "difference", "low": "low", "high": "high",
                "n": "n", "ahead": "ahead", "p_t": "p (t)", "p_wilcoxon": "p (Wilcoxon)"}  # fmt: skip
ORDERS = KIND | {"methods": "methods", "kendall_tau": "Kendall's tau"}
ENDS = {"model": "model", "protocol": "protocol", "game": "game", "points": "points", "ends": "s_0 + s_N",
        "largest_gap": "largest gap", "published_low": "published from", "published_high": "to"}  # fmt: skip


def listed(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the shipped recipes instead of running one."""
    if wanted and not ctx.resilient_parsing:
        from onnxplain.recipes import shipped

        result(as_text([{"name": name, "title": title} for name, title in shipped().items()],
                       {"name": "recipe", "title": "title"}))  # fmt: skip
        ctx.exit()


@options.command("evaluate")
@click.argument(
    "recipe", metavar="RECIPE", help="The name of a shipped recipe, or a file of your own that ends in .toml."
)
@click.option("-o", "--output", type=options.FILE, required=True, metavar="DIR", help="The folder for the results.")
@click.option("--models", type=options.FILE, metavar="DIR", help="Where the models are. [default: beside the recipe]")
@click.option("--images", type=options.FILE, metavar="DIR", help="Where the images are. [default: beside the recipe]")
@click.option("--count", type=click.IntRange(1), help="So many images. [default: as the recipe says]")
@options.preprocess
@options.running
@click.option(
    "--list", is_flag=True, expose_value=False, is_eager=True, callback=listed, help="List the shipped recipes."
)
@options.format("text", "json", "csv")
def command(
    recipe: str, output: Path, models: Path | None, images: Path | None, count: int | None, preprocess: str | None,
    running: Mapping[str, Any], form: str,
) -> int:  # fmt: skip
    """Measure methods on a data set: explain and score what a recipe names, and set published numbers beside it.

    Result rows go into DIR/rows.jsonl as they come. After Ctrl-C or a crash the same command goes on where it stopped;
    a changed recipe keeps what still fits. At the end come DIR/results.parquet, summary.json and summary.csv.

    \b
    Example:
      onnxplain evaluate --list
      onnxplain evaluate isa-table1 --models exported/ --images imagenet/ -o out
      onnxplain evaluate mine.toml -o out --count 20
    """
    from onnxplain.evaluation import Run

    here, failed = terminal(), dict[str, "OnnxplainError"]()
    opening = {**running, "preprocess": options.preprocess_of(preprocess)}
    with Run(recipe, output, models=models, images=images, count=count, opening=opening) as run:
        try:
            with progress(f"evaluating {run.recipe.title or recipe}", run.total) as bar:
                for step in run.steps(bar.observe):
                    bar.finished(step.estimate, step.rows)
                    if step.error is not None:
                        message = f"{step.name}: {step.error}"
                        here.say(f"error: {message}", -1)
                        failed[message] = step.error
        except KeyboardInterrupt:
            here.say("interrupted; what was finished is kept, and the same command goes on from there", -1)
            return 1
        rows, summary = run.finish(failed)
    if form == "json":
        result(as_json(summary.tables() | {"failed": list(failed)}))
    elif form == "csv":
        result(as_csv(summary.means))
    elif rows:
        result(as_tables(run.recipe.title, run.recipe.source, summary))
    if not failed:
        return 0
    return 3 if rows else next(iter(failed.values())).exit_code


def as_tables(title: str, source: str, summary: Summary) -> str:
    """The summary as text: what has rows, each table under its heading."""
    parts: list[str] = [line for line in (title, source and f"published: {source}") if line]
    tables: list[tuple[str, Sequence[Mapping[str, Any]], Mapping[str, str]]] = [
        ("means, with 95 % confidence intervals", summary.means, MEANS),
        ("first minus second, image by image", summary.pairs, PAIRS),
        ("order of the methods, measured against published", summary.orders, ORDERS),
        ("end points: 2 [(N+1) mean - N AUC] = s_0 + s_N", summary.ends, ENDS),
    ]
    for heading, rows, columns in tables:
        if rows:
            parts.append(f"\n{heading}\n{as_text(rows, columns)}")
    return "\n".join(parts)
