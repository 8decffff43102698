"""docs/coverage.md from the lines of results.jsonl. Nothing in that page is typed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bench.coverage.zoo import ZOO

Row = dict[str, Any]
Results = Mapping[tuple[str, str], Row]  # (model, step) -> what was found last

RIGHT = 0.9999  # the cosine of two gradients that count as one
SOURCES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "huggingface": "Hugging Face transformers (small random configurations)",
    "light": "The light models of the onnx package (random weights)",
}
FORWARD_ERROR = 1e-3  # of logits, relative to the largest one

TOP = """# Coverage

How far gradient models reach on whole classifiers, all with random weights under which every layer matters. This page
is written by a script, from what another one measured:

```bash
python -m bench.coverage export     # classifiers, and their gradients by float64 autograd
python -m bench.coverage check      # each against autograd, ONNX Runtime, OpenVINO, TensorRT-RTX and onnx-ad
python -m bench.coverage table      # this page
```

Run on {dates}, on two cores of a shared virtual machine and without a GPU.
Revision of the package: {revisions}.
Versions: {versions}.

"""

LEGEND = f"""
* **differentiated**: `gradient_model` makes a gradient model; its batch is symbolic, that of the light models is 1.
* **right**: on ONNX Runtime's CPU the logits agree with those of the float64 model (relative error below
  {FORWARD_ERROR:g}), and the gradient of a random weighting of the logits has a cosine of at least {RIGHT} with
  float64 autograd for both of two random images.
* **OpenVINO agrees**: on the CPU and in float32 it gives the gradient of ONNX Runtime, at a cosine of at least {RIGHT}.
* **TensorRT-RTX builds**: it parses the gradient model and builds an engine for compute capability 8.9, with a batch
  of 1, 8, 32 (smallest, tuned for, largest). It is not run: that takes a GPU.

