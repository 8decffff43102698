"""Whether a gradient that is not quite that of float64 autograd is so only where ReLU meets its kink.

Float32 rounds some activations to the other side of the kink, and there either slope is right for what was rounded. So
float64 autograd is asked again, with each ReLU and ReLU6 on the side that the runtime took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bench.coverage.check import Call, Files, Found, batched, cosines, feeds_of, fixed_batch
from bench.coverage.export import well_posed
from bench.coverage.light import light
from bench.coverage.zoo import ZOO

BOUNDS: dict[Any, float] = {
    functional.relu: np.inf,
    functional.relu6: 6.0,
    functional.hardtanh: 6.0,
    torch.relu: np.inf,
    torch.relu_: np.inf,
}


def kinks(files: Files, load: Callable[[onnx.ModelProto], Call]) -> Found:
    """How many activations are on the other side, and the cosine with float64 autograd that has them there too."""
    nodes = [n for n in onnx.load(files.classifier).graph.node if n.op_type in ("Relu", "Clip")]
    inside = [node.input[0] for node in nodes]
    model, case = onnx.load(files.gradient), np.load(files.case)
    feeds = feeds_of(model, case)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inside)
    answer = batched(load(model), feeds, fixed_batch(model))
    entry = ZOO[files.case.stem]
    net = light(entry.architecture)[1] if entry.source == "light" else well_posed(entry)[0].double()
    crossed, gradients = 0, []
    every = len(case["x"])
    for part in [slice(i, i + 1) for i in range(every)] if entry.source == "light" else [slice(every)]:
        sides = Sides([answer[name][part] for name in inside])
        leaf = torch.from_numpy(case["x"][part]).double().requires_grad_()
        with sides:
            logits = net(leaf)
        if sides.left:
            raise ValueError("the graph has more activations than the net")
        gradients += torch.autograd.grad((logits * torch.from_numpy(case["target"][part]).double()).sum(), leaf)
        crossed += sides.crossed
    return {"crossed": crossed, "cosine": cosines(answer["gradient"], np.concatenate(gradients))}


class Sides(TorchFunctionMode):
    """Gives each ReLU, in turn, the slope that it has at a given input instead of its own."""

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.left = list(inputs)
        self.crossed = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function not in BOUNDS:
            return function(*args, **(kwargs or {}))
        x, bound = args[0], BOUNDS[function]
        given = torch.from_numpy(self.left.pop(0))
        slope, own = ((of > 0) & (of < bound) for of in (given, x))
        self.crossed += int((slope != own).sum())
        return Slope.apply(x, bound, slope)


class Slope(torch.autograd.Function):
    """x between 0 and a bound, with a derivative that is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return x.clamp(0, bound)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return cotangents[0] * ctx.saved_tensors[0], None, None
