"""Arguments that Python users give: of the right type, or an error that says what is expected."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxplain.errors import UsageError

MOST_ROWS, MOST_THREADS = 65536, 1024
SHOWN = 60  # characters of what was given


def expect(right: bool, name: str, expected: str, got: Any, next: str) -> None:
    """Raise `UsageError` unless an argument is right."""
    if not right:
        said = repr(got)
        shown = said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
        raise UsageError(f"{name}: expected {expected}, got {shown}; next: {next}")


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number within bounds; True is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value) <= high


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def check_running(*, on: Any, precision: Any, threads: Any, provider_options: Any, cache: Any, batch_size: Any) -> None:
    """The arguments that say how a model is run."""
    expect(is_text(on), "on", "the name of a device", on, "write 'cpu', 'cuda', 'cuda:1', 'tensorrt' or 'openvino'")
    expect(is_text(precision), "precision", "a name", precision, "write 'fp32', 'tf32', 'fp16' or 'bf16'")
    expect(
        is_whole(threads, 0, MOST_THREADS),
        *("threads", f"a whole number from 0 to {MOST_THREADS}", threads, "leave it out, and the runtime decides"),
    )
    expect(
        provider_options is None
        or (
            isinstance(provider_options, Mapping)
            and all(isinstance(s, str) for o in provider_options.items() for s in o)
        ),
        *("provider_options", "texts by names", provider_options, "write {'NAME': 'VALUE'}"),
    )
    expect(
        cache is None or isinstance(cache, str | os.PathLike),
        *("cache", "a folder, 'auto' or None", cache, "leave it out for the platform's own folder"),
    )
    expect(
        batch_size == "auto" or is_whole(batch_size, 1, MOST_ROWS),
        *("batch_size", f"a whole number from 1 to {MOST_ROWS}, or 'auto'", batch_size, "leave it out for 8"),
    )


def check_model(*, output: Any, head: Any, input_shape: Any, layers: Any, gradient: Any) -> None:
    """The arguments that say how a model is read."""
    expect(output is None or is_text(output), "output", "the name of an output, or None", output, "leave it out")
    expect(
        head is None or (isinstance(head, str) and head in ("softmax", "sigmoid")),
        *("head", "'softmax', 'sigmoid' or None", head, "leave it out, and it is as the model ends"),
    )
    expect(
        input_shape is None
        or (
            isinstance(input_shape, list | tuple | np.ndarray) and all(isinstance(n, numbers.Real) for n in input_shape)
        ),
        *("input_shape", "numbers", input_shape, "write (3, 224, 224)"),
    )
    expect(
        is_text(layers) or (isinstance(layers, list | tuple) and all(map(is_text, layers))),
        *("layers", "'auto', a name or names", layers, "leave it out, or see `onnxplain inspect`"),
    )
    expect(isinstance(gradient, bool), "gradient", "True or False", gradient, "write gradient=False for scoring only")


def check_range(range: Any) -> None:
    """The valid values of an input."""
    expect(
        range is None
        or (
            isinstance(range, list | tuple | np.ndarray)
            and len(range) == 2
            and all(isinstance(v, numbers.Real) and not math.isnan(v) for v in range)
        ),
        *("range", "two numbers, the lowest and the highest value", range, "write (0, 1) or (-1, 1)"),
    )
