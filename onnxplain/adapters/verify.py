"""Whether a gradient model is right on this machine, on the runtime that it is to run on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxplain.adapters.gradient.classifier import HEAD_KEY, LAYOUT_KEY
from onnxplain.adapters.gradient.differentiate import stopped_at
from onnxplain.engine.drive import Model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.requests import Head
from onnxplain.engine.space import Space
from onnxplain.engine.verify import Verification, random_images, verify
from onnxplain.errors import UsageError
from onnxplain.models.preprocess import PREPROCESS_KEY, PreprocessSpec, load_image, to_input

UNKNOWN = (-2.0, 2.0)  # the range of an input without preprocessing, unless it is given: that of normalised pixels


def verify_gradient(
    gradient: onnx.ModelProto,
    forward: onnx.ModelProto,
    *,
    folder: Path | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    range: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    threads: int = 0,
) -> Verification:
    """The verification of a gradient model against its forward half, at photos or else at random images.

    `folder` is where weights lie that are not in the graphs themselves.

    Raises:
        UsageError: photos for a model without preprocessing.
        InputError: a photo cannot be read.
        BackendMissing, BackendFailed: the runtime is not installed, or failed.
        NonFinite: NaN or Inf came out of the model.
    """
    meta = {entry.key: entry.value for entry in gradient.metadata_props}
    with (
        OnnxRuntimeExecutor(forward, threads=threads, folder=folder) as logits,
        OnnxRuntimeExecutor(gradient, threads=threads, folder=folder) as both,
    ):
        model = Model(logits, both, batch_size=batch_size, head=Head(meta[HEAD_KEY]))
        low, high = (0.0, 1.0) if PREPROCESS_KEY in meta else range or UNKNOWN
        Space.model((low, high))  # which complains if they are in the wrong order
        points = photos(meta, model, images) if images else random_images(model.image_shape, low, high, seed)
        return verify(model, points, span=high - low, seed=seed, stopped=stopped_at(meta))


def photos(
    meta: Mapping[str, str], model: Model, paths: Sequence[str | os.PathLike[str]]
) -> dict[str, NDArray[np.float32]]:
    """Photos as the model takes them, by their paths."""
    if PREPROCESS_KEY not in meta:
        raise UsageError("photos: the model has no preprocessing; next: export it with one, or verify at random images")
    spec = PreprocessSpec.from_dict(json.loads(meta[PREPROCESS_KEY]))
    axis = -1 if meta.get(LAYOUT_KEY) == "NHWC" else 0
    channels = model.image_shape[axis]
    loaded = {os.fspath(path): load_image(Path(path), spec) for path in paths}
    return {name: to_input(image, channels=channels, channel_axis=axis) for name, image in loaded.items()}
