"""Bad input: the exit code, one line that says what, where and what next, no traceback, nothing overwritten."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto
from tiny import FAST, SPEC, classifier, complain, png_header, run

import onnxplain as ox
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.explanation import Explanation
from onnxplain.errors import UsageError


def explain(place, *args, model=None):
    return run("explain", model or place.model, *args, "-o", place.out)


def bad_models(place):
    corrupt = place.root / "corrupt.onnx"
    corrupt.write_bytes(b"\x08\x07\x12\xff\xff garbage" * 20)
    cut = place.root / "cut.onnx"
    cut.write_bytes(place.model.read_bytes()[:200])
    empty = place.root / "empty.onnx"
    empty.write_bytes(b"")
    return {
        "missing": (place.root / "none.onnx", ["none.onnx", "does not exist"]),
        "folder": (place.root, ["is a folder"]),
        "corrupt": (corrupt, ["corrupt.onnx"]),
        "cut": (cut, ["cut.onnx"]),
        "empty": (empty, ["empty.onnx"]),
        "two images": (place.add_model("two.onnx", classifier(inputs=2)), ["one image input", "got 2"]),
        "no float output": (
            place.add_model("whole.onnx", classifier(dtype=TensorProto.INT64)),
            ["float output", "whole"],
        ),
        "two outputs": (place.add_model("many.onnx", classifier(outputs=2)), ["one float output", "more0"]),
    }


MODELS = ["missing", "folder", "corrupt", "cut", "empty", "two images", "no float output", "two outputs"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_cannot_be_used(place, kind):
    model, words = bad_models(place)[kind]
    heatmap = place.root / "h.npy"
    np.save(heatmap, np.ones((8, 8)))
    before, code = place.files(), 2 if kind == "missing" else 5
    complain(explain(place, *place.photos, *FAST, model=model), code, "error: ", *words)
    complain(run("export", model, "-o", place.root / "new.onnx"), code, "error: ", *words)
    complain(run("score", model, heatmap, "--image", place.photos[0]), code, "error: ", *words)
    assert place.files() == before


@pytest.mark.parametrize("kind", MODELS[:5])
def test_inspect_of_a_file_that_is_no_model(place, kind):
    model, words = bad_models(place)[kind]
    complain(run("inspect", model), 2 if kind == "missing" else 5, "error: ", *words)


@pytest.mark.parametrize("kind", MODELS[5:])
def test_inspect_says_what_keeps_a_model_from_being_explained(place, kind):
    model, words = bad_models(place)[kind]
    result = run("inspect", model)
    assert result.exit_code == 0
    assert "problem" in result.stdout
    assert all(word in result.stdout for word in words)


def test_operators_without_a_rule_are_told_all_at_once(place):
    model = place.add_model("gaps.onnx", classifier(extra=("Rune", "Glyph", "Rune")))
    before = place.files()
    said = complain(
        explain(place, *place.photos, *FAST, model=model),
        5,
        "com.example.Rune x2 (first: odd0)",
        "com.example.Glyph x1",
        "2 operators",
        lines=4,
    )
    assert said.startswith("error: cannot differentiate")
    assert place.files() == before
    shown = run("inspect", model)
    assert shown.exit_code == 0
    assert "com.example.Rune x2" in shown.stdout
    facts = json.loads(run("inspect", model, "--format", "json").stdout)
    assert len(facts["gaps"]) == 3


def bad_photos(place):
    text = place.root / "photos" / "text.jpg"
    text.write_text("not a photo")
    cut = place.root / "photos" / "cut.png"
    whole = place.photos[0].read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    huge = png_header(place.root / "photos" / "huge.png", 60_000, 60_000)
    return {
        "text": (text, "text.jpg"),
        "cut": (cut, "cut.png"),
        "huge": (huge, "huge.png"),
        "missing": (place.root / "none.png", "none.png"),
    }


@pytest.mark.parametrize("kind", ["text", "cut", "huge", "missing"])
def test_a_photo_that_cannot_be_read_does_not_stop_the_others(place, kind):
    good = place.photos
    bad, word = bad_photos(place)[kind]
    result = run(
        "explain", place.model, good[0], bad, *good[1:], "--method", "ig", "--method", "saliency", "-o", place.out
    )
    complain(result, 3, "error: cannot read the image", word, "next: ")
    assert len(result.stdout.splitlines()) == 1 + 6
    assert len(list(place.out.glob("*.npz"))) == 6
    for file in place.out.glob("*.npz"):
        Explanation.load(file)
    shown = json.loads(
        run("explain", place.model, *good, bad, *FAST, "-o", place.root / "2", "--format", "json").stdout
    )
    assert len(shown["rows"]) == 3
    assert len(shown["failed"]) == 1


@pytest.mark.parametrize("kind", ["text", "cut", "huge", "missing"])
def test_nothing_but_a_photo_that_cannot_be_read(place, kind):
    bad, word = bad_photos(place)[kind]
    result = explain(place, bad, *FAST)
    complain(result, 2 if kind == "missing" else 1, word)
    assert result.stdout == ""


def test_two_photos_of_one_stem(place):
    other = place.add_photo("more/a.png")
    before = place.files()
    complain(explain(place, *place.photos, other, *FAST), 2, "photos/a.png", "more/a.png", "a.*", "next: ")
    assert place.files() == before


def test_no_preprocessing_to_be_found(place):
    model = place.add_model("bare.onnx", classifier(), spec=None)
    before = place.files()
    said = complain(explain(place, *place.photos, *FAST, model=model), 2, "no preprocessing found", "--preprocess FILE")
    assert "bare.preprocessor_config.json" in said
    complain(run("export", model, "-o", place.root / "g.onnx"), 2, "no preprocessing found")
    complain(explain(place, *place.photos, *FAST, "--preprocess", "none", model=model), 2, "photos have no defined way")
    complain(
        explain(place, *place.photos, *FAST, "--preprocess", place.root / "no.json", model=model),
        2,
        "no.json",
        "next: ",
    )
    assert place.files() == before
    shown = run("inspect", model)
    assert shown.exit_code == 0
    assert "no preprocessing found" in shown.stdout


def test_a_preprocessing_that_is_wrong(place):
    (place.root / "m.preprocessor_config.json").write_text("{")
    complain(explain(place, *place.photos, *FAST), 1, "m.preprocessor_config.json", "not valid JSON")
    shown = run("inspect", place.model)
    assert shown.exit_code == 0
    assert "not valid JSON" in shown.stdout


@pytest.mark.parametrize("target", [5, 10**9])
def test_a_target_that_is_out_of_range(place, target):
    before = place.files()
    complain(explain(place, *place.photos, *FAST, "--target", target), 2, f"target {target}", "5 classes (0 to 4)")
    assert place.files() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "isaa"], ["unknown method 'isaa'", "did you mean isa"]),
        (["--method", "ig", "--set", "step=4"], ["unknown parameter 'step'", "did you mean steps"]),
        (["--method", "ig", "--set", "steps=many"], ["steps", "a whole number", "'many'"]),
        (["--method", "ig", "--set", "steps=0"], ["steps"]),
        (["--method", "ig", "--set", "steps=99999999999"], ["steps", "from 1 to 100000"]),
        (["--method", "ig", "--set", "steps=99999", "--set", "rule=gauss_legendre"], ["from 1 to 1000"]),
        (["--method", "isa", "--set", "eta1=1e400"], ["eta1", "a number"]),
        (["--method", "isa", "--set", "eta1=1e39"], ["eta1", "at most 1"]),
        (["--method", "isa", "--set", "s=1e39"], ["ISA: s", "at most 1000"]),
        (["--method", "credible", "--set", "kernels=99999999999"], ["kernels", "from 3 to 1001"]),
        (["--method", "ig", "--set", "steps"], ["K=V", "'steps'"]),
        (["--method", "ig", "--method", "isa", "--set", "steps=4"], ["METHOD.K=V"]),
        (["--method", "ig", "--set", "isa.k=4"], ["K=V", "'isa.k=4'"]),
        (["--method", "ig", "--method", "ig"], ["ig is given twice"]),
        (["--method", "ig", "--on", "abacus"], ["abacus"]),
        (["--method", "ig", "--output-name", "none"], ["none", "logits"]),
    ],
)
def test_methods_and_parameters_that_do_not_exist(place, args, words):
    before = place.files()
    complain(explain(place, *place.photos, *args), 2, "error: ", *words)
    assert place.files() == before


def test_a_folder_without_photos(place):
    (place.root / "none").mkdir()
    complain(explain(place, place.root / "none", *FAST), 2, "holds no images")


def test_results_that_are_there_already(place):
    place.explained()
    before = place.files()
    complain(explain(place, *place.photos, *FAST), 1, "a.ig.npz", "and 5 more", "already there", "--overwrite")
    complain(explain(place, place.add_photo("d.png"), place.photos[2], *FAST), 1, "c.ig.npz", "already there")
    assert {k: v for k, v in place.files().items() if k != "d.png"} == before
    assert explain(place, *place.photos, *FAST, "--overwrite").exit_code == 0
    assert {k: v for k, v in place.files().items() if k != "d.png"} == before  # the same explanation, the same bytes


@pytest.mark.parametrize("where", ["m.onnx", "m.onnx/deeper", "/proc/nowhere", "/dev/null/out"])
def test_an_output_folder_that_cannot_be_written_to(place, where):
    if where.startswith("/") and not os.path.isdir("/proc"):
        pytest.skip("no /proc on this system")
    before = place.files()
    result = run("explain", place.model, *place.photos, *FAST, "-o", place.root / where)
    complain(result, 1, "error: ", where, "next: ")
    assert result.stdout == ""
    assert place.files() == before


def pickled(path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", buffer.getvalue() + pickle.dumps([print]))
    return path


def bad_heatmaps(place):
    root = place.root
    np.save(root / "shape.npy", np.ones((9, 8)))
    np.save(root / "nan.npy", np.full((8, 8), np.nan))
    np.save(root / "four.npy", np.ones((2, 3, 8, 8)))
    np.savez(root / "several.npz", a=np.ones((8, 8)), b=np.ones((8, 8)))
    (root / "text.npz").write_text("no archive")
    place.add_photo("text.png")
    return {
        "shape": (root / "shape.npy", ["shape.npy", "[9, 8]", "never resized"]),
        "nan": (root / "nan.npy", ["nan.npy", "64 of 64 values are NaN"]),
        "four": (root / "four.npy", ["four.npy", "[2, 3, 8, 8]"]),
        "several": (root / "several.npz", ["several.npz", "2 arrays", "--key"]),
        "text": (root / "text.npz", ["text.npz"]),
        "pickle": (pickled(root / "pickle.npz"), ["pickle.npz", "never loaded"]),
        "missing": (root / "none.npz", ["none.npz"]),
    }


@pytest.mark.parametrize("kind", ["shape", "nan", "four", "several", "text", "pickle", "missing"])
def test_a_heatmap_that_cannot_be_used_does_not_stop_the_others(place, kind):
    good = place.explained()
    bad, words = bad_heatmaps(place)[kind]
    photo = ("--image", place.photos[0])
    alone = run("score", place.model, bad, *photo)
    complain(alone, 2 if kind == "missing" else 1, "error: ", *words)
    assert alone.stdout == ""
    result = run("score", place.model, good[0], bad, good[1], *photo, "--format", "json")
    complain(result, 3, *words, lines=3)  # and that --image is not for our own two
    found = json.loads(result.stdout)
    assert {row["heatmap"] for row in found["rows"]} == {str(good[0]), str(good[1])}
    assert len(found["failed"]) == 1


def test_a_heatmap_of_another_size_of_image(place):
    heatmap = place.explained()[0]
    other = place.add_model("big.onnx", classifier(size=12), {**SPEC, "size": {"height": 12, "width": 12}})
    complain(run("score", other, heatmap), 1, "8 x 8", "12 x 12")


def test_arrays_of_other_tools_need_their_photo(place):
    np.save(place.root / "cam.npy", np.ones((8, 8)))
    cam = place.root / "cam.npy"
    complain(run("score", place.model, cam), 1, "cam.npy", "--image")
    complain(
        run("score", place.model, cam, cam, cam, *2 * ("--image", place.photos[0])), 2, "one for each of 3", "got 2"
    )
    complain(run("score", place.model, cam, "--image", place.root / "none.png"), 2, "none.png")
    complain(run("score", place.model, cam, "--protocol", "rice"), 2, "protocol 'rice'", "agi_isa")
    union = run("score", place.model, cam, "--image", place.photos[0], "--protocol", "agi_isa-union")
    complain(union, 1, "cam.npy", "ranks each channel")


def test_scores_are_not_written_over_other_files(place):
    heatmap = place.explained()[0]
    rows = place.root / "rows.json"
    rows.write_text("mine")
    complain(run("score", place.model, heatmap, "-o", rows), 1, "rows.json", "already there")
    assert rows.read_text() == "mine"
    complain(run("score", place.model, heatmap, "-o", place.root / "rows.txt"), 2, "rows.txt", ".csv")


@pytest.mark.parametrize("where", ["m.onnx/rows.csv", "/proc/nowhere/rows.csv", "folder.csv"])
def test_a_place_for_scores_that_cannot_be_written_to_is_told_before_anything_is_scored(place, monkeypatch, where):
    heatmap = place.explained()[0]
    (place.root / "folder.csv").mkdir()

    def never(*_):
        raise AssertionError("scored all the same")

    monkeypatch.setattr("onnxplain.engine.executors.onnxruntime.OnnxRuntimeExecutor.__call__", never)
    result = run("score", place.model, heatmap, "-o", place.root / where, "--overwrite")
    complain(result, 1, "error: ", where, "cannot be written", "next: ")
    assert result.stdout == ""


def test_scores_that_cannot_be_written_in_the_end_are_printed_all_the_same(place, monkeypatch):
    heatmap = place.explained()[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    for form in ("text", "json", "csv"):
        result = run("score", place.model, heatmap, "-o", place.root / "rows.csv", "--format", form)
        complain(result, 1, "rows.csv", "No space left on device")
        assert "insertion" in result.stdout


def test_exports_are_not_written_over_other_files(place):
    mine = place.root / "mine.onnx"
    mine.write_text("mine")
    before = place.files()
    new = place.root / "new.onnx"
    complain(run("export", place.model, "-o", mine), 1, "mine.onnx", "already there", "--overwrite")
    complain(run("export", place.model, "-o", new, "--classifier", mine), 1, "mine.onnx", "already there")
    complain(run("export", place.model, "-o", place.model, "--overwrite"), 2, "three files")
    complain(run("export", place.model, "-o", new, "--classifier", new), 2, "three files")
    inside = place.model / "g.onnx"
    complain(run("export", place.model, "-o", inside), 1, "g.onnx", "cannot be written")
    complain(run("export", place.model, "-o", new, "--classifier", inside), 1, "g.onnx", "cannot be written")
    complain(run("export", place.model, "-o", place.root, "--overwrite"), 1, "is a folder")
    assert place.files() == before


def test_the_preprocessing_of_a_gradient_model_is_not_ignored(place):
    heatmap = place.explained()[0]
    grad = place.root / "g.onnx"
    assert run("export", place.model, "-o", grad).exit_code == 0
    none = ("--preprocess", "none")
    before = place.files()
    words = ("error: ", "preprocessing folded in", "next: ")
    out = place.root / "out2"
    complain(run("explain", grad, place.photos[0], *FAST, "-o", out, *none), 2, *words)
    complain(run("score", grad, heatmap, *none), 2, *words)
    complain(run("export", grad, "-o", place.root / "h.onnx", *none), 2, "gradient model already")
    assert place.files() == before
    with pytest.raises(UsageError, match="folded in"):
        ox.open(grad, preprocess=None)
    bare = place.root / "bare.onnx"
    assert run("export", place.model, "-o", bare, *none).exit_code == 0
    with ox.open(bare, preprocess=None) as explainer:  # which is what it says of itself
        assert explainer.preprocess is None


def without(model, part, name):
    """The model without one of its inputs, which becomes a constant, outputs or entries of the metadata."""
    items = getattr(model.metadata_props if part == "meta" else model.graph, part, model.metadata_props)
    (found,) = [item for item in items if (item.key if part == "meta" else item.name) == name]
    items.remove(found)
    if part == "input":
        kind = found.type.tensor_type
        dims = [dim.dim_value or 1 for dim in kind.shape.dim]
        zeros = np.zeros(dims, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, name))


def changed(model, key, value):
    (found,) = [item for item in model.metadata_props if item.key == key]
    found.value = value


def resized(model, part, name, dim):
    (found,) = [item for item in getattr(model.graph, part) if item.name == name]
    found.type.tensor_type.shape.dim[dim].dim_param = "free"


BROKEN = {
    "no space": (lambda m: without(m, "meta", "onnxplain.space"), "lacks onnxplain.space"),
    "no source": (lambda m: without(m, "meta", "onnxplain.source_sha256"), "lacks onnxplain.source_sha256"),
    "no preprocessing": (lambda m: without(m, "meta", "onnxplain.preprocess"), "space pixel without preprocessing"),
    "no objectives": (lambda m: without(m, "meta", "onnxplain.objectives"), "objectives"),
    "no JSON": (lambda m: changed(m, "onnxplain.objectives", "{"), "objectives"),
    "other codes": (lambda m: changed(m, "onnxplain.objectives", '{"logit": 1}'), "objectives"),
    "odd space": (lambda m: changed(m, "onnxplain.space", "outer"), "unknown space 'outer'"),
    "stale preprocessing": (lambda m: changed(m, "onnxplain.space", "model"), "space model with preprocessing"),
    "no target": (lambda m: without(m, "input", "onnxplain_target"), "lacks the input onnxplain_target"),
    "no image": (lambda m: without(m, "input", "x"), "not one image input"),
    "free height": (lambda m: resized(m, "input", "x", 2), "not one image input"),
    "no gradient": (lambda m: without(m, "output", "gradient"), "lacks the output gradient"),
    "free classes": (lambda m: resized(m, "output", "logits", 1), "no logits of shape (N, K)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_only_says_that_it_is_a_gradient_model(place, kind):
    heatmap = place.explained()[0]
    grad = place.root / "g.onnx"
    assert run("export", place.model, "-o", grad).exit_code == 0
    model = onnx.load(grad)
    damage, words = BROKEN[kind]
    damage(model)
    onnx.save(model, grad)
    words = ("error: ", "says that it is a gradient model", words, "next: ")
    complain(run("explain", grad, place.photos[0], *FAST, "-o", place.root / "out2"), 5, *words)
    complain(run("score", grad, heatmap), 5, *words)
    shown = run("inspect", grad)
    assert shown.exit_code == 0
    assert any(line.startswith("problem") and words[2] in line for line in shown.stdout.splitlines())
    assert json.loads(run("inspect", grad, "--format", "json").stdout)["problems"]


def test_an_unexpected_error_is_one_line_and_traceback_shows_the_rest(place, monkeypatch):
    def broken(*_, **__):
        raise KeyError("a bug\nin two lines")

    monkeypatch.setattr("onnxplain.adapters.inspection.inspect", broken)
    result = run("inspect", place.model)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "internal error: KeyError" in result.stderr
    shown = run("inspect", place.model, "--traceback")
    assert "Traceback" in shown.stderr
    assert "in broken" in shown.stderr


def test_traceback_of_an_expected_error(place):
    for args in (["inspect", "none.onnx", "--traceback"], ["--traceback", "inspect", "none.onnx"]):
        shown = run(*args)
        assert shown.exit_code == 2
        assert "Traceback" in shown.stderr
        assert shown.stderr.splitlines()[-1].startswith("error: ")


def test_a_missing_runtime_is_said_with_what_to_install(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for command in (
        ["export", place.model, "-o", place.root / "g.onnx"],
        ["explain", place.model, place.photos[0], *FAST, "-o", place.out],
    ):
        complain(run(*command), 4, "onnxruntime is not installed", "onnxplain[cpu]")
    assert not (place.root / "g.onnx").exists()
    done = run("export", place.model, "-o", place.root / "g.onnx", "--no-verify")
    assert done.exit_code == 0
    assert "not verified" in done.stderr


def test_missing_packages_of_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxplain.models.efficientnet_lite.PACKAGE", "not_a_package_at_all")
    result = run("demo", "-o", tmp_path / "out")
    complain(result, 4, "is not installed", "onnxplain[demo]")
    assert not (tmp_path / "out").exists()


def onnxplain(*args, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "onnxplain", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
    )


def test_a_reader_that_stops_reading_is_no_traceback(place):
    process = onnxplain("inspect", place.model)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() in (0, 1)
    assert b"Traceback" not in said
    assert b"Exception" not in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout(place):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "onnxplain", "inspect", place.model], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output: cannot be written")
    assert len(done.stderr.splitlines()) == 1


def test_a_file_name_that_is_no_text(place):
    path = os.path.join(os.fsencode(place.root), b"\xff.png")
    with open(path, "wb") as file:
        file.write(place.photos[0].read_bytes())
    process = onnxplain("explain", place.model, os.fsdecode(path), *FAST, "-o", place.out)
    out, said = process.communicate()
    assert (process.returncode, said) == (0, b"")
    assert b"udcff" in out


def test_an_image_that_is_not_used_is_told(place):
    """A heatmap file of ours brings its image; --image is for the arrays of other tools beside it."""
    (heatmap, *_) = place.explained()
    result = run("score", place.model, heatmap, "--image", place.photos[0])
    assert result.exit_code == 0
    assert "so --image is not used for it" in result.stderr


def test_channels_last_models_are_told_apart_from_a_wrong_preprocessing(place):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        last (float[N, 8, 8, 3] x) => (float[N, 192] z) { z = Flatten(x) }"""
    )
    path = place.add_model("last.onnx", model)
    assert run("explain", path, place.photos[0], "--method", "saliency", "-o", place.out).exit_code == 0
    wrong = place.add_model("wrong.onnx", model, SPEC | {"size": {"height": 9, "width": 8}})
    said = complain(run("explain", wrong, place.photos[0], "--method", "saliency", "-o", place.root / "more"), 2)
    assert "(3, 9, 8), or (9, 8, 3) channels last, but the model's input is x float[N, 8, 8, 3]" in said


