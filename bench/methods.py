"""What whole methods cost: the engine against a plain PyTorch loop of the same (onnxplain/adapters/reference).

    python -m bench.methods                                 # ResNet-50, 8 images, batch 8: an hour and more
    python -m bench.methods mobilenet_v2 --quick            # fewer rounds of the same shape: minutes

Both run in one process, in turn; ratios are medians of the ratios of each round. The loop has the memory layout in
which PyTorch's gradient is the faster one. Peak memory comes from processes of their own, with `--quick` parameters; it
is what they have beyond their imports, the engine from its gradient model in a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import click
import numpy as np
import onnx
import torch

import onnxplain as ox
from bench.measure import forget_peak, images, in_own_process, note, ratio, report, resident, rounds, table
from bench.nets import net_of, onnx_of, size_of
from onnxplain.adapters.reference import loop
from onnxplain.adapters.reference.gradients import gradients, logit, logits
from onnxplain.engine.methods import ISA, CrediblePath, IntegratedGradients, Method
from onnxplain.engine.methods.quadrature import Alphas
from onnxplain.engine.requests import Array

METHODS = ("isa", "credible", "ig")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Pair:
    """One method, in the engine and in PyTorch."""

    engine: Method
    options: Mapping[str, Any]


def pairs(size: int, *, quick: bool) -> dict[str, Pair]:
    """The methods with the parameters that they have by default, or with fewer rounds, iterations and points.

    Where credible path looks is not drawn, so that both look at the same points.
    """
    features = 3 * size * size
    k = -(-features // 3) if quick else 5000
    credible = {"steps": 24, "max_iter": 8} if quick else {"steps": 150, "max_iter": 50}
    steps = 16 if quick else 50
    return {
        "isa": Pair(ISA(k=k), {"k": k}),
        "credible": Pair(CrediblePath(**credible, alphas=Alphas.MIDPOINT), credible),
        "ig": Pair(IntegratedGradients(steps=steps), {"steps": steps}),
    }


def in_torch(net: torch.nn.Module, pair: Pair, x: Array, batch: int, layout: str, device: str) -> Callable[[], Array]:
    """The loop from arrays to arrays: what is on a device has been brought there and back."""
    where = torch.device(device)

    def call() -> Array:
        on_device = torch.from_numpy(x).to(where).contiguous(memory_format=FORMATS[layout])
        classes = logits(net, on_device, batch).argmax(1)
        found = loop(pair.engine.id)(net, on_device, classes=classes, batch=batch, **pair.options)
        return np.asarray(found.cpu().numpy())

    return call


def faster_layout(name: str, batch: int, device: str) -> str:
    """The memory layout in which PyTorch gives the gradient of this net sooner."""
    x = torch.from_numpy(images(batch, size_of(name))).to(device)
    classes = torch.zeros(batch, dtype=torch.long, device=device)

    def call(layout: str) -> Callable[[], object]:
        format = FORMATS[layout]

        def gradient() -> object:
            net = net_of(name).to(device, memory_format=format)
            rows = x.contiguous(memory_format=format)
            return gradients(net, rows, classes, logit, batch)[1].cpu()

        return gradient

    # each layout by itself: the net is one, and turning its weights round takes time
    seconds = {layout: median(rounds({layout: call(layout)}, 3)[layout]) for layout in FORMATS}
    return min(seconds, key=lambda layout: seconds[layout])


def measure(name: str, explainer: ox.Explainer, pair: Pair, *, count: int, batch: int, repeat: int) -> dict[str, Any]:
    """Both, in turn, on the CPU; how much of the engine's time was its own; and how far the answers agree."""
    x = images(count, size_of(name), seed=1)
    layout = faster_layout(name, batch, "cpu")
    loop = in_torch(net_of(name).to(memory_format=FORMATS[layout]), pair, x, batch, layout, "cpu")
    answers: dict[str, Array] = {}
    usage = explainer.usage

    def engine() -> None:
        answers["engine"] = np.stack([one.attribution for one in explainer.explain(x, pair.engine)])

    def theirs() -> None:
        answers["torch"] = loop()

    before = usage.seconds, usage.runtime_seconds, sum(usage.rows.values())
    # not warmed up by a whole run, which may take minutes: one row of each has been asked before
    seconds = rounds({"engine": engine, "torch": theirs}, repeat, warm=0)
    spent = usage.seconds - before[0], usage.runtime_seconds - before[1], sum(usage.rows.values()) - before[2]
    return {
        "engine_seconds": median(seconds["engine"]),
        "torch_seconds": median(seconds["torch"]),
        "torch_layout": layout,
        "torch_to_engine": ratio(seconds["torch"], seconds["engine"]),
        "host_share": (spent[0] - spent[1]) / spent[0],
        "rows": spent[2] // repeat,
        "agreement": agreement(answers["engine"], answers["torch"]),
    }


