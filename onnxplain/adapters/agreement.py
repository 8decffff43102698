"""Whether what was made of a classifier agrees with the classifier in its own framework: outputs, and gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from onnxplain.adapters.gradient.classifier import HEAD_KEY, LAYOUT_KEY
from onnxplain.adapters.gradient.head import Tail, find_logits
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.adapters.mismatch import first_difference
from onnxplain.adapters.onnx_file import Halves, properties
from onnxplain.adapters.original import Original
from onnxplain.engine.drive import GRADIENT, LOGITS, Model, run
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.setup import Setup
from onnxplain.engine.requests import Array, Gradients, Head, Kind, Objective, Points, Program
from onnxplain.errors import ExportError, FeedMismatch
from onnxplain.models.preprocess import PREPROCESS_KEY, PreprocessSpec, normalise, to_pixels

OUTPUTS_WITHIN = 1e-4  # of the largest output, or of 1
COSINE_ABOVE = (
    0.999  # float32 by itself loses up to 5e-5 (Inception v3 with random weights), a wrong gradient much more
)
LENGTH_WITHIN = 0.05  # of one: a gradient as far off in its length as that cosine is in its direction
SATURATED = 1e-3  # a probability this near 0 or 1 leaves float32 no digits of its derivative
RANDOM = 4  # images


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far an exported classifier and its gradient model agree with the original.

    `outputs` is the largest difference of an output. `gradient` is the largest difference of the gradient of the
    predicted class over its largest value, and `cosine` the least of an image; None where the framework has no
    gradients, or all probabilities are saturated.
    """

    framework: str
    images: int
    given: bool  # images that were given, not random ones
    outputs: float
    gradient: float | None
    cosine: float | None


def agreement(original: Original, classifier: Path, made: Halves, output: str | None) -> Agreement:
    """Compare with the original, at its images.

    Raises:
        ExportError: the outputs or the gradient differ by more than float noise; the message names the layer.
        FeedMismatch: its images are not as the exported classifier takes them.
    """
    images = random_images(original) if original.images is None else original.images
    prepared = prepare(classifier).graph
    tail = find_logits(prepared, prepared.inputs[0], output).tail
    outputs = original.outputs(images)
    require_independence(original, images, outputs)
    require_cut(original, tail, outputs)
    difference = compare_outputs(original, classifier, str(tail.output.name), images, outputs)
    gradient = cosine = None
    if original.gradients is not None and made.gradient is not None:
        rows = unsaturated(tail, outputs)
        if rows.any():
            gradient, cosine = compare_gradients(original, made, tail, images[rows], outputs[rows])
    return Agreement(
        framework=original.framework,
        images=len(images),
        given=original.images is not None,
        outputs=difference,
        gradient=gradient,
        cosine=cosine,
    )


def random_images(original: Original) -> Array:
    """Smooth random pictures as the classifier takes them; noise where nobody said how pictures become its input."""
    draw = np.random.default_rng(0)
    if original.preprocess is None or len(original.image_shape) != 3:
        return draw.standard_normal((RANDOM, *original.image_shape), np.float32)
    spec, axis = original.preprocess, original.channel_axis
    height, width = (size for i, size in enumerate(original.image_shape) if i != axis % 3)
    coarse = draw.random((RANDOM, 8, 8, spec.channels), np.float32)
    fine = np.stack([cv2.resize(image, (width, height)).reshape(height, width, -1) for image in coarse])
    return normalise(np.moveaxis(fine, -1, axis % 3 + 1), spec, channel_axis=axis)


def require_independence(original: Original, images: Array, outputs: Array) -> None:
    """Raise `ExportError` if what the original makes of an image depends on the others with it, or is no number."""
    if not np.isfinite(outputs).all():
        raise ExportError(
            f"{original.name}: what it says of these images in {original.framework} itself is not finite; next: give "
            "images as it takes them, or look for a division by zero"
        )
    difference = float(np.abs(original.outputs(images[:1]) - outputs[:1]).max())
    if not difference <= OUTPUTS_WITHIN * max(1.0, float(np.abs(outputs).max())):
        raise ExportError(
            f"{original.name}: what it says of an image alone and among others differs by {difference:.3g} in "
            f"{original.framework} itself; next: look for what mixes the images of a batch, such as a normalisation in "
            "training mode"
        )


def require_cut(original: Original, tail: Tail, outputs: Array) -> None:
    """Raise `ExportError` for probabilities whose softmax was not found: it would be taken of them once more."""
    whole = outputs.shape[1] > 1 and np.allclose(outputs.sum(axis=1), 1, atol=1e-4)
    if tail.activation is None and whole and outputs.min() >= 0:
        raise ExportError(
            f"{original.name}: it returns probabilities, by a softmax that its export has in pieces, so that its "
            "logits are not found; next: export what returns logits"
        )


