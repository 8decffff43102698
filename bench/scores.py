"""How well the heatmaps of each method score, on photos that EfficientNet-Lite0 classifies correctly.

    python bench/scores.py PHOTOS --count 20 --step 1792
    python bench/scores.py PHOTOS --step 1792 --map isa --map edge --protocol agi_isa --protocol agi_isa-union

The folder PHOTOS holds photos and `labels.csv` with the columns `file` and `label`. Beside the methods stand two maps
that know nothing of the model: random numbers and edges (the magnitude of the Sobel gradient).
"""

from __future__ import annotations

import csv
import itertools
import json
import time
from pathlib import Path

import click
import cv2
import numpy as np

import onnxplain as ox
from onnxplain.engine.methods import CrediblePath, IntegratedGradients, Saliency
from onnxplain.engine.metrics import InsertionDeletion, Protocol, Score, Summary
from onnxplain.engine.requests import Kind, Validity
from onnxplain.models.demo import demo_model
from onnxplain.models.preprocess import load_image, to_input

# the baselines of both credible paths descend `logit_l2`; what stands behind the comma is their validity rule
METHODS = {
    "isa": ox.methods.ISA(),
    "credible, literal": CrediblePath(baseline_objective=Kind.LOGIT_L2),
    "credible, path": CrediblePath(baseline_objective=Kind.LOGIT_L2, validity=Validity.PATH),
    "ig": IntegratedGradients(),
    "saliency": Saliency(),
}


def edges(image: np.ndarray) -> np.ndarray:
    """The magnitude of the Sobel gradient of the grey image, float32 (H, W)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=20, show_default=True, help="How many correctly classified photos.")
@click.option("--step", type=int, help="Pixels a step, instead of the protocol's own.")
@click.option("--protocol", "protocols", multiple=True, default=("agi_isa", "rise"), show_default=True)
@click.option("--map", "names", multiple=True, default=("random", "edge", *METHODS), help="Which maps; all by default.")
@click.option("-b", "--batch-size", default=8, show_default=True)
def main(
    folder: Path, count: int, step: int | None, protocols: tuple[str, ...], names: tuple[str, ...], batch_size: int
) -> None:
    with ox.open(demo_model(), batch_size=batch_size) as explainer:
        images, x = photos(explainer, folder, count)
        size = (len(x), *x.shape[2:])
        maps: dict[str, list[np.ndarray]] = {
            "random": list(np.random.default_rng(0).standard_normal(size, np.float32)),
            # three equal channels, so that protocols that rank each channel take it too
            "edge": [np.repeat(edges(image)[None], 3, axis=0) for image in images],
        }
        for name in names:
            if name in METHODS:
                start = time.perf_counter()
                maps[name] = [e.attribution for e in explainer.explain(x, METHODS[name])]
                click.echo(f"{name}: {(time.perf_counter() - start) / len(x):.2f} s per photo", err=True)
        usage = explainer.usage
        click.echo(f"driver: {1 - usage.runtime_seconds / usage.seconds:.2%} of the wall time; {usage}", err=True)
        click.echo("| map | protocol | reduction | insertion AUC | deletion AUC | difference | s.e. of it | n |")
        click.echo("|---|---|---|---|---|---|---|---|")
        insertion: dict[tuple[str, str, str], list[float]] = {}
        for protocol, name in itertools.product(protocols, names):
            for reduce in ("sum", "abs_sum") if signed(maps[name]) and "union" not in protocol else ("sum",):
                metric = InsertionDeletion(Protocol.named(protocol, step=step), reduce=reduce)
                played = metric.score(explainer.forward, x, maps[name], space=explainer.space)
                insertion[name, protocol, reduce] = [p.insertion.auc for p in played]
                difference = merged([p.difference_auc for p in played])
                click.echo(
                    f"| {name} | `{played[0].protocol}` | {played[0].reduction} | "
                    f"{np.mean(insertion[name, protocol, reduce]):.3f} | "
                    f"{np.mean([p.deletion.auc for p in played]):.3f} | "
                    f"{difference.mean:.3f} | {difference.standard_error:.3f} | {difference.n} |"
                )
        click.echo(
            "\n| map | protocol | reduction | insertion AUC minus the edge map's, photo by photo | s.e. | ahead on |"
        )
        click.echo("|---|---|---|---|---|---|")
        for (name, protocol, reduce), aucs in insertion.items():
            if name != "edge" and ("edge", protocol, "sum") in insertion:
                ahead = [a - b for a, b in zip(aucs, insertion["edge", protocol, "sum"], strict=True)]
                gap = merged(ahead)
                click.echo(
                    f"| {name} | {protocol} | {reduce} | {gap.mean:+.3f} | {gap.standard_error:.3f} | "
                    f"{sum(a > 0 for a in ahead)} of {gap.n} |"
                )
        click.echo(json.dumps(explainer.provenance["versions"]), err=True)


def photos(explainer: ox.Explainer, folder: Path, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The first `count` photos of the list that are classified correctly: as the model saw them, and as inputs."""
    assert explainer.preprocess is not None
    images: list[np.ndarray] = []
    for row in csv.DictReader((folder / "labels.csv").open(encoding="utf-8")):
        image = load_image(folder / row["file"], explainer.preprocess)
        if explainer.logits(to_input(image)[None])[0].argmax() == int(row["label"]):
            images.append(image)
        if len(images) == count:
            return images, np.stack([to_input(image) for image in images])
    raise click.ClickException(f"{folder}: {len(images)} photos are classified correctly, {count} are wanted")


def signed(maps: list[np.ndarray]) -> bool:
    return any((heatmap < 0).any() for heatmap in maps) and maps[0].ndim == 3


def merged(values: list[float]) -> Summary:
    score = Score.empty()
    for value in values:
        score = score.merge(Score.of(value))
    return score.compute()


if __name__ == "__main__":
    main()
