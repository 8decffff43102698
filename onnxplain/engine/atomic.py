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
    temporary = temporary_in(path.parent)
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


def temporary_in(folder: Path) -> Path:
    return folder / f".{secrets.token_hex(8)}.tmp"  # short: the name of the result may be as long as names can be


def refuse_existing(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Before any work: raise `OutputError` if one of its results is there already (without `overwrite`)."""
    there = [] if overwrite else [path for path in paths if os.path.lexists(path)]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise OutputError(
            f"{there[0]}{more}: already there, left as it is; "
            "next: write somewhere else, or ask to overwrite (--overwrite)"
        )


def writable_folder(folder: str | os.PathLike[str]) -> None:
    """Make the folder if need be, and see that it takes files: an hour of computing later is too late to find out.

    Raises:
        OutputError: it cannot be made or written to.
    """
    path = Path(folder)
    probe = temporary_in(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be used for results ({error.strerror}); next: give a folder that can be written to"
        ) from error


def writable_file(path: str | os.PathLike[str]) -> None:
    """Before any work: see that a file can be written there, and make its folder if need be.

    Raises:
        OutputError: the path is a folder, or its own folder cannot be made or written to.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path}: cannot be written (it is a folder); next: give the name of a file")
    try:
        writable_folder(Path(path).parent)
    except OutputError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from error
