"""A classifier in its own framework: what an adapter knows of it, and what its export is checked against."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from onnxplain.engine.requests import Array
from onnxplain.errors import BackendMissing
from onnxplain.models.preprocess import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class Original:
    """A classifier in its own framework, in evaluation mode.

    Images are (N, *image_shape), in the layout, range and dtype that the classifier itself takes; its outputs (N, K)
    are logits or probabilities, as it ends.
    """

    name: str  # what the user calls it: "torchvision:resnet50", or the name of its class
    framework: str  # with its version: "PyTorch 2.13.0"
    image_shape: tuple[int, ...]  # (C, H, W), (H, W, C), or (F,) for features that are no image
    write: Callable[[Path], Sequence[str]]
    """Write it as an ONNX file with a free batch, at opset 18 or what the exporter has above; returns what there is to
    say of it, such as why another exporter was taken. Raises `ExportError`."""
    outputs: Callable[[Array], Array]
    """What the framework itself makes of images."""
    gradients: Callable[[Array, Array], Array] | None = None
    """Images and weights (N, K) -> the gradient of sum(weights * outputs) for the images, by the framework's
    own differentiation; None if it has none."""
    layers: Callable[[Array], Iterator[tuple[str, Array]]] | None = None
    """The outputs of its layers at images, by their names, in the order in which they run."""
    images: Array | None = None  # real ones, at which the export is checked; None: random ones
    preprocess: PreprocessSpec | None = None  # how a photo becomes an image; None: nobody said
    labels: Sequence[str] | None = None  # the names of the K classes
    head: str | None = None  # "softmax" or "sigmoid", where the framework knows; None: as the model ends
    provenance: Mapping[str, str] = field(default_factory=dict)  # weights, licence, address, versions of exporters, ...

    @property
    def channel_axis(self) -> int:
        """Of an image: 0, or -1 for channels last."""
        first, last = self.image_shape[0], self.image_shape[-1]
        return -1 if len(self.image_shape) == 3 and last in (1, 3) and first not in (1, 3) else 0


def require(module: str, extra: str) -> ModuleType:
    """Import a framework where it is needed. Raises `BackendMissing`, which names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the framework is there, and lacks something itself
        raise BackendMissing(module, extra) from error
