"""Running a recipe: everything is checked first, rows are kept as they come, and a run that was killed goes on.

recipe --Run--> rows.jsonl, row by row --finish--> results.parquet, summary.json, summary.csv
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from onnxplain.adapters.onnx_file import AUTO, Preprocess
from onnxplain.engine.atomic import writable_folder, write_atomically
from onnxplain.engine.drive import drive
from onnxplain.engine.evaluate import (
    RUN,
    Evaluation,
    Example,
    Observe,
    Row,
    look,
)
from onnxplain.engine.evaluate import (
    evaluate as evaluate_examples,
)
from onnxplain.engine.explanation import plain
from onnxplain.engine.methods import Method, forward_only
from onnxplain.engine.requests import Array
from onnxplain.engine.rows import RowLog, require_results, write_parquet
from onnxplain.engine.summary import Summary, summarise
from onnxplain.errors import InputError, MissingFile, OnnxplainError, UsageError
from onnxplain.explainer import Explainer, open
from onnxplain.recipes import ModelFile, PathLike, lacks_background, photos_of, read

SCHEMA_VERSION = 1
ROWS, RESULTS, COPY, SUMMARY, MEANS = "rows.jsonl", "results.parquet", "recipe.toml", "summary.json", "summary.csv"

Place: TypeAlias = tuple[int, str, str, str, str]  # order, model, image, method, metric: all by the recipe's labels


@dataclass(frozen=True)
class Step:
    """A piece of a run that is over: what it was, the rows of the runtime that it was thought to take and took, and its
    error if it failed. Its result rows are in the file."""

    name: str
    estimate: int
    rows: Mapping[str, int] = field(default_factory=dict)
    error: OnnxplainError | None = None


@dataclass(frozen=True)
class Results:
    """What a run gave: its rows in the order of the recipe, their summary, and what failed, by its message."""

    rows: list[Row]
    summary: Summary
    failed: dict[str, OnnxplainError]


def evaluate(
    recipe: PathLike,
    output: PathLike,
    *,
    models: PathLike | None = None,
    images: PathLike | None = None,
    count: int | None = None,
    preprocess: Preprocess = AUTO,
    observe: Observe | None = None,
    **running: Any,
) -> Results:
    """Run a recipe to its end, or on from where it was stopped, and write its results into the folder `output`.

    Args:
        recipe: the name of a shipped recipe, or a file that ends in .toml.
        output: a folder; what an earlier run left in it is used as far as it fits.
        models: the folder of the models; None: that of the recipe.
        images: the folder of the images; None: that of the recipe.
        count: this many images, instead of the recipe's number.
        preprocess: that of every model, as in `open`.
        observe: called after every call of the runtime with the rows that it had.
        running: how every model is run, as in `open`: `on`, `precision`, `batch_size`, `threads`, ...

    An image or a method that fails is left out, and is in `failed` of the results.

    Raises:
        UsageError: the recipe, or what it names, cannot be used.
        BackendMissing: the extra `results` is not installed.
        OutputError: the results cannot be written.
    """
    failed: dict[str, OnnxplainError] = {}
    opening = {**running, "preprocess": preprocess}
    with Run(recipe, output, models=models, images=images, count=count, opening=opening) as run:
        for step in run.steps(observe):
            if step.error is not None:
                failed.setdefault(f"{step.name}: {step.error}", step.error)
        rows, summary = run.finish(failed)
    return Results(rows, summary, failed)


class Run:
    """One recipe on its way. Making it checks everything; `steps` does the work; `finish` writes the results.

    `opening` are arguments of `open`, the same for every model; the others are those of `evaluate`.
    """

    def __init__(
        self,
        recipe: PathLike,
        output: PathLike,
        *,
        models: PathLike | None = None,
        images: PathLike | None = None,
        count: int | None = None,
        opening: Mapping[str, Any] | None = None,
    ) -> None:
        require_results()
        self.recipe = made = read(recipe)
        self.opening = opening or {}
        self.count = count
        self.photos = photos_of(made.images, made.folder if images is None else Path(images), made.explain == "label")
        if (made.images.background or 0) >= len(self.photos):
            raise UsageError(
                f"background: expected fewer than the {len(self.photos)} images that there are, "
                f"got {made.images.background}; next: lower it in [images]"
            )
        folder = made.folder if models is None else Path(models)
        self.files = {model.name: folder / model.path for model in made.models}
        missing = [path for path in self.files.values() if not path.is_file()]
        if missing:
            raise MissingFile(
                f"cannot read {missing[0]}{f' and {len(missing) - 1} more models' if missing[1:] else ''}: "
                "there is no such file; next: say where the models are with --models DIR"
            )
        self.costs = {model.name: self._check(model) for model in made.models}
        self.folder = Path(output)
        writable_folder(self.folder)
        ours = (self.folder / ROWS).exists()  # without it, a recipe.toml that lies there is somebody else's
        write_atomically(self.folder / COPY, made.text.encode(), overwrite=ours or self._is_copy())
        self.log = RowLog(self.folder / ROWS)
        self.places: dict[str, list[Place]] = {}
        self.number = 0

    def _is_copy(self) -> bool:
        """Whether the recipe that lies in the folder already is this one."""
        copy = self.folder / COPY
        return copy.is_file() and copy.read_bytes() == self.recipe.text.encode()

    def _check(self, model: ModelFile) -> list[int]:
        """Open a model; the rows of the runtime that each method and all metrics take for one image, at most."""
        with self._open(model) as explainer:
            _ = explainer.photos
            height, width = explainer.image_size
            scoring = 1 + sum(measure.metric.rows(height, width) for measure in self.recipe.metrics.values())
            shape = explainer.forward.image_shape
            return [method.rows(shape) + scoring for method in self.recipe.methods.values()]

    def _open(self, model: ModelFile) -> Explainer:
        try:
            gradient = not all(map(forward_only, self.recipe.methods.values()))
            return open(self.files[model.name], gradient=gradient, **self.opening)
        except OnnxplainError as error:
            error.args = (f"model {model.name}: {error}",)
            raise

    def images(self, model: ModelFile) -> int:
        """How many images a model is evaluated on, at most."""
        counts = self.count, model.count, self.recipe.images.count
        return min(len(self.photos), next((count for count in counts if count is not None), len(self.photos)))

    @property
    def total(self) -> int:
        """The rows of the runtime that everything takes, at most."""
        return sum(self.images(model) * (1 + sum(self.costs[model.name])) for model in self.recipe.models)

    def steps(self, observe: Observe | None = None) -> Iterator[Step]:
        """Do what is not done yet, model by model. Rows are in the file before their step is given."""
        for model in self.recipe.models:
            with self._open(model) as explainer:
                yield from self._model_steps(model, explainer, observe)

    def _model_steps(self, model: ModelFile, explainer: Explainer, observe: Observe | None) -> Iterator[Step]:
        recipe, costs, wanted = self.recipe, self.costs[model.name], self.images(model)
        examples: list[Example] = []
        for step in self._choose(explainer, wanted, examples, observe):
            yield replace(step, name=f"{model.name}: {step.name}")
        missing = wanted - len(examples)
        yield Step(f"{model.name}: choosing images", wanted + missing * sum(costs))
        if not examples:
            which = "classifies right" if recipe.images.correct_only else "can read"
            raise UsageError(
                f"model {model.name}: there is no image that it {which}, among {len(self.photos)}; "
                "next: check the labels, whose classes must be those of the model, and its preprocessing"
            )
        evaluation = Evaluation(
            model=model.name,
            methods=self._methods(explainer),
            metrics=recipe.metrics,
            seed=recipe.seed,
            follow_label=recipe.explain == "label",
        )
        for example in examples:
            for method in recipe.methods:
                for metric in recipe.metrics:
                    key = evaluation.key(explainer, example, method, metric)
                    self.places.setdefault(key, []).append((self.number, model.name, example.name, method, metric))
                    self.number += 1
        labels = list(recipe.methods)
        for outcome in evaluate_examples(examples, evaluation, explainer, done=self.log.keys, observe=observe):
            example, label = examples[outcome.index // len(labels)], labels[outcome.index % len(labels)]
            if outcome.error is None:
                self.log.append(outcome.unwrap())
            yield Step(
                f"{model.name}, {example.name}, {label}",
                costs[outcome.index % len(labels)],
                outcome.rows,
                outcome.error,
            )

    def _choose(
        self, explainer: Explainer, wanted: int, examples: list[Example], observe: Observe | None
    ) -> Iterator[Step]:
        """Look at photos in their order until there are as many examples as wanted, which are added to `examples`."""
        size = explainer.batch_size
        for at in range(0, len(self.photos), size):
            photos = self.photos[at : at + size]
            programs = (look(explainer, photo.name, str(photo.path), photo.label) for photo in photos)
            outcomes = drive(programs, explainer.forward, usage=explainer.usage, observe=observe)
            for outcome in sorted(outcomes, key=lambda outcome: outcome.index):
                if len(examples) == wanted:
                    return
                yield Step(photos[outcome.index].name, 0, outcome.rows, outcome.error)
                if outcome.error is None:
                    example = outcome.unwrap()
                    if not self.recipe.images.correct_only or example.predicted == example.label:
                        examples.append(example)

    def _methods(self, explainer: Explainer) -> dict[str, Method]:
        """The recipe's methods; those that hold an image against others get these, drawn with the recipe's seed."""
        methods = dict(self.recipe.methods)
        needy = [label for label, method in methods.items() if lacks_background(method)]
        if needy:
            images: list[Array] = []
            for i in np.random.default_rng([self.recipe.seed, 1]).permutation(len(self.photos)):
                with suppress(InputError):  # was told when the images were chosen, if it was looked at
                    images.append(explainer.to_input(explainer.read(self.photos[i].path)))
                if len(images) == self.recipe.images.background:
                    break
            background = np.stack(images)
            methods |= {label: replace(methods[label], background=background) for label in needy}  # type: ignore[type-var]
        return methods

    def finish(self, failed: Mapping[str, OnnxplainError]) -> tuple[list[Row], Summary]:
        """Write the Parquet file and the summary of all rows of this recipe, of this run and of earlier ones."""
        found: dict[tuple[int, int], Row] = {}
        for row in self.log:
            if row["key"] not in self.log.keys:
                continue  # a unit that was cut off
            for number, model, image, method, metric in self.places.get(row["key"], ()):
                about = {"image": image, "model": model, "method": method, "metric_label": metric}
                found[number, row["part"][0]] = {
                    name: about.get(name, value) for name, value in row.items() if name not in ("key", "part")
                }
        rows = [found[place] for place in sorted(found)]
        summary = summarise(rows, published=self.recipe.published, compare=self.recipe.compare)
        write_parquet(self.folder / RESULTS, rows)
        runs = {tuple(row[name] for name in RUN): None for row in rows}  # earlier ones may have had other threads
        facts = {
            "schema_version": SCHEMA_VERSION,
            "title": self.recipe.title,
            "source": self.recipe.source,
            "runs": [dict(zip(RUN, run, strict=True)) for run in runs],
        }
        document = plain(facts | summary.tables() | {"failed": list(failed)})
        write_atomically(self.folder / SUMMARY, (json.dumps(document, indent=2) + "\n").encode(), overwrite=True)
        write_atomically(self.folder / MEANS, as_csv(summary.means).encode(), overwrite=True)
        return rows, summary

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.__exit__(kind, error, trace)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
