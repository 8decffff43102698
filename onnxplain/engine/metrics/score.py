"""Scores of a data set: sums that can be made anywhere, in any order, and merged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Summary(NamedTuple):
    """Mean, its standard error (NaN for fewer than two values) and the number of values."""

    mean: float
    standard_error: float
    n: int


@dataclass(frozen=True)
class Score:
    """n values by their mean and m2 = sum (v - mean)^2: a monoid under `merge`, up to rounding [chan1979].

    Where a metric has no value (None or NaN), that is counted as `undefined`, and nothing else changes.
    """

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    undefined: int = 0

    @classmethod
    def empty(cls) -> Score:
        return cls()

    @classmethod
    def of(cls, value: float | None) -> Score:
        if value is None or math.isnan(value):
            return cls(undefined=1)
        return cls(1, float(value), 0.0)

    def merge(self, other: Score) -> Score:
        """The score of both sets of values together."""
        n, undefined = self.n + other.n, self.undefined + other.undefined
        if not n:
            return Score(undefined=undefined)
        share = other.n / n
        gap = other.mean - self.mean
        return Score(n, self.mean + gap * share, self.m2 + other.m2 + gap * gap * self.n * share, undefined)

    def compute(self) -> Summary:
        """Mean and standard error, sqrt(m2 / (n - 1) / n)."""
        mean = self.mean if self.n else math.nan
        error = math.sqrt(self.m2 / (self.n - 1) / self.n) if self.n > 1 else math.nan
        return Summary(mean, error, self.n)


SAME = ("method", "metric", "protocol", "reduction", "direction")  # of rows whose values may be averaged


@dataclass(frozen=True)
class Scores:
    """One `Score` for each kind of number: values of another method, metric, protocol or reduction never mix.

    A monoid, because `Score` is one.
    """

    by_kind: Mapping[tuple[str | None, ...], Score] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Scores:
        return cls()

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Scores:
        """The scores of result rows."""
        scores = cls()
        for row in rows:
            scores = scores.merge(cls({tuple(row.get(name) for name in SAME): Score.of(row["value"])}))
        return scores

    def merge(self, other: Scores) -> Scores:
        kinds = dict.fromkeys((*self.by_kind, *other.by_kind))
        pairs = ((kind, self.by_kind.get(kind, Score()), other.by_kind.get(kind, Score())) for kind in kinds)
        return Scores({kind: ours.merge(theirs) for kind, ours, theirs in pairs})

    def compute(self) -> list[dict[str, Any]]:
        """One row for each kind: what it is, and `mean`, `standard_error`, `n`, `undefined`."""
        return [
            dict(zip(SAME, kind, strict=True)) | score.compute()._asdict() | {"undefined": score.undefined}
            for kind, score in self.by_kind.items()
        ]
