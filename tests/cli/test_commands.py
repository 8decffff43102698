"""What the commands do when all is well: their files, their rows, and that Python gives the same."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from PIL import Image
from tiny import FAST, SPEC, classifier, complain, run

import onnxplain as ox
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.engine.explanation import Explanation
from onnxplain.models.preprocess import PreprocessSpec, load_image, to_input

COLUMNS = [
    "image", "method", "target", "label", "probability", "logit", "value", "completeness_gap",
    "on", "precision", "threads", "heatmap", "overlay",
]  # fmt: skip


def rows_of(result):
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert document["failed"] == []
    return document["rows"]


# inspect


def test_inspect_as_text(place):
    lines = dict(line.split(None, 1) for line in run("inspect", place.model).stdout.splitlines())
    assert lines["opset"].startswith("ai.onnx 18")
    assert lines["input"] == "x  float[N, 3, 8, 8]"
    assert lines["output"] == "logits  float[N, 5]"
    assert lines["operators"] == "Conv x1, Relu x1, Flatten x1, Gemm x1"
    assert lines["preprocessing"] == str(place.root / "m.preprocessor_config.json")
    assert "every operator" in lines["gradient"]


def test_inspect_as_json(place):
    found = json.loads(run("inspect", place.model, "--format", "json").stdout)
    assert found["schema_version"] == 1
    assert found["inputs"] == [{"name": "x", "dtype": "float", "shape": ["N", 3, 8, 8]}]
    assert found["bytes"] == place.model.stat().st_size
    assert found["parameters"] == 4 * 27 + 5 * 256
    assert found["preprocess"]["image_mean"] == SPEC["image_mean"]
    assert (found["gaps"], found["problems"], found["gradient_model"]) == ([], [], None)


def test_inspect_tells_what_cuda_and_tensorrt_would_not_run(place):
    """By half and operator; a classifier and its gradient model say the same of the gradient."""
    assert "runs every node" in run("inspect", place.model).stdout
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]> classifier (float[N, 1, 6, 6] x) => (float[N, 16] z)
        { pooled = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x) z = Flatten(pooled) }"""
    )
    dilated, gradient = place.add_model("dilated.onnx", model), place.root / "dilated.grad.onnx"
    shown = run("inspect", dilated, "--preprocess", "none").stdout
    assert "cuda               runs every node" in shown
    assert "tensorrt forward   not MaxPool x1" in shown
    assert "tensorrt backward  not MaxPool x1" in shown
    assert "problem" not in shown
    run("export", dilated, "-o", gradient, "--preprocess", "none")
    for path in (dilated, gradient):
        found = json.loads(run("inspect", path, "--preprocess", "none", "--format", "json").stdout)["runtimes"]
        assert found["cuda"] == []
        assert [(note["half"], note["op"], note["count"], note["why"]) for note in found["tensorrt"]] == [
            ("forward", "MaxPool", 1, "dilations"),
            ("backward", "MaxPool", 1, "dilations"),
        ]


def test_inspect_of_a_gradient_model_tells_its_origin(place):
    grad = place.root / "g.onnx"
    source = json.loads(run("inspect", place.model, "--format", "json").stdout)["sha256"]
    assert run("export", place.model, "-o", grad).exit_code == 0
    found = json.loads(run("inspect", grad, "--format", "json").stdout)
    assert found["gradient_model"]["space"] == "pixel"
    assert found["gradient_model"]["source_sha256"] == source
    assert found["gradient_model"]["objectives"]["logit"] == 0
    assert "metadata" in found["preprocess_from"]
    assert "gradient model" in run("inspect", grad).stdout


# export


