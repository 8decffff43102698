"""Reads the weights in a `.pth` file of PyTorch's format before 1.6, without PyTorch and without unpickling.

Unpickling runs whatever code the file names. Here the pickle's instructions are read as data, by an interpreter that
knows the few of them that a state dictionary needs, and four globals, none of which is imported or called.

The file is a row of pickles and then the numbers: a magic number, a protocol version, facts about the machine, the
state dictionary, the sorted keys of the storages; then for each key a count (int64) and that many elements.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError, unreadable

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_INSTRUCTIONS = 1_000_000  # a state dictionary needs about fifty for each tensor

DTYPES: Mapping[str, np.dtype[Any]] = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
REBUILD = "torch._utils _rebuild_tensor_v2"
ORDERED_DICT = "collections OrderedDict"


@dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions; only ever compared."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class _CheckpointError(Exception):
    """What is wrong with the file, before its path is known."""


def read_legacy_checkpoint(path: str | Path) -> dict[str, NDArray[Any]]:
    """The tensors of a state dictionary by name: float32 or int64, read-only views of the file's bytes.

    Their axes lie in memory as the file has them, which need not be C order. Memory is bounded by the size of the
    file: nothing is allocated because a header says so.

    Raises:
        InputError: not such a file, damaged, or with anything else in it than plain tensors.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pickletools warns of odd escapes in names
            return _read(path.read_bytes())
    except OSError as error:
        raise unreadable("the weights", path, error) from error
    except _CheckpointError as error:
        raise InputError(
            f"cannot read the weights {path}: {error}; next: use a state_dict saved as plain tensors"
        ) from error
    # What reading a damaged pickle ends in: a truncated argument, an unknown code, a wrong operand, an empty stack.
    except (ValueError, TypeError, LookupError, AttributeError, Warning, struct.error) as error:
        raise InputError(
            f"cannot read the weights {path}: not a legacy PyTorch checkpoint, or damaged; next: fetch it again"
        ) from error


def _read(content: bytes) -> dict[str, NDArray[Any]]:
    if content.startswith(b"PK"):
        raise _CheckpointError("this is PyTorch's newer zip format, expected the one before 1.6")
    stream = io.BytesIO(content)
    for what, expected in (("magic number", MAGIC), ("protocol", PROTOCOL)):
        if _interpret(stream) != expected:
            raise _CheckpointError(f"its {what} is not {expected:#x}")
    if _interpret(stream).get("little_endian") is not True:
        raise _CheckpointError("it was written on a big-endian machine")
    state, keys = _interpret(stream), [_expect(key, str) for key in _expect(_interpret(stream), list)]
    if not (isinstance(state, dict) and all(isinstance(value, _Tensor) for value in state.values())):
        raise _CheckpointError("it holds something else than a dictionary of tensors")

    storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
    if sorted(keys) != sorted(storages):
        raise _CheckpointError("its list of storages does not match its tensors")
    data = {}
    position = stream.tell()
    for key in keys:
        storage = storages[key]
        (count,) = struct.unpack_from("<q", content, position)
        if count != storage.count:
            raise _CheckpointError(f"storage {key!r:.40} has {count} elements, expected {storage.count}")
        data[key] = np.frombuffer(content, storage.dtype, count, position + 8)  # raises where the file is too short
        position += 8 + data[key].nbytes
    if position != len(content):
        raise _CheckpointError(f"{len(content) - position} bytes follow the last storage")
    return {name: _view(data[tensor.storage.key], tensor) for name, tensor in state.items()}


def _view(data: NDArray[Any], tensor: _Tensor) -> NDArray[Any]:
    """The tensor's part of its storage. Axes may lie in any order, but together they cover it without gaps."""
    order = sorted(range(len(tensor.shape)), key=lambda axis: (tensor.strides[axis], tensor.shape[axis]), reverse=True)
    size = 1
    for axis in reversed(order):
        if tensor.shape[axis] != 1 and tensor.strides[axis] != size:
            raise _CheckpointError("a tensor has gaps or overlaps in memory")
        size *= tensor.shape[axis]
    end = tensor.offset + size
    if tensor.storage.dtype != data.dtype or end > len(data):
        raise _CheckpointError(f"a tensor lies outside its storage {tensor.storage.key!r:.40}")
    laid_out = data[tensor.offset : end].reshape([tensor.shape[axis] for axis in order])
    return laid_out.transpose(np.argsort(order)) if order else laid_out


def _interpret(stream: io.BytesIO) -> Any:
    """What the next pickle in the stream describes: dicts, lists, tuples, str, int, bool, None and `_Tensor`."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open MARK
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for count, (code, arg, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_INSTRUCTIONS:
            raise _CheckpointError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
        match code.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                below.append(stack)
                stack = []
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(code.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                group = tuple(marked())  # before `stack` is looked up: it rebinds it
                stack.append(group)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(code.name[-1])
                if len(stack) < size:
                    raise IndexError
                stack[-size:] = [tuple(stack[-size:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[int(arg)] = stack[-1]  # type: ignore[arg-type]  # genops types its arguments loosely
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(arg)])  # type: ignore[arg-type]
            case "APPEND":
                value = stack.pop()
                _expect(stack[-1], list).append(value)
            case "APPENDS":
                items = marked()
                _expect(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[_expect(key, str)] = value
            case "SETITEMS":
                flat = marked()
                target = _expect(stack[-1], dict)
                for key, value in zip(flat[::2], flat[1::2], strict=True):
                    target[_expect(key, str)] = value
            case "GLOBAL":
                if arg not in (ORDERED_DICT, REBUILD, *DTYPES):
                    raise _CheckpointError(f"its pickle names {str(arg)[:100]!r}, which is refused")
                stack.append(_Global(str(arg)))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(_reduce(_expect(function, _Global).name, _expect(args, tuple)))
            case "BUILD":  # sets attributes, here `_metadata`: versions of modules, of no use to us
                _expect(stack.pop(), dict)
                _expect(stack[-1], dict)
            case _:
                raise _CheckpointError(f"its pickle has the instruction {code.name}, which is refused")
    raise IndexError


def _expect(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _storage(identity: Any) -> _Storage:
    _, kind, key, _, count, view = identity
    if view is not None or type(count) is not int or count < 0:
        raise TypeError
    return _Storage(_expect(key, str), DTYPES[_expect(kind, _Global).name], count)


def _reduce(name: str, args: tuple[Any, ...]) -> Any:
    if name == ORDERED_DICT and not args:
        return {}
    if name != REBUILD:
        raise _CheckpointError(f"its pickle calls {name!r} in an unknown way")
    storage, offset, shape, strides, _, _ = args
    numbers = (offset, *_expect(shape, tuple), *_expect(strides, tuple))
    if len(shape) != len(strides) or len(shape) > 64 or not all(type(n) is int and n >= 0 for n in numbers):
        raise TypeError
    return _Tensor(_expect(storage, _Storage), offset, shape, strides)
