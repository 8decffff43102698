"""A model as files: one, or two where there are more weights than a single file can hold."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxplain.adapters.gradient.differentiate import MESSAGE, as_message, weight_bytes
from onnxplain.engine.atomic import refuse_existing, temporary_in, write_atomically
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
    files = files_for(path, model)
    refuse_existing(files, overwrite=overwrite)
    nodes = len(model.graph)
    if len(files) == 1:
        write_atomically(path, as_message(model).SerializeToString(), overwrite=overwrite)
    else:
        write_apart(model, files)
    size = sum(file.stat().st_size for file in files)
    return WrittenModel(str(path), [str(file) for file in files], size, nodes, sha256(files))


def write_apart(model: ir.Model, files: list[Path]) -> None:
    """Graph and weights in two files, made in a folder beside them that goes whatever happens."""
    path, data = files
    folder = temporary_in(path.parent)
    try:
        folder.mkdir()
        ir.save(model, folder / path.name, external_data=data.name)
        for file in (data, path):  # the graph last: it is of no use without its weights
            os.replace(folder / file.name, file)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "next: check that the folder exists, is writable and has room"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sha256(files: Iterable[Path]) -> str:
    """The SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()
