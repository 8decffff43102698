"""Score-CAM: each channel of a layer is weighed by what the model says of the image seen through it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

import numpy as np

from onnxplain.engine.methods.cam import MOST_LAYERS, layer_of, picture_size, relu
from onnxplain.engine.methods.maps import bilinear, stretched
from onnxplain.engine.methods.method import (
    CLASS_KINDS,
    Array,
    Task,
    channel_axis,
    require_one_of,
    require_whole,
    spread,
)
from onnxplain.engine.requests import Activations, Attribution, Kind, LayerGradients, Logits, Program, softmax

CHUNK = 16  # masked images that exist at once
MANY = 4096  # channels, more than the layers of any classifier have that is known to us


class Weights(Enum):
    """How scores S_c = F of the image seen through channel c become weights."""

    INCREASE = "increase"  # S_c - F(x')         (equations 5 and 7)
    SOFTMAX = "softmax"  # softmax over c of S_c - F(x')      (Algorithm 1, which lets the weights sum to 1)
    SCORE = "score"  # S_c                 (the released code)


@dataclass(frozen=True, kw_only=True)
class ScoreCAM:
    """A = relu(sum_c w_c A_c): one row with inner layers, then a forward row a channel, and one for x'.

    Channel c of the layer is enlarged to the size of the image and stretched to [0, 1], which gives the mask H_c; a
    constant channel has none and weighs nothing. The image seen through it is x' + H_c * (x - x'), with x' the zero of
    model space, the mean colour. F is `objective` of the class, by default its probability, as the paper says of
    scores; `weights` says how scores become weights, see `Weights`. `upsample_first` enlarges the sum of channels
    before relu and not after. `layer` as for Grad-CAM. Units: F times those of the activations. Source: Wang et al.,
    CVPR Workshops 2020, equations 5 to 8 and Algorithm 1.
    """

    id: str = "score-cam"
    layer: int = 0
    objective: Kind = Kind.PROB
    weights: Weights = Weights.INCREASE
    upsample_first: bool = False

    def __post_init__(self) -> None:
        require_whole("Score-CAM: layer", self.layer, 0, MOST_LAYERS)
        require_one_of("Score-CAM: objective", self.objective, CLASS_KINDS)
        require_one_of("Score-CAM: weights", self.weights, Weights)

    @classmethod
    def repo(cls, **changes: Any) -> Self:
        """As the released code computes it: no baseline, and relu at the size of the image."""
        return replace(cls(id="score-cam-repo", weights=Weights.SCORE, upsample_first=True), **changes)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return MANY + 2

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        size = picture_size(x, task.space, "Score-CAM")
        objective = task.objective(self.objective)
        answer: LayerGradients = yield Activations(x[None], objective)
        activation, _ = layer_of(answer, self.layer, "Score-CAM")
        varied = [c for c, channel in enumerate(activation) if stretched(channel).any()]
        nothing = np.broadcast_to(task.space.zero, x.shape).astype(x.dtype)
        at_nothing = float(objective.value((yield Logits(nothing[None])))[0])

        scores = np.zeros(len(varied))
        for start in range(0, len(varied), CHUNK):
            masks = [stretched(bilinear(activation[c], size)) for c in varied[start : start + CHUNK]]
            seen = np.stack([nothing + across(mask, x, task) * (x - nothing) for mask in masks])
            scores[start : start + CHUNK] = objective.value((yield Logits(seen)))

        weights = self.weigh(scores, at_nothing).astype(x.dtype)
        map = np.tensordot(weights, activation[varied], axes=1)
        map = relu(bilinear(map, size)) if self.upsample_first else bilinear(relu(map), size)
        diagnostics = {
            "value": float(answer.value[0]),
            "value_at_zero": at_nothing,
            "channels": len(activation),
            "constant_channels": len(activation) - len(varied),
            "grid": list(activation.shape[1:]),
        }
        return Attribution(spread(map, x, task.space), diagnostics)

    def weigh(self, scores: Array, at_nothing: float) -> Array:
        """The weights of channels by their scores."""
        match self.weights:
            case Weights.INCREASE:
                return scores - at_nothing
            case Weights.SOFTMAX:
                return softmax(scores - at_nothing) if scores.size else scores
            case Weights.SCORE:
                return scores


def across(mask: Array, x: Array, task: Task) -> Array:
    """A mask (H, W) with an axis for the channels of the image."""
    axis = channel_axis(x, task.space)
    assert axis is not None
    return np.expand_dims(mask, axis)
