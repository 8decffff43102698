"""docs/coverage.md from the lines of results.jsonl. Nothing in that page is typed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bench.coverage.zoo import ZOO

Row = dict[str, Any]
Results = Mapping[tuple[str, str], Row]  # (model, step) -> what was found last

RUNTIMES = ("openvino", "tensorrt_parse", "tensorrt")
OF_GRADIENT = ("kinks", *RUNTIMES)  # steps that take a gradient model
RIGHT = 0.9999  # the cosine of two gradients that count as one
SOURCES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "huggingface": "Hugging Face transformers (small configurations)",
    "light": "The light models of the onnx package",
}
FORWARD_ERROR = 1e-3  # of logits, relative to the largest one

TOP = """# Coverage

How far gradient models reach on whole classifiers. This page is written by a script, from what another one measured:

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
* **differentiated**: `gradient_model` makes a gradient model, and its batch is symbolic (that of the light models
  is 1 before).
* **right**: on ONNX Runtime's CPU the logits agree with those of the float64 model (relative error below
  {FORWARD_ERROR:g}), and the gradient of a random weighting of the logits has a cosine of at least {RIGHT} with
  float64 autograd for both of two random images.
* **OpenVINO agrees**: on the CPU and in float32 it gives the gradient of ONNX Runtime, at a cosine of at least {RIGHT}.
* **TensorRT-RTX parses**, **builds**: it reads the gradient model; and it builds an engine for compute capability 8.9
  within two minutes, with a batch of 1, 8, 32 (smallest, tuned for, largest). It is not run: that takes a GPU.
* **onnx-ad**: the PyPI package of that name makes the same gradient of the same model within one minute. It was asked
  for some of the models only.

Where a column was asked for fewer models than there are, it says "of" how many.

## The weights

They are random, drawn so that every layer matters and that activations keep their size from layer to layer. What
frameworks start training from would hide layers: residual branches scaled by 1e-6, heads and last scales of zero,
weights so small that the logits do not depend on the image. The running statistics of BatchNormalization are taken from
a batch of 4 random images, as training would, or of 32 where those of 4 leave a net in which PyTorch's own float32
gradient is not right. Its biases are drawn between 1 and 2 in size, to keep most activations off the kink of ReLU:
float32 rounds some to its other side, and a deep random net with small biases makes so much of it that PyTorch's own
float32 gradient of a ResNet-50 has a cosine of 0.9996 with its float64 gradient. What PyTorch's float32 gradient loses
with these weights stands beside what ours loses. Where ours is below {RIGHT}, float64 autograd was asked again with
each ReLU on the side of its kink that the runtime took: the table says how many are on the other side, and what remains
(near-ties of max pooling do).

## How to read the tables

*made in* is the processor time of `gradient_model`; *nodes* and *weights* are those of the classifier and of the
gradient model; 1 - cosine is that of the worse image; *cost* is the processor time of a gradient call over that of a
forward call on ONNX Runtime: a batch of 2, one thread, the cheapest of three each, which run in turn. ‡: of a runtime
that was asked about the gradient model of an earlier revision.
"""

PEER = """Measured in the same way. †: it refused the symbolic batch and got a fixed one of 2.

