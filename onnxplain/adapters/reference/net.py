"""A PyTorch classifier as the loops take it: images in [0,1], whatever the classifier itself was trained on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxplain.adapters.reference import loop
from onnxplain.adapters.reference.gradients import cross_entropy, gradients, logit, logits, probability

SCORES = {"logit": logit, "prob": probability, "ce": cross_entropy}
Array = NDArray[Any]


class ReferenceNet:
    """`module` takes (x - zero) / scale, with its channels in reverse if `flip`; arrays in and out are NumPy's.

    `zero` and `scale` broadcast against images (n, C, H, W). `dtype` is "float32", or "float64", for which the
    module is copied.
    """

    def __init__(
        self, module: nn.Module, *, zero: Array, scale: Array, flip: bool, batch: int, dtype: str = "float32"
    ) -> None:
        self.dtype = getattr(torch, dtype)
        self.module = module if dtype == "float32" else copy.deepcopy(module).to(self.dtype)
        self.zero, self.scale = (torch.as_tensor(np.asarray(part), dtype=self.dtype) for part in (zero, scale))
        self.flip, self.batch = flip, batch

    def __call__(self, x: Tensor) -> Tensor:
        normal = (x - self.zero) / self.scale
        answer: Tensor = self.module(normal.flip(1) if self.flip else normal)
        return answer

    def tensor(self, x: Array) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x), dtype=self.dtype)

    def logits(self, x: Array) -> Array:
        """Logits (n, K) of images."""
        return np.asarray(logits(self, self.tensor(x), self.batch).numpy())

    def gradients(self, x: Array, classes: Array, objective: str) -> Array:
        """The gradient of the objective of each image's class: "logit", "prob" or "ce"."""
        _, found = gradients(self, self.tensor(x), torch.as_tensor(classes), SCORES[objective], self.batch)
        return np.asarray(found.numpy())

    def explain(self, id: str, x: Array, classes: Array, parameters: Mapping[str, Any]) -> Array:
        """The attributions of a method, by its loop; `parameters` as the loop names them."""
        given = {name: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for name, v in parameters.items()}
        if "zero" in parameters:
            given["zero"] = self.zero if parameters["zero"] == "model" else torch.zeros_like(self.zero)
        found = loop(id)(self, self.tensor(x), classes=torch.as_tensor(classes), batch=self.batch, **given)
        return np.asarray(found.detach().numpy())


def parameters_of(id: str) -> set[str]:
    """The parameters that the loop of a method has, besides the net, the images and their classes."""
    return set(inspect.signature(loop(id)).parameters) - {"net", "x", "classes", "batch"}
