"""A model as files: one, or two where there are more weights than a single file can hold."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxplain.adapters.gradient.differentiate import MESSAGE, as_message, weight_bytes
from onnxplain.engine.atomic import refuse_existing, temporary_in
from onnxplain.errors import OutputError


@dataclass(frozen=True)
class WrittenModel:
    """A model file that was written; bytes and SHA-256 are of all of its files, in the order of `files`."""

    path: str
    files: list[str]
    bytes: int
    nodes: int
    sha256: str


def files_for(path: Path, model: ir.Model) -> list[Path]:
    """The files that a model takes."""
    return [path] if weight_bytes(model) <= MESSAGE else [path, path.with_name(f"{path.name}.data")]


def write_model(model: ir.Model, path: Path, *, overwrite: bool = False) -> WrittenModel:
    """Write a model. Weights that lie in files are copied from there piece by piece, and are never all in memory.

    Raises:
        OutputError: a file is there already (without `overwrite`), or cannot be written. Nothing is left behind.
    """
    with staged(model, path, overwrite=overwrite):
        pass
    return written(model, path)


@contextmanager
def staged(model: ir.Model, path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A model written to a folder beside `path`, to be looked at: it takes its place when the block ends well.

    Raises:
        OutputError: as `write_model`.
    """
    files = files_for(path, model)
    refuse_existing(files, overwrite=overwrite)
    folder = temporary_in(path.parent)
    try:
        with blaming_disk(path):
            folder.mkdir()
            if len(files) == 1:
                (folder / path.name).write_bytes(as_message(model).SerializeToString())
            else:
                ir.save(model, folder / path.name, external_data=files[1].name)
        yield folder / path.name
        refuse_existing(files, overwrite=overwrite)  # it may have come meanwhile
        with blaming_disk(path):
            for file in reversed(files):  # the graph last: it is of no use without its weights
                os.replace(folder / file.name, file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # also on Ctrl-C


@contextmanager
def blaming_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "next: check that the folder exists, is writable and has room"
        ) from error


def written(model: ir.Model, path: Path) -> WrittenModel:
    """What was written of a model."""
    files = files_for(path, model)
    size = sum(file.stat().st_size for file in files)
    return WrittenModel(str(path), [str(file) for file in files], size, len(model.graph), sha256(files))


def sha256(files: Iterable[Path]) -> str:
    """The SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()
