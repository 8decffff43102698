"""`onnxplain inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from onnxplain.cli import options
from onnxplain.cli.tables import as_json, described
from onnxplain.cli.terminal import result

if TYPE_CHECKING:
    from onnxplain.adapters.gradient.portability import Note
    from onnxplain.adapters.inspection import Inspection, Tensor


@options.command("inspect")
@options.model
@options.preprocess
@options.output_name
@options.head
@options.input_shape
@options.format("text", "json")
def command(
    model: Path, preprocess: str | None, output_name: str | None, head: str | None,
    input_shape: tuple[int, ...] | None, form: str,
) -> None:  # fmt: skip
    """Show what is in a model, its preprocessing, and whether it can be explained.

    Operators without a gradient rule are listed, and are no error here. So are those that ONNX Runtime would leave to
    the CPU on CUDA and those that TensorRT would refuse, in the classifier (forward) and in its gradient (backward).

    \b
    Example:
      onnxplain inspect model.onnx
      onnxplain inspect model.onnx --format json
    """
    from onnxplain.adapters.inspection import inspect

    found = inspect(
        model, preprocess=options.preprocess_of(preprocess), output=output_name, head=head, input_shape=input_shape
    )
    result(as_json(asdict(found)) if form == "json" else text(found))


def text(found: Inspection) -> str:
    gaps = Counter((gap.op, gap.why) for gap in found.gaps)
    first = {(gap.op, gap.why): gap.node for gap in reversed(found.gaps)}
    lines = [
        ("model", found.model),
        ("size", f"{found.bytes:,} bytes, {found.parameters:,} parameters"),
        ("sha256", found.sha256),
        ("producer", found.producer or "-"),
        ("opset", ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())),
        ("ir version", str(found.ir_version)),
        *(("input", shown(value)) for value in found.inputs),
        *(("output", shown(value)) for value in found.outputs),
        ("operators", ", ".join(f"{op} x{count}" for op, count in found.operators.items())),
    ]
    if found.gradient_model is not None:
        lines.append(("gradient model", "yes"))
        lines += [(f"  {name}", str(value)) for name, value in found.gradient_model.items()]
    elif gaps:
        lines += [("no gradient", f"{op} x{n} (first: {first[op, why]}): {why}") for (op, why), n in gaps.items()]
    elif not found.problems:
        lines.append(("gradient", "every operator between image and logits has a rule"))
    if found.head is not None:
        lines.append(("head", found.head))
    if found.layout is not None:
        lines.append(("layout", found.layout))
    if found.layer is not None:
        lines.append(("layer", f"{described(found.layer)}, chosen of {len(found.layers)}"))
    lines += [("note", note) for note in found.notes]
    for runtime, left in found.runtimes.items():
        lines += [(f"{runtime} {note.half}", remark(note)) for note in left]
        if not left:
            lines.append((runtime, "runs every node"))
    lines.append(("preprocessing", found.preprocess_from or "-"))
    lines += [(f"  {key}", str(value)) for key, value in (found.preprocess or {}).items()]
    lines += [("problem", problem) for problem in found.problems]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def remark(note: Note) -> str:
    return f"not {note.op} x{note.count} (first: {note.first}): {note.why}"


def shown(value: Tensor) -> str:
    shape = "?" if value.shape is None else ", ".join("?" if d is None else str(d) for d in value.shape)
    return f"{value.name}  {value.dtype}[{shape}]"
