"""Result rows on disk: JSON lines that survive being cut off, and one Parquet file of them at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from onnxplain.engine.atomic import temporary_in
from onnxplain.engine.explanation import plain
from onnxplain.errors import InputError, OutputError, importing

Row: TypeAlias = dict[str, Any]

BLOCK = 65536  # bytes that are looked through at once for the end of the last whole line


class RowLog:
    """A file of result rows, one JSON object a line, that rows are appended to.

    Rows are written unit by unit (the rows of one image, method and metric; they share a `key`, and `part` is the place
    of each and their number), and are on their way to the disk when `append` returns. What a crash leaves of a last
    line is cut off when the file is opened, and a unit of which a part is missing counts as not there.

    Raises:
        InputError: a line that is not the last one is no row: the file is something else, or damaged.
        OutputError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "a+b")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._cut()
            self.keys = self._complete()
        except BaseException:
            self.close()
            raise

    def _cut(self) -> None:
        """Drop a last line without its end."""
        try:
            at = end = self._file.seek(0, os.SEEK_END)
            while at:
                start = max(0, at - BLOCK)
                self._file.seek(start)
                newline = self._file.read(at - start).rfind(b"\n")
                if newline >= 0:
                    at = start + newline + 1
                    break
                at = start
            if at < end:
                self._file.truncate(at)
        except OSError as error:
            raise self._failed(error) from error

    def _complete(self) -> set[str]:
        """The keys of the units that are there whole."""
        parts: dict[str, set[int]] = {}
        sizes: dict[str, int] = {}
        for row in self:
            i, sizes[row["key"]] = row["part"]
            parts.setdefault(row["key"], set()).add(i)
        return {key for key, size in sizes.items() if len(parts[key]) == size}

    def __iter__(self) -> Iterator[Row]:
        """All rows, in the order in which they were written."""
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        row = json.loads(line)
                        i, size = row["part"]
                        good = isinstance(row["key"], str) and 0 <= i < size
                    except (ValueError, LookupError, TypeError):
                        good = False
                    if not good:
                        raise InputError(
                            f"{self.path}: line {number} is no result row; "
                            "next: delete that line, or write into another folder"
                        )
                    yield row
        except OSError as error:
            raise self._failed(error) from error

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows at the end. Raises `OutputError`, e.g. where the disk is full."""
        rows = list(rows)
        text = "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self.keys.update(row["key"] for row in rows)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path}: cannot be written ({error.strerror}); "
            "next: make room, and run the same command again: it goes on where it stopped"
        )

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # what could not be written before cannot be written now
            raise self._failed(error) from error

    def __enter__(self) -> RowLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OutputError:
            if error is None:
                raise


def require_results() -> None:
    """Raise `BackendMissing` unless what a run needs at its end is installed."""
    with importing("pyarrow", "results"):
        import pyarrow.parquet  # noqa: F401
    with importing("scipy", "results"):
        import scipy.stats  # noqa: F401


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as one Parquet file, atomically, in place of an older one.

    Columns are the keys of the rows in the order of their first appearance; what a row lacks is null, and a dictionary
    is its JSON text.

    Raises:
        BackendMissing: pyarrow is not installed.
        OutputError: the file cannot be written.
    """
    require_results()
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: [cell(row.get(name)) for row in rows] for name in names})
    temporary = temporary_in(path.parent)
    try:
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); next: make room") from error
    finally:
        temporary.unlink(missing_ok=True)


def cell(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
