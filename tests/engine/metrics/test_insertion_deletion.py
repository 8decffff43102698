"""Insertion and deletion: the parts of the game, its costs, and what it refuses. Laws: conformance/test_metrics.py."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from onnxplain.engine.drive import Usage, drive, forward_model
from onnxplain.engine.metrics import PROTOCOLS, InsertionDeletion, Protocol, Scores
from onnxplain.engine.metrics.insertion_deletion import Curve, blur, blur_taps, change_step
from onnxplain.engine.requests import Blends
from onnxplain.engine.space import Space
from onnxplain.errors import FeedMismatch, InputError, NonFinite, UsageError

IMAGENET = Space.pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def colours(images):
    """Logits of 3 classes: how red, green and blue an image is."""
    return 4 * images.reshape(len(images), 3, -1).mean(-1)


def photo(rng, size=12):
    x = rng.uniform(size=(3, size, size)).astype(np.float32)
    x[1] += 0.2
    return x / 1.2


@pytest.fixture
def rng():
    return np.random.default_rng(7)


class TestBlur:
    def test_taps_are_those_published(self):
        half = [0.087958, 0.088896, 0.090474, 0.092191, 0.093489]
        np.testing.assert_allclose(blur_taps(), [*half, 0.093982, *half[::-1]], atol=5e-7)
        assert blur_taps().sum() == pytest.approx(1, abs=1e-12)

    def test_pads_with_zeros(self):
        """Far from the border a constant stays; in the corner only the upper half of the taps finds something."""
        blurred = blur(np.ones((2, 20, 30)))
        corner = blur_taps()[5:].sum() ** 2
        np.testing.assert_allclose(blurred[:, 5:-5, 5:-5], 1)
        np.testing.assert_allclose(blurred[:, [0, 0, -1, -1], [0, -1, 0, -1]], corner)

    def test_images_smaller_than_the_filter(self):
        np.testing.assert_allclose(blur(np.ones((3, 1, 1))), blur_taps()[5] ** 2)

    def test_the_channel_axis_may_be_the_last(self, rng):
        z = rng.normal(size=(3, 14, 9))
        np.testing.assert_array_equal(blur(np.moveaxis(z, 0, -1), -1), np.moveaxis(blur(z), 0, -1))


class TestOrder:
    def test_pixels_change_q_at_a_time_and_the_last_step_takes_what_is_left(self):
        ranked = np.array([[3.0, 9.0, 1.0, 9.0, 0.0, 5.0, 2.0]])
        np.testing.assert_array_equal(change_step(ranked, 3), [1, 0, 1, 0, 2, 0, 1])

    def test_ties_go_to_the_lower_index(self, rng):
        ranked = rng.integers(0, 4, (1, 400))
        order = sorted(range(400), key=lambda i: (-ranked[0, i], i))
        np.testing.assert_array_equal(np.argsort(change_step(ranked, 1)), order)

    def test_union_changes_as_many_pixels_as_the_released_code(self, rng):
        """Advanced indexing with (3, q) coordinates writes all channels at the union of three index lists."""
        for q in (1, 7, 16, 50):
            channels = rng.normal(size=(3, 400))
            order = np.argsort(-channels, axis=1)
            canvas, changed = np.zeros((1, 3, 400)), []
            for i in range(-(-400 // q)):
                coords = order[:, q * i : q * (i + 1)]
                canvas[0, :, coords] = 1
                assert (canvas[0] == canvas[0, 0]).all()
                changed.append(int(canvas[0, 0].sum()))
            ours = np.bincount(change_step(channels, q), minlength=len(changed)).cumsum()
            np.testing.assert_array_equal(ours, changed)

    def test_union_has_changed_half_of_the_pixels_at_a_fifth_of_the_steps(self, rng):
        """1 - (1 - t)^3 for channels that rank independently: one half at t = .206."""
        when = change_step(rng.normal(size=(3, 50176)), 224)
        assert (when < 0.206 * 224).mean() == pytest.approx(0.5, abs=0.01)


class TestCurve:
    def test_numbers_by_hand(self):
        curve = Curve(np.array([0.0, 0.5, 1.0, 0.9]))
        assert curve.auc == pytest.approx((0.25 + 0.75 + 0.95) / 3)
        assert curve.mean == pytest.approx(0.6)

    def test_the_area_of_the_mean_curve_is_the_mean_area(self, rng):
        curves = rng.uniform(size=(9, 29))
        assert Curve(curves.mean(0)).auc == pytest.approx(np.mean([Curve(s).auc for s in curves]), rel=1e-12)


class TestCost:
    @pytest.mark.parametrize(("name", "rows"), [("rise", 449), ("agi_isa", 448), ("agi_isa-union", 448)])
    def test_rows_for_one_map(self, name, rows, rng):
        """225 + 225 points; the full image is in both games, and the substrate too where they share it."""
        metric, x, usage = InsertionDeletion(name), photo(rng, 224), Usage()
        model = forward_model(colours, x[None], batch_size=32)
        (outcome,) = drive([metric(x, rng.normal(size=x.shape), space=IMAGENET)], model, usage=usage)
        played = outcome.unwrap()
        assert len(played.insertion.s) == len(played.deletion.s) == 225
        assert usage.rows["logits"] == metric.rows(224, 224) == rows

    def test_many_maps_share_full_batches(self, rng):
        metric, images = InsertionDeletion(Protocol.named("rise", step=9)), np.stack([photo(rng) for _ in range(5)])
        maps = rng.normal(size=images.shape)
        model, together, alone = forward_model(colours, images[:1], batch_size=16), Usage(), Usage()
        programs = [metric(x, h, space=IMAGENET) for x, h in zip(images, maps, strict=True)]
        assert len(list(drive(programs, model, usage=together))) == 5
        for x, h in zip(images, maps, strict=True):
            list(drive([metric(x, h, space=IMAGENET)], model, usage=alone))
        assert together.rows == alone.rows
        assert together.rows["logits"] == 5 * metric.rows(12, 12) == 5 * 33
        assert together.calls["logits"] <= -(-5 * 33 // 16) + 2  # full, but for the last ones
        assert alone.calls["logits"] == 5 * 3

    def test_at_most_32_frames_are_asked_for_at_once(self, rng):
        x = photo(rng)
        program = InsertionDeletion(Protocol.named("rise", step=1))(x, x[0], space=IMAGENET)
        sizes, request = [], next(program)
        with contextlib.suppress(StopIteration):
            while True:
                frames = (
                    np.where(request.shown, request.finish, request.start) if isinstance(request, Blends) else request.x
                )
                assert frames.dtype == np.float32
                sizes.append(len(frames))
                request = program.send(colours(frames))
        assert max(sizes) == 32
        assert sum(sizes) == 3 + 2 * 143

    def test_a_score_does_not_depend_on_the_batch(self, rng):
        images = np.stack([photo(rng) for _ in range(3)])
        maps = list(rng.normal(size=images.shape))
        metric = InsertionDeletion(Protocol.named("agi_isa-union", step=9))
        one, many = (metric.score(colours, images, maps, space=IMAGENET, batch_size=b) for b in (1, 64))
        for a, b in zip(one, many, strict=True):
            np.testing.assert_allclose(a.insertion.s, b.insertion.s, rtol=1e-6)
            assert a.target == b.target


class TestMaps:
    def test_reductions_are_recorded_and_differ(self, rng):
        x = photo(rng)
        heatmap = rng.normal(size=x.shape).astype(np.float32)
        maps = {"sum": heatmap.sum(0), "abs_sum": np.abs(heatmap).sum(0), "max_abs": np.abs(heatmap).max(0)}
        protocol, areas = Protocol.named("agi_isa", step=9), set()
        for how, reduced in maps.items():
            (a,) = InsertionDeletion(protocol, reduce=how).score(colours, x[None], [heatmap], space=IMAGENET)
            (b,) = InsertionDeletion(protocol).score(colours, x[None], [reduced], space=IMAGENET)
            np.testing.assert_array_equal(a.insertion.s, b.insertion.s)
            assert (a.reduction, b.reduction) == (how, "none")
            areas.add(a.insertion.auc)
        assert len(areas) == 3

    def test_channels_last(self, rng):
        x, heatmap = photo(rng), rng.normal(size=(3, 12, 12))
        last = Space(*(np.moveaxis(v, 0, -1) for v in (IMAGENET.low, IMAGENET.high, IMAGENET.zero, IMAGENET.scale)))
        for name in PROTOCOLS:
            metric = InsertionDeletion(Protocol.named(name, step=9))
            (first,) = metric.score(colours, x[None], [heatmap], space=IMAGENET)
            (turned,) = metric.score(
                lambda images: colours(np.moveaxis(images, -1, 1)),
                np.moveaxis(x, 0, -1)[None],
                [np.moveaxis(heatmap, 0, -1)],
                space=last,
                channel_axis=-1,
            )
            np.testing.assert_allclose(first.insertion.s, turned.insertion.s, rtol=1e-5)
            np.testing.assert_allclose(first.deletion.s, turned.deletion.s, rtol=1e-5)

    def test_a_constant_map_is_scored_and_flagged(self, rng):
        x = photo(rng)
        constant, other = InsertionDeletion().score(
            colours, np.stack([x, x]), [np.full((12, 12), 3), x[0]], space=IMAGENET
        )
        assert constant.constant
        assert not other.constant
        assert all(row["constant_map"] for row in constant.rows())

    def test_random_maps_are_near_half_on_a_model_that_is_linear_in_the_number_of_pixels(self, rng):
        """p rises steadily from 1/3 while pixels appear anywhere: no random map does much better than another."""
        x = np.zeros((3, 32, 32), np.float32)
        x[2] = 1
        maps = rng.normal(size=(20, 32, 32))
        played = InsertionDeletion(Protocol.named("agi_isa", step=8)).score(
            colours, np.stack([x] * 20), maps, space=IMAGENET
        )
        t = np.linspace(0, 1, 129)
        expected = np.exp(4 * t) / (np.exp(4 * t) + 2)
        for p in played:
            np.testing.assert_allclose(p.insertion.s, expected, rtol=1e-5)
            assert p.target == 2


class TestRows:
    def test_every_number_comes_with_its_protocol_and_reduction(self, rng):
        x = photo(rng)
        (played,) = InsertionDeletion(Protocol.named("rise", step=9)).score(colours, x[None], [x], space=IMAGENET)
        rows = played.rows()
        assert [row["metric"] for row in rows] == [
            "insertion_auc",
            "insertion_mean",
            "deletion_auc",
            "deletion_mean",
            "difference_auc",
        ]
        assert {row["protocol"] for row in rows} == {"rise(step=9)"}
        assert {row["reduction"] for row in rows} == {"sum"}
        assert [row["direction"] for row in rows] == ["higher", "higher", "lower", "lower", "higher"]
        by_name = {row["metric"]: row for row in rows}
        assert by_name["difference_auc"]["value"] == pytest.approx(
            by_name["insertion_auc"]["value"] - by_name["deletion_auc"]["value"]
        )
        assert by_name["insertion_auc"]["curve"] == played.insertion.s.tolist()
        assert len(Scores.of(rows).compute()) == 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("heatmap", "message"),
        [
            (np.full((12, 12), np.nan), "cat.npz: 144 of 144 values are NaN or Inf"),
            (np.where(np.eye(12) > 0, np.inf, 0), "cat.npz: 12 of 144 values are NaN or Inf"),
            (np.zeros((24, 24)), r"cat.npz: expected shape \[12, 12\] or \[3, 12, 12\], got \[24, 24\]"),
            (np.zeros((1, 12, 12)), "never resized"),
        ],
    )
    def test_maps_that_do_not_fit(self, heatmap, message, rng):
        with pytest.raises(InputError, match=message):
            InsertionDeletion().score(colours, photo(rng)[None], [heatmap], space=IMAGENET, names=["cat.npz"])

    @pytest.mark.parametrize(
        ("heatmap", "got"),
        [
            ([[1.0] * 12] * 12, "list"),
            (np.full((12, 12), None), "object"),
            (np.ones((12, 12), complex), "complex128"),
            (np.full((12, 12), "1"), "str"),
        ],
    )
    def test_maps_that_are_no_arrays_of_numbers(self, heatmap, got, rng):
        with pytest.raises(InputError, match=rf"cat\.npz: expected an array of real numbers, got {got}.*next: "):
            InsertionDeletion().score(colours, photo(rng)[None], [heatmap], space=IMAGENET, names=["cat.npz"])

    def test_union_needs_channels(self, rng):
        with pytest.raises(InputError, match=r"agi_isa-union ranks each channel.*next: .*agi_isa"):
            InsertionDeletion("agi_isa-union").score(colours, photo(rng)[None], [np.eye(12)], space=IMAGENET)

    def test_black_needs_the_range(self, rng):
        x = photo(rng)
        with pytest.raises(UsageError, match="protocol agi_isa works in pixel units"):
            InsertionDeletion("agi_isa").score(colours, x[None], [x], space=Space.model())
        assert InsertionDeletion("rise").score(colours, x[None], [x], space=Space.model())

    def test_one_output_has_no_softmax(self, rng):
        x = photo(rng)
        with pytest.raises(UsageError, match="one output"):
            InsertionDeletion().score(lambda images: colours(images)[:, :1], x[None], [x], space=IMAGENET)

    def test_one_map_for_each_image(self, rng):
        with pytest.raises(UsageError, match="got 2 for 1"):
            InsertionDeletion().score(colours, photo(rng)[None], [np.eye(12)] * 2, space=IMAGENET)
        assert InsertionDeletion().score(colours, np.empty((0, 3, 12, 12)), [], space=IMAGENET) == []

    def test_a_callable_that_does_not_return_logits(self, rng):
        with pytest.raises(FeedMismatch, match=r"answered \[3\] to 1 images, expected \(n, K\)"):
            InsertionDeletion().score(lambda images: colours(images)[0], photo(rng)[None], [np.eye(12)], space=IMAGENET)

    def test_logits_that_are_not_finite(self, rng):
        def broken(images):
            return np.where(images.mean() > 0, np.nan, colours(images))

        with pytest.raises(NonFinite):
            InsertionDeletion().score(broken, photo(rng)[None], [np.eye(12)], space=IMAGENET)

    @pytest.mark.parametrize("reduce", ["mean", "", "SUM"])
    def test_unknown_reductions(self, reduce):
        with pytest.raises(UsageError, match="use one of sum, abs_sum, max_abs"):
            InsertionDeletion("rise", reduce=reduce)


class TestProtocols:
    def test_presets(self):
        assert list(PROTOCOLS) == ["rise", "agi_isa", "agi_isa-union", "cpa"]
        assert [str(p) for p in PROTOCOLS.values()] == list(PROTOCOLS)

    @pytest.mark.parametrize(("size", "q", "n"), [(224, 224, 224), (299, 400, 224), (10, 1, 100), (1, 1, 1)])
    def test_rise_takes_about_224_steps_at_any_size(self, size, q, n):
        rise = Protocol.named("rise")
        assert (rise.pixels(size * size), rise.steps(size * size)) == (q, n)

    def test_agi_isa_takes_224_pixels_at_any_size(self):
        assert Protocol.named("agi_isa").steps(299 * 299) == 400
        assert Protocol.named("agi_isa").steps(100) == 1

    def test_a_step_of_more_pixels_than_there_are_takes_them_all(self, rng):
        x, huge = photo(rng), Protocol.named("rise", step=10**22)
        assert (huge.pixels(144), huge.steps(144)) == (144, 1)
        (played,) = InsertionDeletion(huge).score(colours, x[None], [x], space=IMAGENET)
        assert len(played.insertion.s) == 2

    def test_a_label_tells_what_differs_from_the_preset(self):
        rise = Protocol.named("rise", step=1792)
        assert rise.steps(224 * 224) == 28
        assert str(rise) == "rise(step=1792)"
        assert str(replace(rise, insertion=rise.deletion)) == "rise(step=1792, insertion=zero)"
        mine = Protocol(name="mine", step=5, insertion=rise.insertion, deletion=rise.deletion)
        assert str(mine) == "mine(step=5, insertion=blur, deletion=zero, order=pixel)"

    @pytest.mark.parametrize(("side", "q"), [(224, 896), (227, 921), (128, 293), (4, 1)])
    def test_a_share_of_the_pixels_is_as_many_steps_for_every_size(self, side, q):
        protocol = Protocol.named("agi_isa", Fraction(1, 56))
        assert str(protocol) == "agi_isa(step=1/56)"
        assert protocol.pixels(side * side) == q
        assert protocol.steps(side * side) == min(56, side * side)

    def test_what_is_refused(self):
        with pytest.raises(UsageError, match="use one of rise, agi_isa, agi_isa-union"):
            InsertionDeletion("RISE")
        for step in (0, -3, 2.5, True, "9", Fraction(0), Fraction(3, 2)):
            with pytest.raises(UsageError, match="at least 1 pixel, got"):
                Protocol.named("rise", step=step)