def compare_outputs(original: Original, classifier: Path, name: str, images: Array, outputs: Array) -> float:
    """The largest difference of the classifier's outputs, run without the optimiser."""
    with OnnxRuntimeExecutor(classifier.read_bytes(), optimise=False, folder=classifier.parent) as executor:
        ((given, wanted),) = executor.inputs.items()
        rows = wanted.shape[0] if isinstance(wanted.shape[0], int) else len(images)  # some take so many at a time
        if not wanted.admits(images[:rows]) or len(images) % rows:
            raise FeedMismatch(
                f"{original.name}: the images to check it at are {images.dtype.name}{list(images.shape)}, and its "
                f"export takes {wanted}; next: give images as the model takes them"
            )
        parts = [executor({given: images[i : i + rows]})[name].copy() for i in range(0, len(images), rows)]
        ours = np.concatenate(parts)
    if ours.size != outputs.size:
        raise ExportError(
            f"{original.name}: its export gives outputs of shape {list(ours.shape)}, where {original.framework} gives "
            f"{list(outputs.shape)}; next: look for what the export took for a constant"
        )
    worst = float(np.abs(ours.reshape(outputs.shape) - outputs).max())
    if not worst <= OUTPUTS_WITHIN * max(1.0, float(np.abs(outputs).max())):  # NaN is a failure too
        first = None if original.layers is None else first_difference(classifier, images, original.layers(images))
        where = f"first in the layer {first}" if first else "in no layer that could be told"
        raise ExportError(
            f"{original.name}: its export is not the same classifier: outputs differ from {original.framework} by up "
            f"to {worst:.3g}, {where}; next: export the part before it, or report it to the makers of the exporter"
        )
    return worst


def unsaturated(tail: Tail, outputs: Array) -> Array:
    """Which images have a gradient that can be told, (N,) bool: all, unless the outputs are probabilities near 1."""
    best = outputs.max(axis=1)
    return np.asarray((best < 1 - SATURATED) | (tail.activation is None) | tail.logarithm)


def compare_gradients(
    original: Original, made: Halves, tail: Tail, images: Array, outputs: Array
) -> tuple[float, float]:
    """The largest difference over the largest value, and the least cosine of an image."""
    assert original.gradients is not None
    assert made.gradient is not None
    meta = properties(made.gradient)
    classes = outputs.argmax(axis=1)
    weights = np.eye(outputs.shape[1], dtype=np.float32)[classes]
    theirs = original.gradients(images, weights)
    kind = Kind.LOGIT if tail.activation is None else Kind.LOGPROB if tail.logarithm else Kind.PROB
    head = Head(meta[HEAD_KEY])
    x, theirs = in_space_of(meta, images, theirs)

    def program() -> Program[Gradients]:
        answer: Gradients = yield Points(x, Objective(kind, 0, head), classes)
        return answer

    setup = Setup()
    with (
        setup.start(made.logits, folder=made.folder) as forward,
        setup.start(made.gradient, folder=made.folder) as both,
    ):
        ours = run(program(), Model({LOGITS: lambda: forward, GRADIENT: lambda: both}, head=head)).gradient
    differences = np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-30)
    cosine = float(min(cosine_of(mine, their) for mine, their in zip(ours, theirs, strict=True)))
    length = max((length_of(mine, their) for mine, their in zip(ours, theirs, strict=True)), key=lambda n: abs(n - 1))
    if not (cosine >= COSINE_ABOVE and abs(length - 1) <= LENGTH_WITHIN):
        raise ExportError(
            f"{original.name}: the gradient that was made of it is not that of {original.framework}: cosine "
            f"{cosine:.6f}, expected {COSINE_ABOVE} or more, and {length:.4g} times as long; next: look for a "
            "derivative that is not that of its operators (stop_gradient, detach, a rule of its own), which ONNX "
            "cannot hold; if there is none, `onnxplain verify` tells of an export with --no-verify which side is wrong"
        )
    return float(differences), cosine


def in_space_of(meta: Mapping[str, str], images: Array, gradient: Array) -> tuple[Array, Array]:
    """Images and gradients of the classifier's own input as those of its gradient model's, which may be pixels."""
    if PREPROCESS_KEY not in meta:
        return images, gradient
    spec = PreprocessSpec.from_dict(json.loads(meta[PREPROCESS_KEY]))
    axis = -1 if meta.get(LAYOUT_KEY) == "NHWC" else 0
    at_pixels = np.flip(gradient, axis % 3 - 3) if spec.do_flip_channel_order else gradient
    return to_pixels(images, spec, channel_axis=axis), at_pixels / spec.space(channel_axis=axis).scale


def cosine_of(a: Array, b: Array) -> float:
    """Of two arrays; two that vanish are alike."""
    u, v = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    size = float(np.linalg.norm(u) * np.linalg.norm(v))
    return float(u @ v) / size if size else float(not u.any() and not v.any())


def length_of(ours: Array, theirs: Array) -> float:
    """How many times as long as another gradient one is; two that vanish are alike."""
    mine, their = (float(np.linalg.norm(a.astype(np.float64))) for a in (ours, theirs))
    return mine / their if their else 1.0 if not mine else float("inf")
