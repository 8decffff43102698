"""Arguments of wrong types are told as such: what was expected, what was given, what to write."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from tiny import classifier, complain, run

import onnxplain as ox
from onnxplain.engine.executors import setup
from onnxplain.errors import UsageError

WRONG: dict[str, list[Any]] = {
    "batch_size": ["Auto", "8", 8.0, None, True, 0, -1, [8], 10**9],
    "threads": ["2", None, 2.5, -1, 1025, True],
    "on": [None, 1, "", b"cpu"],
    "precision": [16, "FP16", b"fp16", True],
    "provider_options": ["K=V", ["K=V"], {"a": 1}, {1: "a"}, 5],
    "cache": [5, True, b"x"],
    "preprocess": [5, {"a": 1}, [1]],
    "output": [3, ["logits"]],
    "head": ["Softmax", 3],
    "input_shape": ["3,8,8", 8, (3, "8", 8)],
    "layers": [None, 3, ("a", 3)],
    "gradient": ["no", None],
    "range": [5, "ab", (0,), (0, 1, 2), (1, 0), (None, 1), (float("nan"), 1)],
    "step_graphs": ["yes", 3],
    "on_unsupported": ["stop", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_open_says_what_it_expects(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        ox.open(classifier(), **{"preprocess": None, "cache": None, name: value})
    assert str(value)[:20] in str(caught.value).replace("'", "") or repr(value) in str(caught.value)


@pytest.mark.parametrize("model", [None, 5, b"m.onnx", [], classifier])
def test_a_model_is_none_of_these(model: Any) -> None:
    with pytest.raises(UsageError, match="model: expected a path, a ModelProto or an onnx-ir model"):
        ox.open(model)


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"batch_size": np.int64(2), "threads": np.int32(1), "range": np.array([-1.0, 1.0])}
    with ox.open(classifier(), preprocess=None, cache=None, **given) as explainer:
        assert explainer.batch_size == 2
        assert explainer.provenance["threads"] == 1


def test_more_threads_than_cores_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    setup.warn_of_threads.cache_clear()
    with caplog.at_level(logging.WARNING, "onnxplain"):
        for _ in range(2):
            setup.Setup.of(threads=1024)
        setup.Setup.of(threads=1)
    (record,) = caplog.records
    assert "1024 threads are more than the" in record.getMessage()


def test_verify_takes_auto_for_its_batches(tmp_path: Any) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(classifier(), path)
    assert run("verify", path, "--preprocess", "none", "-b", "auto").exit_code == 0
    complain(run("verify", path, "--preprocess", "none", "--threads", "1025"), 2, "1024")
