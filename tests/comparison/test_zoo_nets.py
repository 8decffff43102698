"""The engine against PyTorch on the architectures that papers use, with random weights that let every layer matter."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from frameworks import framework
from PIL import Image

torch = framework("torch")
framework("onnxscript")
from bench.coverage.stubs import import_torchvision  # noqa: E402

framework("torchvision", import_torchvision)
framework("transformers")
from bench.coverage.nets import build  # noqa: E402
from onnxplain.adapters import pytorch  # noqa: E402
from onnxplain.comparison import compare  # noqa: E402
from onnxplain.engine.methods import AGI, BIG, ISA, CrediblePath, IntegratedGradients, Saliency  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec  # noqa: E402

NETS = {
    "resnet50": ("torchvision", 64),
    "vgg11_bn": ("torchvision", 64),
    "densenet121": ("torchvision", 64),
    "inception_v3": ("torchvision", 96),
    "vit": ("hf", 64),
}
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def photos(folder: Path, size: int) -> list[Path]:
    """Three smooth pictures."""
    folder.mkdir()
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        fine = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(fine).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", NETS)
def test_gradients_and_path_integrals_agree(tmp_path: Path, name: str) -> None:
    source, size = NETS[name]
    net = build(source, name, size, 8)
    spec = PreprocessSpec(size=(size, size), **IMAGENET)
    pytorch.export(net, np.zeros((2, 3, size, size), np.float32), tmp_path / "g.onnx", preprocess=spec, verify=False)
    methods = [
        IntegratedGradients(steps=8), Saliency(), ISA(k=size * size, t1=3, t2=2), AGI(k=3, m=3),
        CrediblePath(kernels=(3, 5), steps=8, max_iter=4), BIG(steps=6, attack_steps=4),
    ]  # fmt: skip
    found = compare(
        tmp_path / "g.onnx", net, photos(tmp_path / "photos", size), methods, step=size * size // 4, float64=False
    )
    (gradients,) = found.gradients
    assert gradients.passed, gradients
    for one in found.methods:
        assert one.verdict, (one.method, one.why)
        assert one.points is None or one.points + (one.points_saturated or 0) >= 6
