"""How far gradient models reach, in four stages.

    python -m bench.coverage export             # classifiers with random weights, and their float64 gradients
    python -m bench.coverage check              # each against autograd, ONNX Runtime, OpenVINO, TensorRT-RTX, onnx-ad
    python -m bench.coverage gaps               # the operators that stand in the way, and in how many models
    python -m bench.coverage table              # docs/coverage.md from what `check` found

Every stage takes names or patterns (`'timm-*'`), goes on where it was stopped, and runs each model in a process of its
own, so that a crash or a time-out costs one row.
"""

from __future__ import annotations

import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import click

from bench.coverage.zoo import ZOO, Entry

FOLDER = click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("/tmp/zoo"), show_default=True, help="The cache."
)
REDO = click.option("--redo", is_flag=True, help="Also what has been done already, or has failed.")


@click.group(help=__doc__)
def main() -> None:
    pass


def chosen(patterns: tuple[str, ...]) -> list[Entry]:
    """The entries that a pattern matches, in the order of the patterns; all of them without any."""
    found: dict[str, Entry] = {}
    for pattern in patterns or ("*",):
        matches = {name: entry for name, entry in ZOO.items() if fnmatch(name, pattern)}
        if not matches:
            raise click.UsageError(f"no model of the zoo is called {pattern}")
        found |= {name: entry for name, entry in matches.items() if name not in found}
    return list(found.values())


@main.command("export")
@click.argument("patterns", nargs=-1)
@FOLDER
@REDO
@click.option("--limit", default=900, show_default=True, help="Seconds for one model.")
def export_command(patterns: tuple[str, ...], folder: Path, redo: bool, limit: int) -> None:
    """Write NAME.onnx and NAME.npz of each model; where that fails, NAME.failed with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in chosen(patterns):
        done, failed = folder / f"{entry.name}.npz", folder / f"{entry.name}.failed"
        if not redo and (done.exists() or failed.exists()):
            continue
        start = time.perf_counter()
        reason = run(["export-one", entry.name, str(folder)], limit)
        failed.unlink(missing_ok=True)
        if reason:
            failed.write_text(reason + "\n", encoding="utf-8")
        click.echo(f"{entry.name}: {reason or 'written'} ({time.perf_counter() - start:.0f} s)")


@main.command("export-one", hidden=True)
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
def export_one(name: str, folder: Path) -> None:
    from bench.coverage.export import export

    export(ZOO[name], folder)


def run(arguments: list[str], limit: int) -> str | None:
    """Run a hidden command in a process of its own; the last line of its complaint, or None."""
    command = [sys.executable, "-m", "bench.coverage", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not done after {limit} s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1] if lines else f"exit code {done.returncode}"


if __name__ == "__main__":
    main()
