"""The photos that a method compares with: `--background`."""

from __future__ import annotations

import numpy as np
from tiny import SPEC, complain, run

import onnxplain as ox
from onnxplain import files
from onnxplain.engine.explanation import Explanation
from onnxplain.models.preprocess import PreprocessSpec, load_image

EG = ("--method", "eg", "--set", "eg.references=4")


def test_explain_compares_with_the_photos_of_a_folder(place):
    """As Python does with the same photos; the photo itself, which is among them, is left out."""
    given = ("--method", "saliency", *EG, "--background", place.root / "photos", "-o", place.out)
    assert run("explain", place.model, place.photos[0], *given).exit_code == 0
    saved = Explanation.load(place.out / "a.eg.npz")
    assert saved.diagnostics["references"] == 2
    spec = PreprocessSpec.from_dict(SPEC)
    with ox.open(place.model) as explainer:
        x = np.stack([explainer.to_input(load_image(photo, spec)) for photo in place.photos])
        (same,) = explainer.explain(x[:1], ox.methods.ExpectedGradients(background=x, references=4))
    np.testing.assert_array_equal(saved.attribution, same.attribution)
    assert saved.params == same.params
    assert Explanation.load(place.out / "a.saliency.npz").params == {"objective": "logit", "signed": False}


def test_of_many_photos_some_are_drawn_by_the_seed(place, monkeypatch):
    monkeypatch.setattr(files, "MOST_BACKGROUND", 2)
    with ox.open(place.model) as explainer:
        eg = ox.methods.ExpectedGradients()
        drawn = [files.with_background([eg], place.root / "photos", explainer, seed) for seed in range(20)]
    assert {count for _, count in drawn} == {2}
    assert len({method.background.tobytes() for (method,), _ in drawn}) > 1


def test_without_photos_to_compare_with(place):
    result = run("explain", place.model, place.photos[0], "--method", "eg", "-o", place.out)
    complain(result, 2, "EG needs images to compare with", "--background DIR")
    assert not list(place.root.glob("out/*"))


def test_photos_that_nobody_compares_with(place):
    given = ("--method", "saliency", "--background", place.root / "photos", "-o", place.out)
    result = run("explain", place.model, place.photos[0], *given)
    complain(result, 2, "background: none of the methods (saliency) compares with other images; next: leave it out")


def test_a_folder_that_is_of_no_use(place):
    (place.root / "empty").mkdir()
    for folder, code, words in (("empty", 2, "holds no images"), ("photos/none.png", 2, "none.png")):
        result = run("explain", place.model, place.photos[0], *EG, "--background", place.root / folder, "-o", place.out)
        complain(result, code, words)
