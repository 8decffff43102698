"""A dozen classifiers of the frameworks' own zoos, exported on the spot and held against float64 autograd.

`python -m bench.coverage` does the same with many more; what it found is in docs/coverage.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from frameworks import framework

framework("torch")

from bench.coverage import check  # noqa: E402
from bench.coverage.stubs import import_torchvision  # noqa: E402
from bench.coverage.table import agrees, right  # noqa: E402
from bench.coverage.zoo import Entry  # noqa: E402

framework("torchvision", import_torchvision)
framework("timm")
framework("transformers")

from bench.coverage.export import export  # noqa: E402


def entry(source: str, architecture: str, exporter: str, size: int) -> Entry:
    return Entry(source=source, architecture=architecture, exporter=exporter, size=size)


ZOO = (
    entry("torchvision", "squeezenet1_1", "torchscript", 96),
    entry("torchvision", "shufflenet_v2_x0_5", "dynamo", 96),
    entry("torchvision", "mobilenet_v3_small", "torchscript", 96),
    entry("torchvision", "inception_v3", "torchscript", 128),
    entry("timm", "test_vit", "torchscript", 160),
    entry("timm", "test_vit", "dynamo", 160),
    entry("timm", "test_efficientnet", "dynamo", 160),
    entry("timm", "test_convnext", "torchscript", 160),
    entry("timm", "test_nfnet", "torchscript", 160),
    entry("timm", "mobilevit_xxs", "torchscript", 128),
    entry("huggingface", "swin", "dynamo", 64),
    entry("huggingface", "beit", "dynamo", 64),
    entry("huggingface", "convnextv2", "dynamo", 64),
)
ELSEWHERE = {  # where the model runs, or is compiled, besides ONNX Runtime
    "torchvision-squeezenet1_1-torchscript": ("openvino", "tensorrt"),
    "timm-test_vit-torchscript": ("openvino",),
    "timm-test_efficientnet-dynamo": ("openvino",),
    "huggingface-swin-dynamo": ("openvino", "tensorrt"),
}
MODULES = {"openvino": "openvino", "tensorrt": "tensorrt_rtx"}


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
@pytest.mark.filterwarnings("default")  # the frameworks have their own
def test_its_gradient_is_that_of_float64_autograd(entry: Entry, tmp_path: Path) -> None:
    export(entry, tmp_path)
    files = check.Files(tmp_path, entry.name)
    found = check.gradient(files)
    assert right(found), {key: found[key] for key in ("gaps", "refused", "cosine", "logits_error") if key in found}
    for step in ELSEWHERE.get(entry.name, ()):
        framework(MODULES[step])
        found = check.STEPS[step](files)
        assert agrees(found) if step == "openvino" else "engine_bytes" in found, found
