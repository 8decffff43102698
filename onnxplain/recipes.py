"""Recipes: TOML files that say what is measured. `read` checks one, `shipped` lists those of this package.

A recipe names models, images, methods and metrics, and may hold the numbers of a paper to set beside the measured ones;
docs/reference/recipes.md has all keys. Whatever is unknown or of the wrong kind is an error that says where it stands.
"""

from __future__ import annotations

import csv
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from onnxplain.engine import metrics as scores
from onnxplain.engine.evaluate import Measure
from onnxplain.engine.methods import Method, from_options, to_dict
from onnxplain.engine.methods.options import suggest
from onnxplain.engine.summary import Published
from onnxplain.errors import InputError, UsageError, unreadable
from onnxplain.files import find_photos

PathLike: TypeAlias = str | os.PathLike[str]
T = TypeVar("T")

LABELS = ("labels.csv", "val.txt")  # of a folder of images, where the recipe names none
MOST = 10**9


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A classifier: its name in results, its file, relative to the folder of the models, and how many images it gets
    if that is another number than that of `Images`."""

    name: str
    path: str
    count: int | None = None


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images: `count` of those in `folder` (None: all), in the order of its `labels` file or drawn by `seed`.

    `correct_only` takes those alone that the model classifies right. `background` images of the same folder are set
    beside each image for methods that need them.
    """

    folder: str = "."
    labels: str | None = None
    count: int | None = None
    correct_only: bool = False
    seed: int | None = None
    background: int | None = None


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo, by its name within the folder of images, and its class (None: unknown)."""

    name: str
    path: Path
    label: int | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe says, checked. Methods and metrics go by their labels."""

    text: str
    folder: Path
    title: str
    source: str
    seed: int
    explain: str  # the class that is explained: "predicted" or "label"
    models: tuple[ModelFile, ...]
    images: Images
    methods: Mapping[str, Method]
    metrics: Mapping[str, Measure]
    published: tuple[Published, ...]
    compare: tuple[tuple[str, str], ...]


def shipped() -> dict[str, str]:
    """The names of the recipes in this package, and their titles."""
    found = sorted(files("onnxplain.models").joinpath("recipes").iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): tomllib.loads(file.read_text("utf-8"))["title"]
        for file in found
        if file.name.endswith(".toml")
    }


def read(recipe: PathLike) -> Recipe:
    """The recipe in a file whose name ends in .toml, or the shipped one of that name.

    Raises:
        UsageError: there is no such recipe, or it says something that cannot be done; where, and what is known.
        InputError: the file cannot be read, or is no TOML.
    """
    name = os.fspath(recipe)
    if name.endswith(".toml"):
        path = Path(name)
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise unreadable("the recipe", path, error) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is no TOML: it is not UTF-8; next: save it as UTF-8") from error
        return parse(text, name, path.parent)
    known = shipped()
    if name not in known:
        raise UsageError(f"unknown recipe {name!r}{suggest(name, known)}; next: a file of your own ends in .toml")
    text = files("onnxplain.models").joinpath("recipes", f"{name}.toml").read_text("utf-8")
    return parse(text, name, Path())


