"""An ONNX classifier as a PyTorch module, so that libraries for PyTorch can explain it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnxplain.explainer import Explainer


class OnnxInTorch(nn.Module):
    """Images (N, ...) -> logits (N, K), run by an explainer; its derivative is that of the gradient model.

    With v the cotangent that PyTorch gives to the logits, the gradient of <v, z> comes back: one backward pass is one
    `Explainer.gradients` with v as weights. So whatever PyTorch puts behind the logits (a softmax, a choice of the
    class) is differentiated by PyTorch.
    """

    def __init__(self, explainer: Explainer) -> None:
        super().__init__()
        self.explainer = explainer

    def forward(self, x: Tensor) -> Tensor:
        return Classify.apply(x, self.explainer)


class Classify(torch.autograd.Function):
    """z = f(x);  x̄ = J(x)ᵀ z̄."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, explainer: Explainer) -> Tensor:
        ctx.save_for_backward(x)
        ctx.explainer = explainer
        return torch.from_numpy(explainer.logits(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        answer = ctx.explainer.gradients(x.detach().numpy(), cotangent.numpy())
        return torch.from_numpy(answer.gradient), None
