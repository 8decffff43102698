"""How cost grows: with the batch, the number of images, and threads; and what passes before the first call.

    python -m bench.scaling                                 # EfficientNet-Lite0: all parts
    python -m bench.scaling --net resnet50 --part batch --part memory

batch: seconds an image of a forward and of a gradient call, by threads and batch. images: seconds an image of IG, by
the number of images. memory: peak of three calls, by batch, each in a process of its own, beyond its imports. startup:
seconds until `onnxplain --help` has ended, and until `onnxplain explain` makes its first call, on the demo's classifier
and on its gradient model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import onnx

import onnxplain as ox
from bench.gradient import onnx_call
from bench.measure import ROOT, Call, images, in_own_process, note, report, rounds, table
from onnxplain.adapters.gradient.classifier import forward_model
from onnxplain.engine.methods import IntegratedGradients
from onnxplain.models.demo import demo_model, demo_photo

PARTS = ("batch", "images", "memory", "startup")
STEPS = 10  # of IG

# Runs the command line until the runtime's first call, and tells the seconds until then: argv[1] is when it started.
UNTIL_FIRST_CALL = """
import json, os, sys, time
started = float(sys.argv.pop(1))
before = time.time()
import onnxruntime
spent = {"import_runtime": time.time() - before, "sessions": 0.0}
Session = onnxruntime.InferenceSession
create = Session.__init__
def timed(self, *args, **kwargs):
    before = time.time()
    create(self, *args, **kwargs)
    spent["sessions"] += time.time() - before
def first(self, *args, **kwargs):
    total = time.time() - started
    print(json.dumps({"seconds": total, "beyond_sessions": total - spent["sessions"], **spent}), flush=True)
    os._exit(0)
Session.__init__, Session.run, Session.run_with_iobinding = timed, first, first
from onnxplain.cli.main import main
main()
"""


def batch_part(files: Mapping[str, Path], batches: Sequence[int], threads: Sequence[int], repeat: int) -> Any:
    """Seconds an image: {threads: {forward or gradient: {batch: seconds}}}."""
    found: dict[str, Any] = {}
    for count in threads:
        calls: dict[str, Call] = {}
        for half, path in files.items():
            for batch in batches:
                calls[f"{half} {batch}"] = onnx_call(path, batch, count)
        seconds = rounds(calls, repeat)
        found[str(count)] = {
            half: {str(batch): median(seconds[f"{half} {batch}"]) / batch for batch in batches} for half in files
        }
    return found


def images_part(gradient: Path, counts: Sequence[int], threads: Sequence[int], batch: int, repeat: int) -> Any:
    """Seconds an image of IG: {threads: {images: seconds}}."""
    found: dict[str, Any] = {}
    for count in threads:
        with ox.open(gradient, range=(0, 1), batch_size=batch, threads=count) as explainer:
            x = images(max(counts), explainer.image_size[0])

            def call(n: int, explainer: ox.Explainer = explainer, x: Any = x) -> Callable[[], object]:
                return lambda: explainer.explain(x[:n], IntegratedGradients(steps=STEPS))

            seconds = rounds({str(n): call(n) for n in counts}, repeat)
        found[str(count)] = {n: median(s) / int(n) for n, s in seconds.items()}
    return found


def memory_part(files: Mapping[str, Path], batches: Sequence[int], threads: int) -> Any:
    """Peak MiB: {forward or gradient: {batch: MiB}}."""
    return {
        half: {
            str(batch): in_own_process(
                "bench.gradient", path, "--batch", batch, "--threads", threads, "--only", half
            )["peak_mib"]
            for batch in batches
        }
        for half, path in files.items()
    }  # fmt: skip


def until_first_call(model: Path, output: Path) -> dict[str, float]:
    """Seconds of one `onnxplain explain`: until its first call, and of them in sessions and in the runtime's import."""
    arguments = ["explain", str(model), str(demo_photo()), "--method", "ig", "-o", str(output)]
    command = [sys.executable, "-c", UNTIL_FIRST_CALL, repr(time.time()), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def startup_part(folder: Path, repeat: int) -> Any:
    """Medians of seconds from the start of the process, commands in turn; all that `explain` spent, where it went."""
    classifier, gradient = folder / "demo.onnx", folder / "demo.grad.onnx"
    onnx.save(demo_model(), classifier)
    ox.write_gradient_model(classifier, gradient, verify=False)

    helps = [sys.executable, "-m", "onnxplain", "--help"]
    nothing = [sys.executable, "-c", ""]
    models = {"explain classifier": classifier, "explain gradient model": gradient}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in models}

    def explain(name: str) -> None:
        runs[name].append(until_first_call(models[name], folder / "out"))

    whole: dict[str, Call] = {
        "python": lambda: subprocess.run(nothing, check=True),
        "onnxplain --help": lambda: subprocess.run(helps, cwd=ROOT, check=True, stdout=subprocess.DEVNULL),
        **{name: partial(explain, name) for name in models},
    }
    seconds = rounds(whole, repeat)
    found: dict[str, Any] = {name: {"seconds": median(s)} for name, s in seconds.items()}
    for name, answers in runs.items():
        found[name] = {key: median(answer[key] for answer in answers[1:]) for key in answers[0]}
    return found


