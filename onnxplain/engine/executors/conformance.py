"""What every executor must do, as one function: run it over your own before you give it to the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from onnxplain.engine.executors.protocol import Array, Executor, TensorSpec
from onnxplain.errors import ExecutionError, FeedMismatch

BATCH = 3
ROUNDS = 8  # calls of each of two executors side by side


def check_executor(make: Callable[[], Executor], *, tolerance: float = 0.0, seed: int = 0) -> None:
    """Hold an executor against the protocol; raises `AssertionError` with the first thing that is wrong.

    `make` opens the executor, anew each time. The model must treat the rows of its inputs one by one (each input and
    output begins with the same free dimension). `tolerance` is how far a row of a batch may lie from the same row
    alone, relative to the largest value of that output: 0, bit for bit, unless the runtime chooses other kernels for
    other batch sizes.
    """
    with make() as executor:
        feeds = draw(executor.inputs, seed)
        check_specs(executor, feeds)
        check_refusals(executor, feeds)
        check_rows(executor, feeds, tolerance)
        check_memory(executor, feeds)
    check_closing(make)
    check_neighbours(make, seed)


def draw(inputs: Mapping[str, TensorSpec], seed: int, rows: int = BATCH) -> dict[str, Array]:
    """Random feeds that fit: every free dimension is `rows`; integers and masks are 0 and 1."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for name, spec in inputs.items():
        shape = [d if isinstance(d, int) else rows for d in spec.shape]
        values = rng.normal(size=shape) if spec.dtype.kind == "f" else rng.integers(0, 2, size=shape)
        feeds[name] = values.astype(spec.dtype)
    return feeds


def check_specs(executor: Executor, feeds: Mapping[str, Array]) -> None:
    """Names, dtypes and shapes are those that were announced."""
    outputs = executor(feeds)
    assert list(outputs) == list(executor.outputs), f"outputs {list(outputs)}, announced {list(executor.outputs)}"
    for name, array in outputs.items():
        assert isinstance(array, np.ndarray), f"output {name} is a {type(array).__name__}, not an array"
        spec = executor.outputs[name]
        assert spec.admits(array), f"output {name} is {array.dtype}{list(array.shape)}, announced {spec}"


def check_refusals(executor: Executor, feeds: Mapping[str, Array]) -> None:
    """Feeds that do not fit raise `FeedMismatch`, and do no harm."""
    expected = keep(executor(feeds))
    for name, array in feeds.items():
        other = np.dtype(np.float32) if array.dtype != np.float32 else np.dtype(np.float64)
        wrong: dict[str, Mapping[str, Array]] = {
            f"without {name}": {n: a for n, a in feeds.items() if n != name},
            f"with {name} as {other}": {**feeds, name: array.astype(other)},
            f"with an axis too many in {name}": {**feeds, name: array[None]},
            "with an unknown input": {**feeds, f"{name}_": array},
        }
        for axis, dim in enumerate(executor.inputs[name].shape):
            if isinstance(dim, int):
                wrong[f"with axis {axis} of {name} too long"] = {**feeds, name: np.repeat(array, 2, axis)}
        for what, these in wrong.items():
            try:
                executor(these)
            except FeedMismatch:
                continue
            except Exception as error:
                raise AssertionError(f"feeds {what}: raised {type(error).__name__}, not FeedMismatch") from error
            raise AssertionError(f"feeds {what} were taken")
    same(executor(feeds), expected, "after refused feeds")


def check_rows(executor: Executor, feeds: Mapping[str, Array], tolerance: float) -> None:
    """A row of a batch is what the row alone gives."""
    batch = keep(executor(feeds))
    for row in range(BATCH):
        alone = executor({name: array[row : row + 1] for name, array in feeds.items()})
        for name, array in alone.items():
            gap = np.abs(np.subtract(array[0], batch[name][row], dtype=np.float64)).max(initial=0)
            allowed = tolerance * np.abs(batch[name]).max(initial=0)
            assert gap <= allowed, f"output {name}: row {row} of a batch is {gap:.3g} from the same row alone"


def check_memory(executor: Executor, feeds: Mapping[str, Array]) -> None:
    """Inputs are left as they were, outputs do not alias them, and equal feeds give equal outputs."""
    given = keep(feeds)
    first = executor(given)
    expected = keep(first)
    same(given, feeds, "the feeds of a call")
    for name, array in first.items():
        for source, values in given.items():
            assert not np.shares_memory(array, values), f"output {name} shares memory with input {source}"
    same(executor(feeds), expected, "the same feeds a second time")


def check_closing(make: Callable[[], Executor]) -> None:
    """Closing twice is fine, and a closed executor says so."""
    executor = make()
    feeds = draw(executor.inputs, 0)
    with executor as entered:
        assert entered is executor, "entering the context gives another object"
    try:
        executor.close()
        executor.close()
    except Exception as error:
        raise AssertionError(f"closing again raised {type(error).__name__}") from error
    try:
        executor(feeds)
    except ExecutionError:
        return
    except Exception as error:
        raise AssertionError(f"use after close raised {type(error).__name__}, not ExecutionError") from error
    raise AssertionError("a closed executor still answers")


def check_neighbours(make: Callable[[], Executor], seed: int) -> None:
    """Two executors, each in its own thread, give what each gives alone; closing one leaves the other at work."""
    with make() as one:
        many = [draw(one.inputs, seed + i) for i in range(2)]
        alone = [keep(one(feeds)) for feeds in many]
    left, right = make(), make()

    def work(executor: Executor, feeds: Mapping[str, Array]) -> Sequence[dict[str, Array]]:
        return [keep(executor(feeds)) for _ in range(ROUNDS)]

    with left, right, ThreadPoolExecutor(2) as pool:
        for expected, answers in zip(alone, pool.map(work, (left, right), many), strict=True):
            for answer in answers:
                same(answer, expected, "beside another executor")
        left.close()
        try:
            answer = keep(right(many[1]))
        except Exception as error:
            raise AssertionError(f"after another was closed, a call raised {type(error).__name__}") from error
        same(answer, alone[1], "after another executor was closed")


def keep(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Copies: outputs may be views into buffers that the next call overwrites."""
    return {name: array.copy() for name, array in arrays.items()}


def same(got: Mapping[str, Array], expected: Mapping[str, Array], when: str) -> None:
    for name, array in expected.items():
        assert np.array_equal(got[name], array, equal_nan=True), f"{name} differs {when}"