@pytest.mark.parametrize("softmax", [False, True])
def test_export_writes_a_verified_gradient_model_and_its_classifier(place, softmax):
    model = place.add_model("s.onnx", classifier(softmax=softmax))
    grad, plain = place.root / "s.grad.onnx", place.root / "plain.onnx"
    result = run("export", model, "-o", grad, "--classifier", plain, "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    done = json.loads(result.stdout)
    assert done["difference"] < 1e-5
    assert [(file["path"], file["bytes"]) for file in done["files"]] == [
        (str(path), path.stat().st_size) for path in (grad, plain)
    ]
    onnx.checker.check_model(onnx.load(grad), full_check=True)
    onnx.checker.check_model(onnx.load(plain), full_check=True)

    # all three explain and score alike, wherever they lie
    (place.root / "s.preprocessor_config.json").rename(place.root / "moved.json")
    heatmap = place.explained()[0]
    attributions, scores = [], []
    for path, options in ((model, ("--preprocess", place.root / "moved.json")), (grad, ()), (plain, ())):
        out = place.root / f"out-{path.stem}"
        (row,) = rows_of(run("explain", path, place.photos[0], *FAST, "-o", out, "--format", "json", *options))
        attributions.append(Explanation.load(row["heatmap"]).attribution)
        rows = rows_of(run("score", path, heatmap, "--step", "4", "--curves", "--format", "json", *options))
        scores.append([{k: v for k, v in row.items() if k != "model_sha256"} for row in rows])
    for attribution in attributions[1:]:
        assert np.array_equal(attribution, attributions[0])
    assert scores[1:] == [scores[0]] * 2
    assert {row["protocol"] for row in scores[0]} == {"rise(step=4)"}


def test_the_classifier_that_export_writes_is_the_source_in_one_file(place):
    source = classifier(outputs=2)
    onnx.helper.set_model_props(source, {"author": "me", "onnxplain.preprocess": json.dumps(SPEC)})
    model = place.root / "weights.onnx"
    onnx.save(source, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    for spec, options in ((SPEC, ()), (None, ("--preprocess", "none"))):
        folder = place.root / f"made{len(options)}"  # made where it is missing
        args = ("-o", folder / "g.onnx", "--classifier", folder / "deeper" / "c.onnx", "--output-name", "logits")
        assert run("export", model, *args, *options).exit_code == 0
        made = onnx.load(folder / "deeper" / "c.onnx", load_external_data=False)
        meta = {entry.key: entry.value for entry in made.metadata_props}
        assert meta.pop("author") == "me"
        if spec is not None:
            assert PreprocessSpec.from_dict(json.loads(meta.pop("onnxplain.preprocess"))) == PreprocessSpec.from_dict(
                spec
            )
        assert meta == {}
        assert [[n.op_type, *n.input, *n.output] for n in made.graph.node] == [
            [n.op_type, *n.input, *n.output] for n in source.graph.node
        ]
        assert [v.name for v in made.graph.output] == ["logits", "more0"]
        assert all(not tensor.external_data for tensor in made.graph.initializer)


def test_inspect_counts_external_weights_in(place):
    model = place.root / "weights.onnx"
    onnx.save(classifier(), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (place.root / "weights.preprocessor_config.json").write_text(json.dumps(SPEC))
    before = json.loads(run("inspect", model, "--format", "json").stdout)
    weights = place.root / "weights.bin"
    assert before["bytes"] == model.stat().st_size + weights.stat().st_size
    grad = place.root / "g.onnx"
    assert run("export", model, "-o", grad).exit_code == 0
    origin = json.loads(run("inspect", grad, "--format", "json").stdout)["gradient_model"]
    assert origin["source_sha256"] == before["sha256"]
    weights.write_bytes(weights.read_bytes()[::-1])
    assert json.loads(run("inspect", model, "--format", "json").stdout)["sha256"] != before["sha256"]


@pytest.mark.parametrize("behind", ["Identity", "Flatten"])
def test_export_verifies_a_softmax_that_is_not_the_very_last(place, behind):
    model = classifier(softmax=True)
    model.graph.node.append(onnx.helper.make_node(behind, ["p"], ["q"]))
    model.graph.output[0].name = "q"
    path = place.add_model("behind.onnx", model)
    result = run("export", path, "-o", place.root / "g.onnx", "--format", "json")
    assert json.loads(result.stdout)["difference"] < 1e-5


def test_what_is_cut_off_and_the_head_are_told(place):
    """By `inspect`, and by `export` on stderr; `--head` overrides what the model suggests."""
    path = place.add_model("cut.onnx", classifier(softmax=True))
    shown = run("inspect", path).stdout
    assert re.search(r"^head +softmax$", shown, re.MULTILINE)
    assert re.search(r"^layout +NCHW$", shown, re.MULTILINE)
    assert "cut off behind the logits logits: Softmax" in shown
    result = run("export", path, "-o", place.root / "g.onnx")
    assert "cut off behind the logits logits: Softmax" in result.stderr
    plain = place.add_model("plain.onnx", classifier())
    assert json.loads(run("inspect", plain, "--format", "json").stdout)["head"] == "softmax"
    found = json.loads(run("inspect", plain, "--head", "sigmoid", "--format", "json").stdout)
    assert (found["head"], found["layout"], found["notes"]) == ("sigmoid", "NCHW", [])
    made = ("--method", "saliency", "--set", "objective=prob", "--format", "json", "-o")
    rows = [
        json.loads(run("explain", plain, place.photos[0], *made, place.root / str(i), *head).stdout)["rows"][0]
        for i, head in enumerate([(), ("--head", "sigmoid")])
    ]
    assert rows[0]["logit"] == rows[1]["logit"]
    assert rows[0]["value"] == pytest.approx(rows[0]["probability"])
    assert rows[1]["value"] == pytest.approx(rows[1]["probability"])
    assert rows[1]["probability"] == pytest.approx(1 / (1 + np.exp(-rows[1]["logit"])))


def test_sizes_that_a_model_leaves_open_are_given(place):
    model = classifier()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    path = place.add_model("open.onnx", model, spec=None)
    for given in ("3,8,8", "1,3,8,8"):
        out = ("-o", place.root / f"{given}.onnx", "--preprocess", "none", "--input-shape", given)
        assert run("export", path, *out).exit_code == 0
    result = run("export", path, "-o", place.root / "g.onnx", "--preprocess", "none")
    assert result.exit_code == 5
    assert "--input-shape, such as 3,224,224" in result.stderr


def test_export_with_an_output_name_and_without_preprocessing(place):
    model = place.add_model("many.onnx", classifier(outputs=2), spec=None)
    result = run("export", model, "-o", place.root / "g.onnx", "--output-name", "more0", "--preprocess", "none")
    assert result.exit_code == 0
    assert "logits: those of the classifier" in result.stdout
    assert "gradient: the derivative of the logits" in result.stdout
    assert "would have been noticed" in result.stdout
    found = json.loads(run("inspect", place.root / "g.onnx", "--format", "json").stdout)
    assert found["gradient_model"]["space"] == "model"


def test_export_fails_and_writes_nothing_where_logits_differ(place, monkeypatch):
    from onnxplain.adapters import export

    right = export.gradient_graph

    def wrong(*args, **options):
        model = right(*args, **options)
        weight = model.graph.initializers["f"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.1), name="f")
        return model

    monkeypatch.setattr(export, "gradient_graph", wrong)
    before = place.files()
    result = run("export", place.model, "-o", place.root / "g.onnx")
    assert result.exit_code == 1
    assert "differ from its own" in result.stderr
    assert place.files() == before


def test_export_fails_and_writes_nothing_where_the_gradient_is_wrong(place, monkeypatch):
    from onnxplain.adapters.gradient.registry import DEFAULT, Entry

    monkeypatch.setitem(DEFAULT, "Relu", Entry(lambda g, y, x: g, DEFAULT["Relu"].broadcastable))
    before = place.files()
    complain(run("export", place.model, "-o", place.root / "g.onnx"), 1, "nothing was written", "noise explains")
    assert place.files() == before
    complain(run("export", place.model, "-o", place.root / "g.onnx", "--no-verify"), 0, "not verified")
    assert run("verify", place.root / "g.onnx").exit_code == 1


def test_a_gradient_model_is_not_exported_again(place):
    run("export", place.model, "-o", place.root / "g.onnx")
    result = run("export", place.root / "g.onnx", "-o", place.root / "h.onnx")
    assert result.exit_code == 2
    assert "gradient model already" in result.stderr


# verify


def test_verify_passes_a_gradient_model_and_tells_what_it_would_have_noticed(place):
    grad = place.root / "g.onnx"
    assert run("export", place.model, "-o", grad).exit_code == 0
    shown = run("verify", grad, "--classifier", place.model, "--image", place.photos[0], "--image", place.photos[1])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "bit for bit" in shown.stdout
    assert "would have been noticed" in shown.stdout
    found = json.loads(run("verify", grad, "--format", "json", "--seed", "3").stdout)
    assert found["schema_version"] == 1
    assert found["difference"] is None
    assert found["gradient"]["verdict"] == "passed"
    assert 0 < found["gradient"]["along"] < 0.1
    assert "not compared with a classifier" in run("verify", grad).stdout


def test_verify_makes_the_gradient_model_of_a_classifier(place):
    plain = place.add_model("plain.onnx", classifier(), spec=None)
    shown = run("verify", plain, "--preprocess", "none", "--range", "-1", "1")
    assert shown.exit_code == 0
    assert "bit for bit" in shown.stdout
    complain(run("verify", place.model, "--classifier", plain), 2, "is a classifier itself")
    complain(run("verify", place.model, "--on", "gpu"), 2, "device 'gpu' is unknown")
    complain(run("verify", plain, "--preprocess", "none", "--range", "1", "-1"), 2, "range")
    complain(run("verify", plain, "--preprocess", "none", "--image", place.photos[0]), 2, "no preprocessing")


def test_verify_fails_for_another_classifier(place):
    other = classifier()
    for tensor in other.graph.initializer:
        if tensor.name == "f":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), "f"))
    path = place.add_model("other.onnx", other)
    run("export", place.model, "-o", place.root / "g.onnx")
    complain(run("verify", place.root / "g.onnx", "--classifier", path), 1, "differ from its own", "other.onnx")


