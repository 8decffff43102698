"""FullGrad: the gradient times the image, and the gradients times the biases of all layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

import numpy as np

from onnxplain.engine.methods.cam import picture_size
from onnxplain.engine.methods.maps import bilinear, stretched
from onnxplain.engine.methods.method import Array, Task, channel_axis, require_one_of, spread
from onnxplain.engine.requests import Attribution, Biases, BiasGradients, Kind, Program

EPSILON = 1e-6  # of the released code


class Rescale(Enum):
    """What is brought to values from 0 to 1 together."""

    CHANNEL = "channel"  # each channel alone (equation 3 as printed)
    LAYER = "layer"  # a layer's channels, by (m - min) / (max - min + 1e-6) (the released code)


@dataclass(frozen=True, kw_only=True)
class FullGrad:
    """S = sum_c psi((u * grad F)_c) + sum over layers l and channels c of psi((dF/dy_l * b_l)_c): one row.

    psi(m) = upsample(rescale(|m|)). F is the logit of the class, u = (x - zero) / scale the image in model space, b_l
    the bias of layer l, of an activation phi its implicit bias phi(y) - phi'(y) y. `rescale` says what is brought to
    [0, 1] together, `align_corners` how maps are enlarged: with their corners on those of the image, or pixel by pixel.

    All terms together sum to F(x): the diagnostic `completeness_gap` is |sum - F| / max(|F|, 1e-6), of all layers, also
    those without a place on the picture, which the map leaves out. Units: none. Source: Srinivas and Fleuret, NeurIPS
    2019, equations 2 and 3.
    """

    id: str = "fullgrad"
    rescale: Rescale = Rescale.CHANNEL
    align_corners: bool = False

    def __post_init__(self) -> None:
        require_one_of("FullGrad: rescale", self.rescale, Rescale)

    @classmethod
    def repo(cls, **changes: Any) -> Self:
        """As the released code computes it."""
        return replace(cls(id="fullgrad-repo", rescale=Rescale.LAYER, align_corners=True), **changes)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return 1

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        size = picture_size(x, task.space, "FullGrad")
        answer: BiasGradients = yield Biases(x[None], task.objective(Kind.LOGIT))
        axis = channel_axis(x, task.space)
        assert axis is not None
        of_image = np.moveaxis((x - task.space.zero.astype(x.dtype)) * answer.gradient[0], axis, 0)

        map = np.zeros(size, x.dtype)
        for layer in (of_image, *(m[0] for m in answer.maps)):
            # upsampling is linear, so that the sum over channels may come first
            map += bilinear(self.rescaled(np.abs(layer)).sum(axis=0), size, align_corners=self.align_corners)

        total = float(of_image.sum(dtype=np.float64)) + float(answer.sum[0])
        value = float(answer.value[0])
        gap = abs(total - value) / max(abs(value), 1e-6)
        diagnostics = {"value": value, "sum": total, "completeness_gap": gap, "layers": len(answer.maps)}
        return Attribution(spread(map, x, task.space), diagnostics)

    def rescaled(self, m: Array) -> Array:
        """Maps (C, h, w) brought to [0, 1]."""
        if self.rescale is Rescale.LAYER:
            m = m - m.min()
            return np.asarray(m / (m.max() + m.dtype.type(EPSILON)))
        return stretched(m, (1, 2))