def markdown(document: Mapping[str, Any]) -> str:
    blocks = []
    for threads, halves in document.get("batch", {}).items():
        batches = list(halves["gradient"])
        rows = [[half, *by_batch.values()] for half, by_batch in halves.items()]
        blocks.append(table([f"s an image, threads {threads}, by batch", *batches], rows))
    if "images" in document:
        rows = [[threads, *by_count.values()] for threads, by_count in document["images"].items()]
        blocks.append(table(["IG, s an image: threads, by images", *next(iter(document["images"].values()))], rows))
    if "memory" in document:
        rows = [[half, *by_batch.values()] for half, by_batch in document["memory"].items()]
        blocks.append(table(["peak MiB, by batch", *document["memory"]["gradient"]], rows))
    if "startup" in document:
        columns = ("seconds", "sessions", "beyond_sessions", "import_runtime")
        rows = [[name, *(one.get(column) for column in columns)] for name, one in document["startup"].items()]
        blocks.append(table(["start-up, s", *columns], rows))
    return "\n\n".join(blocks)


def numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@click.command()
@click.option("--net", default="efficientnet_lite0", show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="[default: all]")
@click.option("--batches", default="1,2,4,8,16,32", show_default=True, callback=numbers)
@click.option("--counts", default="1,2,4,8,16,32", show_default=True, callback=numbers, help="Of images.")
@click.option("--threads", default="1,2", show_default=True, callback=numbers)
@click.option("-b", "--batch", default=8, show_default=True, help="Of the part images.")
@click.option("--repeat", default=5, show_default=True)
@click.option("--markdown", "as_table", is_flag=True, help="Print tables too.")
def main(
    net: str,
    parts: tuple[str, ...],
    batches: list[int],
    counts: list[int],
    threads: list[int],
    batch: int,
    repeat: int,
    as_table: bool,
) -> None:
    about = {"net": net, "repeat": repeat}
    with report(markdown if as_table else None, **about) as document, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {half: folder / f"{half}.onnx" for half in ("forward", "gradient")}
        if set(parts) != {"startup"}:
            from bench.nets import onnx_of

            gradient = ox.gradient_model(onnx_of(net))
            onnx.save(gradient, files["gradient"])
            onnx.save(forward_model(gradient), files["forward"])
        work: dict[str, Callable[[], Any]] = {
            "batch": lambda: batch_part(files, batches, threads, repeat),
            "images": lambda: images_part(files["gradient"], counts, threads, batch, repeat),
            "memory": lambda: memory_part(files, batches, max(threads)),
            "startup": lambda: startup_part(folder, repeat),
        }
        for part in parts or PARTS:
            note(f"{net} {part}")
            document[part] = work[part]()


if __name__ == "__main__":
    main()
