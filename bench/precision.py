"""What half precision does to a gradient: float16 and bfloat16 in the graph against float32, per model.

    python bench/precision.py MODEL.onnx ... [--photos FOLDER]

Cosine of the gradients and largest difference over the largest float32 gradient, the worst of the images, for the
highest logit and for its probability. Beside them, as a yardstick, the cosine of the float32 gradient with itself at
the image rounded to 11 bits, float16's, and to 8, bfloat16's: where Relu and max pools switch, that is what can be had.
Every half-precision value is rounded as a device rounds it (see tests/rounding.py); nothing is timed. Photos are
prepared as the preprocessing beside a model says, else as ImageNet classifiers usually want them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import onnx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rounding import rounding_twin  # noqa: E402

from onnxplain.adapters.gradient.classifier import gradient_model  # noqa: E402
from onnxplain.adapters.gradient.precision import HALVES, in_precision  # noqa: E402
from onnxplain.engine.drive import OBJECTIVE, TARGET  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.engine.requests import Kind  # noqa: E402
from onnxplain.files import find_photos  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec, load_image, to_input  # noqa: E402

Array = np.ndarray
PHOTOS = ROOT.parent / "shared/data/imagenet/images/nips17_100"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(model: Path, size: tuple[int, int], photos: list[Path]) -> tuple[PreprocessSpec, Array]:
    sidecar = model.with_suffix(".preprocessor_config.json")
    spec = (
        PreprocessSpec.from_json_file(sidecar)
        if sidecar.is_file()
        else PreprocessSpec(size=size, image_mean=MEAN, image_std=STD)
    )
    return spec, np.stack([to_input(load_image(photo, spec)) for photo in photos]).astype(np.float32)


def compare(mine: Array, theirs: Array) -> tuple[float, float]:
    """The worst cosine and the worst relative difference of two batches of gradients."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (mine, theirs))
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return float(cosine.min()), float((np.abs(a - b).max(1) / np.abs(b).max(1)).max())


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS, show_default=True)
@click.option("--count", default=2, show_default=True, help="Photos.")
def main(models: tuple[Path, ...], photos: Path, count: int) -> None:
    files = find_photos([photos])[0][:count]
    click.echo("| model | precision | objective | logits | cosine | largest difference | cosine, rounded image |")
    click.echo("|---|---|---|---|---|---|---|")
    for path in models:
        plain = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
        sizes = [d.dim_value for d in plain][1:]
        size = tuple(sizes[1:] if sizes[0] in (1, 3) else sizes[:2])
        spec, x = images(path, size, files)
        made = gradient_model(path, preprocess=spec)
        image = made.graph.input[0].name
        with OnnxRuntimeExecutor(made, threads=1) as single:
            x = x if single.inputs[image].shape[1] in (1, 3) else x.transpose(0, 2, 3, 1)
            classes = single.outputs["logits"].shape[1]
            feeds = {image: x, TARGET: np.zeros((len(x), classes), np.float32), OBJECTIVE: np.zeros(len(x), np.int64)}
            best = single(feeds)["logits"].argmax(1)
            feeds[TARGET][range(len(x)), best] = 1
            kinds = (Kind.LOGIT, Kind.PROB)
            wanted = [single(feeds | {OBJECTIVE: np.full(len(x), kind, np.int64)}) for kind in kinds]
            for precision, half in HALVES.items():
                near = single(feeds | {image: x.astype(half.numpy()).astype(np.float32)})["gradient"]
                yardstick, _ = compare(near, wanted[0]["gradient"])
                with OnnxRuntimeExecutor(rounding_twin(in_precision(made, precision)), threads=1) as narrow:
                    for kind, want in zip(kinds, wanted, strict=True):
                        got = narrow(feeds | {OBJECTIVE: np.full(len(x), kind, np.int64)})
                        cosine, difference = compare(got["gradient"], want["gradient"])
                        logits = np.abs(got["logits"] - want["logits"]).max() / np.abs(want["logits"]).max()
                        click.echo(
                            f"| {path.stem} | {precision} | {kind.name.lower()} | {logits:.1e} | {cosine:.6f} "
                            f"| {difference:.1e} | {yardstick:.6f} |"
                        )


if __name__ == "__main__":
    main()
