"""Where models run, in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.executors.place import RUNTIMES, Place
from onnxplain.engine.executors.setup import Precision, Setup
from onnxplain.errors import UsageError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("cpu", Place("cpu")),
        ("cuda", Place("cuda")),
        ("cuda:0", Place("cuda")),
        ("cuda:3", Place("cuda", 3)),
        ("tensorrt-rtx:1", Place("tensorrt-rtx", 1)),
        ("openvino", Place("openvino")),
        ("CUDAExecutionProvider:2", Place("cuda", 2)),
        ("CoreMLExecutionProvider", Place("CoreMLExecutionProvider")),
    ],
)
def test_a_place_is_a_runtime_and_a_number(text: str, place: Place) -> None:
    assert Place.parse(text) == place
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize("text", ["gpu", "", "CPU", "cpu:1", "openvino:0", "cuda:", "cuda:-1", "cuda:x", "cuda:٣"])
def test_what_is_no_place_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(UsageError, match=r"device .*; next: "):
        Place.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_place_or_refused(text: str) -> None:
    try:
        place = Place.parse(text)
    except UsageError:
        return
    assert place.runtime in RUNTIMES or place.runtime.endswith("ExecutionProvider")
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize("on", ["cpu", "openvino"])
def test_a_processor_has_no_tf32(on: str) -> None:
    with pytest.raises(UsageError, match=f"precision tf32: there is none on {on}"):
        Setup.of(on=on, precision="tf32")
    assert Setup.of(on="cuda", precision="tf32").precision is Precision.TF32


def test_onnx_runtime_has_no_bfloat16_on_the_cpu() -> None:
    with pytest.raises(UsageError, match=r"precision bf16: .* next: use fp32, or --on openvino"):
        Setup.of(precision="bf16")
