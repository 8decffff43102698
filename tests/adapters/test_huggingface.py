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
from onnxplain.models.preprocess import PreprocessSpec, load_image, normalise, to_input  # noqa: E402

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


OLD = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "resample": 3}
SIDES = {"height": 64, "width": 64}
CROP = {"size": 72, "crop_size": 64, "do_center_crop": True}


@pytest.mark.parametrize(
    ("processor", "how"),
    [
        ("ViT", {"size": 64}),
        ("ViT", {"size": 64, "do_normalize": None}),
        ("DeiT", CROP),
        ("DeiT", {"size": 72, "crop_size": 64}),
        ("DeiT", CROP | {"do_center_crop": None}),
        ("Beit", CROP | {"do_center_crop": False}),
        ("Beit", CROP),
        ("Bit", CROP),
        ("CLIP", CROP),
        ("ConvNext", {"size": 64, "crop_pct": 0.875}),
        ("ConvNext", {"size": 384, "crop_pct": 0.875}),
        ("EfficientNet", {"size": 64}),
        ("EfficientNet", {"size": SIDES, "include_top": True, "do_normalize": False}),
        ("EfficientNet", {"size": 64, "include_top": False}),
        ("Levit", {"size": 64, "crop_size": 64, "do_center_crop": True}),
        ("Levit", {"size": {"shortest_edge": 64}, "crop_size": SIDES}),
        ("MobileNetV1", CROP),
        ("MobileNetV2", CROP),
        ("MobileViT", CROP | {"do_normalize": None}),
        ("MobileViT", CROP | {"do_flip_channel_order": None}),
        ("PoolFormer", {"size": 64, "crop_size": 64, "do_center_crop": True, "crop_pct": 0.95}),
        ("PoolFormer", {"size": 64, "crop_size": 64, "do_center_crop": True, "crop_pct": None}),
        ("PoolFormer", {"size": SIDES, "crop_size": SIDES}),
        ("Pvt", {"size": 64}),
        ("Segformer", {"size": 64}),
    ],
)
@pytest.mark.parametrize("written", ["feature_extractor_type", "image_processor_type"])
def test_a_photo_becomes_what_the_class_makes_of_it(tmp_path: Path, processor: str, how, written: str) -> None:
    """Whether it was written years ago or now; what a key means depends on the class."""
    end = {"feature_extractor_type": "FeatureExtractor", "image_processor_type": "ImageProcessorFast"}[written]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLD | how | {written: processor + end}))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    spec = PreprocessSpec.from_json_file(tmp_path / "preprocessor_config.json")
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    for width, height in ((411, 302), (97, 203)):
        pixels = np.random.default_rng(0).integers(0, 256, (height // 9, width // 9, 3), np.uint8)
        path = tmp_path / "photo.png"
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
        with Image.open(path) as image:
            expected = theirs(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(normalise(to_input(load_image(path, spec)), spec), expected, atol=2e-5)


def test_processors_that_do_something_else_are_refused(tmp_path: Path) -> None:
    for processor in ("Perceiver", "Donut", "ImageGPT", "TextNet"):
        getattr(transformers, f"{processor}ImageProcessor")().save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"preprocessor_config\.json: \w+: expected"):
            PreprocessSpec.from_json_file(tmp_path / "preprocessor_config.json")


def test_a_base_that_was_never_trained_to_classify_is_refused(tmp_path: Path) -> None:
    """transformers would give it a random last layer, and say so in its log."""

    def make():
        model, processor = vit()
        return model.vit, processor

    with pytest.raises(InputError, match=r"no weights for classifier\.bias and 1 others"):
        load(f"hf:{saved(make, tmp_path / 'hf')}")


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


def said_in_config(**entries: object):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


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
        (said_in_config(attn_implementation="evil/kernels"), UsageError, "code of its own, which is not run"),
        (said_in_config(inner={"_attn_implementation": "evil/kernels"}), UsageError, "code of its own"),
        (said_in_config(quantization_config={"quant_method": "gptq"}), UsageError, "quantised"),
        (said_in_config(problem_type="regression"), UsageError, "is a regression"),
        (said_in_config(depths=[1, 2]), InputError, r"no weights for resnet\.encoder.* others"),
        (said_in_config(hidden_sizes=[8, 32]), InputError, "hf:"),
        (said_in_config(model_type="bert"), InputError, "AutoModelForImageClassification"),
        (said_in_config(model_type=["x"]), InputError, "hf:"),
        (said_in_config(pretrained_cfg={}), InputError, "next: timm:NAME"),
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


@pytest.mark.parametrize("name", ["hf:google/vit-base-patch16-224", "timm:resnet18", "timm:somebody/model"])
def test_what_is_not_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Our variable keeps the hub's client from the net too; nothing listens where it would ask."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("ONNXPLAIN_OFFLINE", "1")
    with pytest.raises(DownloadError, match=f"{name}: cannot be had .*offline mode.*next: unset ONNXPLAIN_OFFLINE"):
        load(name)


@pytest.mark.parametrize("name", ["hf:a/b/c", "hf:./gone", "hf:~/gone", "timm:./gone", "timm:/gone", "timm:a/b/c"])
def test_folders_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        load(name)
    with pytest.raises(InputError, match="no such folder"):
        load("hf:./nowhere")
