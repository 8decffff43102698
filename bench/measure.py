"""What the scripts share: images, calls timed in turn, memory in processes of their own, one JSON document."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import click
import cv2
import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
ROOT = Path(__file__).parents[1]
PACKAGES = ("onnxplain", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "torch", "torchvision", "onnx-ad")


def rounds(calls: Mapping[str, Call], repeat: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, `repeat` rounds in turn, after `warm` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm + repeat):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of above / below: what slows a whole round down has no part in it."""
    return median(a / b for a, b in zip(above, below, strict=True))


def resident(*, peak: bool) -> float:
    """Resident memory of this process in MiB, now or at its highest. (getrusage would count the parent's too.)"""
    field = "VmHWM" if peak else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Let the highest resident memory be what it is now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def in_own_process(module: str, *arguments: object) -> Any:
    """Run a script of ours; the JSON in its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(map(str, arguments))}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def images(count: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Smooth random images in [0,1], (count, 3, size, size)."""
    coarse = np.random.default_rng(seed).random((count, 8, 8, 3), np.float32)
    fine = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse]
    return np.ascontiguousarray(np.clip(fine, 0, 1).transpose(0, 3, 1, 2), np.float32)


def machine() -> dict[str, Any]:
    """Where and with what this is measured."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": found,
    }


@contextmanager
def report(markdown: Callable[[Any], str] | None, **about: Any) -> Iterator[dict[str, Any]]:
    """A document to fill, printed as JSON at the end, also when stopped early; its table goes to the other stream."""
    document: dict[str, Any] = {"command": sys.argv[1:], "machine": machine(), **about}
    try:
        yield document
    except KeyboardInterrupt:
        document["interrupted"] = True
    finally:
        click.echo(json.dumps(document, indent=2))
        if markdown is not None:
            click.echo(markdown(document), err=True)


def note(text: str) -> None:
    """Tell who waits what is being done."""
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; numbers with three digits that count, nothing for None."""

    def text(cell: object) -> str:
        if isinstance(cell, float):
            return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
        return "" if cell is None else str(cell)

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(text, line)) + " |" for line in lines)
