"""What half precision does to a gradient: float16 and bfloat16 in the graph against float32, per model.

    python bench/precision.py MODEL.onnx ... [--photos FOLDER]

For the highest logit and for its probability: the largest difference of the logits, relative to the largest of them;
the relative error |a - b| / |b| of the gradient to that in float32, and their cosine; the cosine with a float32 way
back from the same half-precision activations, where every Relu and max pool is on the same side of its kink. Then a
yardstick: the cosine of the float32 gradient with itself at the image rounded to the type. Of several images the worst
counts. All values are rounded as a device rounds them (see tests/rounding.py). Nothing is timed. Photos are prepared as
the preprocessing beside a model says, else as classifiers of ImageNet usually want them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import onnx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rounding import rounding_twin, way_back_in_float32  # noqa: E402

from onnxplain.adapters.gradient.classifier import gradient_model  # noqa: E402
from onnxplain.adapters.gradient.precision import HALVES, in_precision  # noqa: E402
from onnxplain.engine.drive import OBJECTIVE, TARGET  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.engine.executors.setup import Precision  # noqa: E402
from onnxplain.engine.requests import Kind  # noqa: E402
from onnxplain.files import find_photos  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec, load_image, to_input  # noqa: E402

Array = np.ndarray
PHOTOS = ROOT.parent / "shared/data/imagenet/images/nips17_100"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(model: Path, photos: list[Path]) -> tuple[PreprocessSpec, Array]:
    """Photos as the gradient model of a classifier takes them, with the preprocessing."""
    sidecar = model.with_suffix(".preprocessor_config.json")
    if sidecar.is_file():
        spec = PreprocessSpec.from_json_file(sidecar)
    else:
        shape = onnx.load(model, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
        height, width = [d.dim_value for d in shape if d.dim_value > 4]
        spec = PreprocessSpec(size=(height, width), image_mean=MEAN, image_std=STD)
    return spec, np.stack([to_input(load_image(photo, spec)) for photo in photos]).astype(np.float32)


def cosine(mine: Array, theirs: Array) -> float:
    """The worst cosine of two batches of gradients."""
    a, b = flat(mine), flat(theirs)
    return float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).min())


def error(mine: Array, theirs: Array) -> float:
    """The worst relative error of a batch of gradients."""
    a, b = flat(mine), flat(theirs)
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


def flat(x: Array) -> Array:
    return x.reshape(len(x), -1).astype(np.float64)


def rounded(made: onnx.ModelProto, precision: Precision) -> OnnxRuntimeExecutor:
    return OnnxRuntimeExecutor(rounding_twin(in_precision(made, precision)), threads=1)


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS, show_default=True)
@click.option("--count", default=2, show_default=True, help="Photos.")
def main(models: tuple[Path, ...], photos: Path, count: int) -> None:
    files = find_photos([photos])[0][:count]
    click.echo(
        "| model | precision | objective | logits | gradient | cosine | with a float32 way back | image rounded |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    for path in models:
        spec, x = images(path, files)
        made = gradient_model(path, preprocess=spec)
        image = made.graph.input[0].name
        with OnnxRuntimeExecutor(made, threads=1) as single:
            x = x if single.inputs[image].shape[1] in (1, 3) else x.transpose(0, 2, 3, 1)
            targets = np.zeros((len(x), single.outputs["logits"].shape[1]), np.float32)
            feeds = {image: x, TARGET: targets, OBJECTIVE: np.zeros(len(x), np.int64)}
            targets[range(len(x)), single(feeds)["logits"].argmax(1)] = 1
            for precision, half in HALVES.items():
                near = feeds | {image: x.astype(half.numpy()).astype(np.float32)}
                narrow = rounded(made, precision)
                with way_back_in_float32():
                    forward_only = rounded(made, precision)
                for kind in (Kind.LOGIT, Kind.PROB):
                    code = {OBJECTIVE: np.full(len(x), kind, np.int64)}
                    want, got = single(feeds | code), narrow(feeds | code)
                    same = cosine(got["gradient"], forward_only(feeds | code)["gradient"])
                    near_by = cosine(single(near | code)["gradient"], want["gradient"])
                    logits = np.abs(got["logits"] - want["logits"]).max() / np.abs(want["logits"]).max()
                    off, own = (measure(got["gradient"], want["gradient"]) for measure in (error, cosine))
                    click.echo(
                        f"| {path.stem} | {precision} | {kind.name.lower()} | {logits:.1e} | {off:.1e} | {own:.6f} "
                        f"| {same:.7f} | {near_by:.6f} |"
                    )
                narrow.close()
                forward_only.close()


if __name__ == "__main__":
    main()
