"""A dozen classifiers of the frameworks' own zoos, exported on the spot and held against float64 autograd.

`python -m bench.coverage` does the same with many more; what it found is in docs/coverage.md.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from frameworks import framework, runtime

framework("torch")

from bench.coverage import check  # noqa: E402
from bench.coverage.stubs import import_torchvision  # noqa: E402
from bench.coverage.table import agrees, right  # noqa: E402
from bench.coverage.zoo import Entry  # noqa: E402

framework("torchvision", import_torchvision)
framework("timm")
framework("transformers")

from bench.coverage.export import export  # noqa: E402

Case = tuple[check.Files, check.Found]
pytestmark = pytest.mark.filterwarnings("default")  # the frameworks have their own


def entry(source: str, architecture: str, exporter: str, size: int) -> Entry:
    return Entry(source=source, architecture=architecture, exporter=exporter, size=size)


SQUEEZENET = entry("torchvision", "squeezenet1_1", "torchscript", 64)
VIT = entry("timm", "test_vit", "torchscript", 160)
EFFICIENTNET = entry("timm", "test_efficientnet", "dynamo", 96)
SWIN = entry("huggingface", "swin", "dynamo", 64)
ZOO = (
    SQUEEZENET,
    entry("torchvision", "shufflenet_v2_x0_5", "dynamo", 64),
    entry("torchvision", "mobilenet_v3_small", "torchscript", 64),
    entry("torchvision", "inception_v3", "torchscript", 96),
    VIT,
    entry("timm", "test_vit", "dynamo", 160),
    EFFICIENTNET,
    entry("timm", "test_convnext", "torchscript", 96),
    entry("timm", "test_nfnet", "torchscript", 96),
    entry("timm", "mobilevit_xxs", "torchscript", 64),
    SWIN,
    entry("huggingface", "beit", "dynamo", 64),
    entry("huggingface", "convnextv2", "dynamo", 64),
)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Entry], Case]:
    """Each entry's files and what is found about its gradient; exported once."""
    cases: dict[str, Case] = {}

    def find(entry: Entry) -> Case:
        if entry.name not in cases:
            folder = tmp_path_factory.mktemp("zoo")
            export(entry, folder)
            files = check.Files(folder, entry.name)
            cases[entry.name] = files, check.gradient(files)
        return cases[entry.name]

    return find


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_its_gradient_is_that_of_float64_autograd(entry: Entry, case: Callable[[Entry], Case]) -> None:
    _, found = case(entry)
    assert right(found), {key: found[key] for key in ("gaps", "refused", "cosine", "logits_error") if key in found}


@pytest.mark.parametrize("entry", [SQUEEZENET, VIT, EFFICIENTNET, SWIN], ids=lambda entry: entry.name)
def test_openvino_gives_the_same_gradient(entry: Entry, case: Callable[[Entry], Case]) -> None:
    runtime("openvino", "openvino")
    found = check.openvino(case(entry)[0])
    assert agrees(found), found


@pytest.mark.parametrize("entry", [SQUEEZENET, SWIN], ids=lambda entry: entry.name)
def test_tensorrt_rtx_builds_an_engine(entry: Entry, case: Callable[[Entry], Case]) -> None:
    runtime("tensorrt_rtx", "tensorrt-rtx-cu13")
    found = check.tensorrt(case(entry)[0])
    assert "engine_bytes" in found, found
