"""Write the pages of docs/reference that the code knows best: `python docs/generate.py`. A test compares them."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import click
import onnx

from onnxplain.adapters.gradient import ml
from onnxplain.adapters.gradient.body import has_body
from onnxplain.adapters.gradient.registry import ALLOWED, DEFAULT, EXPANSIONS, NO_GRADIENT, REFUSED, refusal
from onnxplain.cli.main import COMMANDS, cli
from onnxplain.models.catalogue import entries

REFERENCE = Path(__file__).parent / "reference"
HEAD = "<!-- made by docs/generate.py: do not edit -->\n\n# {}\n"


def pages() -> dict[Path, str]:
    """The content of each generated page."""
    return {
        REFERENCE / "cli.md": command_line(),
        REFERENCE / "models.md": catalogue(),
        REFERENCE / "operators.md": operators(),
    }


def catalogue() -> str:
    """The page about the classifiers that are known by name."""
    rows = [
        (
            f"`{entry.name}`",
            entry.title,
            " x ".join(map(str, entry.image)),
            f"{entry.parameters / 1e6:.1f}",
            "" if entry.top1 is None else f"{entry.top1:g}",
            "" if entry.extra is None else f"`{entry.extra}`",
            entry.licence,
        )
        for entry in entries().values()
    ]
    sums = [(f"`{entry.name}`", f"<{entry.url}>", f"`{entry.sha256}`") for entry in entries().values()]
    sections = [
        HEAD.format("The catalogue"),
        "Classifiers that `onnxplain models get NAME` writes as ONNX, with their preprocessing, labels and licence in "
        "the metadata. EfficientNet-Lite is made without any framework; the others need the extra that is named.",
        table(("name", "", "image", "million parameters", "top-1 %", "extra", "licence"), rows),
        "Top-1 accuracies are those that their makers state, for torchvision with the weights that are taken here: "
        "the best ones of torchvision 0.28. Nothing was measured again.",
        "## Where they come from",
        "A download is held against its SHA-256, or against the first digits of it where no more is published. It goes "
        "on where it broke off, and is kept in the platform's cache folder. `ONNXPLAIN_OFFLINE=1` forbids the net.",
        table(("name", "file", "SHA-256"), sums),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def operators() -> str:
    """The page about operators."""
    sections = [
        HEAD.format("Operators"),
        "What becomes of each operator that lies between image and logits. `onnxplain inspect` tells what the gradient "
        "of a model does not pass. What to do then: [unsupported operators](../how-to/unsupported-operators.md).",
        "## With a gradient rule",
        "A rule is a formula. Cases that it does not cover, such as training mode, are refused with the reason.",
        table(("", "operators"), by_module()),
        "## Through formulas of ours",
        "These are long to differentiate, and short to compute again with operators that have rules. The gradient goes "
        "back through that; the operator stays in the graph ([why](../decisions/0013-operators-without-a-rule.md)).",
        listed(EXPANSIONS),
        "## Through ONNX's own definition",
        f"ONNX {onnx.__version__} defines these by a function, which takes the place of our formulas.",
        listed(defined_by_functions()),
        f"A function that holds a branch, or a loop whose turns only the run knows, is refused: {listed(LOOPS)}.",
        "## Written out beforehand",
        "These are replaced, in the classifier's own half too, for not every runtime has them.",
        table(("operator", "what takes its place"), [*CONTROL_FLOW, *rewritten()]),
        "Functions of the model itself are inlined. `Upsample` and `Scatter` of old opsets become `Resize` and "
        "`ScatterElements` when the model is raised to opset 18.",
        "## That end a way",
        "Their output does not change with their input, or only in jumps, so the gradient through them is zero.",
        table(("operators", "why"), grouped(NO_GRADIENT)),
        "## Refused",
        "An operator that is in no section of this page is refused as well, as one without a rule.",
        table(("operators", "why", "what to do instead"), refused()),
        "## That rules emit",
        "Gradients are made of these, and of what is in a function of ONNX that is differentiated.",
        listed(ALLOWED),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


LOOPS = ("AffineGrid", "Range")  # ONNX's functions that hold a branch, or a loop whose turns only the run knows
CONTROL_FLOW = (
    ("`If`", "the branch that it takes, if that is the same for every input"),
    ("`Scan`, `Loop`", "its turns, if their number is the same for every input"),
    ("`ai.onnx.ml.ZipMap`", "the tensor of scores that it makes dictionaries of"),
)


def by_module() -> list[tuple[str, ...]]:
    """The operators with rules, file by file, and what these are about by their own first sentences."""
    files: dict[str, list[str]] = {}
    for name, entry in DEFAULT.items():
        files.setdefault(entry.rule.__module__, []).append(name)
    return [(re.split("[.:]", sys.modules[name].__doc__ or "")[0], listed(files[name])) for name in sorted(files)]


def defined_by_functions() -> list[str]:
    """What is left to its function body: operators with a float input and neither a rule nor formulas of ours."""
    schemas = {s.name: s for s in onnx.defs.get_all_schemas() if not s.domain and has_body("", s.name, s.since_version)}
    floats = {name for name, schema in schemas.items() if any("tensor(float)" in x.types for x in schema.inputs)}
    return sorted(floats.difference(DEFAULT, EXPANSIONS, REFUSED, NO_GRADIENT, LOOPS))


def rewritten() -> list[tuple[str, ...]]:
    """The operators of ai.onnx.ml, with the formulas that replace them."""
    formulas = {name: (rewriting.__doc__ or "").split("\n")[0].rstrip(".") for name, rewriting in ml.REWRITINGS.items()}
    return [(f"`{ml.DOMAIN}.{name}`", formula) for name, formula in sorted(formulas.items())]


def refused() -> list[tuple[str, ...]]:
    """What is refused on principle: operators, why, what to do instead."""
    rows = [(names, *why.split("; next: ")) for names, why in grouped(REFUSED)]
    others, *instead = refusal("com.microsoft.AnyOther").split("; next: ")
    return [*rows, ("any other of `com.microsoft`", others, *instead)]


def grouped(reasons: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Operators with the same reason in one row."""
    return sorted((listed(name for name in reasons if reasons[name] == why), why) for why in set(reasons.values()))


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


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
        for part, inner in getattr(command, "commands", {}).items():
            inside = click.Context(inner, info_name=part, parent=context, **inner.context_settings)
            usage = " ".join([inside.command_path, *inner.collect_usage_pieces(inside)])
            sections += [f"### {name} {part}", f"```text\n{usage}\n```", prose(inner.help or "")]
            sections += [options(inner, inside, but={p.name for p in cli.get_params(top)})]
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
