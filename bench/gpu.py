"""What a GPU does with gradient models, in one JSON file: run it through bench/gpu.sh.

    python -m bench.gpu --on cuda -o gpu.json
    python -m bench.gpu --on cpu --net tiny -o cpu.json     # the same code without a GPU

doctor: what this machine can run. conformance: the executor's contract. gradients: where nodes are placed, and how near
gradients are to those of the CPU. batch: seconds an image of a gradient call, by batch, arrays in and arrays out, and
PyTorch's. precision: what each costs and loses. memory: a batch that is too large. methods: ISA, credible path and IG
end to end against PyTorch eager and torch.compile, the host's share, step graphs on and off.

TensorRT and TensorRT-RTX take part where their packages are. Each part runs in a process of its own, so a runtime that
crashes takes nothing with it. The file is written whole after each step; what fails is in it, with its message, and
makes the exit code 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx

import onnxplain as ox
from bench.measure import ROOT, Call, images, machine, note, ratio, rounds, table
from onnxplain.engine.drive import GRADIENT, LOGITS, Usage
from onnxplain.engine.executors.conformance import check_executor
from onnxplain.engine.executors.setup import Precision, Setup
from onnxplain.engine.requests import Array, Gradients

TOLERANCE = 1e-4  # of a row in a batch against the same row alone: a GPU has other kernels for other sizes
BESIDE_CUDA = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # and the module that tells whether it is there
NETS = ("efficientnet_lite0", "resnet50", "vit_b_16")
EAGER, COMPILED = "torch eager", "torch compile"
TOO_MANY = 8192  # rows: more than any GPU has memory for


class Skipped(Exception):
    """Not here; it is no failure."""


@dataclass(kw_only=True)
class Run:
    """The file as it grows, and what is to be measured."""

    file: Path
    on: str
    batches: list[int]
    count: int
    batch: int
    repeat: int
    quick: bool
    compiled: bool
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def places(self) -> list[str]:
        """Where gradient models run: on the given device, and by what else drives it."""
        runtime, colon, device = self.on.partition(":")
        also = [name for name, module in BESIDE_CUDA.items() if runtime == "cuda" and find_spec(module)]
        return [self.on, *(name + colon + device for name in also)]

    @property
    def torch_device(self) -> str:
        return self.on if self.on.startswith("cuda") else "cpu"

    def attempt(self, *path: str, do: Callable[[], Any]) -> None:
        """Note under a path what `do` gives, or why it gave nothing."""
        note(" / ".join(path))
        into = self.document["parts"]
        for name in path[:-1]:
            into = into.setdefault(name, {})
        try:
            into[path[-1]] = do()
        except Skipped as reason:
            into[path[-1]] = {"skipped": str(reason)}
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-3:])
            into[path[-1]] = {"error": f"{type(error).__name__}: {error}", "where": where}
            self.document["failed"].append(" / ".join(path))
        self.write()

    def side(self, calls: dict[str, Call], *path: str, make: Callable[[], Call]) -> None:
        """Add a call to those that are compared, once it has answered: what is built or compiled is built then."""

        def first() -> dict[str, float]:
            start = time.perf_counter()
            call = make()
            call()
            calls[path[-1]] = call
            return {"until_first_answer": time.perf_counter() - start}

        self.attempt(*path, do=first)

    def write(self) -> None:
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(self.document, indent=2) + "\n")
        os.replace(part, self.file)

    def read(self) -> None:
        self.document = json.loads(self.file.read_text())


def opened(model: onnx.ModelProto, on: str, batch: int | str, **how: Any) -> ox.Explainer:
    """A classifier on a device. The one place that knows how; `how` are `precision` and `step_graphs`."""
    return ox.open(model, preprocess=None, range=(0, 1), on=on, batch_size=batch, cache=None, **how)


def classifier(net: str) -> onnx.ModelProto:
    """A net as ONNX; the demo's needs no PyTorch."""
    if net == "efficientnet_lite0":
        from onnxplain.models.demo import demo_model

        return demo_model()
    from bench.nets import onnx_of

    return onnx_of(net)


def doctor(run: Run, net: str) -> None:  # noqa: ARG001 (of no net)
    run.attempt("doctor", "onnxplain", do=asked)
    run.attempt("doctor", "nvidia-smi", do=nvidia)
    run.attempt("doctor", "torch", do=torch_facts)


