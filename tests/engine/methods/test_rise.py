"""RISE's masks, what they hide, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import toys
from frameworks import framework

from onnxplain.engine.methods import RISE, Baseline, Method, Task, masked
from onnxplain.engine.methods.rise import bilinear
from onnxplain.engine.requests import Array, Attribution, Logits
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

X = np.random.default_rng(0).random((3, 9, 7))


def asked(method: Method, x: Array, space: Space, value: Callable[[Array], Array]) -> tuple[list[Array], Attribution]:
    """What a forward-only method asks, and its answer when `value` gives the logits (n, K) of images."""
    program, rows = method(x, Task(1, space, np.random.default_rng(0))), []
    request = next(program)
    while True:
        assert isinstance(request, Logits)
        rows.append(request.x)
        try:
            request = program.send(value(request.x))
        except StopIteration as end:
            return rows, end.value


def two_classes(x: Array) -> Array:
    return np.stack([x.mean(axis=(1, 2, 3)), x.max(axis=(1, 2, 3))], axis=1)


@pytest.mark.parametrize("cells", [2, 3, 7, 8])
def test_grids_are_enlarged_as_scikit_image_does_it(cells: int) -> None:
    """`resize` of order 1 with mode "reflect", as in the released code; both to one cell more, of 5 and 4 pixels."""
    transform = framework("skimage.transform")
    grid = np.random.default_rng(cells).random((cells, cells)).round()
    size = ((cells + 1) * 5, (cells + 1) * 4)
    expected = transform.resize(grid, size, order=1, mode="reflect", anti_aliasing=False)
    np.testing.assert_allclose(bilinear(cells, size[0]) @ grid @ bilinear(cells, size[1]).T, expected, atol=1e-12)


def test_the_map_is_the_mean_of_masks_by_their_scores() -> None:
    """An image of ones before a baseline of zeros shows the masks themselves."""
    ones = np.ones_like(X)
    method = RISE(masks=70, grid=3, baseline=0 * X)
    rows, answer = asked(method, ones, Space.pixels(), two_classes)
    masks = np.concatenate(rows)
    scores = np.array([toys.softmax(z)[1] for z in two_classes(masks)])
    expected = np.einsum("n,nchw->chw", scores, masks) / 70 / 0.5
    np.testing.assert_allclose(3 * answer.values, expected, rtol=1e-12)
    assert (masks == masks[:, :1]).all()  # all channels of a pixel are hidden together
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert len(np.unique(masks.reshape(70, -1), axis=0)) == 70
    assert answer.diagnostics["mean_value"] == pytest.approx(scores.mean())


def test_masks_come_in_chunks_that_change_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never all masks at once; however they are cut, they are the same."""
    small, one = asked(RISE(masks=100), X, Space.pixels(), two_classes)
    assert [len(rows) for rows in small] == [16] * 6 + [4]
    monkeypatch.setattr(masked, "AT_ONCE", 100)
    whole, other = asked(RISE(masks=100), X, Space.pixels(), two_classes)
    np.testing.assert_array_equal(np.concatenate(small), whole[0])
    np.testing.assert_allclose(one.values, other.values, rtol=1e-12)


def test_what_is_hidden_is_the_mean_colour() -> None:
    """Which is zero in model space, as where the normalised image is multiplied by the mask."""
    space = Space.pixels((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    rows, _ = asked(RISE(masks=50, p=1e-9), X, space, two_classes)
    assert (np.concatenate(rows) == np.float32([0.5, 0.4, 0.3]).reshape(3, 1, 1)).all()
    rows, _ = asked(RISE(masks=50, p=1), X, space, two_classes)
    np.testing.assert_allclose(np.concatenate(rows), np.broadcast_to(X, (50, *X.shape)), rtol=1e-12)


def test_a_constant_score_gives_that_score_everywhere() -> None:
    """Not zero: RISE estimates F where a pixel is seen. Each mask's mean at a pixel is p, with a variance of at most
    p (1 - p), so that 4000 masks leave a standard error of at most F sqrt((1 - p) / (4000 p))."""
    for p in (0.5, 0.1):
        _, answer = asked(RISE(masks=4000, grid=3, p=p), X, Space.pixels(), lambda x: np.zeros((len(x), 2)))
        assert (np.abs(3 * answer.values - 0.5) < 5 * 0.5 * np.sqrt((1 - p) / (4000 * p))).all()


def test_channels_last_grey_pictures_and_vectors_have_the_same_masks() -> None:
    """Whatever else an image has, a mask has the shape of its picture; on a vector the cells are intervals."""

    def sums(x: Array) -> Array:
        return np.stack([x.reshape(len(x), -1).sum(axis=1), np.zeros(len(x))], axis=1) / 50

    method = RISE(masks=30, grid=3)
    first = asked(method, X, Space.pixels(), sums)[1].values
    last = asked(method, X.transpose(1, 2, 0), Space.pixels(channel_axis=-1), sums)[1].values
    np.testing.assert_allclose(last.transpose(2, 0, 1), first, rtol=1e-12)
    rows, flat = asked(method, X[0], Space.pixels(rank=2), sums)
    grey = asked(method, X[:1], Space.pixels(), sums)[1].values
    np.testing.assert_allclose(flat.values, grey[0], rtol=1e-12)
    assert rows[0].shape == (16, 9, 7)
    rows, vector = asked(method, X[0, 0], Space.pixels(rank=1), sums)
    assert rows[0].shape == (16, 7)
    assert vector.values.shape == (7,)


def test_presets_and_costs() -> None:
    paper, repo = RISE(), RISE.repo()
    assert (paper.id, paper.masks, paper.grid, paper.p) == ("rise", 8000, 7, 0.5)
    assert (repo.id, repo.masks, repo.grid, repo.p) == ("rise-repo", 6000, 8, 0.1)
    assert repo == RISE(id="rise-repo", masks=6000, grid=8, p=0.1)
    assert RISE.repo(masks=5, p=0.2).rows((3, 224, 224)) == 5
    assert paper.baseline is Baseline.MEAN_COLOUR
    rows, _ = asked(RISE(masks=45), X, Space.pixels(), two_classes)
    assert sum(map(len, rows)) == 45


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"masks": 0}, "RISE: masks: expected a whole number from 1 to 1000000, got 0"),
        ({"grid": 2.5}, "RISE: grid: expected a whole number from 1 to 1000, got 2.5"),
        ({"p": 0}, "RISE: p: expected a positive number, at most 1, got 0"),
        ({"p": 1.1}, "RISE: p: expected a positive number, at most 1, got 1.1"),
        ({"baseline": 0.5}, "RISE: baseline: expected "),
        ({"objective": "logit"}, "RISE: objective: expected one of logit, prob"),
    ],
)
def test_what_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RISE(**wrong)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