def parse(text: str, name: str = "recipe", folder: Path = Path()) -> Recipe:
    """The recipe that `text` is. `name` stands in errors; files are relative to `folder` unless told otherwise."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{name}: is no TOML: {error}; next: correct it") from error
    top = Table(name, document)
    title = top.take("title", text_of, "")
    source = top.take("source", text_of, "")
    seed = top.take("seed", whole(0), 0)
    explain = top.take("explain", one_of("predicted", "label"), "predicted")
    compare: list[tuple[str, str]] = top.take("compare", pairs, [])
    models = [model_file(table) for table in top.tables("model")]
    images = images_of(top.table("images"))
    methods = [method(table) for table in top.tables("method")]
    metrics = [measure(table) for table in top.tables("metric")]
    papers = list(top.tables("published", least=0))
    top.end()

    by_label = unique(methods, f"{name}: [[method]]", "label")
    measures = unique(metrics, f"{name}: [[metric]]", "label")
    for first, second in compare:
        for label in (first, second):
            known(label, by_label, f"{name}: compare", "method")
    names = unique([(model.name, model) for model in models], f"{name}: [[model]]", "name")
    needy = [label for label, one in by_label.items() if lacks_background(one)]
    if needy and images.background is None:
        raise UsageError(
            f"{name}: method {needy[0]!r} needs other images to hold the image against; "
            "next: say how many, with background = 150 in [images]"
        )
    return Recipe(
        text=text,
        folder=folder,
        title=title,
        source=source,
        seed=seed,
        explain=explain,
        models=tuple(models),
        images=images,
        methods=by_label,
        metrics=measures,
        published=tuple(one for table in papers for one in published(table, names, by_label, measures)),
        compare=tuple(compare),
    )


class Table:
    """A table of the file, whose keys are taken one by one; what is left at the end is unknown."""

    def __init__(self, where: str, content: Mapping[str, Any]) -> None:
        self.where, self.content = where, content
        self.asked: dict[str, None] = {}

    def take(self, key: str, read: Callable[[Any], T], *default: T) -> T:
        """The value of a key. `read` raises `ValueError` with what is expected if it does not take the value."""
        self.asked[key] = None
        if key not in self.content:
            if default:
                return default[0]
            raise UsageError(f"{self.where}: {key} is missing")
        try:
            return read(self.content[key])
        except ValueError as error:
            raise UsageError(f"{self.where}: {key}: expected {error}, got {self.content[key]!r}") from None

    def table(self, key: str) -> Table:
        """The table `[key]`; empty if it is not there."""
        content: dict[str, Any] = self.take(key, mapping, {})
        return Table(f"{self.where}: [{key}]", content)

    def tables(self, key: str, least: int = 1) -> list[Table]:
        """The tables `[[key]]`, of which there must be one at least unless `least` is 0."""
        contents: list[dict[str, Any]] = self.take(key, mappings, [])
        if len(contents) < least:
            raise UsageError(f"{self.where}: has no [[{key}]]; next: name at least one {key}")
        return [Table(f"{self.where}: [[{key}]] number {i}", content) for i, content in enumerate(contents, start=1)]

    def rest(self, parameters: Iterable[str] | None = None) -> dict[str, Any]:
        """The values of all keys that nobody took, which are parameters of something."""
        self.asked.update(dict.fromkeys(self.content if parameters is None else parameters))
        return {key: value for key, value in self.content.items() if key not in ("id", "label")}

    def end(self) -> None:
        """Raise `UsageError` if a key was not taken."""
        for key in self.content:
            if key not in self.asked:
                raise UsageError(f"{self.where}: unknown key {key!r}{suggest(key, self.asked)}")


def model_file(table: Table) -> ModelFile:
    path = table.take("path", text_of)
    name = table.take("name", text_of, Path(path).stem)
    count = table.take("count", whole(1), None)
    table.end()
    return ModelFile(name=name, path=path, count=count)


def images_of(table: Table) -> Images:
    made = Images(
        folder=table.take("folder", text_of, "."),
        labels=table.take("labels", text_of, None),
        count=table.take("count", whole(1), None),
        correct_only=table.take("correct_only", true_or_false, False),
        seed=table.take("seed", whole(0), None),
        background=table.take("background", whole(1), None),
    )
    table.end()
    return made


def method(table: Table) -> tuple[str, Method]:
    """A method with its parameters, and its label."""
    id = table.take("id", text_of)
    label = table.take("label", text_of, id)
    try:
        return label, from_options(id, {key: as_text(table, key, value) for key, value in table.rest().items()})
    except UsageError as error:
        raise UsageError(f"{table.where}: {str(error).removeprefix(f'{table.where}: ')}") from None


def measure(table: Table) -> tuple[str, Measure]:
    """A metric with its parameters, and its label."""
    id = table.take("id", text_of)
    label = table.take("label", text_of, id)
    try:
        options = {key: as_text(table, key, value) for key, value in table.rest().items()}
        metric = scores.from_options(id, options)
    except UsageError as error:
        raise UsageError(f"{table.where}: {str(error).removeprefix(f'{table.where}: ')}") from None
    return label, Measure(id=id, params=scores.to_dict(metric), metric=metric)


def as_text(table: Table, key: str, value: Any) -> str:
    """A parameter in the words of `--set`: numbers, true and false, words, and lists of them with commas between."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list) and value and not any(isinstance(item, (list, dict)) for item in value):
        return ",".join(as_text(table, key, item) for item in value)
    raise UsageError(f"{table.where}: {key}: expected a number, a word, true, false or a list of such, got {value!r}")


def published(
    table: Table, models: Mapping[str, Any], methods: Mapping[str, Any], metrics: Mapping[str, Any]
) -> list[Published]:
    """The numbers of a paper for one model: `columns` names numbers, `values` has a list of as many for each method."""
    model = known(table.take("model", text_of), models, table.where, "model")
    label = known(table.take("metric", text_of, next(iter(metrics))), metrics, table.where, "metric")
    columns = table.take("columns", texts)
    rows = table.table("values")
    table.end()
    found = []
    for method in rows.content:
        known(method, methods, rows.where, "method")
        for column, value in zip(columns, rows.take(method, numbers(len(columns))), strict=True):
            found.append(Published(model=model, method=method, metric_label=label, metric=column, value=value))
    return found


def lacks_background(method: Method) -> bool:
    """Whether a method takes other images to hold the image against, and has none yet."""
    return getattr(method, "background", 0) is None


def known(name: str, names: Iterable[str], where: str, what: str) -> str:
    names = list(names)
    if name not in names:
        raise UsageError(f"{where}: unknown {what} {name!r}{suggest(name, names)}")
    return name


def unique(items: Sequence[tuple[str, T]], where: str, what: str) -> dict[str, T]:
    """Items by name. Raises `UsageError` if two have one name, or are the same under two names."""
    found: dict[str, T] = {}
    for name, item in items:
        if name in found:
            raise UsageError(f"{where}: the {what} {name!r} is given twice; next: give one of them another {what}")
        for other, earlier in found.items():
            if same(item, earlier):
                raise UsageError(f"{where}: {other!r} and {name!r} are the same; next: leave one of them out")
        found[name] = item
    return found