def asked() -> dict[str, Any]:
    command = [sys.executable, "-m", "onnxplain", "doctor", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, "says": json.loads(done.stdout)}


def nvidia() -> list[str]:
    query = "--query-gpu=name,driver_version,memory.total,compute_cap,power.limit"
    try:
        done = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise Skipped("there is no nvidia-smi") from None
    return done.stdout.splitlines()


def torch_facts() -> dict[str, Any]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"version": torch.__version__, "cuda": torch.version.cuda, "devices": names}


def conformance(run: Run, net: str) -> None:
    gradient = ox.gradient_model(classifier(net))

    def check(place: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:  # an engine is built once, and loaded by all who come after
            setup = Setup.of(on=place, cache=cache)
            check_executor(lambda: setup.start(gradient), tolerance=TOLERANCE)
        return {"kept": True, "tolerance": TOLERANCE}

    for place in run.places:
        run.attempt("conformance", net, place, do=partial(check, place))


def gradients(run: Run, net: str) -> None:
    model, x, expected = on_cpu(run, net)

    def compare(place: str) -> dict[str, Any]:
        with opened(model, place, run.batch) as explainer:
            found = explainer.gradients(x, target=0)
            facts = {role: dict(explainer.model.executor(role).facts) for role in (LOGITS, GRADIENT)}
        return near(found, expected) | {"facts": facts}

    for place in run.places:
        run.attempt("gradients", net, place, do=partial(compare, place))


def on_cpu(run: Run, net: str) -> tuple[onnx.ModelProto, Array, Gradients]:
    """A net, images, and their gradients in float32 on the CPU."""
    model = classifier(net)
    with opened(model, "cpu", run.batch) as explainer:
        x = images(run.count, explainer.image_size[0])
        return model, x, explainer.gradients(x, target=0)


def near(found: Gradients, expected: Gradients) -> dict[str, float]:
    """The least cosine of an image's gradients, and the largest differences, each over the largest value."""
    u, v = (y.gradient.reshape(len(y.gradient), -1).astype(np.float64) for y in (found, expected))
    cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    return {
        "cosine": float(cosines.min()),
        "max_relative": float((np.abs(u - v).max(1) / np.abs(v).max(1)).max()),
        "logits_max_relative": float(np.abs(found.logits - expected.logits).max() / np.abs(expected.logits).max()),
    }


def batch(run: Run, net: str) -> None:
    model = classifier(net)

    def fastest(place: str) -> dict[str, Any]:
        start = time.perf_counter()
        with opened(model, place, "auto") as explainer:
            return {"rows": explainer.model.batch_size, "seconds": time.perf_counter() - start}

    for place in run.places:
        run.attempt("batch", net, "auto", place, do=partial(fastest, place))
    for rows in run.batches:
        at_batch(run, net, model, rows)


def at_batch(run: Run, net: str, model: onnx.ModelProto, rows: int) -> None:
    """Seconds an image of one gradient call of `rows` images, arrays in and arrays out, everywhere, in turn."""
    path, calls = ("batch", net, str(rows)), dict[str, Call]()
    with ExitStack() as stack:

        def engine(place: str) -> Call:
            explainer = stack.enter_context(opened(model, place, rows))
            x = images(rows, explainer.image_size[0])
            return lambda: explainer.gradients(x, target=0)

        for place in run.places:
            run.side(calls, *path, f"engine {place}", make=partial(engine, place))
        run.side(calls, *path, "torch eager", make=lambda: torch_gradient(run, net, rows))

        def compared() -> dict[str, float]:
            return {name: median(seconds) / rows for name, seconds in rounds(calls, run.repeat).items()}

        run.attempt(*path, "seconds_an_image", do=compared)


def torch_gradient(run: Run, net: str, rows: int) -> Call:
    """One gradient call in eager PyTorch, arrays in and arrays out, in the faster memory layout."""
    import torch

    from bench import methods as whole
    from onnxplain.adapters.reference.gradients import gradients, logit

    full_precision()
    device = run.torch_device
    layout = whole.FORMATS[whole.faster_layout(net, rows, device)]
    module = whole.net_of(net).to(device, memory_format=layout)
    x = images(rows, whole.size_of(net))
    classes = torch.zeros(rows, dtype=torch.long, device=device)

    def call() -> object:
        on_device = torch.from_numpy(x).to(device).contiguous(memory_format=layout)
        z, gradient = gradients(module, on_device, classes, logit, rows)
        return z.cpu().numpy(), gradient.cpu().numpy()

    return call


def full_precision() -> None:
    """As ours is: PyTorch lets cuDNN round products by default."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def precision(run: Run, net: str) -> None:
    model, x, expected = on_cpu(run, net)

    def compare(place: str, kind: Precision) -> dict[str, Any]:
        if kind in (Precision.TF32, Precision.BF16) and run.on == "cpu":
            raise Skipped(f"ONNX Runtime has no {kind} on the CPU")
        with opened(model, place, run.batch, precision=str(kind)) as explainer:
            found = explainer.gradients(x, target=0)
            seconds = rounds({"": lambda: explainer.gradients(x[: run.batch], target=0)}, run.repeat)[""]
        return near(found, expected) | {"seconds": median(seconds)}

    for place in run.places:
        for kind in Precision:
            run.attempt("precision", net, place, str(kind), do=partial(compare, place, kind))


def memory(run: Run, net: str) -> None:
    def too_many() -> dict[str, Any]:
        if run.on == "cpu":
            raise Skipped("the CPU would swap")
        with opened(classifier(net), run.on, TOO_MANY) as explainer:
            found = explainer.gradients(images(TOO_MANY, explainer.image_size[0]), target=0)
            finite = bool(np.isfinite(found.gradient).all())
            return {"rows": TOO_MANY, "batch_afterwards": explainer.model.batch_size, "finite": finite}

    run.attempt("memory", net, "too large a batch", do=too_many)


def methods(run: Run, net: str) -> None:
    from bench.methods import METHODS

    model = classifier(net)
    for method in METHODS:
        one_method(run, net, model, method)


def one_method(run: Run, net: str, model: onnx.ModelProto, method: str) -> None:
    """One method end to end on every side, in turn: the same images, and the same points on their paths."""
    import torch

    from bench import methods as whole

    full_precision()
    path, device = ("methods", net, method), run.torch_device
    pair = whole.pairs(whole.size_of(net), quick=run.quick)[method]
    x = images(run.count, whole.size_of(net), seed=1)
    calls: dict[str, Call] = {}
    answers: dict[str, Array] = {}
    usages: dict[str, Usage] = {}

    with ExitStack() as stack:

        def engine(name: str, place: str, **how: Any) -> Call:
            explainer = stack.enter_context(opened(model, place, run.batch, **how))
            usages[name] = explainer.usage

            def call() -> None:
                answers[name] = np.stack([one.attribution for one in explainer.explain(x, pair.engine)])

            return call

        def loop(name: str, compiled: bool) -> Call:
            layout = whole.faster_layout(net, run.batch, device)
            module = whole.net_of(net).to(device, memory_format=whole.FORMATS[layout])
            theirs = whole.in_torch(
                torch.compile(module) if compiled else module, pair, x, run.batch, layout, device
            )  # fmt: skip

            def call() -> None:
                answers[name] = theirs()

            return call

        for place in run.places:
            run.side(calls, *path, f"engine {place}", make=partial(engine, f"engine {place}", place))
        for name, on in (("step graphs", True), ("no step graphs", False)):
            run.side(calls, *path, name, make=partial(engine, name, run.on, step_graphs=on))
        run.side(calls, *path, EAGER, make=partial(loop, EAGER, False))
        if run.compiled:
            run.side(calls, *path, COMPILED, make=partial(loop, COMPILED, True))
        run.attempt(*path, "compared", do=lambda: compared(calls, answers, usages, run.repeat))


def compared(
    calls: Mapping[str, Call], answers: Mapping[str, Array], usages: Mapping[str, Usage], repeat: int
) -> dict[str, Any]:
    """Seconds by side; of ours, the host's share, how many times longer PyTorch takes, and how near the answers are."""
    from bench.methods import agreement

    before = {name: replace(usage) for name, usage in usages.items()}
    seconds = rounds(calls, repeat, warm=0)
    found: dict[str, Any] = {}
    for name, times in seconds.items():
        found[name] = {"seconds": median(times)}
        if name in usages:
            spent = usages[name].seconds - before[name].seconds
            inside = usages[name].runtime_seconds - before[name].runtime_seconds
            found[name]["host_share"] = (spent - inside) / spent
            found[name]["to_this"] = {
                theirs: ratio(seconds[theirs], times) for theirs in (EAGER, COMPILED) if theirs in seconds
            }
        if EAGER in answers:
            found[name]["agreement"] = agreement(answers[name], answers[EAGER])
    return found


PARTS: dict[str, Callable[[Run, str], None]] = {
    "doctor": doctor, "conformance": conformance, "gradients": gradients, "batch": batch, "precision": precision,
    "memory": memory, "methods": methods,
}  # fmt: skip
ONCE = ("doctor", "conformance", "memory")  # parts for the first net only


def in_own_process(run: Run, part: str, net: str, seconds: int) -> None:
    """One part and net in a process of its own, which adds to the file; its crash is noted there."""
    command = [sys.executable, "-m", "bench.gpu", *sys.argv[1:], "-o", str(run.file), "--child", part, net]
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, timeout=seconds)
        ending = None if done.returncode == 0 else f"ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        ending = f"stopped after {seconds} s"
    run.read()
    if ending is not None:
        run.document["parts"].setdefault(part, {})[f"{net} crashed"] = ending
        run.document["failed"].append(f"{part} / {net}")
        run.write()