def test_verify_says_where_and_how_precisely(place):
    """Finite differences in fp16 would show its rounding only, so that a right gradient failed."""
    shown = run("verify", place.model, "--precision", "fp16")
    assert shown.exit_code == 0, shown.output
    assert f"{place.model}: passed on cpu in fp16" in shown.stdout
    assert "4 random images (compared in fp32 on cpu)" in shown.stdout
    assert "gradient in fp32: the derivative of the logits" in shown.stdout
    assert "gradient in fp16: that of fp32 but for rounding" in shown.stdout
    found = json.loads(run("verify", place.model, "--precision", "fp16", "--format", "json").stdout)
    assert (found["on"], found["precision"], found["rounding"]["verdict"]) == ("cpu", "fp16", "passed")
    shown = run("verify", place.model).stdout
    assert f"{place.model}: passed on cpu in fp32" in shown
    assert "compared in" not in shown
    found = json.loads(run("verify", place.model, "--format", "json").stdout)
    assert (found["on"], found["precision"], found["rounding"]) == ("cpu", "fp32", None)


# a gradient that stops


def test_a_gradient_that_stops_is_loud_wherever_it_goes(place):
    """On stderr, each operator with its count and first node, even if quiet; and in the files."""
    model = classifier()
    model.graph.node.insert(1, onnx.helper.make_node("GridSample", ["a", "places"], ["s"], name="odd"))
    model.graph.node[2].input[0] = "s"
    places = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 2)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(places, "places"))
    model.graph.node.insert(0, onnx.helper.make_node("Flatten", ["x"], ["xs"]))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["xs", "m"], ["z"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["logits", "z"], ["sum"]))
    skip = np.random.default_rng(1).normal(size=(192, 5)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(skip, "m"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].name = "sum"
    path, grad = place.add_model("odd.onnx", model), place.root / "g.onnx"
    complain(run("export", path, "-o", grad), 5, "GridSample", lines=3)
    done = run("export", path, "-o", grad, "--on-unsupported", "stop-gradient", "-q")
    assert done.exit_code == 0
    assert "GridSample x1 (node: odd)" in done.stderr
    assert "the gradient is not verified" in done.stderr
    assert "GridSample x1" in run("inspect", grad).stdout
    for name, options in ((grad, ()), (path, ("--on-unsupported", "stop-gradient"))):
        shown = run("verify", name, *options)
        assert shown.exit_code == 1
        assert "partial" in shown.stdout
        assert "GridSample x1" in shown.stderr
        out = place.root / f"out-{name.stem}"
        told = run("explain", name, place.photos[0], *FAST, "-o", out, "--format", "json", *options)
        assert told.exit_code == 0
        assert "GridSample x1" in told.stderr
        (row,) = rows_of(told)
        assert "GridSample x1" in Explanation.load(row["heatmap"]).provenance["stopped"][0]


# explain


def test_explain_writes_heatmap_files_and_overlays(place):
    rows = rows_of(
        run(
            "explain", place.model, place.root / "photos", "--method", "ig", "--method", "isa", "--set", "isa.k=60",
            "--set", "ig.steps=3", "-o", place.out, "--format", "json", "--seed", "7", "--reduce", "max_abs",
        )
    )  # fmt: skip
    assert [(row["image"], row["method"]) for row in rows] == [
        (str(photo), method) for photo in place.photos for method in ("ig", "isa")
    ]
    assert list(rows[0]) == COLUMNS
    assert sorted(path.name for path in place.out.iterdir()) == [
        f"{stem}.{method}.{end}" for stem in "abc" for method in ("ig", "isa") for end in ("npz", "png")
    ]
    spec = PreprocessSpec.from_dict(SPEC)
    for row in rows:
        saved = Explanation.load(row["heatmap"])
        assert np.array_equal(saved.image, load_image(row["image"], spec))
        assert (saved.provenance["seed"], saved.provenance["image"]) == (7, os.path.basename(row["image"]))
        assert np.array_equal(np.asarray(Image.open(row["overlay"])), saved.overlay("max_abs"))
        assert row["probability"] == pytest.approx(
            float(np.exp(saved.logits[row["target"]]) / np.exp(saved.logits).sum())
        )
    assert Explanation.load(rows[0]["heatmap"]).params["steps"] == 3
    assert rows[0]["completeness_gap"] is not None
    assert rows[1]["completeness_gap"] is None


def test_explain_gives_what_python_gives(place):
    (row,) = rows_of(
        run("explain", place.model, place.photos[1], *FAST, "--target", "3", "-o", place.out, "--format", "json")
    )
    with ox.open(place.model) as explainer:
        x = to_input(load_image(place.photos[1], explainer.preprocess))[None]
        (theirs,) = explainer.explain(x, ox.methods.IntegratedGradients(steps=4), target=3)
    assert row["target"] == 3
    assert np.array_equal(Explanation.load(row["heatmap"]).attribution, theirs.attribution)


def test_methods_that_ask_no_gradient_explain_what_cannot_be_differentiated(place, monkeypatch):
    """With any other method beside them the model is refused, as it would be without them."""
    monkeypatch.delitem(DEFAULT, "Relu")
    forward = (
        "--method", "occlusion", "--set", "occlusion.window=3", "--set", "occlusion.stride=2",
        "--method", "rise", "--set", "rise.masks=20",
    )  # fmt: skip
    rows = rows_of(run("explain", place.model, *place.photos, *forward, "-o", place.out, "--format", "json"))
    assert [row["method"] for row in rows] == ["occlusion", "rise"] * 3
    assert all(Explanation.load(row["heatmap"]).attribution.any() for row in rows)
    mixed = run("explain", place.model, *place.photos, *forward, "--method", "saliency", "-o", place.root / "mixed")
    assert mixed.exit_code == 5
    assert "cannot differentiate" in mixed.stderr
    assert not (place.root / "mixed").exists()


def test_formats_hold_the_same_rows(place):
    args = ("explain", place.model, *place.photos, *FAST, "--overwrite", "-o", place.out, "--format")
    rows = rows_of(run(*args, "json"))
    lines = [json.loads(line) for line in run(*args, "jsonl").stdout.splitlines()]
    assert sorted(lines, key=lambda row: row["image"]) == [{"schema_version": 1} | row for row in rows]
    table = list(csv.DictReader(io.StringIO(run(*args, "csv").stdout)))
    assert [row["heatmap"] for row in table] == [row["heatmap"] for row in rows]
    assert [float(row["logit"]) for row in table] == [row["logit"] for row in rows]
    text = run(*args, "text").stdout.splitlines()
    assert text[0].split() == ["image", "method", "target", "label", "probability", "logit", "value", "gap", "heatmap"]
    assert len(text) == 4


def test_labels_come_from_the_model(place):
    model = classifier()
    onnx.helper.set_model_props(model, {"onnxplain.labels": json.dumps(["a", "b", "c", "d", "e"])})
    path = place.add_model("named.onnx", model)
    (row,) = rows_of(run("explain", path, place.photos[0], *FAST, "-o", place.out, "--format", "json"))
    assert row["label"] == "abcde"[row["target"]]


def test_files_in_a_folder_that_are_no_photos_are_passed_over(place):
    (place.root / "photos" / "notes.txt").write_text("x")
    (place.root / "photos" / ".hidden.png").write_text("x")
    (place.root / "photos" / "deeper").mkdir()
    result = run("explain", place.model, place.root / "photos", *FAST, "-o", place.out)
    assert result.exit_code == 0
    assert len(list(place.out.glob("*.npz"))) == 3
    assert [line.split(": ")[0].rpartition("/")[2] for line in result.stderr.splitlines()] == ["deeper", "notes.txt"]
    quiet = run("explain", "-q", place.model, place.root / "photos", *FAST, "-o", place.root / "out2")
    assert quiet.stderr == ""


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "LA", "CMYK"])
def test_photos_of_any_mode_are_explained(place, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = place.root / f"odd.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(path)
    assert run("explain", place.model, path, *FAST, "-o", place.out).exit_code == 0


# stdout and stderr


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_stdout_holds_nothing_but_the_result_whatever_is_said_on_stderr(place, form):
    (place.root / "photos" / "bad.jpg").write_text("x")
    result = run(
        "explain", "-v", "--progress", place.model, place.root / "photos", *FAST, "-o", place.out, "--format", form
    )
    assert result.exit_code == 3
    assert "explaining 4 images" in result.stderr
    assert "bad.jpg" in result.stderr
    assert re.search(r"[0-9]+ gradient rows in [0-9]+ calls; ", result.stderr)
    if form == "json":
        assert len(json.loads(result.stdout)["rows"]) == 3
    elif form == "jsonl":
        assert len([json.loads(line) for line in result.stdout.splitlines()]) == 3
    else:
        assert len(list(csv.DictReader(io.StringIO(result.stdout)))) == 3


def test_there_is_no_progress_bar_unless_stderr_is_a_terminal(place):
    for flags in ((), ("--no-progress",)):
        result = run("explain", *flags, place.model, *place.photos, *FAST, "-o", place.out, "--overwrite")
        assert (result.exit_code, result.stderr) == (0, "")


# score


def test_score_gives_a_row_for_each_heatmap_metric_and_protocol(place):
    heatmaps = place.explained()
    protocols = ("--protocol", "rise", "--protocol", "agi_isa", "--protocol", "agi_isa-union")
    result = run("score", place.model, *heatmaps, *protocols, "--step", "8", "--format", "json")
    rows = rows_of(result)
    assert len(rows) == 3 * 3 * 5
    needed = {"image", "method", "metric", "value", "protocol", "target", "seed", "model_sha256", "image_sha256",
              "reduction", "version", "on", "precision", "threads"}  # fmt: skip
    assert all(needed <= set(row) for row in rows)
    assert not any("curve" in row for row in rows)
    assert {(row["protocol"], row["reduction"]) for row in rows} == {
        ("rise(step=8)", "sum"), ("agi_isa(step=8)", "sum"), ("agi_isa-union(step=8)", "union"),
    }  # fmt: skip
    summary = json.loads(result.stdout)["summary"]
    assert len(summary) == 3 * 5
    for line in summary:
        values = [row["value"] for row in rows if all(row[k] == line[k] for k in ("metric", "protocol", "reduction"))]
        assert line["mean"] == pytest.approx(np.mean(values))
        assert line["standard_error"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
        assert line["n"] == 3

    with ox.open(place.model) as explainer:
        saved = Explanation.load(heatmaps[0])
        metric = ox.metrics.InsertionDeletion(ox.metrics.Protocol.named("rise", 8))
        x = to_input(saved.image)[None]
        (played,) = metric.score(explainer.forward, x, [saved.attribution], space=explainer.space)
    (insertion,) = [r for r in rows[:15] if r["metric"] == "insertion_auc" and r["protocol"] == "rise(step=8)"]
    assert insertion["value"] == played.insertion.auc


def test_curves_are_kept_when_asked_for(place):
    heatmap = place.explained()[0]
    rows = rows_of(run("score", place.model, heatmap, "--step", "16", "--curves", "--format", "json"))
    assert {row["metric"]: len(row["curve"]) for row in rows if "curve" in row} == {
        "insertion_auc": 5,
        "deletion_auc": 5,
    }


def test_every_printed_score_says_its_protocol_and_reduction(place):
    heatmaps = place.explained()
    head, *lines = run("score", place.model, *heatmaps, "--reduce", "abs_sum").stdout.splitlines()
    assert {"protocol", "reduction"} <= set(head.split())
    scores = [line for line in lines if "0." in line]
    assert len(scores) == 3 + 5
    assert all("rise" in line and "abs_sum" in line for line in scores)
    assert "s.e." not in run("score", place.model, heatmaps[0]).stdout


@pytest.mark.parametrize("end", ["json", "jsonl", "csv"])
def test_rows_are_written_to_a_file(place, end):
    heatmap = place.explained()[0]
    path = place.root / f"rows.{end}"
    result = run("score", place.model, heatmap, "-o", path)
    assert "insertion auc" in result.stdout
    text = path.read_text()
    rows = {
        "json": lambda: json.loads(text)["rows"],
        "jsonl": lambda: [json.loads(line) for line in text.splitlines()],
        "csv": lambda: list(csv.DictReader(io.StringIO(text))),
    }[end]()
    assert [row["metric"] for row in rows][:2] == ["insertion_auc", "insertion_mean"]
    assert run("score", place.model, heatmap, "-o", path, "--overwrite").exit_code == 0
    assert path.read_text() == text
    assert run("score", place.model, heatmap, "-o", place.root / "new" / "deep" / path.name).exit_code == 0
    assert (place.root / "new" / "deep" / path.name).read_text() == text


def test_arrays_of_other_tools_are_scored_with_their_photos(place):
    heatmap = place.explained()[0]
    attribution = Explanation.load(heatmap).attribution
    np.save(place.root / "a.cam.npy", attribution[None])
    np.savez(place.root / "pair.npz", cam=attribution, other=np.zeros((2, 2)))
    ours = rows_of(run("score", place.model, heatmap, "--format", "json"))
    args = ("--image", place.photos[0], "--format", "json")
    theirs = rows_of(run("score", place.model, place.root / "a.cam.npy", *args))
    keyed = rows_of(run("score", place.model, place.root / "pair.npz", "--key", "cam", *args))
    for rows in (theirs, keyed):
        assert [row["value"] for row in rows] == [row["value"] for row in ours]
        assert [row["image_sha256"] for row in rows] == [row["image_sha256"] for row in ours]
    assert {row["method"] for row in theirs} == {"cam"}
    assert {row["seed"] for row in theirs} == {None}
    cam = place.root / "a.cam.npy"
    each = rows_of(
        run("score", place.model, cam, cam, *(a for p in place.photos[:2] for a in ("--image", p)), *args[2:])
    )
    assert [row["image"] for row in each[::5]] == ["a.png", "b.png"]


def test_a_heatmap_of_another_model_or_class_is_scored_with_a_warning(place):
    (row,) = rows_of(run("explain", place.model, place.photos[0], *FAST, "-o", place.out, "--format", "json"))
    other = (row["target"] + 1) % 5
    run("explain", place.model, place.photos[0], *FAST, "-o", place.out, "--overwrite", "--target", other)
    heatmap = place.out / "a.ig.npz"
    result = run("score", place.model, heatmap)
    assert (result.exit_code, len(result.stderr.splitlines())) == (0, 1)
    assert f"explains class {other}" in result.stderr
    changed = classifier()
    changed.producer_name = "another"
    result = run("score", place.add_model("n.onnx", changed), heatmap)
    assert result.exit_code == 0
    assert "made for another model" in result.stderr


def test_a_constant_map_is_scored_with_a_warning(place):
    np.save(place.root / "flat.npy", np.ones((8, 8)))
    result = run("score", place.model, place.root / "flat.npy", "--image", place.photos[0])
    assert result.exit_code == 0
    assert "constant" in result.stderr


def test_other_metrics_are_scored_with_their_parameters(place):
    heatmaps = place.explained()
    both = ("--metric", "sensitivity-n", "--metric", "diffid", "--set", "sensitivity-n.subsets=5")
    result = run("score", place.model, *heatmaps, *both, "--format", "json")
    rows = rows_of(result)
    assert [row["metric"] for row in rows[:3]] == ["sensitivity_n", "diffid_logit", "diffid_accuracy"]
    assert (rows[0]["reduction"], rows[1]["reduction"]) == ("sum", "abs_sum")
    assert "subsets=5" in rows[0]["protocol"]
    assert not any("curve" in row or "ratios" in row for row in rows)
    assert len(json.loads(result.stdout)["summary"]) == 3
    (row,) = rows_of(
        run("score", place.model, heatmaps[0], *both[:2], "--set", "ratios=0.1,0.5", "--curves", "--format", "json")
    )
    assert (len(row["curve"]), row["ratios"]) == (2, [0.1, 0.5])
    head, *lines = run("score", place.model, heatmaps[0], *both, "--reduce", "max_abs").stdout.splitlines()
    assert "sensitivity n" in head
    assert "diffid accuracy" in head
    assert "insertion" not in head
    assert [line.count("max_abs") for line in lines] == [1, 1]
    table = run("score", place.model, heatmaps[0], *both, "--format", "csv").stdout
    assert {"dropped", "full_logit"} <= set(table.splitlines()[0].split(","))
    mixed = run("score", place.model, heatmaps[0], *both, "--metric", "insertion-deletion", "--protocol", "cpa")
    assert "insertion auc" in mixed.stdout


def test_wrong_metrics_and_their_parameters_are_told(place):
    heatmap = place.explained()[0]
    score = ("score", place.model, heatmap, "--metric")
    complain(run(*score, "sensitivity"), 2, "unknown metric 'sensitivity'; did you mean sensitivity-n?")
    complain(run(*score, "sensitivity-n", "--set", "subset=3"), 2, "unknown parameter 'subset'; did you mean subsets?")
    complain(run(*score, "diffid", "--set", "ratios=a"), 2, "diffid: ratios: expected numbers with commas between")
    complain(run(*score, "diffid", "--protocol", "rise"), 2, "--protocol and --step belong to insertion-deletion")
    complain(run(*score, "diffid", "--metric", "sensitivity-n", "--set", "ratios=0.1"), 2, "expected METRIC.K=V")


# interrupts


def test_ctrl_c_keeps_what_is_finished(place):
    photos = [place.add_photo(f"many/p{i:03}.png", i) for i in range(150)]
    with subprocess.Popen(
        [sys.executable, "-m", "onnxplain", "explain", place.model, place.root / "many", "--method", "isa",
         "--set", "k=2", "-o", place.out, "--format", "jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        # not communicate(), which reads behind the back of the buffer that readline() may have filled with more lines
        out, said = process.stdout.read(), process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    finished = [first, *map(json.loads, out.splitlines())]
    interrupted = re.fullmatch(r"interrupted: (\d+) of 150 done; .*\n", said)
    count = int(interrupted[1])
    assert len(finished) <= count < len(photos)
    assert count - len(finished) <= 1  # the signal may come between a file and its line
    assert {path.suffix for path in place.out.iterdir()} == {".npz", ".png"}  # no half of a file
    for row in finished:
        Explanation.load(row["heatmap"])
        Image.open(row["overlay"]).load()
    for path in place.out.glob("*.npz"):
        Explanation.load(path)


@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_ctrl_c_while_scoring_prints_and_writes_what_is_finished(place, monkeypatch, form):
    import onnxplain.files

    heatmaps = place.explained()
    scores = onnxplain.files.score_heatmaps

    def interrupted(*args, **options):
        outcomes = scores(*args, **options)
        yield next(outcomes)
        yield next(outcomes)
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxplain.files.score_heatmaps", interrupted)
    rows = place.root / "rows.csv"
    result = run("score", place.model, *heatmaps, "-o", rows, "--format", form)
    assert result.exit_code == 1
    assert result.stderr == "interrupted: 2 of 3 done; what was finished is kept\n"
    if form == "json":
        document = json.loads(result.stdout)
        assert len(document["rows"]) == 2 * 5
        assert document["failed"] == ["interrupted: 2 of 3 done"]
    elif form == "csv":
        assert len(list(csv.DictReader(io.StringIO(result.stdout)))) == 2 * 5
    else:
        assert "insertion auc" in result.stdout
    assert len(list(csv.DictReader(io.StringIO(rows.read_text())))) == 2 * 5


def test_inspect_tells_what_explain_would(place):
    """A flat input, logits that do not depend on the image, two outputs to choose from: found here, not later."""
    flat = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> flat (float[N, 8] x) => (float[N, 8] z) { z = Tanh(x) }"""
    )
    constant = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> c (float[N, 3, 8, 8] x) => (float[N, 192] z)
        { f = Flatten(x) z = Sign(f) }"""
    )
    for name, model, words in (
        ("flat", flat, "but the model's input is"),
        ("c", constant, "do not depend on the image"),
    ):
        (problem,) = json.loads(run("inspect", place.add_model(f"{name}.onnx", model), "--format", "json").stdout)[
            "problems"
        ]
        assert words in problem
    two = place.add_model("two.onnx", classifier(outputs=2))
    assert json.loads(run("inspect", two, "--format", "json").stdout)["problems"]
    assert not json.loads(run("inspect", two, "--output-name", "logits", "--format", "json").stdout)["problems"]
    plain = json.loads(run("inspect", place.model, "--preprocess", "none", "--format", "json").stdout)
    assert not plain["problems"]
    assert plain["preprocess"] is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to here")
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_full_disk_is_told_by_help_and_version_too(flag):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "onnxplain", flag], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output")
    assert "Traceback" not in done.stderr
