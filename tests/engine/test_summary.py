"""The summary of result rows, against SciPy's own tests and numbers on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from frameworks import framework

from onnxplain.engine.summary import Published, end_points, summarise

stats = framework("scipy.stats")


def row(method, image, value, metric="insertion_auc", **more):
    return {
        "model": "m", "metric_label": "released", "metric": metric, "protocol": "p", "reduction": "sum",
        "direction": "lower" if "deletion" in metric else "higher", "method": method, "image": image, "value": value,
        **more,
    }  # fmt: skip


def rows(metric="insertion_auc", **methods):
    return [row(m, f"{i}.png", v, metric) for m, values in methods.items() for i, v in enumerate(values)]


def paper(**values):
    return [
        Published(model="m", method=m, metric_label="released", metric="insertion_auc", value=v)
        for m, v in values.items()
    ]


def test_means_and_intervals_on_paper():
    (mean,) = summarise(rows(a=[1.0, 2.0, 3.0])).means
    assert (mean["mean"], mean["n"], mean["undefined"], mean["published"]) == (2.0, 3, 0, None)
    reach = 4.302652729911275 / math.sqrt(3)  # the quantile of t with 2 degrees of freedom, and s = 1
    assert (mean["low"], mean["high"]) == pytest.approx((2 - reach, 2 + reach))


def test_an_interval_needs_two_values_and_what_has_no_value_is_counted():
    one, none, some = summarise(rows(one=[0.5], none=[None, None], some=[None, 0.25, 0.75])).means
    assert (one["mean"], one["low"], one["high"], one["n"]) == (0.5, None, None, 1)
    assert (none["mean"], none["n"], none["undefined"], none["rank"]) == (None, 0, 2, None)
    assert (some["mean"], some["n"], some["undefined"]) == (0.5, 2, 1)


def test_ranks_follow_the_direction():
    for metric, places in (("insertion_auc", {"a": 2, "b": 1}), ("deletion_auc", {"a": 1, "b": 2})):
        means = summarise(rows(metric, a=[0.1, 0.2], b=[0.3, 0.4])).means
        assert {mean["method"]: mean["rank"] for mean in means} == places


def test_published_means_stand_beside_the_measured_ones():
    found = summarise(rows(a=[0.1, 0.2], b=[0.3, 0.4], c=[0.5, 0.6]), published=paper(a=0.9, c=0.8))
    assert [(m["published"], m["published_rank"]) for m in found.means] == [(0.9, 1), (None, None), (0.8, 2)]
    (order,) = found.orders
    assert (order["methods"], order["kendall_tau"]) == (2, -1.0)


def test_orders_are_those_of_scipy():
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(size=6), draw.normal(size=6)
    names = "abcdef"
    found = summarise(
        rows(**{n: [v] for n, v in zip(names, ours, strict=True)}),
        published=paper(**dict(zip(names, theirs, strict=True))),
    )
    assert found.orders[0]["kendall_tau"] == pytest.approx(stats.kendalltau(ours, theirs).statistic)


def test_pairs_are_those_of_scipy():
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=30), draw.normal(size=30) - 0.3
    (pair,) = summarise(rows(a=a, b=b), compare=[("a", "b")]).pairs
    assert (pair["first"], pair["second"], pair["n"], pair["ahead"]) == ("a", "b", 30, int((a > b).sum()))
    test = stats.ttest_rel(a, b)
    assert pair["difference"] == pytest.approx((a - b).mean())
    assert (pair["low"], pair["high"]) == pytest.approx(test.confidence_interval())
    assert pair["p_t"] == pytest.approx(test.pvalue)
    assert pair["p_wilcoxon"] == pytest.approx(stats.wilcoxon(a, b).pvalue)
    (lower,) = summarise(rows("deletion_auc", a=a, b=b), compare=[("a", "b")]).pairs
    assert lower["ahead"] == int((a < b).sum())


def test_pairs_hold_images_against_themselves_whatever_their_order():
    values = [row("a", "1", 1.0), row("a", "2", 2.0), row("a", "3", 9.0), row("b", "2", 1.5), row("b", "1", 0.75)]
    (pair,) = summarise(values, compare=[("a", "b"), ("a", "nobody")]).pairs
    assert (pair["difference"], pair["n"], pair["ahead"]) == (0.375, 2, 2)


@pytest.mark.parametrize("gaps", [[0.0, 0.0, 0.0], [0.5], [0.25, 0.25]])
def test_differences_that_are_all_the_same_have_no_test(gaps):
    (pair,) = summarise(rows(a=gaps, b=[0.0] * len(gaps)), compare=[("a", "b")]).pairs
    assert (pair["p_t"], pair["p_wilcoxon"]) == (None, None)


def test_the_identity_of_end_points_holds_for_right_rows_and_finds_wrong_ones():
    curves = [np.random.default_rng(i).random(9) for i in range(3)]

    def played(scale):
        for i, s in enumerate(curves):
            auc = (s.sum() - (s[0] + s[-1]) / 2) / 8
            yield row("a", f"{i}", auc, curve=s.tolist())
            yield row("a", f"{i}", s.mean() * scale, "insertion_mean")

    (ends,) = summarise(played(1)).ends
    assert (ends["game"], ends["points"]) == ("insertion", 9)
    assert ends["largest_gap"] < 1e-12
    assert ends["ends"] == pytest.approx(np.mean([s[0] + s[-1] for s in curves]))
    (wrong,) = summarise(played(1.01)).ends
    assert wrong["largest_gap"] > 0.05


def test_the_published_end_points_of_isas_table_are_those_of_its_protocol():
    """Rows of Inception-v3: with 225 points all are nearly the same, as they are for no other number of points."""
    means, aucs = (0.3215, 0.2029, 0.7293), (0.3208, 0.2017, 0.7304)
    right = [end_points(224, mean, auc) for mean, auc in zip(means, aucs, strict=True)]
    wrong = [end_points(448, mean, auc) for mean, auc in zip(means, aucs, strict=True)]
    assert max(right) - min(right) < 0.05 < max(wrong) - min(wrong)
    assert 0.92 < np.mean(right) < 0.98
    published = [
        Published(model="m", method=m, metric_label="released", metric=metric, value=value)
        for m, *values in zip("abc", means, aucs, strict=True)
        for metric, value in zip(("insertion_mean", "insertion_auc"), values, strict=True)
    ]
    curve = {"curve": [0.5] * 225}
    (ends,) = summarise([row("a", "1", 0.5, **curve), row("a", "1", 0.5, "insertion_mean")], published=published).ends
    assert (ends["published_low"], ends["published_high"]) == pytest.approx((min(right), max(right)))
