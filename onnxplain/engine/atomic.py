"""Files that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from onnxplain.errors import OutputError


def write_atomically(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write `data` to `path` so that no reader ever sees a part of it, and no failure leaves anything behind.

    The bytes go to a temporary file in the same folder, which then takes the name `path`.

    Raises:
        OutputError: the path is there already (without `overwrite`), or the folder cannot be written to, or is full.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path}: already there, left as it is; next: choose another name, or ask to overwrite")
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"  # short: the name of `path` may be as long as names can be
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "next: check that the folder exists, is writable and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # also on Ctrl-C; after os.replace there is nothing left to remove
            temporary.unlink()


def refuse_existing(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Before any work: raise `OutputError` if one of its results is there already (without `overwrite`)."""
    there = [] if overwrite else [path for path in paths if os.path.lexists(path)]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise OutputError(
            f"{there[0]}{more}: already there, left as it is; "
            "next: write somewhere else, or ask to overwrite (--overwrite)"
        )
