"""What a gradient costs: our gradient model against a forward call on ONNX Runtime, PyTorch eager, and onnx-ad.

    python -m bench.gradient                        # all of bench/nets.py, batch 8
    python -m bench.gradient resnet50 vgg16
    python -m bench.gradient MODEL.onnx             # your own classifier, without PyTorch

All run in one process, in turn, so that a noisy machine hurts them alike; ratios are medians of the ratios of each
round. PyTorch gets its best case: parameters frozen, only the input's gradient, the faster of its two memory layouts.
onnx-ad, if it is installed, gets a model of this very batch size, for it takes no other. Peak memory comes from
processes of their own, which run nothing else; it is what they have beyond their imports.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray

from bench.measure import Call, forget_peak, in_own_process, note, ratio, report, resident, rounds, table
from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor

LAYOUTS = {"torch contiguous": "contiguous_format", "torch channels_last": "channels_last"}
CLASS = 0
RIGHT = 0.99  # the least cosine of two gradients that are the same but for rounding across kinks


def onnx_call(path: Path, batch: int, threads: int) -> Call:
    """One call of a model file: forward, gradient, or the adjoint that onnx-ad wrote."""
    executor = OnnxRuntimeExecutor(path.read_bytes(), threads=threads)
    feeds = {}
    for name, spec in executor.inputs.items():
        shape = [batch, *(1 if d == "nadj" else d for d in spec.shape[1:])]
        feeds[name] = inputs(tuple(shape)) if len(shape) == 4 else np.zeros(shape, spec.dtype)
        if name != "onnxplain_objective" and len(shape) != 4:
            feeds[name][:, CLASS] = 1
    return lambda: executor(feeds)


def inputs(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def torch_call(name: str, layout: str, batch: int, threads: int) -> Call:
    """The same gradient in PyTorch eager, in one of its memory layouts."""
    import torch

    from bench.nets import net_of, size_of

    torch.set_num_threads(threads)
    format = getattr(torch, LAYOUTS[layout])
    net = net_of(name).to(memory_format=format)
    x = torch.from_numpy(inputs((batch, 3, *[size_of(name)] * 2))).to(memory_format=format)

    def gradient() -> object:
        leaf = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(net(leaf)[:, CLASS].sum(), leaf)
        return {"gradient": found.numpy()}

    return gradient


def write(what: str, batch: int, folder: Path) -> tuple[dict[str, Path], str | None]:
    """Write what ONNX Runtime is to run, by kind; and why onnx-ad is not there, if it is not."""
    if what.endswith(".onnx"):
        classifier = onnx.load(what)
    else:
        from bench.nets import onnx_of

        classifier = onnx_of(what)
    gradient = gradient_model(classifier)
    models = {"forward": forward_model(gradient), "gradient": gradient}
    why = None
    try:
        models["onnx-ad"] = adjoint(classifier, batch)
    except Exception as error:  # not installed, or one of its many reasons to refuse a model
        why = f"{type(error).__name__}: {error}"
    files = {}
    for kind, model in models.items():
        files[kind] = folder / f"{kind}.onnx"
        onnx.save(model, files[kind])
    return files, why


def adjoint(classifier: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """onnx-ad's reverse mode, at one batch size."""
    from onnx_ad import reverse

    fixed = onnx.ModelProto()
    fixed.CopyFrom(classifier)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del fixed.graph.value_info[:]
    made: onnx.ModelProto = reverse(onnx.shape_inference.infer_shapes(fixed), layout="onnx")
    return made