def same(a: object, b: object) -> bool:
    """Whether two models, methods or metrics would give the same rows."""
    if isinstance(a, Measure) and isinstance(b, Measure):
        return (a.id, a.params) == (b.id, b.params)
    if isinstance(a, ModelFile) and isinstance(b, ModelFile):
        return a.path == b.path
    return type(a) is type(b) and a.id == b.id and to_dict(a) == to_dict(b)  # type: ignore[attr-defined,arg-type]


# what values may be: each raises ValueError with the words for what it takes


def text_of(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise ValueError("a list of texts")
    if len(set(value)) < len(value):
        raise ValueError("each text once")
    return value


def true_or_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            raise ValueError(f"a whole number from {least} to {MOST}")
        return value

    return read


def one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(words))
        return str(value)

    return read


def numbers(count: int) -> Callable[[Any], list[float]]:
    def read(value: Any) -> list[float]:
        good = isinstance(value, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        if not good or len(value) != count or not np.isfinite(value).all():
            raise ValueError(f"a list of {count} numbers, one for each of columns")
        return [float(v) for v in value]

    return read


def pairs(value: Any) -> list[tuple[str, str]]:
    """[["ISA", "AGI"], ...]"""
    if not isinstance(value, list):
        raise ValueError("a list of pairs of methods")
    made = [tuple(texts(pair)) for pair in value]
    if any(len(pair) != 2 for pair in made):
        raise ValueError("a list of pairs of methods")
    return made  # type: ignore[return-value]


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a table")
    return value


def mappings(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError("tables in double brackets")
    return [mapping(item) for item in value]


# images and their labels


def photos_of(images: Images, root: Path, explain_labels: bool = False) -> list[Photo]:
    """The photos that a recipe may take, in the order in which it takes them.

    Raises:
        UsageError: there are none, or labels are needed and there is no file of them.
        InputError: the labels cannot be read, or name a photo that is not there.
    """
    folder = root / images.folder
    if not folder.is_dir():
        raise UsageError(f"the folder of images {folder} is not there; next: say where it is with --images DIR")
    file = labels_file(images, folder)
    if file is None:
        if images.correct_only or explain_labels:
            raise UsageError(
                f"{folder}: has no {' or '.join(LABELS)}, so that the classes of its images are not known; "
                'next: name the file with labels = ... in [images], or do without correct_only and explain = "label"'
            )
        photos = [Photo(name=path.name, path=path, label=None) for path in find_photos([folder])[0]]
    else:
        photos = [Photo(name=name, path=folder / name, label=label) for name, label in read_labels(file).items()]
        missing = [photo.name for photo in photos if not photo.path.is_file()]
        if missing:
            raise InputError(
                f"{file}: names {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which "
                f"{'are' if missing[1:] else 'is'} not in {folder}; next: correct it, or add the photos"
            )
    if images.seed is not None:
        order = np.random.default_rng(images.seed).permutation(len(photos))
        photos = [photos[i] for i in order]
    return photos


def labels_file(images: Images, folder: Path) -> Path | None:
    """The file of labels: the one that the recipe names, or the one that is there; None if there is none."""
    if images.labels is not None:
        return folder / images.labels
    found = [folder / name for name in LABELS if (folder / name).is_file()]
    if len(found) > 1:
        raise UsageError(
            f"{folder}: has both {' and '.join(LABELS)}; next: name one of them with labels = ... in [images]"
        )
    return found[0] if found else None


def read_labels(file: Path) -> dict[str, int]:
    """Photos and their classes: CSV with the columns `file` and `label`, or (.txt) lines of a name and a class.

    Raises `InputError` if it is neither, naming the line.
    """
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise unreadable("the labels", file, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is no text in UTF-8; next: save it as UTF-8") from error
    lines: list[tuple[int, Any, Any]] = []
    if file.suffix == ".csv":
        reader = csv.DictReader(text.splitlines())
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise InputError(f"{file}: expected the columns file and label, got {', '.join(reader.fieldnames or ())}")
        try:
            lines = [(reader.line_num, row["file"], row["label"]) for row in reader]
        except csv.Error as error:
            raise InputError(f"{file}: line {reader.line_num}: {error}") from error
    else:
        for number, line in enumerate(text.splitlines(), start=1):
            name, _, label = line.strip().rpartition(" ")
            if line.strip():
                lines.append((number, name.strip(), label))
    found: dict[str, int] = {}
    for number, name, label in lines:
        if not name or name in found:
            raise InputError(f"{file}: line {number}: expected a photo that is not named before, got {name!r}")
        if not (label or "").strip().isdecimal():
            raise InputError(f"{file}: line {number}: expected the number of a class, got {label!r}")
        found[name] = int(label)
    if not found:
        raise InputError(f"{file}: names no photo; next: give one with a line for each photo")
    return found
