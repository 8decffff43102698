"""How much of `score` is spent outside the runtime, on saved heatmaps of random numbers.

python bench/score_share.py --photo PHOTO [--count 100] [--step 224] [--metric ID] MODEL.onnx ...
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np

import onnxplain as ox
from onnxplain.engine.metrics import from_options


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--photo", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=100, show_default=True, help="Heatmaps.")
@click.option("--step", help="Of insertion-deletion. [default: the protocol's]")
@click.option("--metric", "id", default="insertion-deletion", show_default=True)
@click.option("--threads", default=0, show_default=True)
def main(models: tuple[Path, ...], photo: Path, count: int, step: str | None, id: str, threads: int) -> None:
    metric = from_options(id, {} if step is None else {"step": step})
    click.echo("| model | metric | heatmaps | rows | seconds | host share |")
    click.echo("|---|---|---|---|---|---|")
    for model in models:
        with tempfile.TemporaryDirectory() as folder, ox.open(model, gradient=False, threads=threads) as explainer:
            maps = [Path(folder, f"{i}.npy") for i in range(count)]
            for i, path in enumerate(maps):
                np.save(path, np.random.default_rng(i).normal(size=explainer.image_size).astype(np.float32))
            for outcome in ox.score_heatmaps(explainer, maps, [metric], photos=[photo]):
                outcome.unwrap()
            usage = explainer.usage
            share = (usage.seconds - usage.runtime_seconds) / usage.seconds
            click.echo(
                f"| {model.stem} | {id} | {count} | {usage.rows['logits']} | {usage.seconds:.1f} | {share:.1%} |"
            )


if __name__ == "__main__":
    main()
