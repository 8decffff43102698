"""From an entry of the zoo to a case: NAME.onnx and, in NAME.npz, images, a target and what float64 autograd says."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bench.coverage.check import cosines
from bench.coverage.table import RIGHT
from bench.coverage.zoo import Entry

Function = Callable[[Tensor], Tensor]

IMAGES = (4, 32)  # from which the statistics of BatchNormalization are taken; more where the first do not do
ALIVE = 1e-3  # logits of two images differ by at least this much, relatively


def export(entry: Entry, folder: Path) -> None:
    """Write the files of one entry. The .npz comes last: a case that has it is whole."""
    if entry.source == "light":
        from bench.coverage.light import light

        model, function = light(entry.architecture)
        case = reference(function, function, entry.size)
    else:
        net, case = well_posed(entry)
        model = to_onnx(net, entry)
    onnx.save(model, folder / f"{entry.name}.onnx")
    part = folder / f"{entry.name}.part.npz"
    np.savez(part, **case)
    part.replace(folder / f"{entry.name}.npz")


def well_posed(entry: Entry) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A net, and a case that float32 can tell: PyTorch's own float32 gradient is right.

    Four images are enough for the statistics of most nets. With those of so few, all alike to a deep layer, some nets
    make so much of any difference between images that another image explodes.
    """
    from bench.coverage.nets import build

    for images in IMAGES:
        net = build(entry.source, entry.architecture, entry.size, images)
        case = reference(net, copy.deepcopy(net).double(), entry.size)
        lost = 1 - min(cosines(case["gradient32"], case["gradient"]))
        if lost <= 1 - RIGHT:
            return net, case
    raise ValueError(f"with random weights this net tells nothing: PyTorch's own float32 gradient loses {lost:.0e}")


def reference(single: Function, double: Function, size: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Two random images, random weights of their classes, and what PyTorch says in float64 and in float32.

    `gradient` is that of the weighted sum of the logits.
    """
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((2, 3, size, size), np.float32)
    with torch.no_grad():
        target = rng.standard_normal(tuple(single(torch.from_numpy(images)).shape), np.float32)
    found = {"x": images, "target": target}
    for function, dtype, mark in ((double, np.float64, ""), (single, np.float32, "32")):
        leaf = torch.from_numpy(images.astype(dtype)).requires_grad_()
        logits = function(leaf)
        (gradient,) = torch.autograd.grad((logits * torch.from_numpy(target.astype(dtype))).sum(), leaf)
        found |= {f"logits{mark}": logits.detach().numpy(), f"gradient{mark}": gradient.numpy()}
    first, second = found["logits"]
    if not np.isfinite(found["gradient"]).all() or np.abs(first - second).max() < ALIVE * np.abs(first).max():
        raise ValueError("the random weights do not keep this net alive: its logits hardly depend on the image")
    return found


def to_onnx(net: nn.Module, entry: Entry) -> onnx.ModelProto:
    """Export with a symbolic batch: by tracing at opset 17, or by torch.export at opset 18."""
    torch.backends.mha.set_fastpath_enabled(False)  # an operator that no exporter knows
    x = torch.randn(2, 3, entry.size, entry.size)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters' own code
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        if entry.exporter == "dynamo":
            free = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.onnx.export(
                net, (x,), dynamo=True, dynamic_shapes=free, opset_version=18, verbose=False, **names
            )
            assert program is not None
            return program.model_proto
        file = io.BytesIO()
        axes = {"input": {0: "N"}, "logits": {0: "N"}}
        torch.onnx.export(net, (x,), file, dynamo=False, dynamic_axes=axes, opset_version=17, **names)
    return onnx.load_from_string(file.getvalue())
