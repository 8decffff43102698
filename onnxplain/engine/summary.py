"""What result rows come to: means with their intervals, paired tests, orders, and the identity of end points.

All of it is plain statistics of numbers that were measured on the same images; nothing here knows a model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from onnxplain.engine.metrics import Score

Row: TypeAlias = Mapping[str, Any]
Table: TypeAlias = list[dict[str, Any]]

Values: TypeAlias = dict[tuple[Any, ...], dict[str, dict[str, float]]]  # kind -> method -> image -> value

CONFIDENCE = 0.95
KIND = ("model", "metric_label", "metric", "protocol", "reduction", "direction")  # of numbers that may be compared


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of a paper: which mean it is."""

    model: str
    method: str
    metric_label: str
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Four tables, each a list of rows.

    `means`: the mean of each kind of number and method, the bounds of its 95 % confidence interval (Student's t), the
    number of images `n`, how many had no value (`undefined`), the published mean, and the ranks of both among the
    methods (1 is best; of the published ones, among those that are published).
    `pairs`: the mean difference of two methods on the same images with its interval, on how many images the first one
    is ahead, and the p-values of the paired t test and of Wilcoxon's signed-rank test (both two-sided).
    `orders`: Kendall's tau between measured and published means.
    `ends`: of insertion and deletion curves, whether 2 [(N+1) mean - N AUC] = s_0 + s_N holds, for each; and what
    s_0 + s_N is on average, measured and by the published means and AUCs.
    """

    means: Table = field(default_factory=list)
    pairs: Table = field(default_factory=list)
    orders: Table = field(default_factory=list)
    ends: Table = field(default_factory=list)

    def tables(self) -> dict[str, Table]:
        return {"means": self.means, "pairs": self.pairs, "orders": self.orders, "ends": self.ends}


def summarise(
    rows: Iterable[Row], *, published: Sequence[Published] = (), compare: Sequence[tuple[str, str]] = ()
) -> Summary:
    """The tables of result rows, which `evaluate` made; `compare` names pairs of methods."""
    values: Values = {}
    curves: dict[tuple[Any, ...], list[Curve]] = {}
    for row in rows:
        kind = tuple(row.get(name) for name in KIND)
        value = math.nan if row["value"] is None else float(row["value"])
        values.setdefault(kind, {}).setdefault(row["method"], {})[row["image"]] = value
        if row.get("curve") and row["metric"].endswith("_auc"):
            s = row["curve"]
            curves.setdefault(kind, []).append(Curve(row["method"], row["image"], len(s) - 1, s[0] + s[-1]))
    papers = {(p.model, p.metric_label, p.metric, p.method): p.value for p in published}
    means, pairs, orders = [], [], []
    for kind, methods in values.items():
        about = dict(zip(KIND, kind, strict=True))
        theirs = {
            method: papers[about["model"], about["metric_label"], about["metric"], method]
            for method in methods
            if (about["model"], about["metric_label"], about["metric"], method) in papers
        }
        sets = {method: np.array(list(by_image.values())) for method, by_image in methods.items()}
        found = {method: interval(numbers) for method, numbers in sets.items()}
        ours = {method: math.nan if one["mean"] is None else one["mean"] for method, one in found.items()}
        rank, their_rank = ranks(ours, about["direction"]), ranks(theirs, about["direction"])
        for method, one in found.items():
            paper = {"published": theirs.get(method), "published_rank": their_rank.get(method)}
            means.append({**about, "method": method, **one, "rank": rank.get(method), **paper})
        for first, second in compare:
            if first in methods and second in methods:
                pairs.append(
                    {**about, "first": first, "second": second}
                    | paired(methods[first], methods[second], about["direction"])
                )
        if len(theirs) > 1:
            orders.append({**about, **agreement({m: ours[m] for m in theirs}, theirs)})
    identity = [ends(kind, of_kind, values, papers) for kind, of_kind in curves.items()]
    return Summary(means=means, pairs=pairs, orders=orders, ends=identity)


def interval(values: Any) -> dict[str, Any]:
    """Mean, the bounds of its confidence interval (None for fewer than two values), and the number of values."""
    from scipy import stats

    finite = values[np.isfinite(values)]
    score = Score.empty()
    for value in finite:
        score = score.merge(Score.of(value))
    mean, error, n = score.compute()
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error if n > 1 else math.nan
    return {
        "mean": none_if_nan(mean), "low": none_if_nan(mean - reach), "high": none_if_nan(mean + reach), "n": n,
        "undefined": len(values) - n,
    }  # fmt: skip


def ranks(means: Mapping[str, float], direction: str | None) -> dict[str, int]:
    """The place of each method that has a mean, 1 for the best."""
    sign = 1 if direction == "lower" else -1
    ordered = sorted((sign * mean, method) for method, mean in means.items() if not math.isnan(mean))
    return {method: place for place, (_, method) in enumerate(ordered, start=1)}


def paired(first: Mapping[str, float], second: Mapping[str, float], direction: str | None) -> dict[str, Any]:
    """First minus second, image by image, over the images that have both."""
    from scipy import stats

    both = [image for image in first if image in second]
    gaps = np.array([first[image] - second[image] for image in both])
    gaps = gaps[np.isfinite(gaps)]
    ahead = gaps < 0 if direction == "lower" else gaps > 0
    found = interval(gaps)
    del found["undefined"]
    spread = len(gaps) > 1 and bool(np.ptp(gaps) > 0)
    return {
        "difference": found.pop("mean"),
        **found,
        "ahead": int(ahead.sum()),
        # neither test says anything of differences that are all the same
        "p_t": float(stats.ttest_1samp(gaps, 0).pvalue) if spread else None,
        "p_wilcoxon": float(stats.wilcoxon(gaps).pvalue) if spread else None,
    }


def agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, Any]:
    """Kendall's tau between two sets of means: (pairs in the same order - pairs in the other) / pairs."""
    same = [np.sign(ours[a] - ours[b]) * np.sign(theirs[a] - theirs[b]) for a, b in itertools.combinations(theirs, 2)]
    return {"methods": len(theirs), "kendall_tau": none_if_nan(float(np.mean(same)))}


@dataclass(frozen=True)
class Curve:
    """The ends of one curve with N steps: whose it is, and s_0 + s_N."""

    method: str
    image: str
    n: int
    ends: float


def end_points(n: int, mean: float, auc: float) -> float:
    """s_0 + s_N = 2 [(N+1) mean - N AUC], of a curve with N steps; and so, of the means of many curves, on average."""
    return 2 * ((n + 1) * mean - n * auc)


def ends(
    kind: tuple[Any, ...], curves: Sequence[Curve], values: Values, papers: Mapping[tuple[str, str, str, str], float]
) -> dict[str, Any]:
    """One game of one model and protocol: the identity for each pair of rows, and for the published means."""
    about = dict(zip(KIND, kind, strict=True))
    model, label, game = about["model"], about["metric_label"], about["metric"].removesuffix("_auc")
    aucs, means = values[kind], values.get(tuple((about | {"metric": f"{game}_mean"}).values()), {})
    gaps = [
        abs(end_points(curve.n, means[curve.method][curve.image], aucs[curve.method][curve.image]) - curve.ends)
        for curve in curves
        if curve.image in means.get(curve.method, {})
    ]
    n = max(curve.n for curve in curves)
    theirs = [
        end_points(n, papers[model, label, f"{game}_mean", method], auc)
        for (of, under, metric, method), auc in papers.items()
        if (of, under, metric) == (model, label, f"{game}_auc") and (model, label, f"{game}_mean", method) in papers
    ]
    return {
        "model": model, "metric_label": label, "protocol": about["protocol"], "reduction": about["reduction"],
        "game": game, "points": n + 1, "ends": float(np.mean([curve.ends for curve in curves])),
        "largest_gap": max(gaps, default=None),
        "published_low": min(theirs, default=None), "published_high": max(theirs, default=None),
    }  # fmt: skip


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
