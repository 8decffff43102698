"""What goes to stderr: notes, errors of single items, and the progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from onnxplain.errors import OutputError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass
class Terminal:
    """How much to say, from `-v`, `-q`, `--progress` and `--traceback`, wherever on the command line they stand."""

    verbosity: int = 0
    traceback: bool = False
    progress: bool | None = None  # None: if stderr is a terminal
    bar: Progress | None = field(default=None, repr=False)

    def say(self, text: str, level: int = 0) -> None:
        """A line on stderr, if the verbosity is at least `level` (errors: -1, notes: 0, details: 1)."""
        if self.verbosity < level and level >= 0:
            return
        if self.bar is None:
            click.echo(text, err=True)
        else:  # above the bar
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def terminal() -> Terminal:
    """The terminal of this run of the command line."""
    return click.get_current_context().find_root().ensure_object(Terminal)


def result(text: str) -> None:
    """A result on stdout. Raises `OutputError` where that is a full disk."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise  # whoever reads has seen enough: click ends quietly
    except OSError as error:
        raise OutputError(f"standard output: cannot be written ({error.strerror}); next: make room") from error


class Rows:
    """Progress by rows that the runtime works on, so that a single photo shows progress too."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def observe(self, rows: Mapping[str, int]) -> None:
        self.bar.advance(self.task, sum(rows.values()))

    def finished(self, estimate: int, rows: Mapping[str, int]) -> None:
        """An item is done: correct the total, which was made of estimates, by what it took."""
        (task,) = self.bar.tasks
        self.bar.update(self.task, total=(task.total or 0) - estimate + sum(rows.values()))


@contextmanager
def progress(what: str, total: int) -> Iterator[Rows]:
    """A progress bar on stderr; one that shows nothing where none is wanted."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    here = terminal()
    console = Console(stderr=True, force_terminal=here.progress or None)
    wanted = here.progress if here.progress is not None else console.is_terminal and here.verbosity >= 0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    # stdout is left alone: redirected, its rows would land on stderr
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not wanted,
        redirect_stdout=False, redirect_stderr=False,
    ) as bar:  # fmt: skip
        here.bar = bar if wanted else None
        try:
            yield Rows(bar, bar.add_task(what, total=total))
        finally:
            here.bar = None


@contextmanager
def downloads(what: str) -> Iterator[None]:
    """A progress bar for downloads, from when one begins."""
    from onnxplain.models.download import watching

    with ExitStack() as stack:
        bars: list[Rows] = []

        def seen(done: int, total: int | None) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(what, total or 1)))
            bars[0].bar.update(bars[0].task, completed=done, total=total)

        with watching(seen):
            yield
