"""Recipes as files: what is right is read, what is wrong is told with its place, whatever it is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxplain.engine.methods import ISA, IntegratedGradients
from onnxplain.errors import InputError, UsageError
from onnxplain.recipes import Images, parse, photos_of, read, read_labels, shipped

GOOD = """
title = "A title"
source = "a paper, table 1"
seed = 3
explain = "label"
compare = [["few rounds", "ig"]]

[images]
folder = "photos"
labels = "labels.csv"
count = 5
correct_only = true
seed = 1

[[model]]
name = "first"
path = "a/m.onnx"

[[model]]
path = "b/n.onnx"

[[method]]
id = "ig"
steps = 20
objective = "prob"

[[method]]
label = "few rounds"
id = "isa"
k = 20000
eta1 = "1/255"
literal = true

[[metric]]
id = "insertion-deletion"
protocol = "agi_isa"
step = 300
reduce = "abs_sum"

[[published]]
model = "first"
columns = ["insertion_auc", "deletion_auc"]
[published.values]
ig = [0.5, 0.25]
"few rounds" = [1, 0.125]
"""


def changed(*changes: tuple[str, str]) -> str:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_a_recipe_says_what_it_says():
    recipe = parse(GOOD, folder=Path("here"))
    assert (recipe.title, recipe.source, recipe.seed, recipe.explain) == ("A title", "a paper, table 1", 3, "label")
    assert [(model.name, model.path) for model in recipe.models] == [("first", "a/m.onnx"), ("n", "b/n.onnx")]
    assert recipe.images == Images(folder="photos", labels="labels.csv", count=5, correct_only=True, seed=1)
    assert list(recipe.methods) == ["ig", "few rounds"]
    ig, isa = recipe.methods.values()
    assert (ig.steps, ig.objective.name) == (20, "PROB")
    assert isa == ISA(k=20000, eta1=1 / 255, literal=True)
    (metric,) = recipe.metrics.values()
    assert str(metric.metric.protocol) == "agi_isa(step=300)"
    assert [(p.method, p.metric, p.value) for p in recipe.published] == [
        ("ig", "insertion_auc", 0.5), ("ig", "deletion_auc", 0.25),
        ("few rounds", "insertion_auc", 1.0), ("few rounds", "deletion_auc", 0.125),
    ]  # fmt: skip
    assert recipe.compare == (("few rounds", "ig"),)


def test_the_least_that_a_recipe_says():
    recipe = parse("[[model]]\npath='m.onnx'\n[[method]]\nid='ig'\n[[metric]]\nid='insertion-deletion'\n")
    assert recipe.methods == {"ig": IntegratedGradients()}
    assert (recipe.images, recipe.seed, recipe.explain) == (Images(), 0, "predicted")
    assert (recipe.title, recipe.published, recipe.compare) == ("", (), ())


WRONG = {
    "unknown key": ([("seed = 3", "sed = 3")], "recipe: unknown key 'sed'; did you mean seed?"),
    "unknown table": ([("[images]", "[image]")], "recipe: unknown key 'image'; did you mean images?"),
    "unknown key of images": (
        [("count = 5", "counts = 5")],
        "recipe: [images]: unknown key 'counts'; did you mean count?",
    ),
    "unknown key of a model": (
        [('path = "b/n.onnx"', 'path = "b/n.onnx"\nhead = "softmax"')],
        "recipe: [[model]] number 2: unknown key 'head'; known: count, name, path",
    ),
    "a model without a path": ([('path = "b/n.onnx"', "")], "recipe: [[model]] number 2: path is missing"),
    "unknown method": (
        [('id = "isa"', 'id = "iso"')],
        "recipe: [[method]] number 2: unknown method 'iso'; did you mean isa?",
    ),
    "unknown parameter": (
        [("steps = 20", "step = 20")],
        "recipe: [[method]] number 1: ig: unknown parameter 'step'; did you mean steps?",
    ),
    "a parameter out of range": (
        [("k = 20000", "k = 0")],
        "recipe: [[method]] number 2: ISA: k: expected a whole number",
    ),
    "a parameter of the wrong kind": (
        [("steps = 20", "steps = 2.5")],
        "recipe: [[method]] number 1: ig: steps: expected a whole number, got '2.5'",
    ),
    "a parameter that is a table": (
        [("steps = 20", "steps = {a = 1}")],
        "recipe: [[method]] number 1: steps: expected a number, a word, true, false or a list of such",
    ),
    "a method without an id": ([('id = "ig"', "")], "recipe: [[method]] number 1: id is missing"),
    "unknown metric": (
        [('id = "insertion-deletion"', 'id = "insertion"')],
        "recipe: [[metric]] number 1: unknown metric 'insertion'",
    ),
    "unknown parameter of a metric": (
        [("step = 300", "stop = 300")],
        "recipe: [[metric]] number 1: insertion-deletion: unknown parameter 'stop'",
    ),
    "unknown protocol": ([('"agi_isa"', '"agi"')], "recipe: [[metric]] number 1: protocol 'agi' is unknown"),
    "unknown reduction": ([('"abs_sum"', '"total"')], "recipe: [[metric]] number 1: reduction 'total' is unknown"),
    "one label twice": (
        [('label = "few rounds"', 'label = "ig"')],
        "recipe: [[method]]: the label 'ig' is given twice",
    ),
    "one name twice": ([('path = "b/n.onnx"', 'path = "b/first.onnx"')], "[[model]]: the name 'first' is given twice"),
    "one model under two names": (
        [('path = "b/n.onnx"', 'name = "x"\npath = "a/m.onnx"')],
        "'first' and 'x' are the same",
    ),
    "one method under two labels": (
        [
            ('id = "isa"', 'id = "ig"'),
            ("k = 20000\n", ""),
            ('eta1 = "1/255"', "steps = 20"),
            ("literal = true", 'objective = "prob"'),
        ],
        "'ig' and 'few rounds' are the same",
    ),
    "no method": ([("[[method]]", "[[published]]")] * 2, "recipe: has no [[method]]; next: name at least one method"),
    "a table where tables should be": (
        [("[[model]]", "[model]"), ("[[model]]", "[x]")],
        "recipe: model: expected tables",
    ),
    "explain": (
        [('explain = "label"', 'explain = "class"')],
        "recipe: explain: expected predicted or label, got 'class'",
    ),
    "seed": ([("seed = 3", "seed = -3")], "recipe: seed: expected a whole number from 0 to 1000000000, got -3"),
    "count": ([("count = 5", "count = 0")], "recipe: [images]: count: expected a whole number from 1"),
    "correct_only": (
        [("correct_only = true", "correct_only = 1")],
        "[images]: correct_only: expected true or false, got 1",
    ),
    "compare": ([('["few rounds", "ig"]', '["few rounds"]')], "recipe: compare: expected a list of pairs of methods"),
    "a stranger in compare": ([('["few rounds", "ig"]', '["few", "ig"]')], "recipe: compare: unknown method 'few'"),
    "a stranger in published": ([("ig = [", "eg = [")], "[[published]] number 1: [values]: unknown method 'eg'"),
    "published of another model": ([('model = "first"', 'model = "m"')], "[[published]] number 1: unknown model 'm'"),
    "published of another metric": (
        [('model = "first"', 'model = "first"\nmetric = "rise"')],
        "[[published]] number 1: unknown metric 'rise'",
    ),
    "too few published": (
        [("[0.5, 0.25]", "[0.5]")],
        "[values]: ig: expected a list of 2 numbers, one for each of columns",
    ),
    "published that is none": ([("[0.5, 0.25]", "[0.5, nan]")], "[values]: ig: expected a list of 2 numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_place(name):
    changes, message = WRONG[name]
    with pytest.raises(UsageError) as told:
        parse(changed(*changes))
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_no_toml_is_told_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"mine\.toml: is no TOML: .*line 3"):
        parse("title = 'a'\n\nseed = = 3", "mine.toml")
    for content, what in ((b"\xff\xfe", "is not UTF-8"), (None, "No such file")):
        path = tmp_path / "r.toml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=what):
            read(path)
        path.unlink(missing_ok=True)


def test_an_unknown_recipe_is_told_with_the_closest_one():
    with pytest.raises(UsageError, match=r"unknown recipe 'isa-tabel1'; did you mean isa-table1\?.*ends in \.toml"):
        read("isa-tabel1")


def leaves(value, path=()):
    """Every place of a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def written(value) -> str:
    """A value as TOML, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" if ord(c) < 32 or c in '"\\\x7f' else c for c in text) + '"'


def complaint(text: str) -> str:
    """What reading a recipe complains of, if anything."""
    try:
        parse(text)
    except (UsageError, InputError) as error:
        return str(error)
    return ""


scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["ig", "isa", "sum", "1/0"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_recipe_with_anything_anywhere_is_read_or_refused_in_one_line(data):
    """One value of a good recipe becomes any other, is left out, or gets a key beside it."""
    document = tomllib.loads(GOOD)
    path = data.draw(st.sampled_from([path for path in leaves(document) if path]))
    at = document
    for key in path[:-1]:
        at = at[key]
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "remove":
            del at[path[-1]]
        case "add" if isinstance(at, dict):
            at[data.draw(st.text(max_size=8))] = data.draw(anything)
        case _:
            at[path[-1]] = data.draw(anything)
    text = "\n".join(f"{quoted(key)} = {written(value)}" for key, value in document.items())
    assert tomllib.loads(text).keys() == document.keys()
    assert re.fullmatch("(recipe: [^\n]+)?", complaint(text))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, 30), st.text(max_size=5))
def test_a_recipe_with_a_hole_is_read_or_refused(at, length, instead):
    assert re.match("recipe: |$", complaint(GOOD[:at] + instead + GOOD[at + length :]))


def test_the_recipe_of_the_page_about_recipes_is_read():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "recipes.md").read_text("utf-8")
    recipe = parse(re.search("^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])
    assert list(recipe.methods) == ["ISA", "IG", "saliency"]


# shipped recipes

PAPERS = (
    "cpa-figure3", "cpa-sensitivity", "cpa-table1", "cpa-table2", "cpa-table3", "cpa-table4",
    "isa-figure3", "isa-table1", "isa-table2",
)  # fmt: skip


def test_every_table_and_figure_is_there():
    assert tuple(shipped()) == PAPERS
    assert all(shipped().values())


@pytest.mark.parametrize("name", PAPERS)
def test_a_shipped_recipe_is_read(name):
    recipe = read(name)
    assert recipe.source
    assert all(model.path.endswith(".onnx") and "/" not in model.path for model in recipe.models)
    assert recipe.images.count is not None
    assert recipe.images.folder == "."


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "bench" / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_a_recipe_of_the_bench_is_read(path):
    assert read(path).title


def test_published_numbers_are_those_of_the_papers():
    """Against what was computed from the papers' tables by hand: average gains of ISA, percentages of CPA."""
    isa = {(p.model, p.method, p.metric): p.value for p in read("isa-table1").published}
    assert len(isa) == 3 * 7 * 4
    for model, gain in (("inception_v3", 0.3150), ("resnet50", 0.3508), ("vgg16", 0.3093)):
        others = [isa[model, method, "insertion_mean"] for method in ("IG", "FIG", "GIG", "BIG", "SM", "AGI")]
        assert isa[model, "ISA", "insertion_mean"] - np.mean(others) == pytest.approx(gain, abs=5e-5)
    cpa = {(p.model, p.method): p.value for p in read("cpa-table1").published}
    assert len(cpa) == 3 * 6
    assert 100 * (cpa["vgg16", "CPA"] / cpa["vgg16", "IG"] - 1) == pytest.approx(58.9, abs=0.05)
    for name, size in (
        ("isa-table2", 6),
        ("isa-figure3", 15),
        ("cpa-table2", 4),
        ("cpa-table3", 9),
        ("cpa-table4", 12),
    ):
        assert len(read(name).published) == size
    again = {(p.model, p.method): p.value for p in read("cpa-table4").published}
    assert {key: again[key] for key in again.keys() & cpa.keys()} == {
        key: value for key, value in cpa.items() if key[1] in ("IG", "CPA")
    }
    assert not any(read(name).published for name in ("cpa-sensitivity",))