def agreement(ours: Array, theirs: Array) -> dict[str, float]:
    """The least Pearson correlation of an image's two attributions, and the largest difference over the largest value.

    They tell a loop that does something else, no more: signs of small gradients fall as float32 rounds. ISA by PyTorch
    in float32 correlates at 0.88 with the same in float64 (EfficientNet-Lite0, three rounds).
    """
    ours, theirs = (a.reshape(len(a), -1).astype(np.float64) for a in (ours, theirs))
    return {
        "least_correlation": float(min(np.corrcoef(u, v)[0, 1] for u, v in zip(ours, theirs, strict=True))),
        "largest_difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    }


def peak(what: str, side: str, method: str, count: int, batch: int, threads: int) -> float:
    """Peak resident memory, MiB beyond the imports, of one side alone.

    `side` is "engine", and `what` a gradient model; or a memory layout of PyTorch, and `what` the name of a net.
    """
    torch.set_num_threads(threads)
    if side == "engine":
        import onnxruntime  # noqa: F401

        before = resident(peak=False)
        with ox.open(what, range=(0, 1), batch_size=batch, threads=threads) as explainer:
            size = explainer.image_size[0]
            explainer.explain(images(count, size, seed=1), pairs(size, quick=True)[method].engine)
    else:
        before = resident(peak=False)
        net, size = net_of(what).to(memory_format=FORMATS[side]), size_of(what)
        forget_peak()  # drawing the weights is no part of it
        in_torch(net, pairs(size, quick=True)[method], images(count, size, seed=1), batch, side, "cpu")()
    return resident(peak=True) - before


def peaks(gradient: Path, net: str, method: str, layout: str, *common: object) -> dict[str, float]:
    """Of both sides."""
    sides = {"engine": (gradient, "engine"), "torch": (net, layout)}
    return {
        side: in_own_process("bench.methods", what, *common, "--only", kind, method)["peak_mib"]
        for side, (what, kind) in sides.items()
    }


def markdown(document: Mapping[str, Any]) -> str:
    head = ["net", "method", "rows", "engine, s", "PyTorch, s", "PyTorch / engine", "its layout", "host share",
            "peak MiB: engine", "PyTorch", "least correlation"]  # fmt: skip
    rows = []
    for net, methods in document["nets"].items():
        for method, one in methods.items():
            share, near = f"{one['host_share']:.1%}", f"{one['agreement']['least_correlation']:.4f}"
            times = [one["engine_seconds"], one["torch_seconds"], one["torch_to_engine"], one["torch_layout"]]
            memory = [one.get("peak_mib", {}).get(side) for side in ("engine", "torch")]
            rows.append([net, method, one["rows"], *times, share, *memory, near])
    return table(head, rows)


@click.command()
@click.argument("nets", nargs=-1)
@click.option("--method", "wanted", multiple=True, type=click.Choice(METHODS), help="[default: all]")
@click.option("--count", default=8, show_default=True, help="Images.")
@click.option("-b", "--batch", default=8, show_default=True)
@click.option("--repeat", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--quick", is_flag=True, help="Fewer rounds, iterations and points.")
@click.option("--memory/--no-memory", default=True, show_default=True)
@click.option("--markdown", "as_table", is_flag=True, help="Print a table too.")
@click.option("--only", nargs=2, hidden=True, help="Print the peak memory of this side and method.")
def main(
    nets: tuple[str, ...],
    wanted: tuple[str, ...],
    count: int,
    batch: int,
    repeat: int,
    threads: int,
    quick: bool,
    memory: bool,
    as_table: bool,
    only: tuple[str, str] | None,
) -> None:
    if only:
        click.echo(f'{{"peak_mib": {peak(nets[0], *only, count, batch, threads)}}}')
        return
    torch.set_num_threads(threads)
    about = {"count": count, "batch": batch, "threads": threads, "repeat": repeat, "quick": quick, "nets": {}}
    with report(markdown if as_table else None, **about) as document, tempfile.TemporaryDirectory() as folder:
        for net in nets or ("resnet50",):
            found = document["nets"][net] = {}
            model, file = onnx_of(net), Path(folder, f"{net}.onnx")
            with ox.open(model, preprocess=None, range=(0, 1), batch_size=batch, threads=threads) as explainer:
                explainer.gradients(images(1, size_of(net)))
                for method, pair in pairs(size_of(net), quick=quick).items():
                    if wanted and method not in wanted:
                        continue
                    note(f"{net} {method}")
                    found[method] = measure(net, explainer, pair, count=count, batch=batch, repeat=repeat)
            if memory:
                note(f"{net} memory")
                onnx.save(ox.gradient_model(model), file)
                common = ("--count", count, "--batch", batch, "--threads", threads)
                for method, one in found.items():
                    one["peak_mib"] = peaks(file, net, method, one["torch_layout"], *common)
        times = [one["torch_to_engine"] for methods in document["nets"].values() for one in methods.values()]
        document["geometric_mean"] = geometric_mean(times)


if __name__ == "__main__":
    main()
