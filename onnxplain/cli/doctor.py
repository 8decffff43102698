"""`onnxplain doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.tables import as_json, as_text
from onnxplain.cli.terminal import result

if TYPE_CHECKING:
    from onnxplain.doctor import Extra, Report, Verdict

COLUMNS = {"place": "--on", "state": "is", "runtime": "with", "tried": "tried"}
NOT_USABLE = 4  # the exit code


@options.command("doctor")
@click.option(
    "--on", metavar="DEVICE",
    help="Ask about this device only: cpu, cuda[:N], tensorrt[:N], tensorrt-rtx[:N], openvino, or a provider of ONNX "
    "Runtime by its name. [default: all that there are]",
)  # fmt: skip
@options.format("text", "json")
def command(on: str | None, form: str) -> int:
    """Tell what this machine can run, what is missing, and what mends it.

    Each runtime is started in a process of its own and runs a small model, so one that is broken does no harm; it has a
    minute. The exit code is 0 if a device is usable (with --on: that one), else 4.

    \b
    Example:
      onnxplain doctor
      onnxplain doctor --on cuda --format json
    """
    from onnxplain.doctor import examine
    from onnxplain.engine.executors.place import Place

    found = examine(None if on is None else Place.parse(on))
    result(as_json(asdict(found)) if form == "json" else text(found))
    return 0 if found.usable else NOT_USABLE


def text(found: Report) -> str:
    """The report: the machine, a table of places, what they lack, the extras."""
    rows = [asdict(verdict) for verdict in found.places]
    parts = [aligned(machine(found)), as_text(rows, COLUMNS)]
    lacking = [line for verdict in found.places for line in remarks(verdict)]
    if lacking:
        parts.append("\n".join(lacking))
    parts.append(aligned((f"extra {extra.name}", extra_line(extra)) for extra in found.extras))
    return "\n\n".join(parts)


def machine(found: Report) -> Iterator[tuple[str, str]]:
    """The machine, line by line."""
    this = found.machine
    yield "system", f"{this.system}, {this.architecture}" + ", in a container" * this.container
    if this.jetson:
        yield "board", this.jetson
    yield "python", this.python
    memory = "" if this.memory is None else f", {this.memory / 2**30:.1f} GiB of memory"
    yield "processor", ", ".join([f"{this.cores} core{'s' * (this.cores != 1)}", *this.features]) + memory
    yield "driver", found.driver
    for number, gpu in enumerate(found.gpus):
        yield f"gpu {number}", gpu


def remarks(verdict: Verdict) -> Iterator[str]:
    """What a place lacks, or what there is to say of one that works all the same."""
    for lack in verdict.lacks:
        what = f"{verdict.place}: {lack.what}"
        yield f"{what}; next: {lack.next}" if lack.next else what
    if verdict.options and verdict.state == "usable":
        yield f"{verdict.place}: it is a plugin; use it with " + " ".join(
            f"--provider-option {option}" for option in verdict.options
        )


def extra_line(extra: Extra) -> str:
    if not extra.missing:
        return f"{extra.purpose}: installed"
    return f"{extra.purpose}: {' and '.join(extra.missing)} missing; next: {extra.next}"


def aligned(lines: Iterator[tuple[str, str]]) -> str:
    """Names and values, the values under one another."""
    pairs = list(lines)
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)
