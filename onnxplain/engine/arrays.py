"""`.npy` and `.npz` files: never a pickle, and bounded in memory when read, whoever wrote them.

What a file declares (member sizes, shapes) is checked before anything is decompressed or allocated. One array may take
at most `LIMIT` bytes. Whatever is wrong with a file, the error is an `InputError` of one line.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxplain.errors import InputError, input_error

Array: TypeAlias = NDArray[Any]
Source: TypeAlias = str | os.PathLike[str]

LIMIT = 512 * 2**20  # bytes of one array: 3 channels of 6 600 x 6 600 float32
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"  # how the files begin
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # (3, 0) is for structured arrays


def npz(arrays: Mapping[str, Array]) -> bytes:
    """The content of an `.npz` file; the same arrays always give the same bytes (no compression, no time stamps)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array(member, array, allow_pickle=False)
    return content.getvalue()


def array_names(path: Source) -> list[str]:
    """The names of the arrays in a file; a `.npy` file holds one, named `""`."""
    with reading(path), open(path, "rb") as file:
        return [""] if is_npy(file, path) else list(members(file, path))


def read_array(path: Source, name: str = "") -> Array:
    """One array of a file: numbers (float or int) or text.

    Raises:
        InputError: the file is damaged, holds pickled objects, is too large, or has no array of that name.
    """
    with reading(path), open(path, "rb") as file:
        if is_npy(file, path):
            return read_npy(file, os.fstat(file.fileno()).st_size, path)
        archive = members(file, path)
        if name not in archive:
            raise InputError(f"{path}: has no array {name!r}; next: name one of these: {', '.join(archive)}")
        member = archive[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: array {name!r} is compressed in an unknown way; next: write it with numpy.savez")
        refuse_if_huge(member.file_size, path)
        with zipfile.ZipFile(file) as opened, opened.open(member) as stream:
            return read_npy(stream, member.file_size, path)


@contextmanager
def reading(path: Source) -> Iterator[None]:
    """Turn whatever a missing or damaged file makes the libraries raise into one `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy and the parser of literals, about headers that fail anyway
            yield
    except InputError:
        raise
    except OSError as error:
        raise input_error(error)(f"{path}: cannot be read ({error.strerror or error}); next: check the path") from error
    except Exception as error:  # zipfile, zlib, json and the parser of headers raise a dozen different types
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]  # one line, even if it quotes the file
        raise InputError(f"{path}: damaged ({why}); next: write or copy the file again") from error


def is_npy(file: IO[bytes], path: Source) -> bool:
    """Whether a file is `.npy` (otherwise it is `.npz`), by how it begins and not by its name."""
    start = file.read(len(NPY))
    file.seek(0)
    if not start.startswith((NPY, ZIP)):
        raise InputError(f"{path}: neither a .npy nor a .npz file; next: write it with numpy.save or numpy.savez")
    return start == NPY


def members(file: IO[bytes], path: Source) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an archive, by name."""
    with zipfile.ZipFile(file) as archive:
        found = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
    if not found:
        raise InputError(f"{path}: holds no arrays; next: write it with numpy.savez")
    return found


def refuse_if_huge(size: int, path: Source) -> None:
    if size > LIMIT + 2**20:  # the header has room too
        raise InputError(
            f"{path}: would take {size / 2**20:,.0f} MiB, more than {LIMIT // 2**20}; next: use smaller maps"
        )


def read_npy(stream: IO[bytes], size: int, path: Source) -> Array:
    """An array in numpy's own format, from a stream of `size` bytes."""
    refuse_if_huge(size, path)
    header: Callable[[IO[bytes]], Any] | None = HEADERS.get(npy.read_magic(stream))
    if header is None:
        raise InputError(f"{path}: written in an unknown version of numpy's format; next: write it with numpy.save")
    shape, fortran_order, dtype = header(stream)
    if dtype.hasobject:
        raise InputError(
            f"{path}: holds pickled Python objects, which are never loaded; next: save an array of numbers"
        )
    if dtype.kind not in "fiuU":
        raise InputError(f"{path}: holds {dtype}, expected float or int; next: convert the array and save it again")
    count = math.prod(shape)
    if count * dtype.itemsize > size - stream.tell():
        raise InputError(
            f"{path}: cut short: shape {list(shape)} of {dtype} needs more bytes; next: copy the file again"
        )
    data = stream.read(count * dtype.itemsize)
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran_order else "C")