In the tables below *made in* is the processor time of `gradient_model`; *nodes* and *weights* are those of the
classifier and of the gradient model; 1 - cosine is that of the worse image; *cost* is the time of a gradient call over
that of a forward call on ONNX Runtime: a batch of 2, one thread, the fastest of seven each, which run in turn. Float32
itself costs some cosine where ReLU and max pooling meet near-ties: what PyTorch's own float32 gradient loses stands
beside. `onnx-ad` is the PyPI package of that name, on the same model; † means that it refused the symbolic batch and
got a fixed one of 2; its limit was two minutes.
"""


def latest(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """The last line of each model and step."""
    return {(row["name"], row["step"]): row for row in rows if row["name"] in ZOO}


def gaps(results: Results) -> list[tuple[str, list[str], str]]:
    """Each operator that stands in the way, the models where it does, and a reason; the most frequent first.

    Only one reason, because it names values of its model.
    """
    models: dict[str, dict[str, None]] = defaultdict(dict)
    reasons: dict[str, str] = {}
    for (name, step), row in results.items():
        found = [(gap["op"], gap["why"]) for gap in row.get("gaps", ())]
        if step == "gradient":
            found += [(what, row[key]) for key, what in (("refused", "the model"), ("failed", "a crash")) if key in row]
        for op, why in found:
            models[op][name] = None
            reasons.setdefault(op, why)
    return sorted(((op, list(names), reasons[op]) for op, names in models.items()), key=lambda gap: (-len(gap[1]), gap))


def page(results: Results, failed: Mapping[str, str]) -> str:
    """The whole page; `failed` has the reason why a model could not be exported."""
    lines = list(results.values())
    dates = sorted({row["date"] for row in lines})
    revisions = sorted({row["key"] for row in lines if row["step"] == "gradient"})
    versions = lines[-1]["versions"]
    text = TOP.format(
        dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
        revisions=", ".join(f"`{revision}`" for revision in revisions),
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
    )
    text += counts(results) + LEGEND
    for source, title in SOURCES.items():
        names = [name for name, entry in ZOO.items() if entry.source == source and (name, "gradient") in results]
        if names:
            text += f"\n## {title}\n\n" + table(HEADER, [line(name, results) for name in names])
    found = gaps(results)
    if found:
        text += "\n## Refused\n\n"
        rows = [(op, len(names), short(names), clipped(why)) for op, names, why in found]
        text += table(("operator", "in how many", "models", "a reason"), rows)
    others = [
        (name, step, row.get("failed") or row.get("refused"))
        for (name, step), row in results.items()
        if step in ("openvino", "tensorrt") and ("failed" in row or "refused" in row)
    ]
    if others:
        text += "\n## Refused by a runtime\n\n"
        text += table(("model", "runtime", "reason"), [(name, step, clipped(why)) for name, step, why in others])
    if failed:
        text += "\n## Not exported\n\nTheir exporter, or the framework, refuses them.\n\n"
        text += table(("model", "reason"), [(name, clipped(why)) for name, why in failed.items() if name in ZOO])
    return text


def counts(results: Results) -> str:
    """How many models pass each step, by source and in all."""
    lines = []
    for source in (*SOURCES, "all"):
        names = [name for name, step in results if step == "gradient" and source in ("all", ZOO[name].source)]
        architectures = len({(ZOO[name].source, ZOO[name].architecture) for name in names})
        passed = [
            sum("cosine" in results[name, "gradient"] for name in names),
            sum(right(results[name, "gradient"]) for name in names),
            sum(agrees(results.get((name, "openvino"), {})) for name in names),
            sum("engine_bytes" in results.get((name, "tensorrt"), {}) for name in names),
            sum(right(results.get((name, "onnx_ad"), {})) for name in names),
        ]
        lines.append((source, architectures, len(names), *passed))
    header = ("", "architectures", "exports", "differentiated", "right", "OpenVINO agrees", "TensorRT-RTX builds")
    return table((*header, "right with onnx-ad"), lines)


HEADER = (
    "model", "exporter", "made in, s", "nodes", "weights, MB", "logits error", "1 - cosine",
    "PyTorch float32: 1 - cosine", "cost",
    "OpenVINO: 1 - cosine", "TensorRT-RTX: built in, s",
    "onnx-ad: 1 - cosine", "onnx-ad: nodes", "onnx-ad: made in, s", "onnx-ad: cost",
)  # fmt: skip


def line(name: str, results: Results) -> tuple[str, ...]:
    """The row of one model."""
    entry, ours = ZOO[name], results[name, "gradient"]
    openvino, tensorrt, peer = (results.get((name, step), {}) for step in ("openvino", "tensorrt", "onnx_ad"))
    if "cosine" not in ours:
        what = "crash" if "failed" in ours else "refused"
        mine = (what, *[""] * 6)
    else:
        before, after = ours["classifier"], ours["gradient"]
        mine = (
            f"{ours['cpu_seconds']:.1f}",
            f"{before['nodes']} → {after['nodes']}",
            f"{before['weight_bytes'] / 1e6:.0f} → {after['weight_bytes'] / 1e6:.0f}",
            f"{ours['logits_error']:.0e}",
            gap(ours),
            worst(ours["torch_float32"]),
            f"{ours['gradient_to_forward']:.1f}",
        )
    built = f"{tensorrt['build_seconds']:.1f}" if "build_seconds" in tensorrt else trouble(tensorrt)
    theirs: tuple[str, ...] = (trouble(peer), "", "", "")
    if "cosine" in peer:
        mark = "†" if peer["batch"] == "fixed" and "symbolic_refused" in peer else ""
        theirs = (
            gap(peer) + mark,
            str(peer["gradient"]["nodes"]),
            f"{peer['cpu_seconds']:.1f}",
            f"{peer['gradient_to_forward']:.1f}",
        )
    return (entry.architecture, entry.exporter, *mine, gap(openvino), built, *theirs)


def right(row: Row) -> bool:
    return agrees(row) and row.get("logits_error", 0) < FORWARD_ERROR


def agrees(row: Row) -> bool:
    return "cosine" in row and all(cosine >= RIGHT for cosine in row["cosine"])  # which NaN is not


def gap(row: Row) -> str:
    """1 - cosine of the worse image; in bold and by name if that is wrong."""
    if "cosine" not in row:
        return trouble(row)
    text = worst(row["cosine"])
    return text if agrees(row) else f"**wrong: {text}**"


def worst(cosines: list[float]) -> str:
    """1 - cosine of the worse image. Rounding may bring a cosine above 1."""
    return f"{np.maximum(np.max(1 - np.array(cosines)), 0):.0e}"


def trouble(row: Row) -> str:
    if "refused" in row:
        return "refused"
    if "failed" in row:
        return "too long" if row["failed"].startswith("not done") else "refused"
    return ""


def short(names: list[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def clipped(text: str, most: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "..."


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
