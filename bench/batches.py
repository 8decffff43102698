"""Whether a gradient depends on its batch: the largest difference between batch sizes 1, 2, 3 and 8, per model.

python bench/batches.py MODEL.onnx ...
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

import onnxplain as ox


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(models: tuple[Path, ...]) -> None:
    click.echo("| model | logits | gradient | largest gradient |")
    click.echo("|---|---|---|---|")
    for model in models:
        found = []
        for batch_size in (8, 1, 2, 3):
            with ox.open(model, batch_size=batch_size) as explainer:
                x = np.random.default_rng(0).random((9, *explainer.forward.image_shape), np.float32)
                found.append(explainer.gradients(x, target=3))
        logits, gradient = (
            max(np.abs(getattr(other, what) - getattr(found[0], what)).max() for other in found[1:])
            for what in ("logits", "gradient")
        )
        click.echo(f"| {model.stem} | {logits:.2g} | {gradient:.2g} | {np.abs(found[0].gradient).max():.2g} |")


if __name__ == "__main__":
    main()
