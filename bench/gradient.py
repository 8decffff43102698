"""What a gradient costs: our gradient model against a plain forward call on ONNX Runtime, and against PyTorch eager.

    python bench/gradient.py                        # ResNet-50 (needs torch), batch 8
    python bench/gradient.py MODEL.onnx             # your own classifier, without PyTorch

All three run in one process, in turn, so that a noisy machine hurts them alike; ratios are medians of the ratios of
each round. PyTorch gets its best case: parameters frozen, only the input's gradient, the faster of its two memory
layouts. Peak memory comes from processes of their own, which run nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np
import onnx

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor

Call = Callable[[], object]


def onnx_call(path: Path, batch: int, threads: int) -> Call:
    """One call of a model file, forward or gradient, on random images."""
    executor = OnnxRuntimeExecutor(path.read_bytes(), threads=threads)
    rng = np.random.default_rng(0)
    shapes = {name: (batch, *spec.shape[1:]) for name, spec in executor.inputs.items()}
    feeds = {
        name: rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 4
        else np.zeros(shape, executor.inputs[name].dtype)
        for name, shape in shapes.items()
    }
    if "onnxplain_target" in feeds:
        feeds["onnxplain_target"][:, 0] = 1
    return lambda: executor(feeds)


def torch_calls(net_name: str, batch: int, threads: int) -> dict[str, Call]:
    """The same gradient in PyTorch eager, in both memory layouts."""
    import torch
    from nets import NETS

    torch.set_num_threads(threads)

    def call(layout: torch.memory_format) -> Call:
        net = NETS[net_name]().to(memory_format=layout)
        x = torch.randn(batch, 3, 224, 224).to(memory_format=layout)

        def gradient() -> object:
            leaf = x.detach().requires_grad_()
            score = net(leaf)[:, 0].sum()
            return torch.autograd.grad(score, leaf)

        return gradient

    return {
        "torch contiguous": call(torch.contiguous_format),
        "torch channels_last": call(torch.channels_last),
    }


def rounds(calls: dict[str, Call], repeat: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeat` rounds in turn, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeat + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_mib(argument: list[str]) -> float:
    """Peak resident memory of a process that makes three calls of one kind, beyond what it had before."""
    out = subprocess.run([sys.executable, __file__, *argument], check=True, capture_output=True, text=True).stdout
    return float(out.splitlines()[-1])


def resident(peak: bool) -> float:
    """Resident memory of this process in MiB, now or at its highest. (getrusage would count the parent's too.)"""
    field = "VmHWM" if peak else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def write(model: Path | None, net: str, halves: dict[str, Path]) -> None:
    """Write both halves of the classifier: that of the given file, or of a network of ours."""
    if model is None:
        from nets import NETS, export

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter announces its successor
            gradient = gradient_model(export(NETS[net]()))
    else:
        gradient = gradient_model(model)
    onnx.save(gradient, halves["gradient"])
    onnx.save(forward_model(gradient), halves["forward"])


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--net", default="resnet50", show_default=True, help="Network to compare with PyTorch, without MODEL.")
@click.option("-b", "--batch", default=8, show_default=True)
@click.option("--repeat", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", hidden=True, help="Make three calls of this kind and print the peak memory in MiB.")
def main(model: Path | None, net: str, batch: int, repeat: int, threads: int, only: str | None) -> None:
    if only:
        before = resident(peak=False)
        call = torch_calls(net, batch, threads)[only] if model is None else onnx_call(model, batch, threads)
        for _ in range(3):
            call()
        click.echo(resident(peak=True) - before)
        return
    with tempfile.TemporaryDirectory() as folder:
        halves = {role: Path(folder, f"{role}.onnx") for role in ("forward", "gradient")}
        write(model, net, halves)
        calls = {role: onnx_call(path, batch, threads) for role, path in halves.items()}
        if model is None:
            calls |= torch_calls(net, batch, threads)
        seconds = rounds(calls, repeat)
        common = [f"--net={net}", f"--batch={batch}", f"--threads={threads}"]
        peak = {
            name: peak_mib([*([str(halves[name])] if name in halves else []), *common, f"--only={name}"])
            for name in calls
        }
    result = {
        "model": str(model or net), "batch": batch, "threads": threads, "repeat": repeat,
        "median_seconds": {name: median(s) for name, s in seconds.items()},
        "ratio_to_gradient": {
            name: median(a / b for a, b in zip(s, seconds["gradient"], strict=True)) for name, s in seconds.items()
        },
        "gradient_to_forward": median(
            g / f for g, f in zip(seconds["gradient"], seconds["forward"], strict=True)
        ),
        "peak_mib": peak,
    }  # fmt: skip
    click.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
