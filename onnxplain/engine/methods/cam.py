"""Class activation maps from the gradient of a layer: Grad-CAM, LayerCAM, HiResCAM.

All three weigh the activations A (C, h, w) of a layer by g = dF/dA, and enlarge the result to the size of the image:

    Grad-CAM   relu(sum_c mean_ij(g_c) A_c)
    LayerCAM   relu(sum_c relu(g_c) * A_c)
    HiResCAM   sum_c g_c * A_c
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxplain.engine.methods.maps import bilinear
from onnxplain.engine.methods.method import (
    CLASS_KINDS,
    Array,
    Task,
    channel_axis,
    require_one_of,
    require_whole,
    spread,
)
from onnxplain.engine.requests import Activations, Attribution, Kind, LayerGradients, Program
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

MOST_LAYERS = 1000


@dataclass(frozen=True, kw_only=True)
class GradCAM:
    """A = relu(sum_c w_c A_c) with w_c the mean of dF/dA_c over places: one row.

    F is `objective` of the class, by default its logit. `layer` is the place of the layer among those that the model
    was opened with. The map (h, w) is enlarged bilinearly. Units: F. Source: Selvaraju et al., ICCV 2017, equations 1
    and 2.
    """

    id: str = "grad-cam"
    layer: int = 0
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        require_whole(f"{self.id}: layer", self.layer, 0, MOST_LAYERS)
        require_one_of(f"{self.id}: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 1

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        size = picture_size(x, task.space, self.id)
        answer: LayerGradients = yield Activations(x[None], task.objective(self.objective))
        activation, gradient = layer_of(answer, self.layer, self.id)
        map = self.map(activation, gradient)
        diagnostics = {
            "value": float(answer.value[0]),
            "sum": float(map.sum(dtype=np.float64)),
            "grid": list(map.shape),
        }
        return Attribution(spread(bilinear(map, size), x, task.space), diagnostics)

    def map(self, a: Array, g: Array) -> Array:
        """The map (h, w) of activations and their gradients (C, h, w)."""
        weights = g.mean(axis=(1, 2), keepdims=True)
        return relu((weights * a).sum(axis=0))


@dataclass(frozen=True, kw_only=True)
class LayerCAM(GradCAM):
    """A = relu(sum_c relu(dF/dA_c) * A_c), place by place: one row.

    Parameters as for Grad-CAM. Works in early layers too, whose maps are fine. Source: Jiang et al., IEEE TIP 2021,
    equations 5 to 7.
    """

    id: str = "layer-cam"

    def map(self, a: Array, g: Array) -> Array:
        return relu((relu(g) * a).sum(axis=0))


@dataclass(frozen=True, kw_only=True)
class HiResCAM(GradCAM):
    """A = sum_c dF/dA_c * A_c, place by place, with its sign: one row.

    Parameters as for Grad-CAM. Before it is enlarged, the map sums to F(x) minus the bias where what follows the layer
    is linear: the diagnostic `sum`. Source: Draelos and Carin, 2020, section 4.
    """

    id: str = "hires-cam"

    def map(self, a: Array, g: Array) -> Array:
        return np.asarray((g * a).sum(axis=0))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def layer_of(answer: LayerGradients, layer: int, who: str) -> tuple[Array, Array]:
    """Activation and gradient (C, h, w) of one layer of the one image that was asked about."""
    if layer >= len(answer.activations):
        raise UsageError(
            f"{who}: layer {layer} was asked for, but the model was opened with {len(answer.activations)}, counted "
            "from 0; next: give layer=, or open the model with more layers"
        )
    return answer.activations[layer][0], answer.gradients[layer][0]


def picture_size(x: Array, space: Space, who: str) -> tuple[int, int]:
    """Height and width of an image (C,H,W) or (H,W,C). `who` names the method in errors."""
    axis = channel_axis(x, space)
    if x.ndim != 3 or axis is None:
        raise UsageError(f"{who} needs an image of shape (C,H,W) or (H,W,C), got {list(x.shape)}")
    height, width = (size for at, size in enumerate(x.shape) if at != axis)
    return height, width
