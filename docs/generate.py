"""Write the pages of docs/reference that the code knows best: `python docs/generate.py`. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import click

from onnxplain.adapters.gradient import sweep  # noqa: F401  (fills the registry)
from onnxplain.adapters.gradient.registry import ALLOWED, DEFAULT, NO_GRADIENT
from onnxplain.cli.main import COMMANDS, cli

REFERENCE = Path(__file__).parent / "reference"
HEAD = "<!-- made by docs/generate.py: do not edit -->\n\n# {}\n"


def pages() -> dict[Path, str]:
    """The content of each generated page."""
    return {REFERENCE / "cli.md": command_line(), REFERENCE / "operators.md": operators()}


def operators() -> str:
    """The page about operators."""
    zero = [f"| `{name}` | {why} |" for name, why in sorted(NO_GRADIENT.items())]
    sections = [
        HEAD.format("Operators"),
        "`onnxplain inspect` tells which operators of a model lack a gradient rule.",
        "## With a gradient rule",
        ", ".join(f"`{name}`" for name in sorted(DEFAULT)),
        "Operators without a rule are refused if they lie between image and logits, and so are cases that a rule does "
        "not cover, such as training mode. How to add one: [add a rule](../how-to/add-a-rule.md).",
        "## That end a way",
        "Their output does not change with their input, or only in jumps, so the gradient through them is zero.",
        "\n".join(["| operator | why |", "|---|---|", *zero]),
        "## That rules emit",
        "Gradients are made of these, and of no others.",
        ", ".join(f"`{name}`" for name in sorted(ALLOWED)),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def command_line() -> str:
    """The page about the commands."""
    top = click.Context(cli, info_name="onnxplain", **cli.context_settings)
    sections = [HEAD.format("Command line"), prose(cli.help or ""), "## Options of every command", options(cli, top)]
    for name in COMMANDS:
        command = cli.get_command(top, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=top, **command.context_settings)
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        sections += [f"## {name}", f"```text\n{usage}\n```", prose(command.help or "")]
        sections += [options(command, context, but={p.name for p in cli.get_params(top)})]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def prose(help: str) -> str:
    """A help text; its preformatted paragraphs, which begin with a backspace, become literal blocks."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", help.strip()):
        lines = paragraph.strip("\n").split("\n")
        if lines[0].strip() != "\b":
            parts.append(" ".join(line.strip() for line in lines))
            continue
        title, *rest = lines[1:]
        indent = min((len(line) - len(line.lstrip()) for line in rest), default=0)
        parts += [title.strip(), "```text\n" + "\n".join(line[indent:] for line in rest) + "\n```"]
    return "\n\n".join(parts)


def options(command: click.Command, context: click.Context, but: Collection[str | None] = ()) -> str:
    """Arguments and options as a table, `but` those of these names."""
    rows = []
    for parameter in command.get_params(context):
        if parameter.name in but:
            continue
        if isinstance(parameter, click.Option):
            record = parameter.get_help_record(context)
            if record is not None:
                rows.append(record)
        else:
            rows.append((parameter.make_metavar(context), getattr(parameter, "help", None) or ""))
    cells = [(f"`{name}`".replace("|", "\\|"), " ".join(text.replace("|", "\\|").split())) for name, text in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in cells)])


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
