"""Real classifiers and photos, where they are at hand: `../shared/data` beside the repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import onnxplain as ox
from onnxplain.explainer import Explainer
from onnxplain.files import find_photos
from onnxplain.models.preprocess import load_image

DATA = Path(__file__).parents[2] / "shared" / "data"


@contextmanager
def classifier(name: str, count: int) -> Iterator[tuple[Explainer, NDArray[np.float32], NDArray[np.int64]]]:
    """A classifier of `../shared/data`, such as "cifar10/models/resnet20_cifar10", photos for it, and their classes.

    Skips where it is not at hand. The photos (count, C, H, W) are as its input wants them, RGB in [0, 1].
    """
    path = DATA / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand (../shared/data)")
    folder = DATA / ("imagenet/images/nips17_100" if name.startswith("imagenet") else "cifar10/images/test100")
    photos = find_photos([folder])[0][:count]
    with ox.open(path) as explainer:
        assert explainer.preprocess is not None
        x = np.stack([explainer.to_input(load_image(photo, explainer.preprocess)) for photo in photos])
        yield explainer, x, explainer.logits(x).argmax(axis=1)
