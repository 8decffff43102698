"""OpenVINO as an executor: through the front door, with weights in files, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from frameworks import runtime

import onnxplain as ox
from onnxplain.engine.executors.setup import Setup
from onnxplain.engine.methods import ISA, IntegratedGradients
from onnxplain.errors import BackendFailed, UsageError
from onnxplain.models.preprocess import PreprocessSpec

SPEC = PreprocessSpec.from_dict(tiny.SPEC)


@pytest.fixture(autouse=True)
def _there() -> None:
    runtime("openvino", '"onnxplain[openvino]"')


X = np.random.default_rng(0).random((5, 3, 8, 8)).astype(np.float32)


def test_it_explains_as_onnx_runtime_does() -> None:
    """Logits to float noise. An activation near 0 may fall on either side, which a path of points evens out."""
    with (
        ox.open(tiny.classifier(), preprocess=SPEC, on="openvino", threads=1) as there,
        ox.open(tiny.classifier(), preprocess=SPEC, threads=1) as here,
    ):
        np.testing.assert_allclose(there.logits(X), here.logits(X), rtol=1e-5, atol=1e-5)
        method = IntegratedGradients(steps=16)
        for one, other in zip(there.explain(X, method), here.explain(X, method), strict=True):
            np.testing.assert_allclose(one.attribution, other.attribution, atol=1e-4 * np.abs(other.attribution).max())
        (one,) = there.explain(X[:1], ISA(k=48, t1=2, t2=2))
        assert one.provenance["on"] == "openvino"
        assert one.provenance["versions"].keys() == {"onnxplain", "openvino", "numpy", "python"}
        assert one.provenance["runtime"]["device"]


def test_a_gradient_model_is_verified_on_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny.classifier(), path)
    found = ox.verify(path, on="openvino", preprocess=SPEC)
    assert found.on == "openvino"
    assert found.passed


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_right_gradient_in_half_precision_is_not_failed(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny.classifier(), path)
    found = ox.verify(path, on="openvino", precision=precision, preprocess=SPEC)
    assert (found.on, found.precision) == ("openvino", precision)
    assert found.gradient.passed
    assert found.rounding is not None
    assert found.rounding.failures == ()


def test_weights_in_files_are_found_and_no_others(tmp_path: Path) -> None:
    model = tiny.classifier()
    place = tmp_path / "m.onnx"
    onnx.save(tiny.classifier(), place, save_as_external_data=True, location="m.data", size_threshold=0)
    bare = onnx.load(place, load_external_data=False)
    with Setup.of(on="openvino").start(bare, folder=tmp_path) as there, Setup().start(model) as here:
        ((name, _),) = here.inputs.items()
        np.testing.assert_allclose(there({name: X})["logits"], here({name: X})["logits"], rtol=1e-5, atol=1e-5)
    folder = tmp_path / "inside"
    folder.mkdir()
    for tensor in bare.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../m.data"
    with pytest.raises(BackendFailed, match=r"weights in ../m.data: a file outside of the model's folder is not read"):
        Setup.of(on="openvino").start(bare, folder=folder)


@pytest.mark.parametrize("option", ["INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS"])
def test_options_that_would_belie_the_results_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"provider option {option}: is set by precision and threads"):
        Setup.of(on="openvino", provider_options={option: "bf16"}).start(tiny.classifier())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("NOPE", "1", "Unsupported property NOPE"), ("ENABLE_CPU_PINNING", "maybe", "Wrong value maybe")],
)
def test_an_option_that_it_does_not_know_is_a_matter_of_usage(
    option: str, value: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny.classifier(), path)
    how = ("--preprocess", "none", "--on", "openvino", "--provider-option", f"{option}={value}")
    tiny.complain(tiny.run("verify", path, *how), 2, f"{option}={value}", said, "ENABLE_CPU_PINNING")


def test_an_option_that_it_knows_is_taken(tmp_path: Path) -> None:
    options = {"CACHE_DIR": str(tmp_path), "ENABLE_CPU_PINNING": "true"}
    with Setup.of(on="openvino", provider_options=options).start(tiny.classifier()) as executor:
        assert executor.outputs.keys() == {"logits"}


def test_a_model_that_it_does_not_know_is_refused_in_one_line() -> None:
    with pytest.raises(BackendFailed, match=r"^openvino refused the model: .+") as caught:
        Setup.of(on="openvino").start(tiny.classifier(extra=["Strange"]))
    assert "\n" not in str(caught.value)
