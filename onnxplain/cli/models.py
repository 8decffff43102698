"""`onnxplain models list` and `onnxplain models get`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.tables import as_json, as_rows, as_text
from onnxplain.cli.terminal import downloads, result, terminal

COLUMNS = {
    "name": "name", "title": "title", "image": "image", "parameters": "parameters", "megabytes": "MB",
    "top1": "top-1 %", "needs": "needs", "cached": "cached", "licence": "licence",
}  # fmt: skip


@click.group("models", cls=click.RichGroup, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List the classifiers that are known by name, and get one as an ONNX file.

    \b
    Example:
      onnxplain models list
      onnxplain models get efficientnet-lite0
    """


@options.command("list")
@options.format("text", "json", "csv")
def list_command(form: str) -> None:
    """List the catalogue: what each classifier takes, what it needs to be got, and its licence.

    \b
    Example:
      onnxplain models list
      onnxplain models list --format json
    """
    from onnxplain.models.catalogue import entries
    from onnxplain.models.download import cached

    rows = [
        {
            **asdict(entry),
            "image": "x".join(map(str, entry.image)),
            "top1": None if entry.top1 is None else f"{entry.top1:.1f}",
            "needs": entry.extra or "-",
            "cached": "yes" if cached(entry.url) else "no",
        }
        for entry in entries().values()
    ]
    result(as_text(rows, COLUMNS) if form == "text" else as_rows(rows, form))


@options.command("get")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", help="Names of the catalogue.")
@click.option(
    "-o", "--output", type=options.FILE, metavar="FILE|DIR", help="Where it goes. [default: NAME.onnx, in this folder]"
)
@options.overwrite
@options.format("text", "json")
def get_command(names: tuple[str, ...], output: Path | None, overwrite: bool, form: str) -> None:
    """Get classifiers of the catalogue as ONNX files, with their preprocessing and labels inside.

    What was downloaded is verified and kept; a download that broke off goes on. ONNXPLAIN_OFFLINE=1 forbids the net.

    \b
    Example:
      onnxplain models get efficientnet-lite0
      onnxplain models get resnet50 vgg16 -o models/
    """
    from onnxplain.adapters.catalogue import get
    from onnxplain.models.catalogue import find

    for name in names:
        find(name)
    single = output is not None and output.suffix == ".onnx"
    if single and len(names) > 1:
        raise click.UsageError("several classifiers do not fit into one file: give a folder with -o")
    done = []
    for name in names:
        file = output if single and output is not None else (output or Path()) / f"{name}.onnx"
        with downloads(f"getting {name}"):
            written = get(name, file, overwrite=overwrite)
        terminal().say(f"{name}: {find(name).licence}", 1)
        done.append(written)
        if form == "text":
            result(f"{written.path}  {written.bytes:,} bytes, {written.nodes} nodes, SHA-256 {written.sha256}")
    if form == "json":
        result(as_json({"models": [asdict(one) for one in done]}))


command.add_command(list_command)
command.add_command(get_command)
