"""Photos and saved heatmaps, file by file: what the commands `explain` and `score` run.

    photos   --explain_photos-->  explanations, each as it finishes
    heatmaps --score_heatmaps-->  result rows, each heatmap's as it finishes

Files are opened when the driver has room for them, so thousands of them need no more memory than a few; a file that
cannot be used ends its own program with an error, and no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.atomic import refuse_existing
from onnxplain.engine.drive import Outcome, drive
from onnxplain.engine.evaluate import RUN, pixel_sha256
from onnxplain.engine.explanation import Explanation, read_heatmap
from onnxplain.engine.methods import Method
from onnxplain.engine.metrics import MapMetric
from onnxplain.engine.requests import Head, Program
from onnxplain.errors import InputError, UsageError, unreadable
from onnxplain.explainer import Explainer
from onnxplain.models.preprocess import load_image

PathLike: TypeAlias = str | os.PathLike[str]
Observe: TypeAlias = Callable[[Mapping[str, int]], None]

# what in a folder is a photo, by the end of its name
PHOTOS = (".bmp", ".gif", ".j2k", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")


def find_photos(paths: Iterable[PathLike]) -> tuple[list[Path], list[Path]]:
    """The photos that files and folders stand for, and what was passed over in the folders.

    A folder stands for its own images (not those of folders in it), by name. A path that is no folder is taken as it
    is, whatever its name.

    Raises:
        UsageError: a folder holds no image.
        InputError: a folder cannot be read.
    """
    photos: list[Path] = []
    skipped: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            photos.append(path)
            continue
        try:
            inside = sorted(item for item in path.iterdir() if not item.name.startswith("."))
        except OSError as error:
            raise unreadable("the folder", path, error) from error
        found = [item for item in inside if item.suffix.lower() in PHOTOS and item.is_file()]
        if not found:
            raise UsageError(f"the folder {path} holds no images; next: give a folder with {' '.join(PHOTOS)}")
        photos += found
        skipped += [item for item in inside if item not in found]
    return photos, skipped


def result_files(photo: PathLike, method: str, folder: PathLike) -> tuple[Path, Path]:
    """Where the heatmap file and the overlay of a photo go: `<stem>.<method>.npz` and `.png`."""
    name = f"{Path(photo).stem}.{method}"
    return Path(folder, f"{name}.npz"), Path(folder, f"{name}.png")


def plan_results(
    photos: Sequence[Path], methods: Sequence[str], folder: PathLike, *, overwrite: bool = False
) -> dict[tuple[Path, str], tuple[Path, Path]]:
    """The result files of every photo and method, if none would overwrite another or what is there already.

    Raises:
        UsageError: two photos have one stem, or a method is given twice.
        OutputError: a result is there already (without `overwrite`).
    """
    stems: dict[str, Path] = {}
    for photo in photos:
        other = stems.setdefault(photo.stem, photo)
        if other is not photo:
            raise UsageError(
                f"{other} and {photo} would have results of the same name, {photo.stem}.*; "
                "next: rename one of them, or explain them into different folders"
            )
    for method in methods:
        if methods.count(method) > 1:
            raise UsageError(f"method {method} is given twice; next: explain into two folders to compare its settings")
    plan = {(photo, method): result_files(photo, method, folder) for photo in photos for method in methods}
    refuse_existing((file for files in plan.values() for file in files), overwrite=overwrite)
    return plan


MOST_BACKGROUND = 100  # photos: 60 MB of 224 x 224


def with_background(
    methods: Sequence[Method], folder: PathLike, explainer: Explainer, seed: int = 0
) -> tuple[list[Method], int]:
    """The methods with the photos of a folder as their `background`, where they have one; and how many photos.

    At most 100 photos are drawn (by `seed`, for all images alike).

    Raises:
        UsageError: no method has a background, the folder holds no image, or the model has no preprocessing.
        InputError: a photo cannot be read.
    """
    if not any(hasattr(method, "background") for method in methods):
        ids = ", ".join(method.id for method in methods)
        raise UsageError(f"background: none of the methods ({ids}) compares with other images; next: leave it out")
    photos, _ = find_photos([folder])
    count = min(len(photos), MOST_BACKGROUND)
    drawn = np.sort(np.random.default_rng(seed).choice(len(photos), count, replace=False))
    background = np.stack([explainer.to_input(explainer.read(photos[i])) for i in drawn])
    given = [
        replace(method, background=background) if hasattr(method, "background") else method  # type: ignore[type-var]
        for method in methods
    ]
    return given, count


def explain_photos(
    explainer: Explainer,
    photos: Iterable[PathLike],
    methods: Sequence[Method],
    target: int | None = None,
    seed: int = 0,
    *,
    observe: Observe | None = None,
) -> Iterator[Outcome[Explanation]]:
    """Explain photo by photo with every method; outcome number i is photo `i // M` with method `i % M` of M methods.

    An unreadable photo is an outcome with an error. `target`: None for the class predicted for each photo. `observe` is
    called after every call of the runtime with the rows that it had.

    Raises:
        UsageError: the target is out of range, or the model has no preprocessing.
    """
    spec = explainer.photos
    classes = explainer.forward.classes
    if target is not None and not 0 <= target < classes:
        raise UsageError(f"target {target} is out of range: the model has {classes} classes (0 to {classes - 1})")

    def program(photo: Path, method: Method) -> Program[Explanation]:
        image = load_image(photo, spec)
        explanation = yield from explainer.program(explainer.to_input(image), method, target, seed)
        of = {"image": photo.name, "image_sha256": pixel_sha256(image)}
        return replace(explanation, image=image, provenance={**explanation.provenance, **of})

    programs = (program(Path(photo), method) for photo in photos for method in methods)
    return drive(programs, explainer.model, usage=explainer.usage, observe=observe)


def summary(explanation: Explanation, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """An explanation in one row: the class, how sure the model is of it, how complete the attribution is, and where the
    model was run."""
    target, logits = explanation.target, explanation.logits.astype(np.float64)
    index = None if isinstance(target, np.ndarray) else target
    head = Head(explanation.provenance.get("head", Head.SOFTMAX))
    return {
        "method": explanation.method,
        "target": index,
        "label": labels[index] if labels is not None and index is not None and index < len(labels) else None,
        "probability": float(head.probability(logits)[index]) if index is not None else None,
        "logit": float(logits[index]) if index is not None else None,
        "value": explanation.value,
        "completeness_gap": explanation.diagnostics.get("completeness_gap"),
        **{name: explanation.provenance.get(name) for name in RUN},
    }


@dataclass(frozen=True)
class Scored:
    """The result rows of one heatmap under one metric, and what a reader of them should know."""

    rows: list[dict[str, Any]]
    notes: list[str]


def score_heatmaps(
    explainer: Explainer,
    heatmaps: Sequence[PathLike],
    metrics: Sequence[MapMetric],
    *,
    photos: Sequence[PathLike] = (),
    key: str | None = None,
    observe: Observe | None = None,
) -> Iterator[Outcome[Scored]]:
    """Score saved heatmaps; outcome number i is heatmap `i // M` under metric `i % M` of M metrics.

    A heatmap file of ours brings its image. Arrays of other tools need `photos`: one for all heatmaps, or one for each.
    A heatmap that cannot be used is an outcome with an error.

    Raises:
        UsageError: the number of photos fits neither, or the model has no preprocessing.
    """
    if len(photos) not in (0, 1, len(heatmaps)):
        raise UsageError(f"expected one image for all heatmaps or one for each of {len(heatmaps)}, got {len(photos)}")
    spec = explainer.photos
    model = explainer.metadata["onnxplain.source_sha256"]

    @lru_cache(maxsize=1)  # one photo may be for all heatmaps
    def photo_of(path: Path) -> NDArray[np.uint8]:
        return load_image(path, spec)

    def program(at: int, metric: MapMetric) -> Program[Scored]:
        path = Path(heatmaps[at])
        loaded = read_heatmap(path, key)
        ours = loaded.explanation
        known: Mapping[str, Any] = ours.provenance if ours is not None else {}
        if ours is not None and ours.image is not None:
            image, name = ours.image, str(known.get("image", path.stem))
        elif photos:
            photo = Path(photos[at % len(photos)])
            image, name = photo_of(photo), photo.name
        else:
            raise InputError(f"{path}: holds no image; next: give the photo that it explains with --image")
        size = explainer.image_size
        if image.shape[:2] != size:
            raise InputError(
                f"{path}: made for an image of {image.shape[0]} x {image.shape[1]}, the model takes "
                f"{' x '.join(map(str, size))}; next: make the heatmap with this model"
            )
        x = explainer.to_input(image)
        axis = explainer.channel_axis
        values = loaded.values
        if values.ndim == 3 and values.shape != x.shape:  # files have the channels first
            values = np.moveaxis(values, 0, axis)
        score = yield from metric(
            x, values, space=explainer.space, head=explainer.head, channel_axis=axis, name=str(path)
        )
        facts = {
            "image": name,
            "heatmap": str(path),
            "method": ours.method if ours is not None else path.stem.rpartition(".")[2],
        }
        origin = {
            "seed": known.get("seed"),
            "model_sha256": model,
            "image_sha256": pixel_sha256(image),
            "version": version("onnxplain"),
            **{name: explainer.provenance[name] for name in RUN},
        }
        notes = []
        if photos and ours is not None and ours.image is not None:
            notes.append(f"{path}: holds the image that it explains, so --image is not used for it")
        if ours is not None and known.get("model_sha256") != model:
            made = str(known.get("model_sha256"))[:12]
            notes.append(f"{path}: made for another model (SHA-256 {made}..., this one is {model[:12]}...)")
        if ours is not None and not isinstance(ours.target, np.ndarray) and ours.target != score.target:
            notes.append(
                f"{path}: explains class {ours.target}, but the metric follows the predicted class {score.target}"
            )
        if score.constant:
            notes.append(
                f"{path}: the map is constant, so it ranks nothing; its score is that of the pixels' order, or none"
            )
        return Scored([facts | row | origin for row in score.rows()], notes)

    programs = (program(at, metric) for at in range(len(heatmaps)) for metric in metrics)
    return drive(programs, explainer.forward, usage=explainer.usage, observe=observe)
