"""The batch size that is fastest, found on machines of which all is known; and memory that runs out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import toys

import onnxplain as ox
from onnxplain.engine.batching import LARGEST, Remembered, fastest, host_memory, warn_of
from onnxplain.engine.drive import GRADIENT, LOGITS, Model, Usage, drive
from onnxplain.engine.executors.function import FunctionExecutor
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.methods import ISA, Saliency
from onnxplain.errors import OutOfMemory
from onnxplain.models.preprocess import PreprocessSpec

GIB = 2.0**30
IMAGES = np.random.default_rng(0).random((12, 6))


class Machine:
    """A machine on which a batch takes known seconds and bytes; `most` rows fit on the device."""

    def __init__(
        self, seconds: Callable[[int], float], most: float = np.inf, bytes: float = 0, free: float = 0
    ) -> None:
        self.seconds, self.most, self.bytes, self.free = seconds, most, bytes, free
        self.now, self.largest, self.calls = 0.0, 0, 0

    def call(self, rows: int) -> None:
        if rows > self.most:
            raise OutOfMemory(f"no room for {rows}")
        self.now += self.seconds(rows)
        self.largest = max(self.largest, rows)
        self.calls += 1

    def room(self) -> float:
        return self.free - self.bytes * self.largest if self.free else np.inf

    def fastest(self, most: int = LARGEST) -> int:
        return fastest(self.call, most=most, room=self.room, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("machine", "size", "tried"),
    [
        (Machine(lambda n: 1.0 * n), 1, 4),  # a row costs the same in every batch: two more are tried
        (Machine(lambda n: 1.0 * n + 10), 128, 256),  # a call has a price; at 256 less than 5 % is left to gain
        (Machine(lambda n: max(n, 16.0)), 16, 64),  # a GPU that 16 rows fill
        (Machine(lambda n: n + 1 + 5 * (n > 8) * n), 8, 32),  # caches that 16 rows leave
        (Machine(lambda n: 1.0 * n + 10, most=20), 16, 16),  # device memory ends
        (
            Machine(lambda n: 1.0 * n + 10, bytes=GIB, free=10 * GIB),
            8,
            8,
        ),  # 16 rows would take 8 GiB more, and 2 are left
    ],
)
def test_the_fastest_batch_that_fits(machine: Machine, size: int, tried: int) -> None:
    assert machine.fastest() == size
    assert machine.largest == tried


def test_a_limit_is_kept_and_a_device_without_room_for_one_row_is_told() -> None:
    machine = Machine(lambda n: 1.0 * n + 10)
    assert machine.fastest(most=6) == 4
    with pytest.raises(OutOfMemory):
        Machine(lambda n: 1.0 * n, most=0).fastest()


def test_memory_is_the_least_of_what_machine_and_control_group_leave(tmp_path: Path) -> None:
    assert host_memory(tmp_path) == np.inf
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  99 kB\nMemAvailable:   4194304 kB\n")
    assert host_memory(tmp_path) == 4 * GIB
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.current").write_text(f"{int(GIB)}\n")
    for limit, left in (("max\n", 4 * GIB), (f"{int(3 * GIB)}\n", 2 * GIB)):
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit)
        assert host_memory(tmp_path) == left


@pytest.mark.parametrize("spoilt", ["", "[1]", "{", '{"x": -1}', "\xff", json.dumps({"x": "8"})])
def test_what_was_found_is_remembered_and_rubbish_is_nothing(tmp_path: Path, spoilt: str) -> None:
    known = Remembered(tmp_path / "cache")
    assert known.get({"model": "a"}) is None
    known.put({"model": "a"}, 32)
    known.put({"model": "b"}, 8)
    again = Remembered(tmp_path / "cache")
    assert [again.get({"model": name}) for name in "abc"] == [32, 8, None]
    (tmp_path / "cache/batch-sizes.json").write_text(spoilt, encoding="latin-1")
    assert again.get({"model": "a"}) is None
    again.put({"model": "a"}, 16)
    assert known.get({"model": "a"}) == 16


def test_nothing_is_remembered_without_a_folder_that_takes_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    warn_of.cache_clear()
    with caplog.at_level(logging.WARNING, "onnxplain"):
        for folder in (None, tmp_path / "file", tmp_path / "file"):
            known = Remembered(folder)
            known.put({"model": "a"}, 32)
            assert known.get({"model": "a"}) is None
    (record,) = caplog.records  # said once
    assert f"the cache folder {tmp_path / 'file'} cannot be used: " in record.getMessage()
    assert "next: make it writable" in record.getMessage()


def test_the_size_that_was_chosen_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, which -v shows, and in every explanation."""
    for found in ("tried", "remembered"):
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, "onnxplain"),
            ox.open(tiny.classifier(), preprocess=None, batch_size="auto", cache=tmp_path, threads=1) as explainer,
        ):
            (made,) = explainer.explain(np.zeros((1, 3, 8, 8), np.float32), Saliency())
            size = explainer.batch_size
        assert made.provenance["batch_size"] == size
        assert f"batch size for gradient: {size} rows, which is fastest here ({found})" in caplog.text


