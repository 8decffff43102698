"""What Sensitivity-N and DiffID must obey, and metrics that are wrong on purpose and must be caught."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxplain.engine.drive import Usage, forward_model, run
from onnxplain.engine.methods.method import Kind
from onnxplain.engine.metrics import METRICS, DiffID, SensitivityN, Substrate, from_options, to_dict
from onnxplain.engine.metrics.ranks import pearson
from onnxplain.engine.metrics.sensitivity_n import draw
from onnxplain.engine.space import Space
from onnxplain.errors import InputError, UsageError

RNG = np.random.default_rng(1801)
SHAPE, HW = (3, 10, 10), 100
X = RNG.uniform(0.1, 1, size=SHAPE)
SPACE = Space.pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
W = RNG.normal(size=(300, 4))
INNER, OUTER = RNG.normal(size=(300, 8)) / 6, RNG.normal(size=(8, 4))
MAP = RNG.normal(size=(10, 10))


def linear(images):
    return images.reshape(len(images), -1) @ W


def curved(images):
    return np.tanh(images.reshape(len(images), -1) @ INNER) @ OUTER


C = int(linear(X[None])[0].argmax())
PRODUCT = W[:, C].reshape(SHAPE) * X  # w * x


def score(metric, heatmap, net=linear, x=X, usage=None):
    model = forward_model(net, x[None], batch_size=7)
    axis = 0 if x.shape[0] == 3 else -1
    space = SPACE if axis == 0 else Space.pixels((0.485, 0.456, 0.406), channel_axis=-1)
    return run(metric(x, heatmap, space=space, channel_axis=axis, name="cat.npz"), model, usage=usage)


def right(heatmap, net=linear, **options):
    return score(SensitivityN(**options), heatmap, net).pcc


# ---- the laws of Sensitivity-N ----


def the_product_explains_a_linear_model(metric):
    np.testing.assert_allclose(metric(PRODUCT), 1, atol=1e-6)


def the_scale_does_not_count(metric):
    np.testing.assert_allclose(metric(3 * MAP, net=curved), metric(MAP, net=curved), atol=1e-6)


def the_opposite_has_the_opposite_score(metric):
    np.testing.assert_allclose(metric(-MAP, net=curved), -metric(MAP, net=curved), atol=1e-6)


def a_constant_map_has_no_score(metric):
    assert np.isnan(metric(np.ones((10, 10)))).all()


def the_sets_are_those_of_every_map(metric):
    """An offset adds the same to every sum if all sets have N pixels, and they are the same sets."""
    np.testing.assert_allclose(metric(MAP + 5, net=curved), metric(MAP, net=curved), atol=1e-6)


LAWS = [
    the_product_explains_a_linear_model,
    the_scale_does_not_count,
    the_opposite_has_the_opposite_score,
    a_constant_map_has_no_score,
    the_sets_are_those_of_every_map,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_sensitivity_n_obeys(law):
    law(right)


def plain(heatmap, net, sets_of, nothing=0.0, change=lambda drop: drop, sums=lambda a: a):
    """The definition once more, with the sets (M, HW) that `sets_of(ratio)` gives."""
    a = heatmap.sum(axis=0).ravel() if heatmap.ndim == 3 else heatmap.ravel()
    z = net(X[None])[0]
    c, found = int(z.argmax()), []
    for ratio in SensitivityN().ratios:
        rows = []
        for mask in sets_of(ratio):
            image = X.copy()
            image[:, mask.reshape(10, 10)] = nothing
            rows.append((sums(a[mask]).sum(), change(z[c] - net(image[None])[0, c])))
        first, second = np.array(rows).T
        constant = np.ptp(first) < 1e-9 or np.ptp(second) < 1e-9
        found.append(math.nan if constant else np.corrcoef(first, second)[0, 1])
    return np.array(found)


def sets(ratio, seed=1):
    rng = np.random.default_rng([seed, int(1000 * ratio)])
    return [np.isin(np.arange(HW), rng.permutation(HW)[: round(ratio * HW)]) for _ in range(60)]


def replaces_by_something_else(heatmap, net=linear):
    return plain(heatmap, net, sets, nothing=0.5)


def takes_magnitudes(heatmap, net=linear):
    return plain(heatmap, net, sets, sums=np.abs)


def draws_every_pixel_by_itself(heatmap, net=linear):
    rng = np.random.default_rng(3)
    return plain(heatmap, net, lambda ratio: rng.uniform(size=(60, HW)) < ratio)


def draws_other_sets_for_every_map(heatmap, net=linear):
    return plain(heatmap, net, lambda ratio: sets(ratio, seed=int(abs(heatmap.sum() * 1e6))))


def gives_a_constant_map_nought(heatmap, net=linear):
    return np.nan_to_num(right(heatmap, net))


def measures_squares(heatmap, net=linear):
    return plain(heatmap, net, sets, change=np.square)


WRONG = {
    replaces_by_something_else: the_product_explains_a_linear_model,
    measures_squares: the_product_explains_a_linear_model,
    takes_magnitudes: the_opposite_has_the_opposite_score,
    draws_every_pixel_by_itself: a_constant_map_has_no_score,
    gives_a_constant_map_nought: a_constant_map_has_no_score,
    draws_other_sets_for_every_map: the_scale_does_not_count,
}


@pytest.mark.parametrize("metric", WRONG, ids=lambda metric: metric.__name__)
def test_a_wrong_metric_is_rejected(metric):
    with pytest.raises(AssertionError):
        WRONG[metric](metric)


def test_the_yardstick_itself_obeys():
    for law in LAWS:
        law(lambda heatmap, net=linear: plain(heatmap, net, sets))


def test_all_pairs_of_a_tiny_image_have_the_correlation_of_the_definition():
    """Of 4 pixels, the 6 pairs: what 2000 random ones come to."""
    x, net = X[:, :2, :2], lambda images: np.tanh(images.reshape(len(images), -1) @ W[:12])
    heatmap = MAP[:2, :2]
    z = net(x[None])[0]
    c, rows = z.argmax(), []
    for i in range(4):
        for j in range(i):
            image = x.copy().reshape(3, 4)
            image[:, [i, j]] = 0
            rows.append((heatmap.ravel()[[i, j]].sum(), z[c] - net(image.reshape(1, 3, 2, 2))[0, c]))
    (found,) = score(SensitivityN(ratios=(0.5,), subsets=2000), heatmap, net, x).pcc
    assert found == pytest.approx(np.corrcoef(np.transpose(rows))[0, 1], abs=0.03)


def test_sets_have_exactly_n_pixels_and_every_pixel_is_as_likely():
    for n in (0, 1, 5, 19, 20):
        masks = draw(np.random.default_rng(0), 4000, n, 20)
        assert (masks.sum(axis=1) == n).all()
        np.testing.assert_allclose(masks.mean(axis=0), n / 20, atol=0.04)


def test_nothing_varies_and_some_ratios_are_dropped():
    assert math.isnan(pearson([1.0, 1.0], [1.0, 2.0]))
    assert math.isnan(pearson([0.0, 0.0], [1.0, 2.0]))
    assert pearson([1e-200, 2e-200], [1e200, 3e200]) == pytest.approx(1)
    found = score(SensitivityN(ratios=(0.001, 0.5)), MAP)  # the first is of no pixel at all
    assert (found.dropped, found.value) == (1, found.pcc[1])
    (row,) = score(SensitivityN(), np.ones((10, 10))).rows()
    assert (row["dropped"], row["constant_map"], row["direction"]) == (11, True, "higher")
    assert math.isnan(row["value"])


def test_what_is_replaced_and_followed_can_be_chosen():
    zero = SensitivityN(replacement=Substrate.ZERO)
    x_minus_zero = W[:, C].reshape(SHAPE) * (X - SPACE.zero)
    np.testing.assert_allclose(score(zero, x_minus_zero).pcc, 1, atol=1e-6)
    assert abs(score(SensitivityN(objective=Kind.PROB), PRODUCT).value) < 1
    last = np.moveaxis(X, 0, -1).copy()
    moved = score(SensitivityN(), np.moveaxis(PRODUCT, 0, -1), lambda images: linear(np.moveaxis(images, -1, 1)), last)
    np.testing.assert_allclose(moved.pcc, 1, atol=1e-6)


@pytest.mark.parametrize("id", METRICS)
def test_costs_are_those_that_are_told_and_bad_maps_are_refused(id):
    usage, metric = Usage(), METRICS[id]
    score(metric, MAP, usage=usage)
    assert usage.rows["logits"] == metric.rows(10, 10)
    with pytest.raises(InputError, match=r"cat.npz: 1 of 100 values are NaN"):
        score(metric, np.where(np.arange(100).reshape(10, 10) == 7, np.nan, MAP))
    with pytest.raises(InputError, match="never resized"):
        score(metric, MAP[:5])
    assert from_options(id, {}) == metric
    assert "reduce" in to_dict(metric)


def test_wrong_parameters():
    for options in ({"ratios": ()}, {"ratios": (1.0,)}, {"ratios": (0.1, 0.1)}, {"subsets": 1}, {"reduce": "all"}):
        with pytest.raises(UsageError):
            SensitivityN(**options)
    with pytest.raises(UsageError, match=r"unknown metric 'sensitivity'; did you mean sensitivity-n\?"):
        from_options("sensitivity", {})
    with pytest.raises(UsageError, match=r"unknown parameter 'subset'; did you mean subsets\?"):
        from_options("sensitivity-n", {"subset": "3"})


# ---- DiffID ----


def plain_diffid(heatmap, net, ascending=False, blank=None):
    order = np.argsort(heatmap.ravel() if ascending else -heatmap.ravel(), kind="stable")
    z = net(X[None])[0]
    c = z.argmax()
    logit, accuracy = [], []
    for r in DiffID().ratios:
        n, pair = round(r * HW), []
        for keep in (order[:n], order[n:]):
            image = np.empty((3, HW))
            image[:] = X.reshape(3, HW)[:, keep].mean(axis=1, keepdims=True) if blank is None else blank
            image[:, keep] = X.reshape(3, HW)[:, keep]
            pair.append(net(image.reshape(1, *SHAPE))[0])
        logit.append((pair[0][c] - pair[1][c]) / z[c])
        accuracy.append(float(pair[0].argmax() == c) - float(pair[1].argmax() == c))
    return np.array(logit), np.array(accuracy)


def test_diffid_is_its_definition_and_its_opposite_the_opposite():
    for net in (linear, curved):
        found = score(DiffID(), MAP, net)
        logit, accuracy = plain_diffid(MAP, net)
        np.testing.assert_allclose(found.logit, logit, atol=1e-9)
        np.testing.assert_array_equal(found.accuracy, accuracy)
        # keeping the last share r is deleting the first share 1 - r
        np.testing.assert_allclose(score(DiffID(), -MAP, net).logit, -found.logit[::-1], atol=1e-9)
        for wrong in (plain_diffid(MAP, net, ascending=True), plain_diffid(MAP, net, blank=0.0)):
            assert not np.allclose(found.logit, wrong[0], atol=1e-3)
    first, second = score(DiffID(), PRODUCT).rows()
    assert (first["metric"], second["metric"], first["reduction"]) == ("diffid_logit", "diffid_accuracy", "abs_sum")


def test_diffid_of_a_logit_of_nought_is_undefined():
    assert np.isnan(score(DiffID(), MAP, lambda images: 0 * linear(images)).logit).all()
    with pytest.raises(UsageError, match="one pixel"):
        score(DiffID(), np.ones((1, 1)), lambda images: images.reshape(len(images), -1), X[:, :1, :1])


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_any_callable_can_be_scored(metric):
    """Images -> logits is enough, in batches of the size that is asked for; nothing depends on that size."""
    images, maps, sizes = np.stack([X, X[:, ::-1]]), [MAP, PRODUCT], []

    def net(batch):
        sizes.append(len(batch))
        return curved(batch)

    scored = metric.score(net, images, maps, space=SPACE, batch_size=5)
    assert max(sizes) == 5
    for x, heatmap, one in zip(images, maps, scored, strict=True):
        alone = score(metric, heatmap, curved, x)
        assert [row["metric"] for row in one.rows()] == [row["metric"] for row in alone.rows()]
        np.testing.assert_allclose([r["value"] for r in one.rows()], [r["value"] for r in alone.rows()], atol=1e-9)
    with pytest.raises(UsageError, match="one heatmap for each image"):
        metric.score(net, images, maps[:1], space=SPACE)
