"""The loop that `explain` and `score` share: take outcomes as they come, tell of failures, keep the rows in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from onnxplain.cli.tables import as_rows
from onnxplain.cli.terminal import progress, result, terminal

if TYPE_CHECKING:
    from onnxplain.engine.drive import Outcome, Usage
    from onnxplain.errors import OnnxplainError

Result = TypeVar("Result")
Observe = Callable[[Mapping[str, int]], None]


@dataclass
class Collected:
    """The rows of the items that succeeded, by number; the errors of the others, each told once."""

    by_item: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, OnnxplainError] = field(default_factory=dict)
    interrupted: str | None = None  # by Ctrl-C, and how far it was

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for item in sorted(self.by_item) for row in self.by_item[item]]

    def document(self, form: str, **more: Any) -> str:
        """The rows in a format other than text; a JSON document lists the failures and `more` too."""
        return as_rows(self.rows, form, **more, failed=[*self.failed, *filter(None, [self.interrupted])])

    @property
    def exit_code(self) -> int:
        """0 if all succeeded, 3 if some did, that of the first error if none did, and 1 if it was interrupted."""
        if self.interrupted:
            return 1
        if not self.failed:
            return 0
        return 3 if self.by_item else next(iter(self.failed.values())).exit_code


def collect(
    what: str,
    start: Callable[[Observe], Iterator[Outcome[Result]]],
    take: Callable[[int, Result], list[dict[str, Any]]],
    *,
    names: Sequence[str],
    costs: Sequence[int],
    usage: Usage,
    stream: bool = False,
) -> Collected:
    """Run items to their end, with a progress bar.

    `start` is given the observer of rows and returns the outcomes; `take` makes rows of one (and writes its files).
    Item i is called `names[i]` in errors and costs at most `costs[i % len(costs)]` rows of the runtime. With `stream`,
    rows are printed as JSON lines as they come.
    """
    here, done, items = terminal(), Collected(), len(names)
    with progress(what, items // len(costs) * sum(costs)) as bar:
        try:
            for outcome in start(bar.observe):
                bar.finished(costs[outcome.index % len(costs)], outcome.rows)
                if outcome.error is not None:
                    name, message = names[outcome.index], str(outcome.error)
                    message = message if name in message else f"{name}: {message}"
                    if message not in done.failed:  # a photo that no method can read is told once
                        here.say(f"error: {message}", -1)
                    done.failed[message] = outcome.error
                    continue
                rows = take(outcome.index, outcome.unwrap())
                done.by_item[outcome.index] = rows
                if stream:
                    result(as_rows(rows, "jsonl"))
        except KeyboardInterrupt:
            done.interrupted = f"interrupted: {len(done.by_item)} of {items} done"
            here.say(f"{done.interrupted}; what was finished is kept", -1)
    calls = ", ".join(f"{rows} {role} rows in {usage.calls[role]} calls" for role, rows in usage.rows.items())
    here.say(f"{calls}; {usage.runtime_seconds:.1f} s of {usage.seconds:.1f} s inside the runtime", 1)
    return done
