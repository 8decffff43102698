"""Classifiers of transformers from folders as `save_pretrained` makes them; the hub is out of reach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework
from PIL import Image

torch = framework("torch")
framework("onnxscript")
from bench.coverage.stubs import import_torchvision  # noqa: E402

framework("torchvision", import_torchvision)
transformers = framework("transformers")
import onnxplain as ox  # noqa: E402
from onnxplain.adapters.sources import load, load_module  # noqa: E402
from onnxplain.errors import DownloadError, InputError, OnnxplainError, UsageError  # noqa: E402

LABELS = {0: "ant", 1: "bee", 2: "cat"}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def vit():
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, id2label=LABELS, qkv_bias=True)
    size = {"height": 32, "width": 32}
    return transformers.ViTForImageClassification(config), transformers.ViTImageProcessor(size=size)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=LABELS
    )
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, resample=3)
    return transformers.ResNetForImageClassification(config), processor


def convnext():
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], id2label=LABELS, layer_scale_init_value=0.5
    )
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.9)
    return transformers.ConvNextForImageClassification(config), processor


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def saved(make, folder: Path) -> Path:
    torch.manual_seed(0)
    model, processor = make()
    for parameter in model.parameters():  # as initialised, most gradients would be next to nothing
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [vit, resnet, convnext])
def test_a_folder_is_exported_with_all_that_it_knows(tmp_path: Path, photo: Path, make) -> None:
    folder = saved(make, tmp_path / "hf")
    done = ox.export(f"hf:{folder}", tmp_path / "g.onnx", images=[photo])
    assert done.agreement is not None
    assert done.agreement.cosine is not None
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    with Image.open(photo) as image:
        pixels = processor(image, return_tensors="pt")["pixel_values"]
    theirs = model(pixels).logits.detach().numpy()
    with ox.open(tmp_path / "g.onnx") as explainer:
        assert explainer.labels == list(LABELS.values())
        ours = explainer.logits(explainer.to_input(explainer.read(photo))[None])
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_several_labels_have_a_sigmoid(tmp_path: Path) -> None:
    def make():
        model, processor = vit()
        model.config.problem_type = "multi_label_classification"
        return model, processor

    done = ox.export(f"hf:{saved(make, tmp_path / 'hf')}", tmp_path / "g.onnx")
    assert done.head == "sigmoid"


def test_labels_without_names_are_none(tmp_path: Path) -> None:
    def make():
        config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=3)
        return transformers.ViTForImageClassification(config), vit()[1]

    assert load(f"hf:{saved(make, tmp_path / 'hf')}").labels is None


def test_the_reference_of_a_comparison(tmp_path: Path) -> None:
    net = load_module(f"hf:{saved(resnet, tmp_path / 'hf')}")
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert not net.training


def without(name: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"evil": torch.zeros(1)}, folder / "pytorch_model.bin")


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForImageClassification": "evil.Evil"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("open('evil-was-here', 'w')")


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (without("config.json"), InputError, r"no config\.json"),
        (without("preprocessor_config.json"), InputError, r"no preprocessor_config\.json"),
        (pickled, InputError, "pickles are not read"),
        (with_code, UsageError, "code of its own, which is not run"),
        (garbage, OnnxplainError, "hf:"),
        (lambda folder: (folder / "config.json").write_text("[1"), InputError, "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[1]"), InputError, "expected a JSON object"),
    ],
)
def test_folders_that_are_not_whole(tmp_path: Path, monkeypatch, change, kind, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = saved(resnet, tmp_path / "hf")
    change(folder)
    with pytest.raises(kind, match=said):
        ox.export(f"hf:{folder}", tmp_path / "g.onnx")
    assert not (tmp_path / "g.onnx").exists()
    assert not list(tmp_path.rglob("evil-was-here"))


def test_what_is_not_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="hf:google/vit-base-patch16-224: cannot be had from the hub"):
        load("hf:google/vit-base-patch16-224")
    with pytest.raises(InputError, match="no such folder"):
        load("hf:./nowhere")