def child(run: Run, part: str, net: str) -> None:
    """One part and net in this process. What no attempt catches is caught here."""
    run.read()
    try:
        PARTS[part](run, net)
    except Exception as error:
        run.attempt(part, f"{net} failed", do=partial(again, error))


def again(error: Exception) -> None:
    raise error


def markdown(document: Mapping[str, Any]) -> str:
    """The methods; the rest is in the file."""
    rows = []
    for net, by_method in document["parts"].get("methods", {}).items():
        for method, found in by_method.items():
            for side, one in found.get("compared", {}).items():
                to = one.get("to_this", {})
                rows.append([net, method, side, one["seconds"], to.get(EAGER), to.get(COMPILED), one.get("host_share")])
    return table(["net", "method", "side", "s", "eager / this", "compiled / this", "host share"], rows)


@click.command()
@click.option("--on", default="cuda", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default="gpu.json", show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="[default: all]")
@click.option("--net", "nets", multiple=True, default=NETS, show_default=True)
@click.option("--batches", default="1,8,32,128", show_default=True)
@click.option("--count", default=8, show_default=True, help="Images.")
@click.option("-b", "--batch", default=8, show_default=True)
@click.option("--repeat", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Fewer rounds, iterations and points of the methods.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True, help="torch.compile too.")
@click.option("--limit", default=3600, show_default=True, help="Seconds for one part and net.")
@click.option("--markdown", "as_table", is_flag=True, help="Print a table too.")
@click.option("--child", "only", nargs=2, hidden=True, help="Run this part for this net, in this process.")
def main(
    on: str, output: Path, parts: tuple[str, ...], nets: tuple[str, ...], batches: str, count: int, batch: int,
    repeat: int, quick: bool, compiled: bool, limit: int, as_table: bool, only: tuple[str, str] | None,
) -> None:  # fmt: skip
    run = Run(
        file=output.absolute(), on=on, batches=[int(rows) for rows in batches.split(",")], count=count, batch=batch,
        repeat=repeat, quick=quick, compiled=compiled,
    )  # fmt: skip
    if only:
        child(run, *only)
        return
    run.document = {"command": sys.argv[1:], "machine": machine(), "parts": {}, "failed": []}
    run.write()
    try:
        for part in parts or PARTS:
            for net in nets[:1] if part in ONCE else nets:
                in_own_process(run, part, net, limit)
    except KeyboardInterrupt:
        run.read()
        run.document["interrupted"] = True
        run.write()
    click.echo(json.dumps(run.document, indent=2))
    if as_table:
        click.echo(markdown(run.document), err=True)
    sys.exit(1 if run.document["failed"] or run.document.get("interrupted") else 0)


if __name__ == "__main__":
    main()