# images and labels


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.png", "c.png"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(photos):
    return [(photo.name, photo.label) for photo in photos]


def test_photos_without_labels_are_those_of_the_folder_by_name(folder):
    assert names(photos_of(Images(), folder)) == [("a.png", None), ("b.png", None), ("c.png", None)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("labels.csv", "label,file,more\n5,b.png,x\n0,a.png,y\n"), ("val.txt", "b.png 5\n\n  a.png 0 \n")],
)
def test_labels_say_which_photos_and_in_which_order(folder, name, content):
    (folder / name).write_text(content)
    assert names(photos_of(Images(), folder)) == [("b.png", 5), ("a.png", 0)]
    assert names(photos_of(Images(labels=name), folder)) == [("b.png", 5), ("a.png", 0)]
    assert names(photos_of(Images(folder=folder.name), folder.parent)) == [("b.png", 5), ("a.png", 0)]


def test_a_seed_draws_and_draws_again_the_same(folder):
    orders = {tuple(names(photos_of(Images(seed=seed), folder))) for seed in range(20)}
    assert len(orders) == 6
    assert photos_of(Images(seed=7), folder) == photos_of(Images(seed=7), folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", "name,label\na.png,1\n", "expected the columns file and label, got name, label"),
        ("labels.csv", "", "expected the columns file and label"),
        ("labels.csv", "file,label\na.png,cat\n", "line 2: expected the number of a class, got 'cat'"),
        ("labels.csv", "file,label\na.png\n", "line 2: expected the number of a class, got None"),
        ("labels.csv", "file,label\na.png,-1\n", "line 2: expected the number of a class"),
        (
            "labels.csv",
            "file,label\na.png,1\na.png,2\n",
            "line 3: expected a photo that is not named before, got 'a.png'",
        ),
        ("labels.csv", "file,label\n,1\n", "line 2: expected a photo that is not named before, got ''"),
        ("labels.csv", "file,label\n", "names no photo"),
        ("labels.csv", "file,label\nz.png,1\ny.png,2\n", "names z.png and 1 more, which are not in"),
        ("val.txt", "a.png\n", "line 1: expected a photo"),
        ("val.txt", "a.png one\n", "line 1: expected the number of a class, got 'one'"),
        ("val.txt", "\n", "names no photo"),
    ],
)
def test_labels_that_are_wrong(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(InputError) as told:
        photos_of(Images(), folder)
    assert message in str(told.value)
    assert name in str(told.value)


def test_labels_that_cannot_be_read(folder):
    with pytest.raises(InputError, match="cannot read the labels"):
        photos_of(Images(labels="none.csv"), folder)
    (folder / "labels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_labels(folder / "labels.csv")


def test_labels_that_are_missing_or_doubtful(folder):
    with pytest.raises(UsageError, match=r"has no labels\.csv or val\.txt"):
        photos_of(Images(correct_only=True), folder)
    with pytest.raises(UsageError, match=r"has no labels\.csv or val\.txt"):
        photos_of(Images(), folder, explain_labels=True)
    for name in ("labels.csv", "val.txt"):
        (folder / name).write_text("")
    with pytest.raises(UsageError, match=r"has both labels\.csv and val\.txt"):
        photos_of(Images(), folder)
    with pytest.raises(UsageError, match="is not there; next: say where it is with --images"):
        photos_of(Images(folder="none"), folder)
