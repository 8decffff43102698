"""Hyper-parameters from text and to JSON."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from enum import Enum
from fractions import Fraction
from inspect import signature
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from onnxplain.engine.methods.method import word
from onnxplain.errors import UsageError

T = TypeVar("T")


def suggest(wrong: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known one, if any is close, and all of them."""
    names = sorted(names)
    closest = difflib.get_close_matches(wrong, names, n=1)
    meant = f"; did you mean {closest[0]}?" if closest else ";"
    return f"{meant} known: {', '.join(names)}"


def parse(what: str, text: str, hint: Any) -> Any:
    """`text` as a value of the type `hint`. `what` names the parameter in errors."""
    readings = get_args(hint) if get_origin(hint) not in (None, tuple, np.ndarray) else (hint,)
    for reading in readings:
        try:
            return read(text.strip(), reading)
        except (ValueError, LookupError, ZeroDivisionError):
            continue
    raise UsageError(f"{what}: expected {' or '.join(map(describe, readings))}, got {text!r}")


def read(text: str, kind: Any) -> Any:
    """`text` as a value of one plain type; a `ValueError` or `LookupError` if it is none."""
    if kind is str:
        return text
    if kind is int:
        return int(text)
    if kind is Fraction:
        if "/" not in text:
            raise ValueError
        return Fraction(text)
    if kind is float:
        above, slash, below = text.partition("/")  # reads 5/255 too, and neither nan nor inf
        number = float(above) / (float(below) if slash else 1)
        if not math.isfinite(number):
            raise ValueError
        return number
    if get_origin(kind) is tuple:
        return tuple(read(part.strip(), get_args(kind)[0]) for part in text.split(","))
    return words(kind)[text.lower()]


def words(kind: Any) -> dict[str, Any]:
    """The values of a type that are spelt as words."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {word(member): member for member in kind}
    if kind is bool:
        return {"true": True, "false": False}
    return {"none": None} if kind is type(None) else {}


def describe(kind: Any) -> str:
    """A type in the words of an error message."""
    if get_origin(kind) is tuple:
        return f"{'whole ' * (get_args(kind)[0] is int)}numbers with commas between"
    if words(kind):
        return " or ".join(words(kind))
    known = {int: "a whole number", float: "a number", str: "a word", Fraction: "a share such as 1/56"}
    return known.get(kind, "an array (from Python only)")


def configured(what: str, table: Mapping[str, T], id: str, options: Mapping[str, str]) -> T:
    """The entry of this id with parameters given as text: those of its constructor, but `id`.

    Raises `UsageError` for an unknown entry (`what` says of what) or parameter, naming the closest one and all of
    them, and for a value that the parameter does not take.
    """
    if id not in table:
        raise UsageError(f"unknown {what} {id!r}{suggest(id, table)}")
    make = type(table[id])
    names, hints = [name for name in signature(make).parameters if name != "id"], get_type_hints(make.__init__)
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name not in names:
            raise UsageError(f"{id}: unknown parameter {name!r}{suggest(name, names)}")
        values[name] = parse(f"{id}: {name}", text, hints[name])
    made: T = replace(table[id], **values)  # type: ignore[type-var]
    return made


def parameters(entry: Any) -> dict[str, Any]:
    """The parameters of an entry, those of its fields that are not its `id`."""
    return {field.name: getattr(entry, field.name) for field in fields(entry) if field.name != "id"}


def plain(value: Any) -> Any:
    """A hyper-parameter as JSON has it."""
    if isinstance(value, Enum):
        return word(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"shape": list(value.shape), "dtype": value.dtype.name, "sha256": digest}
    return value
