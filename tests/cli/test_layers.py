"""Inner layers on the command line."""

from __future__ import annotations

import json

import numpy as np
import onnx.parser
from tiny import complain, run


def attribution(path):
    return np.load(path)["attribution"]


def provenance(path):
    return json.loads(np.load(path)["meta"].item())["provenance"]


def test_explain_chooses_a_layer(place):
    """And says in its files which one."""
    methods = ("grad-cam", "layer-cam", "hires-cam", "score-cam", "fullgrad")
    args = [part for method in methods for part in ("--method", method)]
    assert run("explain", place.model, place.photos[0], *args, "-o", place.out).exit_code == 0
    for method in methods:
        assert attribution(place.out / f"a.{method}.npz").shape == (3, 8, 8)
    assert provenance(place.out / "a.grad-cam.npz")["layer"] == "b0"


def test_explain_takes_layers_by_name(place):
    """Of a classifier; `layer` chooses among several."""
    args = ["--layer", "b0", "--layer", "a", "--method", "hires-cam", "--set", "layer=1"]
    assert run("explain", place.model, place.photos[0], *args, "-o", place.out).exit_code == 0
    assert provenance(place.out / "a.hires-cam.npz")["layer"] == "a"


def test_export_with_layers(place):
    """Verified, inspected and explained; and the heatmap is that of the classifier."""
    grad = place.root / "g.onnx"
    done = run("export", place.model, "-o", grad, "--layer", "auto", "--layer", "a", "--bias-gradients")
    assert done.exit_code == 0
    assert "layer: b0 (Relu, 4 channels of 8 x 8)" in done.stderr
    assert run("verify", grad, "--classifier", place.model).exit_code == 0
    shown = run("inspect", grad).stdout
    assert "['b0', 'a']" in shown
    for model, out in ((place.model, "one"), (grad, "two")):
        args = ["--method", "grad-cam", "--method", "fullgrad", "-o", place.root / out]
        assert run("explain", model, place.photos[0], *args).exit_code == 0
    for method in ("grad-cam", "fullgrad"):
        one, two = (attribution(place.root / out / f"a.{method}.npz") for out in ("one", "two"))
        assert (one == two).all()


def test_export_as_json_tells_the_layers(place):
    done = run("export", place.model, "-o", place.root / "g.onnx", "--layer", "a", "--format", "json")
    (layer,) = json.loads(done.stdout)["layers"]
    assert (layer["name"], layer["operator"], layer["channels"], layer["grid"]) == ("a", "Conv", 4, [8, 8])
    plain = run("export", place.model, "-o", place.root / "h.onnx", "--format", "json")
    assert json.loads(plain.stdout)["layers"] == []


def test_inspect_shows_the_choice_and_lists_the_others(place):
    assert "b0 (Relu, 4 channels of 8 x 8), chosen of 2" in run("inspect", place.model).stdout
    found = json.loads(run("inspect", place.model, "--format", "json").stdout)
    assert found["layer"]["name"] == "b0"
    assert [layer["name"] for layer in found["layers"]] == ["a", "b0"]


def test_inspect_of_a_model_without_places(place):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        net (float[N, 3, 8, 8] x) => (float[N, 192] z) { z = Flatten (x) }"""
    )
    path = place.add_model("flat.onnx", model)
    found = json.loads(run("inspect", path, "--format", "json").stdout)
    assert (found["layer"], found["layers"]) == (None, [])
    assert "\nlayer" not in run("inspect", path).stdout
    complain(
        run("explain", path, place.photos[0], "--method", "grad-cam", "-o", place.out),
        *(2, "no convolution", "next: name a"),
    )


def test_a_name_that_means_nothing(place):
    """Before anything is written, with the closest name and where all are listed."""
    before = place.files()
    complain(
        run("export", place.model, "-o", place.root / "g.onnx", "--layer", "b00"),
        *(2, "layer 'b00'", "did you mean b0?", "onnxplain inspect"),
    )
    complain(
        run("explain", place.model, place.photos[0], "--method", "grad-cam", "--layer", "b00", "-o", place.out),
        *(2, "layer 'b00'", "did you mean b0?"),
    )
    complain(
        run("explain", place.model, place.photos[0], "--method", "grad-cam", "--set", "layer=1", "-o", place.out),
        *(2, "layer 1 was asked for"),
    )
    assert place.files() == before


def test_a_gradient_model_without_layers(place):
    grad = place.root / "g.onnx"
    assert run("export", place.model, "-o", grad).exit_code == 0
    for method, option in (("grad-cam", "--layer auto"), ("fullgrad", "--bias-gradients")):
        complain(
            run("explain", grad, place.photos[0], "--method", method, "-o", place.out),
            *(2, "exported without", f"export it again with {option}"),
        )
    complain(
        run("explain", grad, place.photos[0], "--method", "grad-cam", "--layer", "a", "-o", place.out),
        *(2, "layers built in", "export the classifier again"),
    )
