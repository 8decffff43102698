"""A data set x methods x metrics -> result rows: the unit that a cluster runs.

    examples --evaluate--> rows of one example and method at a time --Scores.of--> scores, which merge

`Evaluation` and `Example` are picklable, and `evaluate` has no state: whoever has several machines gives each of them
some of the examples and a way to open the model. Each row says in its `key` what it depends on and nothing else, so
that rows which are there already are recognised, wherever they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias

import numpy as np

from onnxplain.engine.drive import Model, Outcome, Usage, drive
from onnxplain.engine.explanation import Explanation, plain
from onnxplain.engine.methods import Method, to_dict
from onnxplain.engine.metrics import MapMetric
from onnxplain.engine.requests import Array, Head, Logits, Program
from onnxplain.engine.space import Space
from onnxplain.errors import InputError, OnnxplainError, UsageError

Row: TypeAlias = dict[str, Any]
Observe: TypeAlias = Callable[[Mapping[str, int]], None]

# what numbers depend on beside image, method, metric and seed, of an explainer's provenance
ORIGIN = ("model_sha256", "space", "head", "preprocess", "stopped", "on", "precision", "provider_options")
RUN = ("on", "precision", "threads")  # how it was run, which every row says


class Subject(Protocol):
    """A model that is open: what is needed here of an `Explainer`."""

    space: Space
    head: Head
    usage: Usage

    @property
    def model(self) -> Model: ...

    @property
    def channel_axis(self) -> int: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def read(self, photo: str) -> Array:
        """A photo as the model sees it, uint8 (H, W, 3)."""
        ...

    def to_input(self, image: Array) -> Array: ...

    def program(self, x: Array, method: Method, target: int | Array | None, seed: int) -> Program[Explanation]: ...


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image: its name and its file, its class by the labels (None: unknown) and by the model, and its pixels'
    SHA-256."""

    name: str
    path: str
    label: int | None
    predicted: int
    image_sha256: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric, by its id and parameters."""

    id: str
    params: Mapping[str, Any]
    metric: MapMetric


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is done with the examples of one model: methods and metrics by their labels, which rows go by.

    `follow_label`: the class that is explained is the example's label, not the predicted one.
    """

    model: str
    methods: Mapping[str, Method]
    metrics: Mapping[str, Measure]
    seed: int = 0
    follow_label: bool = False

    @cached_property
    def params(self) -> dict[str, dict[str, Any]]:
        """The parameters of each method, as rows hold them."""
        return {label: to_dict(method) for label, method in self.methods.items()}

    def target(self, example: Example) -> int:
        """The class that is explained."""
        if not self.follow_label:
            return example.predicted
        if example.label is None:
            raise UsageError(f"{example.name}: has no label; next: give labels, or explain the predicted class")
        return example.label

    def key(self, subject: Subject, example: Example, method: str, metric: str) -> str:
        """What a row depends on, as 32 hexadecimal digits; labels are not part of it, nor is the batch size."""
        measure = self.metrics[metric]
        facts = {
            **{name: subject.provenance[name] for name in ORIGIN},
            "image_sha256": example.image_sha256,
            "target": self.target(example),
            "method": self.methods[method].id,
            "method_params": self.params[method],
            "metric": measure.id,
            "metric_params": measure.params,
            "seed": self.seed,
            "version": version("onnxplain"),
            "runtime": [subject.provenance["runtime"][name] for name in ("name", "version")],
        }
        text = json.dumps(plain(facts), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def look(subject: Subject, name: str, path: str, label: int | None) -> Program[Example]:
    """A photo as an example: what its pixels are, and what the model takes it for."""
    image = subject.read(path)
    logits = yield Logits(subject.to_input(image)[None])
    return Example(
        name=name, path=path, label=label, predicted=int(logits[0].argmax()), image_sha256=pixel_sha256(image)
    )


def pixel_sha256(image: Array) -> str:
    """The SHA-256 of an image's pixels as the model saw them, so that it does not depend on the file format."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def evaluate(
    shard: Iterable[Example],
    evaluation: Evaluation,
    subject: Subject,
    *,
    done: Container[str] = (),
    observe: Observe | None = None,
) -> Iterator[Outcome[list[Row]]]:
    """Explain and score example by example; outcome number i is example `i // M` with method `i % M` of M methods.

    An outcome holds the rows of all metrics; those whose keys are `done` are neither computed nor given again. One
    driver runs everything, so that explanations and scores of many images share batches. A photo that cannot be read,
    or a method that fails on it, is an outcome with an error, and no other suffers.
    """
    programs = (
        explain_and_score(example, label, evaluation, subject, done)
        for example in shard
        for label in evaluation.methods
    )
    return drive(programs, subject.model, usage=subject.usage, observe=observe)


def explain_and_score(
    example: Example, label: str, evaluation: Evaluation, subject: Subject, done: Container[str]
) -> Program[list[Row]]:
    """The rows of one example and method under every metric that is not done."""
    keys = {metric: evaluation.key(subject, example, label, metric) for metric in evaluation.metrics}
    left = {metric: key for metric, key in keys.items() if key not in done}
    if not left:
        return []
    image = subject.read(example.path)
    if pixel_sha256(image) != example.image_sha256:
        raise InputError(f"{example.path}: has changed while it was worked on; next: run the same command again")
    x = subject.to_input(image)
    method = evaluation.methods[label]
    explanation = yield from subject.program(x, method, evaluation.target(example), evaluation.seed)
    rows: list[Row] = []
    for name, key in left.items():
        measure = evaluation.metrics[name]
        try:
            scored = yield from measure.metric(
                x,
                explanation.attribution,
                space=subject.space,
                head=subject.head,
                channel_axis=subject.channel_axis,
                name=f"the map of {label}",
            )
        except OnnxplainError as error:
            error.args = (f"{name}: {error}",)
            raise
        numbers = scored.rows()
        rows += [
            {
                "image": example.name,
                "model": evaluation.model,
                "method": label,
                **number,
                "metric_label": name,
                "method_id": method.id,
                "method_params": evaluation.params[label],
                "metric_id": measure.id,
                "metric_params": dict(measure.params),
                "explained": evaluation.target(example),
                "label": example.label,
                "seed": evaluation.seed,
                "model_sha256": subject.provenance["model_sha256"],
                "image_sha256": example.image_sha256,
                "version": version("onnxplain"),
                **{name: subject.provenance[name] for name in RUN},
                "key": key,
                "part": [i, len(numbers)],
            }
            for i, number in enumerate(numbers)
        ]
    return rows
