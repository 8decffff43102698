"""The unit that a cluster runs: pure, picklable, the same in any company and in any shards."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
from toys import Array, model_of, picture_net, pixels

from onnxplain.engine.drive import Model, Usage, drive
from onnxplain.engine.evaluate import Evaluation, Example, Measure, evaluate, look
from onnxplain.engine.explanation import Explanation
from onnxplain.engine.methods import ISA, IntegratedGradients, Saliency, Task, to_dict
from onnxplain.engine.metrics import InsertionDeletion, Protocol, Scores
from onnxplain.engine.requests import Head, Logits
from onnxplain.engine.space import Space
from onnxplain.errors import InputError, UsageError

NET = picture_net()


@dataclass
class Toy:
    """A model that is open, whose photos are numbers of seeds."""

    batch_size: int = 8
    space: Space = field(default_factory=lambda: pixels(NET))
    head: Head = Head.SOFTMAX
    usage: Usage = field(default_factory=Usage)
    channel_axis: int = 0
    salt: int = 0

    def __post_init__(self) -> None:
        self.model: Model = model_of(NET, batch_size=self.batch_size)
        self.provenance = {
            "model_sha256": "0" * 64,
            "space": "pixel",
            "head": "softmax",
            "preprocess": None,
            "stopped": [],
            "on": "cpu",
            "precision": "fp32",
            "provider_options": {},
            "threads": 1,
            "runtime": {"name": "toy", "version": "1"},
        }

    def read(self, photo: str) -> Array:
        if photo == "broken":
            raise InputError("broken: is no photo")
        return np.random.default_rng([int(photo), self.salt]).integers(0, 256, (8, 8, 3), np.uint8)

    def to_input(self, image: Array) -> Array:
        return np.moveaxis(image / 255, -1, 0)

    def program(self, x, method, target, seed):
        logits = (yield Logits(x[None]))[0]
        attribution = yield from method(x, Task(target, self.space, np.random.default_rng(seed), self.head))
        return Explanation(
            attribution=attribution.values.astype(np.float32), target=target, logits=logits, value=0.0,
            method=method.id, params=to_dict(method),
        )  # fmt: skip


def evaluation(**changes):
    metric = InsertionDeletion(Protocol.named("rise", 16))
    made = {
        "model": "toy",
        "methods": {"ig": IntegratedGradients(steps=5), "isa": ISA(k=60), "gradient": Saliency()},
        "metrics": {"rise": Measure(id="insertion-deletion", params={"step": 16}, metric=metric)},
    }
    return Evaluation(**made | changes)


def examples(count, subject=None):
    subject = subject or Toy()
    outcomes = drive((look(subject, f"{i}.png", str(i), i % 4) for i in range(count)), subject.model)
    return [outcome.unwrap() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


def rows_of(shard, evaluation, subject=None, **how):
    outcomes = sorted(evaluate(shard, evaluation, subject or Toy(), **how), key=lambda outcome: outcome.index)
    return [row for outcome in outcomes for row in outcome.unwrap()]


def test_interleaved_rows_are_those_of_one_by_one():
    together = rows_of(examples(5), evaluation())
    alone = [row for one in examples(5) for row in rows_of([one], evaluation(), Toy(batch_size=1))]
    assert together == alone
    assert len(together) == 5 * 3 * 5


def test_batches_stay_full():
    subject = Toy()
    rows_of(examples(10), evaluation(), subject)
    for role, rows in subject.usage.rows.items():
        assert rows / subject.usage.calls[role] > 0.8 * subject.batch_size


def test_shards_give_the_rows_and_the_scores_of_the_whole():
    """What travels to another machine is pickled; scores made there are merged."""
    whole = rows_of(examples(6), evaluation())
    shards = [pickle.loads(pickle.dumps((examples(6)[at::2], evaluation()))) for at in range(2)]  # noqa: S301 (our own bytes)
    parts = [rows_of(*shard, Toy(batch_size=3)) for shard in shards]
    key = lambda row: (row["key"], row["part"])  # noqa: E731
    assert sorted(parts[0] + parts[1], key=key) == sorted(whole, key=key)
    merged, scores = Scores.of(parts[0]).merge(Scores.of(parts[1])), Scores.of(whole)
    assert merged.by_kind.keys() == scores.by_kind.keys()
    for kind, score in scores.by_kind.items():
        assert merged.by_kind[kind].compute() == pytest.approx(score.compute())


def test_what_is_done_is_neither_computed_nor_given():
    whole = rows_of(examples(3), evaluation())
    subject = Toy()
    assert rows_of(examples(3), evaluation(), subject, done={row["key"] for row in whole}) == []
    assert subject.usage.rows == dict.fromkeys(subject.usage.rows, 0)
    some = {row["key"] for row in whole if row["method"] == "isa"}
    assert rows_of(examples(3), evaluation(), done=some) == [row for row in whole if row["method"] != "isa"]


def test_a_key_tells_what_a_row_depends_on_and_nothing_else():
    (one, two), same = examples(2), evaluation()
    key = same.key(Toy(), one, "ig", "rise")
    metrics, methods = dict(same.metrics), dict(same.methods)
    relabelled = evaluation(methods={"other": methods["ig"]}, metrics={"name": metrics["rise"]}, model="named")
    assert relabelled.key(Toy(batch_size=3), one, "other", "name") == key
    other = Measure(id="insertion-deletion", params={"step": 8}, metric=metrics["rise"].metric)
    different = [
        same.key(Toy(), two, "ig", "rise"),
        same.key(Toy(), one, "gradient", "rise"),
        evaluation(seed=1).key(Toy(), one, "ig", "rise"),
        evaluation(methods={"ig": IntegratedGradients(steps=6)}).key(Toy(), one, "ig", "rise"),
        evaluation(metrics={"rise": other}).key(Toy(), one, "ig", "rise"),
    ]
    for name in ("model_sha256", "space", "head", "preprocess", "stopped", "on", "precision", "provider_options"):
        subject = Toy()
        subject.provenance[name] = "another"
        different.append(same.key(subject, one, "ig", "rise"))
    for name in ("name", "version"):
        subject = Toy()
        subject.provenance["runtime"] |= {name: "another"}
        different.append(same.key(subject, one, "ig", "rise"))
    follows = evaluation(follow_label=True)
    changed = Example(**{**vars(one), "label": (one.predicted + 1) % 4})
    different.append(follows.key(Toy(), changed, "ig", "rise"))
    assert len({key, *different}) == 1 + len(different)


def test_the_label_is_explained_if_it_is_asked_for():
    (one,) = examples(1)
    other = Example(**{**vars(one), "label": (one.predicted + 1) % 4})
    (row, *_) = rows_of([other], evaluation(follow_label=True))
    assert (row["explained"], row["label"], row["target"]) == (other.label, other.label, one.predicted)
    with pytest.raises(UsageError, match="has no label"):
        rows_of([Example(**{**vars(one), "label": None})], evaluation(follow_label=True))


def test_failures_are_outcomes_of_their_own():
    good = examples(2)
    broken = Example(**{**vars(good[0]), "path": "broken"})
    outcomes = sorted(evaluate([good[0], broken, good[1]], evaluation(), Toy()), key=lambda outcome: outcome.index)
    assert [outcome.error is None for outcome in outcomes] == [True] * 3 + [False] * 3 + [True] * 3
    assert all(isinstance(outcome.error, InputError) for outcome in outcomes[3:6])
    union = InsertionDeletion(Protocol.named("agi_isa-union", 16))
    shapeless = {"rise": Measure(id="insertion-deletion", params={}, metric=union)}
    toy = Toy(space=Space.model())
    (error,) = {
        str(outcome.error) for outcome in evaluate(good, evaluation(methods={"g": Saliency()}, metrics=shapeless), toy)
    }
    assert error.startswith("rise: ")


def test_a_photo_that_changes_meanwhile_is_told():
    (one,) = examples(1)
    with pytest.raises(InputError, match="has changed while it was worked on"):
        rows_of([one], evaluation(), Toy(salt=1))