"""


def latest(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """The last line of each model and step; of a runtime, the last of the present gradient model if there is one."""
    rows = [row for row in rows if row["name"] in ZOO]
    found = {(row["name"], row["step"]): row for row in rows}
    now = {
        (row["name"], row["step"]): row
        for row in rows
        if row["step"] in OF_GRADIENT and row["key"] == found.get((row["name"], "gradient"), {}).get("digest")
    }
    return found | now


def stale(name: str, step: str, results: Results) -> bool:
    """Whether a runtime was last asked about a gradient model of an earlier revision."""
    row = results.get((name, step))
    return row is not None and row["key"] != results[name, "gradient"].get("digest")


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
    text = TOP.format(
        dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
        revisions=revisions(results),
        versions=", ".join(f"{name} {number}" for name, number in lines[-1]["versions"].items()),
    )
    text += counts(results) + LEGEND
    for source, title in SOURCES.items():
        names = [name for name, entry in ZOO.items() if entry.source == source and (name, "gradient") in results]
        if names:
            text += f"\n## {title}\n\n" + table(HEADER, [line(name, results) for name in names])
    peers = [name for name in ZOO if (name, "onnx_ad") in results and (name, "gradient") in results]
    text += "\n## onnx-ad on the same models\n\n" + PEER + table(PEER_HEADER, [beside(name, results) for name in peers])
    found = gaps(results)
    if found:
        text += "\n## Refused\n\n"
        rows = [(op, len(names), short(names), clipped(why)) for op, names, why in found]
        text += table(("operator", "in how many", "models", "a reason"), rows)
    others = refusals(results)
    if others:
        text += "\n## Refused by others\n\n"
        text += table(("by", "reason", "in how many", "models"), others)
    if failed:
        text += "\n## Not exported\n\nTheir exporter, or the framework, refuses them.\n\n"
        text += table(("model", "reason"), [(name, clipped(why)) for name, why in failed.items() if name in ZOO])
    return text


def revisions(results: Results) -> str:
    """The revision of the package that the gradients are of; where there are several, which models are of an older."""
    models: dict[str, list[str]] = defaultdict(list)
    for (name, step), row in results.items():
        if step == "gradient":
            models[row["key"]].append(name)
    *others, most = sorted(models, key=lambda revision: len(models[revision]))
    return f"`{most}`" + "".join(f"; of `{other}`: {', '.join(models[other])}" for other in others)


def refusals(results: Results) -> list[tuple[str, str, int, str]]:
    """What the runtimes and onnx-ad refuse: who, why, how many models, and which."""
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (name, step), row in results.items():
        if step not in ("gradient", "kinks") and ("failed" in row or "refused" in row):
            models[step, clipped(row.get("failed") or row["refused"])].append(name)
    return [(step, why, len(names), short(names)) for (step, why), names in sorted(models.items())]


def counts(results: Results) -> str:
    """How many models pass each step, by source and in all."""
    columns: dict[str, tuple[tuple[str, ...], Callable[[Row], bool]]] = {  # the steps that tell, and what they must say
        "differentiated": (("gradient",), lambda row: row.get("batch") == 0),
        "right": (("gradient",), right),
        "OpenVINO agrees": (("openvino",), agrees),
        "TensorRT-RTX parses": (("tensorrt", "tensorrt_parse"), lambda row: "parse_seconds" in row),
        "TensorRT-RTX builds": (("tensorrt",), lambda row: "engine_bytes" in row),
        "onnx-ad accepts": (("onnx_ad",), lambda row: "cosine" in row),
        "right with onnx-ad": (("onnx_ad",), right),
    }
    lines = []
    for source in (*SOURCES, "all"):
        names = [name for name, step in results if step == "gradient" and source in ("all", ZOO[name].source)]
        architectures = len({(ZOO[name].source, ZOO[name].architecture) for name in names})
        cells = []
        for steps, holds in columns.values():
            rows = [[results[name, step] for step in steps if (name, step) in results] for name in names]
            passed, asked = sum(any(map(holds, row)) for row in rows), sum(map(bool, rows))
            cells.append(str(passed) if asked == len(names) else f"{passed} of {asked}")
        lines.append((source, architectures, len(names), *cells))
    return table(("", "architectures", "exports", *columns), lines)


HEADER = (
    "model", "exporter", "made in, s", "nodes", "weights, MB", "logits error", "1 - cosine",
    "PyTorch float32: 1 - cosine", "cost",
    "OpenVINO: 1 - cosine", "TensorRT-RTX: built in, s",
)  # fmt: skip
PEER_HEADER = (
    "model", "exporter", "made in, s: ours", "theirs", "nodes: ours", "theirs", "1 - cosine: ours", "theirs",
    "cost: ours", "theirs",
)  # fmt: skip


def line(name: str, results: Results) -> tuple[str, ...]:
    """The row of one model."""
    entry, ours = ZOO[name], results[name, "gradient"]
    openvino, parsed, built = (results.get((name, step), {}) for step in RUNTIMES)
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
            at_kinks({} if stale(name, "kinks", results) else results.get((name, "kinks"), {}), ours) or gap(ours),
            worst(ours["torch_float32"]),
            f"{ours['gradient_to_forward']:.1f}",
        )
    engine = f"{built['build_seconds']:.1f}" if "build_seconds" in built else trouble(built)
    if "parse_seconds" in parsed and "build_seconds" not in built:
        engine = "parsed" + (f"; build {engine}" if engine else "")
    marks = ["‡" if stale(name, step, results) else "" for step in RUNTIMES]
    others = (
        (at_kinks(openvino.get("kinks", {}), openvino) or gap(openvino)) + marks[0],
        engine + (marks[2] if built else marks[1]),
    )
    return (entry.architecture, entry.exporter, *mine, *others)


def beside(name: str, results: Results) -> tuple[str, ...]:
    """The row of one model that onnx-ad was asked for too."""
    entry, pair = ZOO[name], (results[name, "gradient"], results[name, "onnx_ad"])
    mark = "†" if "symbolic_refused" in pair[1] else ""
    cells = [
        (f"{row['cpu_seconds']:.1f}", str(row["gradient"]["nodes"]), gap(row), f"{row['gradient_to_forward']:.1f}")
        if "cosine" in row
        else (trouble(row), "", "", "")
        for row in pair
    ]
    ours, theirs = cells
    return (
        ZOO[name].source + ": " + entry.architecture + mark,
        entry.exporter,
        *(cell for both in zip(ours, theirs, strict=True) for cell in both),
    )


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


def at_kinks(row: Row, of: Row) -> str:
    """What is lost, and what of it remains where float64 autograd takes each ReLU as the runtime took it."""
    if right(of) or "cosine" not in row:
        return ""
    return f"**{worst(of['cosine'])}** ({worst(row['cosine'])} with {row['crossed']} activations across their kink)"


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