@pytest.mark.parametrize("given", ["3,8", "3,9,8", "2,3,8,8"])
def test_an_input_shape_that_does_not_fit(place, given):
    complain(run("explain", place.model, place.photos[0], *FAST, "-o", place.out, "--input-shape", given), 2, "not fit")


@pytest.mark.parametrize("given", ["3,8,x", "", "3 8 8"])
def test_an_input_shape_that_is_none(place, given):
    complain(run("inspect", place.model, "--input-shape", given), 2, "whole numbers with commas between")


def test_what_the_library_logs_is_said_while_a_command_runs_and_not_afterwards(place, monkeypatch, caplog) -> None:
    """Warnings always, the rest with -v; a program that has run a command keeps its own logging."""
    log = logging.getLogger("onnxplain.engine.drive")
    call = OnnxRuntimeExecutor.__call__

    def talking(self: OnnxRuntimeExecutor, feeds: Any) -> Any:
        log.warning("something is odd")
        log.info("by the way")
        return call(self, feeds)

    monkeypatch.setattr(OnnxRuntimeExecutor, "__call__", talking)
    arguments = ("explain", place.model, place.photos[0], *FAST, "-o", place.root / "logged", "--overwrite")
    quiet, loud = run(*arguments), run(*arguments, "-v")
    assert "warning: something is odd\n" in quiet.stderr
    assert "by the way" not in quiet.stderr
    assert "by the way\n" in loud.stderr
    caplog.clear()
    log.warning("afterwards")
    assert [record.getMessage() for record in caplog.records] == ["afterwards"]


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "65537", "٣", "9" * 5000, ""])
def test_a_batch_size_is_a_number_or_auto(place, size: str) -> None:
    complain(
        explain(place, place.photos[0], *FAST, f"-b{size}" if size else "-b="), 2, "expected a whole number from 1"
    )
