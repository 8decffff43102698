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
from onnxplain.engine.executors.reference import specs

Call = Callable[[], object]


def onnx_calls(path: Path, batch: int, threads: int, only: str | None = None) -> dict[str, Call]:
    """One forward call and one gradient call of the classifier at `path`, or one of them."""
    model = gradient_model(path)
    models = {"forward": forward_model(model), "gradient": model}
    ((name, spec),) = specs(v for v in models["forward"].graph.input).items()
    x = np.random.default_rng(0).standard_normal((batch, *spec.shape[1:])).astype(np.float32)
    classes = specs(model.graph.output)["logits"].shape[1]
    target = np.eye(classes, dtype=np.float32)[np.arange(batch)]
    feeds = {name: x, "onnxplain_target": target, "onnxplain_objective": np.zeros(batch, np.int64)}

    def call(role: str) -> Call:
        executor = OnnxRuntimeExecutor(models[role], threads=threads)
        return lambda: executor({key: feeds[key] for key in executor.inputs})

    return {role: call(role) for role in models if only in (None, role)}


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


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--net", default="resnet50", show_default=True, help="Network to compare with PyTorch, without MODEL.")
@click.option("-b", "--batch", default=8, show_default=True)
@click.option("--repeat", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", hidden=True, help="Make three calls of this kind and print the peak memory in MiB.")
def main(model: Path | None, net: str, batch: int, repeat: int, threads: int, only: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = model or Path(folder, f"{net}.onnx")
        if model is None:
            from nets import NETS, export

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter announces its successor
                onnx.save(export(NETS[net]()), path)
        if only:
            before = resident(peak=False)
            of_torch = only.startswith("torch")
            call = (torch_calls(net, batch, threads) if of_torch else onnx_calls(path, batch, threads, only))[only]
            for _ in range(3):
                call()
            click.echo(resident(peak=True) - before)
            return
        calls = onnx_calls(path, batch, threads) | (torch_calls(net, batch, threads) if model is None else {})
        seconds = rounds(calls, repeat)
        common = [str(path), f"--net={net}", f"--batch={batch}", f"--threads={threads}"]
        peak = {name: peak_mib([*common, f"--only={name}"]) for name in calls}
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
