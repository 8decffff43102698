"""Hyper-parameters from text and to JSON."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable
from enum import Enum
from fractions import Fraction
from typing import Any, get_args, get_origin

import numpy as np

from onnxplain.engine.methods.method import word
from onnxplain.errors import UsageError


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
    if kind is int:
        return int(text)
    if kind is str:
        return text
    if kind is Fraction:
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
        return {int: "whole numbers", float: "numbers"}[get_args(kind)[0]] + " with commas between"
    if words(kind):
        return " or ".join(words(kind))
    names = {int: "a whole number", float: "a number", str: "a word", Fraction: "a share such as 1/56"}
    return names.get(kind, "an array (from Python only)")


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
