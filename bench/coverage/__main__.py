"""How far gradient models reach, in four stages.

    python -m bench.coverage export     # classifiers with random weights, and their gradients by float64 autograd
    python -m bench.coverage check      # each against autograd, ONNX Runtime, OpenVINO, TensorRT-RTX and onnx-ad
    python -m bench.coverage gaps       # the operators that stand in the way, and in how many models
    python -m bench.coverage table      # docs/coverage.md from what `check` found

The first two take names or patterns ('timm-*'), go on where they were stopped, and give each model a process of its own
and a time limit, so that a crash costs one row.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click

from bench.coverage.zoo import ZOO

ROOT = Path(__file__).resolve().parents[2]
ERROR = re.compile(
    r"[\w.]+(Error|Exception|Operator|Model|Failed)\b"
)  # the first such line of a traceback is the cause
FOLDER = click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("/tmp/zoo"), show_default=True, help="The cache."
)
REDO = click.option("--redo", is_flag=True, help="Also what has been done already.")
PATTERNS = click.argument("patterns", nargs=-1)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command("export")
@PATTERNS
@FOLDER
@REDO
@click.option("--limit", default=900, show_default=True, help="Seconds for one model.")
def export_command(patterns: tuple[str, ...], folder: Path, redo: bool, limit: int) -> None:
    """Write NAME.onnx and NAME.npz of each model; where that fails, NAME.failed with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen(patterns):
        whole, failed = folder / f"{name}.npz", folder / f"{name}.failed"
        if not redo and (whole.exists() or failed.exists()):
            continue
        start = time.perf_counter()
        reason = run(["export-one", name, str(folder)], limit)[1]
        failed.unlink(missing_ok=True)
        if reason:
            failed.write_text(reason + "\n", encoding="utf-8")
        click.echo(f"{name}: {reason or 'written'} ({time.perf_counter() - start:.0f} s)")


@main.command("check")
@PATTERNS
@FOLDER
@REDO
@click.option("--step", "only", multiple=True, help="Only these; all of them without it.")
@click.option("--drop", is_flag=True, help="Delete each gradient model when its steps are done.")
def check_command(patterns: tuple[str, ...], folder: Path, redo: bool, only: tuple[str, ...], drop: bool) -> None:
    """Take the steps that are missing for each exported model; one JSON line each, in results.jsonl of the cache.

    A gradient model is made once for a revision of the package. What runtimes make of it, ONNX Runtime too, is asked
    once for each gradient model that differs.
    """
    from bench.coverage.check import LIMITS, PEERS, STEPS, Files, versions
    from bench.coverage.table import right

    now, theirs = revision(), versions()
    results = folder / "results.jsonl"

    def take(name: str, step: str, key: str) -> dict[str, Any]:
        output, reason = run(["check-one", name, step, str(folder)], LIMITS[step])
        found = {"failed": reason} if reason else json.loads(output)
        if found.pop("same", False):  # as the gradient model of an earlier revision, and so is what came of it
            before = [row for row in read(results) if row["name"] == name and row.get("digest") == found["digest"]]
            found = before[-1] | found
        row = {"name": name, "step": step, "key": key, "date": time.strftime("%Y-%m-%d"), "versions": theirs}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found | row) + "\n")
        click.echo(f"{name} {step}: {brief(found)}")
        return found

    for name in chosen(patterns):
        files = Files(folder, name)
        if not files.case.exists():
            continue
        done = {(row["step"], row["key"]): row for row in read(results) if row["name"] == name}
        steps = [step for step in STEPS if not only or step in only]
        ours = done.get(("gradient", now))
        if ours is None or (redo and "gradient" in steps):
            if redo:
                files.answer.unlink(missing_ok=True)
            ours = take(name, "gradient", now)
        for step in steps:
            key = theirs["onnx-ad"] if step in PEERS else ours.get("digest")
            if step == "kinks" and right(ours):
                continue
            if step == "gradient" or key is None or ((step, key) in done and not redo):
                continue
            if step not in PEERS and files.digest() != key:
                take(name, "gradient", now)
            take(name, step, key)
        if drop:
            files.gradient.unlink(missing_ok=True)


@main.command("gaps")
@FOLDER
def gaps_command(folder: Path) -> None:
    """Each operator that stands in the way, in how many models, and a reason. Of the latest result of each model."""
    from bench.coverage.table import clipped, gaps, latest, short

    for op, names, why in gaps(latest(read(folder / "results.jsonl"))):
        click.echo(f"{len(names):4} {op}: {short(names)}: {clipped(why)}")


@main.command("table")
@FOLDER
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "docs" / "coverage.md")
def table_command(folder: Path, output: Path) -> None:
    """Write docs/coverage.md."""
    from bench.coverage.table import latest, page

    failed = {path.stem: path.read_text("utf-8").strip() for path in folder.glob("*.failed")}
    output.write_text(page(latest(read(folder / "results.jsonl")), failed), encoding="utf-8")


@main.command("export-one", hidden=True)
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
def export_one(name: str, folder: Path) -> None:
    from bench.coverage.export import export

    export(ZOO[name], folder)


@main.command("check-one", hidden=True)
@click.argument("name")
@click.argument("step")
@click.argument("folder", type=click.Path(path_type=Path))
def check_one(name: str, step: str, folder: Path) -> None:
    from bench.coverage.check import STEPS, Files

    click.echo(json.dumps(STEPS[step](Files(folder, name))))


def chosen(patterns: Iterable[str]) -> list[str]:
    """The names that a pattern matches, in the order of the patterns; all of them without any."""
    found: dict[str, None] = {}
    for pattern in patterns or ("*",):
        matches = [name for name in ZOO if fnmatch(name, pattern)]
        if not matches:
            raise click.UsageError(f"no model of the zoo is called {pattern}")
        found |= dict.fromkeys(matches)
    return list(found)


def run(arguments: list[str], limit: int) -> tuple[str, str | None]:
    """Run a hidden command in a process of its own: the last line that it printed, and why it failed or None."""
    command = [sys.executable, "-m", "bench.coverage", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return "", f"not done after {limit} s"
    if done.returncode == 0:
        return (done.stdout.splitlines() or [""])[-1], None
    raised = [line for line in done.stderr.splitlines() if ERROR.match(line)]
    return "", raised[0] if raised else f"exit code {done.returncode}"


def revision() -> str:
    """The commit that last changed the package; a + behind it says that there are changes on top."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "log", "-1", "--format=%h", "--", "onnxplain"], text=True).strip()
    return commit + "+" * bool(subprocess.check_output([*git, "status", "--porcelain", "--", "onnxplain"], text=True))


def read(results: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none if it does not exist."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()]


def brief(found: dict[str, Any]) -> str:
    """What a step found, on one line of a log."""
    if "cosine" in found:
        return f"cosine {min(found['cosine']):.8f}"
    if "gaps" in found:
        return "gaps: " + ", ".join(sorted({gap["op"] for gap in found["gaps"]}))
    return str(found.get("failed") or found.get("refused") or found)[:200]


if __name__ == "__main__":
    main()
