"""What half precision makes of a right gradient passes; what is wrong there fails, though float32 is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rounding import rounding_twin

import onnxplain as ox
from onnxplain.adapters import verify as module
from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.adapters.gradient.precision import in_precision, widened
from onnxplain.adapters.onnx_file import Halves
from onnxplain.adapters.verify import verify_rounding
from onnxplain.engine.executors.setup import Precision, Setup
from onnxplain.engine.rounding import Rounding
from tests.adapters.test_verify import NETS, SURGERY, net

FP16 = Setup(threads=1, precision=Precision.FP16)


def pair(model: onnx.ModelProto) -> Halves:
    return Halves(forward_model(model), model)


def judged(name: str, change: str | None = None, setup: Setup = FP16) -> Rounding:
    right, other = gradient_model(net(name)), gradient_model(net(name))
    half = pair(other)
    if change is not None:
        SURGERY[change](other)
    return verify_rounding(half, pair(right), setup)


@pytest.mark.parametrize("name", NETS)
def test_a_right_gradient_passes_in_half_precision(name: str) -> None:
    """What rounding does is seen, and stays within its bounds."""
    found = judged(name)
    assert found.failures == ()
    assert found.verdict == "passed"
    assert 0 < found.typical < 0.3
    assert found.noticeable < 0.3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["vgg", "residual", "transformer"])
def test_a_right_gradient_is_not_failed_where_every_value_is_rounded(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a device rounds, which ONNX Runtime's CPU does less, and not at all in bfloat16."""
    monkeypatch.setattr(
        module,
        "in_precision",
        lambda model, wanted, **how: model if wanted == "fp32" else rounding_twin(in_precision(model, precision)),
    )
    monkeypatch.setitem(module.UNITS, Precision.FP16, module.UNITS[Precision(precision)])
    found = judged(name)
    assert found.failures == ()
    assert found.typical > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        "all zero", "sign", "a million times too large", "zero in a corner", "zero in one channel",
        "channels in reverse", "upside down", "shifted by a pixel", "clipped", "of another class",
        "always of the logit", "values halved", "weights turned",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["plain", "vgg"])
def test_a_spoilt_gradient_fails_in_half_precision(name: str, change: str) -> None:
    assert judged(name, change).verdict == "failed"


def test_other_logits_fail_in_half_precision() -> None:
    right, other = gradient_model(net("vgg")), gradient_model(net("vgg"))
    for tensor in other.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 1 and values.shape == (10,):
            tensor.CopyFrom(onnx.numpy_helper.from_array(values + np.float32(10), tensor.name))
    found = verify_rounding(pair(other), pair(right), FP16)
    assert any("logits differ from those of float32" in failure for failure in found.failures)


def test_a_gradient_that_is_random_cannot_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another one at every call, so that it looks like noise."""
    from onnxplain.engine import rounding

    rng, right = np.random.default_rng(0), rounding.deviation

    def other(single: Any, half: Any, floor: float) -> Any:
        return right(single, rng.normal(size=half.shape) * np.abs(half).std(), floor)

    monkeypatch.setattr(rounding, "deviation", other)
    assert judged("vgg").verdict != "passed"


def test_a_model_that_was_written_in_half_precision_is_verified_without_its_classifier(tmp_path: Path) -> None:
    """Its float32 twin has its nodes and its rounded weights."""
    model, path = net("vgg"), tmp_path / "half.onnx"
    half = in_precision(ox.gradient_model(model, preprocess=None), "fp16")
    onnx.save(half, path)
    found = ox.verify(path, threads=1)
    assert (found.precision, found.verdict, found.difference) == ("fp16", "passed", None)
    assert found.gradient.passed
    assert found.rounding is not None
    twin = widened(half)
    assert not {t.data_type for t in twin.graph.initializer} & {onnx.TensorProto.FLOAT16}
    assert {node.op_type for node in twin.graph.node} >= {"Conv", "MaxPool"}
    onnx.save(model, tmp_path / "classifier.onnx")
    assert ox.verify(path, classifier=tmp_path / "classifier.onnx", preprocess=None, threads=1).difference < 0.1


def test_float32_has_no_rounding_to_judge(tmp_path: Path) -> None:
    onnx.save(net("vgg"), tmp_path / "m.onnx")
    found = ox.verify(tmp_path / "m.onnx", preprocess=None, threads=1)
    assert (found.precision, found.rounding, found.verdict) == ("fp32", None, "passed")
    worse = replace(found, precision="fp16", rounding=judged("plain", "sign"))
    assert (worse.verdict, worse.passed) == ("failed", False)