# Memory that runs out


def cramped(most: int, tried: list[int]) -> Model:
    """A toy on a device that has memory for so many rows at once."""

    def within(executor: FunctionExecutor) -> FunctionExecutor:
        def call(feeds: dict[str, toys.Array]) -> dict[str, toys.Array]:
            rows = len(feeds["x"])
            tried.append(rows)
            if rows > most:
                raise OutOfMemory(f"no room for {rows} rows")
            return executor(feeds)  # type: ignore[return-value]

        return FunctionExecutor(call, executor.inputs, executor.outputs)

    forward, backward = toys.executors(toys.TOY_T)
    return toys.joined(within(forward), within(backward), batch_size=16)


def test_out_of_memory_halves_the_batch_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Rows of several images, and of both roles, are in the batch that fails."""

    def programs() -> list[toys.Program[toys.Attribution]]:
        return [ISA(k=2)(x, toys.task(toys.TOY_T)) for x in IMAGES]

    expected = [outcome.unwrap() for outcome in sorted(drive(programs(), toys.model_of(toys.TOY_T)), key=at)]
    tried: list[int] = []
    usage = Usage()
    model = cramped(5, tried)
    outcomes = sorted(drive(programs(), model, usage=usage), key=at)
    for want, outcome in zip(expected, outcomes, strict=True):
        assert outcome.unwrap().values.tobytes() == want.values.tobytes()
        assert outcome.rows == {GRADIENT: 45, LOGITS: 6}
    assert model.batch_size == 4
    assert [rows for rows in tried if rows > 5] == [12, 8]  # 12 images ask for a row each at first
    assert usage.rows == {GRADIENT: 45 * 12, LOGITS: 6 * 12}  # what failed was not done
    assert usage.calls.total() == len(tried) - 2
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with a batch of 12: going on with 8",
        "out of memory with a batch of 8: going on with 4",
    ]


def at(outcome: toys.Outcome) -> int:
    return outcome.index


def test_a_device_without_memory_for_one_row_ends_the_run() -> None:
    tried: list[int] = []
    with pytest.raises(OutOfMemory, match="no memory for a batch of 1, which is the smallest; next: free memory"):
        list(drive([ISA(k=2)(IMAGES[0], toys.task(toys.TOY_T))], cramped(0, tried)))
    assert tried == [1]  # the first request of all is of one row


def test_a_batch_is_never_larger_than_the_executor_takes() -> None:
    """As of a TensorRT engine, whose profile has a largest batch. Here it is that of the gradient model."""
    tried: list[int] = []
    model = cramped(16, tried)
    model.executor(GRADIENT).most_rows = 3  # type: ignore[attr-defined]
    list(drive([Saliency()(x, toys.task(toys.TOY_T)) for x in IMAGES], model))
    assert model.batch_size == 3
    assert max(tried) == 3


# Through the front door

SPECIFICATION = PreprocessSpec.from_dict(tiny.SPEC)
PHOTOS = np.random.default_rng(0).random((3, 3, 8, 8)).astype(np.float32)


def test_auto_tries_once_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    call = OnnxRuntimeExecutor.__call__

    def watched(self: OnnxRuntimeExecutor, feeds: dict[str, toys.Array]) -> object:
        tried.append(len(feeds["x"]))
        return call(self, feeds)

    monkeypatch.setattr(OnnxRuntimeExecutor, "__call__", watched)

    def explained() -> tuple[toys.Array, int]:
        with ox.open(tiny.classifier(), preprocess=SPECIFICATION, batch_size="auto", cache=tmp_path) as explainer:
            (first, *_) = explainer.explain(PHOTOS, Saliency())
            assert first.provenance["batch_size"] == explainer.batch_size
            return first.attribution, explainer.batch_size

    attribution, size = explained()
    assert max(tried) >= 4  # 1 and two sizes more, of both roles
    tried.clear()
    again, same = explained()
    assert same == size
    assert max(tried) <= min(size, 3)  # nothing but the work
    assert again.tobytes() == attribution.tobytes()
    assert len(json.loads((tmp_path / "batch-sizes.json").read_text())) == 2
