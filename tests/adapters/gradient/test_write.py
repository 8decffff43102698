"""Models as files: whole or not at all, one file or two, and what is beside the graph is found again."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny import SPEC, Place, classifier, run

import onnxplain as ox
from onnxplain.adapters.gradient import differentiate, write
from onnxplain.adapters.gradient.write import staged, write_model
from onnxplain.errors import OutputError, UsageError


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path)
    onnx.save(classifier(), found.model, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.preprocessor_config.json").write_text(json.dumps(SPEC))
    found.add_photo("photos/a.png")
    return found


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message holds 4 KB of weights only: what needs gigabytes otherwise."""
    monkeypatch.setattr(differentiate, "MESSAGE", 4096)
    monkeypatch.setattr(write, "MESSAGE", 4096)


def test_what_fits_into_one_file_is_one(place: Place) -> None:
    """Also where the classifier had its weights beside it; and it is the same model as in memory."""
    out = place.root / "out" / "g.onnx"
    done = ox.write_gradient_model(place.model, out)
    assert done.files[0].files == [str(out)]
    assert sorted(p.name for p in out.parent.iterdir()) == ["g.onnx"]
    assert not any(tensor.external_data for tensor in onnx.load(out, load_external_data=False).graph.initializer)


def test_more_than_a_message_holds_goes_to_two_files(place: Place, small_messages: None) -> None:
    """Verified, opened, explained and scored like any other; and the gradient is that of the model in one file."""
    photo, one = place.photos[0], place.root / "one.onnx"
    with pytest.raises(UsageError, match="write it to files"):
        ox.gradient_model(place.model)
    two = place.root / "out" / "two.onnx"
    done = ox.write_gradient_model(place.model, two)
    assert done.verification is not None
    assert done.verification.passed
    assert done.difference == 0
    assert done.files[0].files == [str(two), f"{two}.data"]
    assert sorted(p.name for p in two.parent.iterdir()) == ["two.onnx", "two.onnx.data"]
    assert done.files[0].bytes == sum(p.stat().st_size for p in two.parent.iterdir())
    assert run("verify", two, "--classifier", place.model).exit_code == 0
    assert run("explain", two, photo, "--method", "saliency", "-o", place.out).exit_code == 0
    assert run("score", two, *place.out.glob("*.npz"), "--step", "16").exit_code == 0
    write.MESSAGE = differentiate.MESSAGE = 2**30  # undone by monkeypatch
    ox.write_gradient_model(place.model, one)
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    with ox.open(one) as whole, ox.open(two) as apart:
        np.testing.assert_array_equal(whole.gradients(x, 1).gradient, apart.gradients(x, 1).gradient)


def test_either_file_that_is_there_is_left_as_it_is(place: Place, small_messages: None) -> None:
    two = place.root / "two.onnx"
    Path(f"{two}.data").write_bytes(b"somebody's")
    before = place.files()
    with pytest.raises(OutputError, match="already there"):
        ox.write_gradient_model(place.model, two)
    assert place.files() == before


@pytest.mark.parametrize("large", [False, True])
def test_a_failure_leaves_nothing_behind(place: Place, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """A full disk, and Ctrl-C while it is looked at."""
    if large:
        monkeypatch.setattr(write, "MESSAGE", 16)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    model, before = ir.from_proto(classifier()), place.files()
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        write_model(model, place.root / "g.onnx")
    monkeypatch.undo()

    def interrupted() -> None:
        with staged(model, place.root / "g.onnx") as file:
            assert file.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert place.files() == before


def test_weights_are_copied_one_by_one(tmp_path: Path) -> None:
    """Of ten weights of 4 MB and their transposes few are in memory at a time, beside what is mapped from the file."""
    size, count = 1024, 10
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(size, size)).astype(np.float32) / 32 for _ in range(count)]
    nodes = [onnx.helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(count)]
    make = onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "deep",
            [make("h0", onnx.TensorProto.FLOAT, ["N", size])],
            [make(f"h{count}", onnx.TensorProto.FLOAT, ["N", size])],
            [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(proto, tmp_path / "deep.onnx", save_as_external_data=True, location="deep.data")
    del proto, weights
    ox.write_gradient_model(tmp_path / "deep.onnx", tmp_path / "warm.onnx", preprocess=None, verify=False)
    write.MESSAGE, usual = 2**20, write.MESSAGE
    tracemalloc.start()
    try:
        ox.write_gradient_model(tmp_path / "deep.onnx", tmp_path / "g.onnx", preprocess=None, verify=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        write.MESSAGE = usual
    one = 4 * size * size
    assert (tmp_path / "g.onnx.data").stat().st_size >= 2 * count * one
    assert peak < 4 * one