def measure(what: str, batch: int, repeat: int, threads: int, memory: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files, why = write(what, batch, Path(folder))
        calls = {kind: onnx_call(path, batch, threads) for kind, path in files.items()}
        if not what.endswith(".onnx"):
            calls |= {layout: torch_call(what, layout, batch, threads) for layout in LAYOUTS}
        agree = {kind: cosine(call(), calls["gradient"]()) for kind, call in calls.items() if kind != "forward"}
        seconds = rounds(calls, repeat)
        peak = {}
        if memory:
            common = ("--batch", batch, "--threads", threads, "--only")
            peak = {
                kind: in_own_process("bench.gradient", files.get(kind, what), *common, kind)["peak_mib"]
                for kind in calls
            }
    found: dict[str, Any] = {
        "median_seconds": {kind: median(s) for kind, s in seconds.items()},
        "gradient_to_forward": ratio(seconds["gradient"], seconds["forward"]),
        "to_gradient": {kind: ratio(s, seconds["gradient"]) for kind, s in seconds.items()},
        "cosine": agree,
        "peak_mib": peak,
    }
    ours = [layout for layout in LAYOUTS if layout in seconds]
    if ours:
        found["torch"] = min(ours, key=lambda layout: found["median_seconds"][layout])
    if why is not None:
        found["onnx_ad_missing"] = why
    return found


def cosine(a: Any, b: Any) -> float:
    """Of two gradients, whatever the calls call them."""
    u, v = (next(np.ravel(y[n]) for n in y if n in ("gradient", "adj_input")).astype(np.float64) for y in (a, b))
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def peak(what: str, kind: str, batch: int, threads: int) -> float:
    """Peak resident memory of three calls of one kind, in MiB beyond what the imports took."""
    if kind in LAYOUTS:
        import bench.nets  # noqa: F401

        before = resident(peak=False)
        call = torch_call(what, kind, batch, threads)
        forget_peak()  # drawing the weights is no part of it
    else:
        import onnxruntime  # noqa: F401

        before = resident(peak=False)
        call = onnx_call(Path(what), batch, threads)
    for _ in range(3):
        call()
    return resident(peak=True) - before


def summary(nets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Over all nets: how many times faster our gradient is, on the geometric mean and where it is least.

    A gradient that is another one does not count.
    """

    def right(net: Mapping[str, Any], kind: str | None) -> float | None:
        return net["to_gradient"].get(kind) if net["cosine"].get(kind, 0) >= RIGHT else None

    found = {}
    for name, kind in (("torch", None), ("onnx_ad", "onnx-ad")):
        known = [right(net, kind or net.get("torch")) for net in nets.values()]
        known = [t for t in known if t is not None]
        if known:
            found[f"{name}_geometric_mean"], found[f"{name}_least"] = geometric_mean(known), min(known)
    return found


def markdown(document: Mapping[str, Any]) -> str:
    head = ["net", "forward, s", "gradient, s", "gradient / forward", "PyTorch / gradient", "its layout",
            "onnx-ad / gradient", "its cosine", "peak MiB: ours", "PyTorch", "onnx-ad"]  # fmt: skip
    rows = []
    for name, net in document["nets"].items():
        seconds, times, memory = net["median_seconds"], net["to_gradient"], net["peak_mib"]
        torch, theirs = net.get("torch", ""), net["cosine"].get("onnx-ad")
        ours = [name, seconds["forward"], seconds["gradient"], net["gradient_to_forward"]]
        others = [times.get(torch), torch.removeprefix("torch "), times.get("onnx-ad"), theirs]
        rows.append([*ours, *others, *(memory.get(kind) for kind in ("gradient", torch, "onnx-ad"))])
    return table(head, rows)


@click.command()
@click.argument("nets", nargs=-1)
@click.option("-b", "--batch", default=8, show_default=True)
@click.option("--repeat", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--memory/--no-memory", default=True, show_default=True)
@click.option("--markdown", "as_table", is_flag=True, help="Print a table too.")
@click.option("--only", hidden=True, help="Make three calls of this kind and print the peak memory.")
def main(
    nets: tuple[str, ...], batch: int, repeat: int, threads: int, memory: bool, as_table: bool, only: str | None
) -> None:
    if only:
        click.echo(f'{{"peak_mib": {peak(nets[0], only, batch, threads)}}}')
        return
    if not nets:
        from bench.nets import SIZES

        nets = tuple(SIZES)
    about = {"batch": batch, "threads": threads, "repeat": repeat, "nets": {}}
    with report(markdown if as_table else None, **about) as document:
        for net in nets:
            note(net)
            document["nets"][net] = measure(net, batch, repeat, threads, memory)
            document["summary"] = summary(document["nets"])


if __name__ == "__main__":
    main()
