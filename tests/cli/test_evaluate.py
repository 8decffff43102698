"""`evaluate`: what it writes, that it goes on after anything, and that nothing wrong gets as far as computing."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework
from tiny import SPEC, Place, classifier, complain, run

import onnxplain as ox
from onnxplain.engine.metrics import InsertionDeletion, Protocol
from onnxplain.models.preprocess import load_image, to_input
from onnxplain.recipes import read, shipped

parquet = framework("pyarrow.parquet")
framework("scipy.stats")

RECIPE = """
title = "Tiny"
source = "nobody"
compare = [["ig", "gradient"]]

[images]
folder = "photos"

[[model]]
path = "m.onnx"

[[method]]
id = "ig"
steps = 4

[[method]]
label = "gradient"
id = "saliency"

[[metric]]
id = "insertion-deletion"
step = 16

[[published]]
model = "m"
columns = ["insertion_auc"]
[published.values]
ig = [0.5]
gradient = [0.25]
"""
NUMBERS = ("insertion_auc", "insertion_mean", "deletion_auc", "deletion_mean", "difference_auc")
FILES = ["recipe.toml", "results.parquet", "rows.jsonl", "summary.csv", "summary.json"]


@pytest.fixture
def recipe(place):
    path = place.root / "mine.toml"
    path.write_text(RECIPE)
    return path


def change(recipe, *changes):
    text = recipe.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    recipe.write_text(text)


def labels_for(place, model="m.onnx", wrong=()):
    """labels.csv, with what the model says, or for `wrong` photos another class."""
    with ox.open(place.root / model) as explainer:
        lines = ["file,label"]
        for photo in place.photos:
            said = int(explainer.logits(explainer.to_input(explainer.read(photo))[None])[0].argmax())
            lines.append(f"{photo.name},{(said + (photo.name in wrong)) % 5}")
    (place.root / "photos" / "labels.csv").write_text("\n".join(lines))


def evaluated(recipe, place, *more):
    """The document of a run that succeeded."""
    result = run("evaluate", recipe, "-o", place.out, "--format", "json", *more)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def rows_of(folder):
    return parquet.read_table(folder / "results.parquet").to_pylist()


def lines_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_what_is_written(place, recipe):
    document = evaluated(recipe, place)
    assert sorted(path.name for path in place.out.iterdir()) == FILES
    assert (place.out / "recipe.toml").read_text() == RECIPE
    rows = rows_of(place.out)
    assert [(row["image"], row["method"], row["metric"]) for row in rows] == [
        (f"{stem}.png", method, number) for stem in "abc" for method in ("ig", "gradient") for number in NUMBERS
    ]
    for name in (
        "image", "model", "method", "metric", "value", "protocol", "target", "seed", "model_sha256", "image_sha256",
        "reduction", "version", "curve", "on", "precision", "threads",
    ):  # fmt: skip
        assert name in rows[0]
    assert json.loads(rows[0]["method_params"])["steps"] == 4
    means = document["means"]
    assert [(mean["method"], mean["metric"]) for mean in means] == [(m, n) for n in NUMBERS for m in ("ig", "gradient")]
    for mean in means:
        values = [row["value"] for row in rows if (row["method"], row["metric"]) == (mean["method"], mean["metric"])]
        assert mean["mean"] == pytest.approx(np.mean(values))
        assert mean["low"] < mean["mean"] < mean["high"]
        assert mean["n"] == 3
        assert mean["published"] == (
            {"ig": 0.5, "gradient": 0.25}[mean["method"]] if mean["metric"] == "insertion_auc" else None
        )
    assert [pair["metric"] for pair in document["pairs"]] == list(NUMBERS)
    assert [order["metric"] for order in document["orders"]] == ["insertion_auc"]
    assert [(end["game"], end["largest_gap"] < 1e-12) for end in document["ends"]] == [
        ("insertion", True),
        ("deletion", True),
    ]
    about = {"title": "Tiny", "source": "nobody", "runs": [{"on": "cpu", "precision": "fp32", "threads": 0}]}
    assert json.loads((place.out / "summary.json").read_text()) == document | about
    table = list(csv.DictReader(io.StringIO((place.out / "summary.csv").read_text())))
    assert [float(row["mean"]) for row in table] == [mean["mean"] for mean in means]


def test_another_version_of_the_runtime_is_measured_anew(place, recipe, monkeypatch):
    import onnxruntime

    evaluated(recipe, place)
    before = lines_of(place.out)
    evaluated(recipe, place)
    assert lines_of(place.out) == before
    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    evaluated(recipe, place)
    after = lines_of(place.out)
    assert len(after) == 2 * len(before)
    assert {row["key"] for row in after[len(before) :]}.isdisjoint(row["key"] for row in before)
    assert len(rows_of(place.out)) == len(before)


def test_parquet_holds_the_lines(place, recipe):
    evaluated(recipe, place)
    lines, rows = lines_of(place.out), rows_of(place.out)
    assert len(lines) == len(rows) == 30
    by_place = {(line["image"], line["method"], line["metric"]): line for line in lines}
    for row in rows:
        line = by_place[row["image"], row["method"], row["metric"]]
        assert {n: v for n, v in row.items() if v is not None and not n.endswith("_params")} == {
            n: v for n, v in line.items() if v is not None and n not in ("key", "part") and not n.endswith("_params")
        }
        assert json.loads(row["method_params"]) == line["method_params"]


def test_the_numbers_are_those_of_explaining_and_scoring_one_by_one(place, recipe):
    evaluated(recipe, place, "-b", "5")
    values = {(row["image"], row["method"], row["metric"]): row["value"] for row in rows_of(place.out)}
    metric = InsertionDeletion(Protocol.named("rise", 16))
    methods = {"ig": ox.methods.IntegratedGradients(steps=4), "gradient": ox.methods.Saliency()}
    with ox.open(place.model, batch_size=1) as explainer:
        for photo in place.photos:
            x = to_input(load_image(photo, explainer.preprocess))[None]
            for label, method in methods.items():
                (made,) = explainer.explain(x, method)
                (played,) = metric.score(explainer.forward, x, [made.attribution], space=explainer.space)
                for number in played.rows():
                    assert values[photo.name, label, number["metric"]] == pytest.approx(number["value"], abs=1e-6)


def test_python_gives_the_same(place, recipe):
    document = evaluated(recipe, place)
    results = ox.evaluate(recipe, place.root / "python", batch_size=3)
    assert results.failed == {}
    assert results.summary.means == document["means"]
    assert [row["value"] for row in results.rows] == [row["value"] for row in rows_of(place.out)]


def test_two_runs_give_equal_rows(place, recipe):
    evaluated(recipe, place)
    first = rows_of(place.out)
    shutil.rmtree(place.out)
    evaluated(recipe, place, "-b", "3")
    assert rows_of(place.out) == first


def test_formats_hold_the_same_means(place, recipe):
    means = evaluated(recipe, place)["means"]
    table = list(csv.DictReader(io.StringIO(run("evaluate", recipe, "-o", place.out, "--format", "csv").stdout)))
    assert [float(row["mean"]) for row in table] == [mean["mean"] for mean in means]
    text = run("evaluate", recipe, "-o", place.out).stdout
    for word in ("Tiny", "published: nobody", "Kendall's tau", "p (Wilcoxon)", "s_0 + s_N", f"{means[0]['mean']:.4f}"):
        assert word in text


def test_several_models_one_class_to_explain_and_one_way_in(place, recipe):
    """Models lie where --models says; labels are explained instead of predictions."""
    folder = place.root / "models"
    folder.mkdir()
    for name in ("m.onnx", "n.onnx"):
        place.add_model(f"models/{name}", classifier(softmax=name == "n.onnx"), spec=None)
    shutil.copy(place.root / "m.preprocessor_config.json", folder / "preprocessor_config.json")
    labels_for(place, wrong=("b.png",))
    change(
        recipe, ("[[method]]", '[[model]]\npath = "n.onnx"\n\n[[method]]'), ('source = "nobody"', 'explain = "label"')
    )
    document = evaluated(recipe, place, "--models", folder, "--images", place.root)
    assert {(mean["model"], mean["n"]) for mean in document["means"]} == {("m", 3), ("n", 3)}
    rows = rows_of(place.out)
    assert [row["explained"] == row["target"] for row in rows] == [row["image"] != "b.png" for row in rows]
    assert all(row["explained"] == row["label"] for row in rows)
    assert {row["model"] for row in rows} == {"m", "n"}


@pytest.mark.parametrize("count", [None, 2])
def test_only_what_is_classified_right(place, recipe, count):
    labels_for(place, wrong=("a.png",))
    change(recipe, ('folder = "photos"', 'folder = "photos"\ncorrect_only = true'))
    more = [] if count is None else ["--count", count]
    evaluated(recipe, place, *more)
    assert {row["image"] for row in rows_of(place.out)} == {"b.png", "c.png"}


def test_count_takes_the_first_ones_and_more_go_on_from_there(place, recipe):
    evaluated(recipe, place, "--count", "1")
    assert {row["image"] for row in rows_of(place.out)} == {"a.png"}
    before = (place.out / "rows.jsonl").read_bytes()
    evaluated(recipe, place)
    assert (place.out / "rows.jsonl").read_bytes().startswith(before)
    assert len(lines_of(place.out)) == 30
    evaluated(recipe, place, "--count", "2")  # what is there already is in no table that does not ask for it
    assert {row["image"] for row in rows_of(place.out)} == {"a.png", "b.png"}


def test_what_is_done_is_not_done_again(place, recipe):
    document = evaluated(recipe, place)
    before = (place.out / "rows.jsonl").read_bytes()
    assert evaluated(recipe, place) == document
    assert (place.out / "rows.jsonl").read_bytes() == before


def test_a_changed_recipe_keeps_what_still_fits(place, recipe):
    evaluated(recipe, place)
    done = len(lines_of(place.out))
    change(recipe, ('label = "gradient"', 'label = "slope"'), ('"gradient"', '"slope"'), ("gradient =", "slope ="))
    evaluated(recipe, place)
    assert len(lines_of(place.out)) == done  # a label is only a name
    assert {row["method"] for row in rows_of(place.out)} == {"ig", "slope"}
    change(recipe, ("steps = 4", "steps = 5"))
    evaluated(recipe, place)
    assert len(lines_of(place.out)) == done + 15
    assert {json.loads(row["method_params"]).get("steps") for row in rows_of(place.out)} == {None, 5}
    change(
        recipe, ("step = 16", 'step = 16\n[[metric]]\nlabel = "black"\nid = "insertion-deletion"\nprotocol = "agi_isa"')
    )
    evaluated(recipe, place)
    assert len(lines_of(place.out)) == done + 15 + 30
    assert (place.out / "recipe.toml").read_text() == recipe.read_text()
    change(recipe, ('source = "nobody"', "seed = 1"))
    evaluated(recipe, place)
    assert len(lines_of(place.out)) == done + 15 + 30 + 60


def test_another_preprocessing_is_another_result(place, recipe):
    evaluated(recipe, place)
    spec = json.loads((place.root / "m.preprocessor_config.json").read_text())
    (place.root / "m.preprocessor_config.json").write_text(json.dumps(spec | {"image_mean": [0.1, 0.2, 0.3]}))
    evaluated(recipe, place)
    assert len(lines_of(place.out)) == 60
    assert len(rows_of(place.out)) == 30


def test_a_photo_twice_counts_twice(place, recipe):
    shutil.copy(place.photos[0], place.root / "photos" / "twin.png")
    document = evaluated(recipe, place)
    assert {mean["n"] for mean in document["means"]} == {4}
    rows = {(row["image"], row["method"], row["metric"]): row["value"] for row in rows_of(place.out)}
    assert rows["a.png", "ig", "insertion_auc"] == rows["twin.png", "ig", "insertion_auc"]
    shutil.rmtree(place.out)
    assert evaluated(recipe, place, "-b", "1") == document


def slow(place, recipe, count=60):
    """A run that takes a while."""
    for i in range(count):
        place.add_photo(f"photos/{i:03}.png", seed=i + 10)
    change(recipe, ("steps = 4", "steps = 300"), ("step = 16", "step = 1"))
    return [sys.executable, "-m", "onnxplain", "evaluate", os.fspath(recipe), "-o", os.fspath(place.out), "-b", "1"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process as POSIX does")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(place, recipe, how):
    """Killed at once, or asked to stop: the rows are kept, and in the end they are those of a run without a break."""
    command = slow(place, recipe)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = place.out / "rows.jsonl"
    deadline = time.monotonic() + 60
    while not (lines.exists() and lines.stat().st_size > 20_000) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    said = process.communicate()[1]
    assert not (place.out / "results.parquet").exists()
    if how is signal.SIGINT:
        assert process.returncode == 1
        assert said == "interrupted; what was finished is kept, and the same command goes on from there\n"
    kept = lines.read_bytes()
    lines.write_bytes(kept + kept[:50])  # what a machine that stopped would leave
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    whole = kept[: kept.rfind(b"\n") + 1]
    assert lines.read_bytes().startswith(whole)
    assert lines.read_bytes()[len(whole) :].count(b"\n") == 63 * 10 - whole.count(b"\n")
    rows = rows_of(place.out)
    shutil.rmtree(place.out)
    subprocess.run(command, capture_output=True, check=True)
    assert rows_of(place.out) == rows


def test_photos_that_cannot_be_read_do_not_stop_the_others(place, recipe):
    (place.root / "photos" / "b.png").write_bytes(b"no photo")
    result = run("evaluate", recipe, "-o", place.out, "--format", "json")
    complain(result, 3, "b.png", "error: ")
    document = json.loads(result.stdout)
    assert len(document["failed"]) == 1
    assert {mean["n"] for mean in document["means"]} == {2}
    assert {row["image"] for row in rows_of(place.out)} == {"a.png", "c.png"}
    # another one takes its place where a number is asked for
    complain(run("evaluate", recipe, "-o", place.out, "--count", "2"), 3, "b.png")
    assert {row["image"] for row in rows_of(place.out)} == {"a.png", "c.png"}


def test_a_method_that_fails_on_an_image_does_not_stop_the_others(place, recipe, monkeypatch):
    from onnxplain.engine.methods import Saliency
    from onnxplain.errors import NonFinite

    works = Saliency.__call__
    with ox.open(place.model) as explainer:
        bad = explainer.to_input(explainer.read(place.photos[1]))

    def fails(self, x, task):
        if np.array_equal(x, bad):
            raise NonFinite("the gradient is no number")
        return (yield from works(self, x, task))

    monkeypatch.setattr(Saliency, "__call__", fails)
    result = run("evaluate", recipe, "-o", place.out, "--format", "json")
    complain(result, 3, "error: m, b.png, gradient: the gradient is no number")
    assert {(m["method"], m["n"]) for m in json.loads(result.stdout)["means"]} == {("ig", 3), ("gradient", 2)}
    monkeypatch.undo()
    document = json.loads(run("evaluate", recipe, "-o", place.out, "--format", "json").stdout)  # tried again
    assert (document["failed"], {mean["n"] for mean in document["means"]}) == ([], {3})


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(place, recipe, monkeypatch):
    from onnxplain.engine.rows import RowLog
    from onnxplain.errors import OutputError

    works, calls = RowLog.append, []

    def full(self, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise OutputError(f"{self.path}: cannot be written (No space left on device)")
        works(self, rows)

    monkeypatch.setattr(RowLog, "append", full)
    complain(run("evaluate", recipe, "-o", place.out), 1, "No space left")
    assert len(lines_of(place.out)) == 10
    monkeypatch.undo()
    evaluated(recipe, place)
    assert len(lines_of(place.out)) == 30


# nothing is computed before all of it is known to work


@pytest.fixture
def no_computing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr("onnxplain.evaluation.drive", refuse)
    monkeypatch.setattr("onnxplain.evaluation.evaluate_examples", refuse)


def refused(recipe, place, code, *words, more=()):
    before = place.files()
    complain(run("evaluate", recipe, "-o", place.out, *more), code, *words)
    assert place.files() == before


@pytest.mark.usefixtures("no_computing")
def test_what_is_wrong_is_found_before_anything_is_computed(place, recipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        refused(recipe, place, 4, 'pip install "onnxplain[results]"')
    refused(recipe, place, 2, "is not there", "--images DIR", more=("--images", place.root / "none"))
    refused(recipe, place, 2, "none/m.onnx", "--models DIR", more=("--models", place.root / "none"))
    place.add_model("bare-m.onnx", classifier(), spec=None)
    text = recipe.read_text()
    change(recipe, ('path = "m.onnx"', 'path = "bare-m.onnx"'), ('model = "m"', 'model = "bare-m"'))
    refused(recipe, place, 2, "model bare-m: no preprocessing found")
    refused(recipe, place, 2, "photos have no defined way", more=("--preprocess", "none"))
    (place.root / "bare-m.onnx").write_bytes(b"no model")
    refused(recipe, place, 5, "model bare-m: ")
    recipe.write_text(text)
    change(recipe, ('folder = "photos"', 'folder = "photos"\ncorrect_only = true'))
    refused(recipe, place, 2, "has no labels.csv or val.txt")
    (place.root / "photos" / "labels.csv").write_text("file,label\na.png,0\nd.png,1\n")
    refused(recipe, place, 1, "names d.png, which is not in")
    recipe.write_text(text)
    (place.root / "photos" / "labels.csv").unlink()
    (place.root / "file").write_bytes(b"")
    complain(run("evaluate", recipe, "-o", place.root / "file"), 1, "cannot be used for results")
    refused("isa-tabel1", place, 2, "did you mean isa-table1?")
    refused(place.root / "none.toml", place, 2, "cannot read the recipe")


def test_classes_of_another_model_leave_no_image(place, recipe):
    labels_for(place, wrong=("a.png", "b.png", "c.png"))
    change(recipe, ('folder = "photos"', 'folder = "photos"\ncorrect_only = true'))
    complain(
        run("evaluate", recipe, "-o", place.out), 2, "no image that it classifies right, among 3", "check the labels"
    )


def test_a_folder_that_is_somebody_elses_is_left_alone(place, recipe):
    place.out.mkdir()
    (place.out / "recipe.toml").write_text("# a cake")
    refused(recipe, place, 1, "recipe.toml: already there")
    (place.out / "recipe.toml").unlink()
    (place.out / "rows.jsonl").write_text("a\nb\n")
    complain(run("evaluate", recipe, "-o", place.out), 1, "rows.jsonl: line 1 is no result row")


def test_a_recipe_may_lie_in_the_folder_of_its_results(place, recipe):
    place.out.mkdir()
    moved = place.out / "recipe.toml"
    shutil.move(recipe, moved)
    for _ in range(2):
        evaluated(moved, place, "--models", place.root, "--images", place.root)
    assert moved.read_text() == RECIPE


def test_shipped_recipes_are_listed(place):
    listed = run("evaluate", "--list")
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        "recipe", "cpa-figure3", "cpa-sensitivity", "cpa-table1", "cpa-table2", "cpa-table3", "cpa-table4",
        "isa-figure3", "isa-table1", "isa-table2",
    ]  # fmt: skip
    complain(run("evaluate"), 2, "Missing argument 'RECIPE'")


def test_the_progress_of_a_run_ends_at_its_end(place, recipe):
    result = run("evaluate", recipe, "-o", place.out, "--progress")
    assert result.exit_code == 0
    assert "evaluating Tiny" in result.stderr
    assert "100%" in result.stderr
    assert Path(place.out, "results.parquet").exists()


def test_models_may_get_images_of_their_own_number(place, recipe):
    place.add_model("n.onnx", classifier(softmax=True))
    change(recipe, ("[[method]]", '[[model]]\npath = "n.onnx"\ncount = 1\n\n[[method]]'))
    document = evaluated(recipe, place)
    assert {(mean["model"], mean["n"]) for mean in document["means"]} == {("m", 3), ("n", 1)}
    assert {mean["n"] for mean in evaluated(recipe, place, "--count", "2")["means"]} == {2}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A tiny model for each one that a shipped recipe names, and photos with labels, which it classifies right."""
    place = Place(tmp_path_factory.mktemp("stand-ins"))
    spec = SPEC | {"size": {"height": 56, "width": 56}}  # 9408 features: no step of ISA's Figure 3 is larger
    models = {model.path for name in shipped() for model in read(name).models}
    for model in models:
        place.add_model(f"models/{model}", classifier(size=56), spec=None)
    (place.root / "models" / "preprocessor_config.json").write_text(json.dumps(spec))
    for i in range(151):
        place.add_photo(f"photos/{i:03}.png", i)
    labels_for(place, f"models/{model}")
    return place


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_runs_on_stand_ins(stand_ins, tmp_path, name):
    recipe = read(name)
    folders = ("--models", stand_ins.root / "models", "--images", stand_ins.root / "photos")
    result = run("evaluate", name, *folders, "-o", tmp_path, "--count", "1", "--format", "json", "-b", "64")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    means = {(m["model"], m["method"], m["metric_label"], m["metric"]): m for m in document["means"]}
    assert {(model, method) for model, method, *_ in means} == {
        (model.name, method) for model in recipe.models for method in recipe.methods
    }
    for paper in recipe.published:  # every number of the paper stands beside a measured one
        assert means[paper.model, paper.method, paper.metric_label, paper.metric]["published"] == paper.value
    assert {(pair["first"], pair["second"]) for pair in document["pairs"]} == set(recipe.compare)
    assert all(end["largest_gap"] < 1e-12 for end in document["ends"])
