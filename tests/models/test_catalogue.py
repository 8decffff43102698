"""The catalogue says what is needed to use a classifier, and says it rightly where that can be looked up."""

from __future__ import annotations

import re

import pytest
from frameworks import framework

from onnxplain.adapters.cifar import PREPROCESS
from onnxplain.errors import UsageError
from onnxplain.models.catalogue import CIFAR10, Entry, entries, find
from onnxplain.models.efficientnet_lite import VARIANTS

WANTED = {
    "resnet18", "resnet34", "resnet50", "vgg16", "inception_v3", "densenet121", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "efficientnet_b0", "vit_b_16", "convnext_tiny", "cifar10_resnet20", "cifar10_resnet56",
    "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2",
}  # fmt: skip
EACH = pytest.mark.parametrize("entry", entries().values(), ids=entries())


def test_the_classifiers_of_both_papers_are_there() -> None:
    assert entries().keys() >= WANTED
    assert {name for name, entry in entries().items() if "isa" in entry.papers} == {"resnet50", "vgg16", "inception_v3"}
    assert {name for name, entry in entries().items() if "cpa" in entry.papers} == {
        "resnet18", "resnet34", "resnet50", "vgg16", "densenet121"
    }  # fmt: skip


@EACH
def test_every_entry_is_whole(entry: Entry) -> None:
    assert entry.url.startswith("https://")
    assert re.fullmatch("[0-9a-f]{8,64}", entry.sha256)
    assert entry.licence
    assert entry.parameters > 0
    assert 1 <= entry.megabytes < 1000
    assert len(entry.labels) == (1000 if entry.classes == "imagenet" else 10)
    assert (entry.source is not None) == (entry.how == "torchvision")
    match entry.how:
        case "lite":
            assert entry.member is not None
            size = VARIANTS[entry.name.removeprefix("efficientnet-")].preprocess.output_size
            assert size == entry.image
        case "cifar":
            assert entry.depth is not None
            assert PREPROCESS.output_size == entry.image
            assert entry.labels == list(CIFAR10)


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if entry.how == "torchvision"])
def test_torchvision_says_the_same(name: str) -> None:
    entry = entries()[name]
    framework("torch")
    from bench.coverage.stubs import import_torchvision

    torchvision = framework("torchvision", import_torchvision)
    from onnxplain.adapters.pytorch_zoo import hash_in, of_preset

    architecture, _, which = (entry.source or "").partition(":")[2].partition("@")
    weights = torchvision.models.get_model_weights(architecture)[which]
    assert weights is torchvision.models.get_model_weights(architecture).DEFAULT
    assert (weights.url, weights.meta["num_params"]) == (entry.url, entry.parameters)
    assert hash_in(weights.url) == entry.sha256
    assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == entry.top1
    assert round(weights.meta["_file_size"]) == entry.megabytes
    assert of_preset(weights.transforms()).output_size == entry.image
    assert entry.labels[0].partition(",")[0] == weights.meta["categories"][0]


def test_names_that_are_none() -> None:
    with pytest.raises(UsageError, match="did you mean resnet50"):
        find("resnet5")
    with pytest.raises(UsageError, match="onnxplain models list"):
        find("zzzz")
