"""How well the heatmaps of each method score, on photos that EfficientNet-Lite0 classifies correctly.

    python bench/scores.py ../shared/data/imagenet/images/nips17_100 --count 20 --step 1792

The folder holds photos and `labels.csv` with the columns `file` and `label`. Beside the methods stand two maps that
know nothing of the model: random numbers and edges (the magnitude of the Sobel gradient).
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
import time
from pathlib import Path

import click
import cv2
import numpy as np

import onnxplain as ox
from onnxplain.engine.methods import CrediblePath, IntegratedGradients, Saliency
from onnxplain.engine.metrics import InsertionDeletion, Protocol, Score
from onnxplain.engine.requests import Kind, Validity
from onnxplain.models.demo import demo_model
from onnxplain.models.preprocess import load_image, to_input

METHODS = {
    "ISA": ox.methods.ISA(),
    "credible path (`logit_l2`, `literal`)": CrediblePath(baseline_objective=Kind.LOGIT_L2),
    "credible path (`logit_l2`, `path`)": CrediblePath(baseline_objective=Kind.LOGIT_L2, validity=Validity.PATH),
    "IG": IntegratedGradients(),
    "Saliency": Saliency(),
}


def edges(image: np.ndarray) -> np.ndarray:
    """The magnitude of the Sobel gradient of the grey image, float32 (H, W)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=20, show_default=True, help="How many correctly classified photos.")
@click.option("--step", type=int, help="Pixels a step, instead of the protocol's own.")
@click.option("-b", "--batch-size", default=8, show_default=True)
def main(folder: Path, count: int, step: int | None, batch_size: int) -> None:
    with ox.open(demo_model(), batch_size=batch_size) as explainer:
        assert explainer.preprocess is not None
        rows = list(csv.DictReader((folder / "labels.csv").open(encoding="utf-8")))
        images, xs = [], []
        for row in rows:
            image = load_image(folder / row["file"], explainer.preprocess)
            x = to_input(image)
            if explainer.logits(x[None])[0].argmax() == int(row["label"]):
                images.append(image)
                xs.append(x)
            if len(xs) == count:
                break
        x = np.stack(xs)
        rng = np.random.default_rng(0)
        maps = {
            "random": list(rng.standard_normal((len(x), *x.shape[2:]), np.float32)),
            "edge": list(map(edges, images)),
        }
        for name, method in METHODS.items():
            start = time.perf_counter()
            maps[name] = [e.attribution for e in explainer.explain(x, method)]
            click.echo(f"{name}: {(time.perf_counter() - start) / len(x):.2f} s per photo", err=True)
        usage = explainer.usage
        click.echo(f"driver: {1 - usage.runtime_seconds / usage.seconds:.2%} of the wall time; {usage}", err=True)
        click.echo("| map | protocol | reduction | insertion AUC | deletion AUC | difference | s.e. of it | n |")
        click.echo("|---|---|---|---|---|---|---|---|")
        for protocol, (name, heatmaps) in itertools.product(("agi_isa", "rise"), maps.items()):
            for reduce in ("sum",) if heatmaps[0].ndim == 2 else ("sum", "abs_sum"):
                metric = InsertionDeletion(Protocol.named(protocol, step=step), reduce=reduce)
                played = metric.score(explainer.forward, x, heatmaps, space=explainer.space)
                insertion, deletion, difference = (
                    merged([getattr(p, what).auc if what != "difference_auc" else p.difference_auc for p in played])
                    for what in ("insertion", "deletion", "difference_auc")
                )
                click.echo(
                    f"| {name} | `{played[0].protocol}` | {played[0].reduction} | {insertion.mean:.3f} | "
                    f"{deletion.mean:.3f} | {difference.mean:.3f} | {difference.standard_error:.3f} | {difference.n} |"
                )
                sys.stdout.flush()
        click.echo(json.dumps(explainer.provenance["versions"]), err=True)


def merged(values: list[float]):
    score = Score.empty()
    for value in values:
        score = score.merge(Score.of(value))
    return score.compute()


if __name__ == "__main__":
    main()
