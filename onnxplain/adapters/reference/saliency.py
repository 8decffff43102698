"""Single gradients: Simonyan, Vedaldi and Zisserman, Deep Inside Convolutional Networks, 2014; and times the input."""

from __future__ import annotations

from torch import Tensor

from onnxplain.adapters.reference.gradients import Net, gradients, logit


def saliency(net: Net, x: Tensor, *, classes: Tensor, batch: int) -> Tensor:
    """The magnitude of the gradient of the logit (section 3)."""
    return gradients(net, x, classes, logit, batch)[1].abs()


def gradient_x_input(net: Net, x: Tensor, *, classes: Tensor, batch: int) -> Tensor:
    """Shrikumar et al., Not Just a Black Box, 2016."""
    return x * gradients(net, x, classes, logit, batch)[1]
