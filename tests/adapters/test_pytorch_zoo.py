"""Classifiers by name: the weights come from a server on this machine, or from a folder as the hub has it."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework
from PIL import Image

torch = framework("torch")
framework("onnxscript")
from bench.coverage.stubs import import_torchvision  # noqa: E402

torchvision = framework("torchvision", import_torchvision)
timm = framework("timm")
import onnxplain as ox  # noqa: E402
from onnxplain.adapters import pytorch_zoo  # noqa: E402
from onnxplain.adapters.sources import load, load_module  # noqa: E402
from onnxplain.errors import BackendFailed, DownloadError, InputError, UsageError  # noqa: E402
from onnxplain.models.preprocess import load_image, normalise, to_input  # noqa: E402


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((410, 301), Image.Resampling.BICUBIC).save(path)
    return path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`serve(name, content)`: from now on torchvision's weights of that name are these, and come from this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr("onnxplain.models.download.cache_folder", lambda: tmp_path / "cache")
    for name in ("ONNXPLAIN_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()

        def serve(architecture: str, content: bytes, digits: str | None = None) -> None:
            digits = digits or hashlib.sha256(content).hexdigest()[:8]
            file = folder / f"{architecture}-{digits}.pth"
            file.write_bytes(content)
            weights = torchvision.models.get_model_weights(architecture).DEFAULT
            url = f"http://127.0.0.1:{http.server_port}/{file.name}"
            # the members of an enumeration are frozen, the value that they hold is a dataclass
            monkeypatch.setattr(weights.value, "url", url)

        yield serve
        http.shutdown()


def weights_of(architecture: str, tmp_path: Path, seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    with warnings.catch_warnings(action="ignore"):  # how some will be initialised one day
        net = torchvision.models.get_model(architecture, weights=None)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    return (tmp_path / "w.pth").read_bytes()


def test_torchvision_by_name(tmp_path: Path, served, photo: Path) -> None:
    served("shufflenet_v2_x0_5", weights_of("shufflenet_v2_x0_5", tmp_path))
    done = ox.export("torchvision:shufflenet_v2_x0_5", tmp_path / "g.onnx", images=[photo], verify=True)
    assert done.agreement is not None
    assert done.agreement.given
    weights = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    with ox.open(tmp_path / "g.onnx") as explainer:
        assert explainer.labels == weights.meta["categories"]
        assert explainer.metadata["onnxplain.weights_url"] == weights.url
        assert explainer.metadata["onnxplain.source"] == "torchvision:shufflenet_v2_x0_5"
        x = explainer.to_input(explainer.read(photo))
        ours = explainer.logits(x[None])
    torch.manual_seed(0)
    net = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None).eval()
    with Image.open(photo) as image:
        theirs = net(weights.transforms()(image)[None]).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "efficientnet_b0", "vit_b_16", "maxvit_t", "swin_v2_t"])
def test_photos_are_read_as_torchvision_reads_them(name: str, photo: Path) -> None:
    for weights in torchvision.models.get_model_weights(name):
        spec = pytorch_zoo.of_preset(weights.transforms())
        ours = normalise(to_input(load_image(photo, spec)), spec)
        with Image.open(photo) as image:
            theirs = weights.transforms()(image).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_weights_that_want_their_net_built_otherwise(tmp_path: Path, served, monkeypatch) -> None:
    """Those of GoogLeNet are for an input that it transforms once more itself."""
    served("googlenet", weights_of("googlenet", tmp_path))
    net = load_module("torchvision:googlenet")
    assert net.transform_input
    assert not net.training
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_weights_that_are_not_those_are_refused(tmp_path: Path, served) -> None:
    served("squeezenet1_1", weights_of("squeezenet1_1", tmp_path), digits="00000000")
    with pytest.raises(DownloadError, match="SHA-256"):
        load("torchvision:squeezenet1_1")
    assert not list((tmp_path / "cache").rglob("*.pth"))


class Evil:
    def __reduce__(self):
        return (open, ("evil-was-here", "w"))


def test_weights_that_want_to_run_code_do_not(tmp_path: Path, served, monkeypatch) -> None:
    import io

    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"features.0.weight": Evil()}, buffer)
    served("squeezenet1_1", buffer.getvalue())
    with pytest.raises(InputError, match="holds more than weights"):
        load("torchvision:squeezenet1_1")
    assert not (tmp_path / "evil-was-here").exists()


def test_without_a_net_it_is_said(tmp_path: Path, served, monkeypatch) -> None:
    monkeypatch.setenv("ONNXPLAIN_OFFLINE", "1")
    with pytest.raises(DownloadError, match="ONNXPLAIN_OFFLINE forbids the net"):
        load("torchvision:resnet18")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("torchvision:resnet5", "no classifier 'resnet5'; did you mean resnet50"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier 'fasterrcnn_resnet50_fpn'; next"),
        ("torchvision:quantized_resnet50", "did you mean wide_resnet50_2, resnet50"),
        ("torchvision:resnet50@IMAGENET", "next: use one of IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm:efficientnet_b8", "timm has no classifier .* with weights"),
        ("timm:resnet18.nobodys", "timm has no classifier .*did you mean resnet18"),
        ("timm:resnet18s.a1_in1k", "timm has no classifier .*did you mean resnet18"),
    ],
)
def test_names_that_are_none(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(source)


def test_a_torchvision_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, extra: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(pytorch_zoo, "require", broken)
    with pytest.raises(BackendFailed, match=r"does not fit this build of torch \(operator torchvision::nms"):
        load("torchvision:resnet18")


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    """As timm saves a model for the hub."""
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", pretrained=False, num_classes=4).eval()
    from timm.models import save_for_hf

    about = {
        "input_size": (3, 64, 64),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "label_names": ["a", "b", "c", "d"],
    }
    save_for_hf(net, tmp_path / "mine", model_config={"num_classes": 4, **about}, safe_serialization=True)
    return tmp_path / "mine"


def test_timm_from_a_folder(tmp_path: Path, timm_folder: Path, photo: Path) -> None:
    done = ox.export(f"timm:{timm_folder}", tmp_path / "g.onnx", images=[photo])
    assert done.agreement is not None
    net = load_module(f"timm:{timm_folder}")
    with Image.open(photo) as image:
        config = timm.data.resolve_model_data_config(net)
        x = timm.data.create_transform(**config, is_training=False)(image)
    theirs = net(x[None]).detach().numpy()
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.logits(explainer.to_input(explainer.read(photo))[None])
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert json.loads((timm_folder / "config.json").read_text())["architecture"] == "resnet10t"


def test_timm_without_a_net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"timm:resnet18\.a1_in1k: cannot be had from the hub"):
        load("timm:resnet18.a1_in1k")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        load(f"timm:{tmp_path / 'empty'}")


def said(**entries: object):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key, value in entries.items():
            config[key] = config[key] | value if isinstance(value, dict) else value
        path.write_text(json.dumps(config))

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"conv1.0.weight": Evil()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (said(num_classes=7), InputError, r"no weights for fc\.bias and 1 others"),
        (said(model_args={"num_classes": 7}), InputError, r"no weights for fc\.bias and 1 others"),
        (said(architecture="nobodys"), InputError, "Unknown model"),
        (said(architecture=3), InputError, "timm:"),
        (said(pretrained_cfg={"crop_mode": "border"}), InputError, "crop_mode: expected"),
        (pickled, InputError, "a pickle that holds more than weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), InputError, "SafetensorError"),
        (lambda folder: (folder / "model.safetensors").unlink(), InputError, "No suitable checkpoints"),
        (lambda folder: (folder / "config.json").write_text("[1]"), InputError, "timm:"),
    ],
)
def test_timm_folders_that_are_not_whole(
    tmp_path: Path, timm_folder: Path, monkeypatch: pytest.MonkeyPatch, change, kind, message: str
) -> None:
    """timm itself would leave what it lacks at random, and say so in its log."""
    monkeypatch.chdir(tmp_path)
    change(timm_folder)
    with pytest.raises(kind, match=message):
        load(f"timm:{timm_folder}")
    assert not (tmp_path / "evil-was-here").exists()


def test_features_are_no_classes(tmp_path: Path) -> None:
    """As many of timm's names are, DINOv2's among them."""
    from timm.models import save_for_hf

    net = timm.create_model("resnet10t", pretrained=False, num_classes=0).eval()
    save_for_hf(net, tmp_path / "features", safe_serialization=True)
    with pytest.raises(UsageError, match="makes features, and has no classes"):
        load(f"timm:{tmp_path / 'features'}")


def test_grey_from_timm(tmp_path: Path, photo: Path) -> None:
    from timm.models import save_for_hf

    net = timm.create_model("resnet10t", pretrained=False, num_classes=4, in_chans=1).eval()
    save_for_hf(net, tmp_path / "grey", model_config={"num_classes": 4}, safe_serialization=True)
    made = load(f"timm:{tmp_path / 'grey'}")
    assert made.image_shape == (1, 176, 176)
    spec = made.preprocess
    assert spec is not None
    assert spec.image_mode == "L"
    config = timm.data.resolve_model_data_config(load_module(f"timm:{tmp_path / 'grey'}"))
    with Image.open(photo) as image:
        theirs = timm.data.create_transform(**config, is_training=False)(image.convert("L")).numpy()
    np.testing.assert_allclose(normalise(to_input(load_image(photo, spec), channels=1), spec), theirs, atol=1e-5)
