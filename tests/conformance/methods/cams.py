"""Methods that look at inner layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import toys
from conformance.methods.laws import PICTURES, Make, Row, Wrong, answers, row

from onnxplain.engine.methods import FullGrad, GradCAM, HiResCAM, LayerCAM, Rescale, ScoreCAM, Task, Weights
from onnxplain.engine.requests import Attribution, Biases, Kind, LayerGradients, Logits, Program, Request

TOY = toys.picture_net()
ONE = np.eye(4)[1]


def heat(answer: Attribution) -> toys.Array:
    """The map (H, W) that was spread over channels."""
    return answer.values.sum(axis=0)


def enlarged(map: toys.Array) -> toys.Array:
    """From 2 x 2 to 8 x 8: each corner holds its value on 2 x 2 pixels, and between them the steps are eighths."""
    part = np.array([0, 0, 1, 3, 5, 7, 8, 8]) / 8
    rows = map[:1] + part[:, None] * (map[1:] - map[:1])
    return rows[:, :1] + part * (rows[:, 1:] - rows[:, :1])


def is_the_map(formula: Any) -> Any:
    """A is the enlarged map that the formula gives of activations and their gradients."""

    def law(make: Make) -> None:
        for x in PICTURES:
            answer = toys.explain(make(), TOY, x, 1)
            assert heat(answer) == pytest.approx(enlarged(formula(*TOY.inside(x, ONE))), abs=1e-12)
            assert (answer.values == answer.values[:1]).all()

    law.__name__ = f"is_{formula.__name__}"
    return law


def grad_cam(a: toys.Array, g: toys.Array) -> toys.Array:
    return np.maximum(sum(g[c].sum() / 4 * a[c] for c in range(4)), 0)


def layer_cam(a: toys.Array, g: toys.Array) -> toys.Array:
    return np.maximum(sum(np.where(g[c] > 0, g[c], 0) * a[c] for c in range(4)), 0)


def hires_cam(a: toys.Array, g: toys.Array) -> toys.Array:
    return sum(g[c] * a[c] for c in range(4))  # type: ignore[return-value]


is_grad_cam, is_layer_cam, is_hires_cam = map(is_the_map, (grad_cam, layer_cam, hires_cam))


def takes_its_layer(make: Make) -> None:
    """The layer that is asked for, and no other."""
    x = PICTURES[0]
    second = toys.picture_net(5)

    def answer(method: Any) -> toys.Array:
        program = method(x, toys.task(TOY, 1))
        program.send(None)
        a, g = zip(TOY.inside(x, ONE), second.inside(x, ONE), strict=True)
        both = LayerGradients(
            np.zeros((1, 4)), np.zeros(1), x[None], tuple(p[None] for p in a), tuple(p[None] for p in g)
        )
        with pytest.raises(StopIteration) as end:
            program.send(both)
        return heat(end.value.value)

    assert answer(make(layer=1)) == pytest.approx(heat(toys.explain(make(), second, x, 1)), abs=1e-12)
    assert answer(make(layer=0)) == pytest.approx(heat(toys.explain(make(), TOY, x, 1)), abs=1e-12)


def is_score_cam(make: Make) -> None:
    """A by its pseudocode, one mask after the other, in the three ways to weigh and the two orders."""
    space = replace(toys.pixels(TOY), zero=np.array([0.4, 0.5, 0.3]).reshape(3, 1, 1))
    for x in PICTURES[:2]:
        a, _ = TOY.inside(x, ONE)
        scores = []
        for channel in a:
            mask = enlarged(channel)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores.append(toys.softmax(TOY.logits(space.zero + mask * (x - space.zero)))[1])
        beside = toys.softmax(TOY.logits(np.broadcast_to(space.zero, x.shape)))[1]
        weights = {
            Weights.INCREASE: np.array(scores) - beside,
            Weights.SOFTMAX: toys.softmax(np.array(scores)),
            Weights.SCORE: np.array(scores),
        }
        for choice, w in weights.items():
            map = np.tensordot(w, a, axes=1)
            for first, expected in ((False, enlarged(np.maximum(map, 0))), (True, np.maximum(enlarged(map), 0))):
                method = make(weights=choice, upsample_first=first)
                found = heat(toys.explain(method, TOY, x, 1, space=space))
                assert found == pytest.approx(expected, abs=1e-12)


def is_as_printed(make: Make) -> None:
    """Score-CAM as it is without further words: increases of probability, relu in the layer's own size."""
    x = PICTURES[0]
    other = ScoreCAM(objective=Kind.PROB, weights=Weights.INCREASE, upsample_first=False)
    assert (toys.explain(make(), TOY, x, 1).values == toys.explain(other, TOY, x, 1).values).all()


def is_as_released(make: Make) -> None:
    x = PICTURES[0]
    other = ScoreCAM(objective=Kind.PROB, weights=Weights.SCORE, upsample_first=True)
    assert (toys.explain(make(), TOY, x, 1).values == toys.explain(other, TOY, x, 1).values).all()


def is_full_gradients(make: Make) -> None:
    """Maps as the formula has them, for both ways to rescale; all terms sum to F."""
    for x in PICTURES:
        maps, _ = TOY.beside(x, ONE)
        of_image = x * TOY.pull_back(x, ONE)
        answer = toys.explain(make(rescale=Rescale.CHANNEL, align_corners=False), TOY, x, 1)
        expected = sum(unit(abs(channel)) for channel in of_image)
        expected = expected + sum(enlarged(unit(abs(channel))) for layer in maps for channel in layer)
        assert heat(answer) == pytest.approx(expected, abs=1e-12)
        released = toys.explain(make(rescale=Rescale.LAYER, align_corners=True), TOY, x, 1)
        lines = np.linspace(0, 1, 8)
        expected = unit(abs(of_image), 1e-6).sum(0)
        for layer in maps:
            map = unit(abs(layer), 1e-6).sum(0)
            rows = map[0] + lines[:, None] * (map[1] - map[0])
            expected = expected + rows[:, :1] + lines * (rows[:, 1:] - rows[:, :1])
        assert heat(released) == pytest.approx(expected, abs=1e-9)
        for told in (answer, released):
            assert told.diagnostics["sum"] == pytest.approx(TOY.logits(x)[1], abs=1e-12)
            assert told.diagnostics["completeness_gap"] < 1e-11


def unit(m: toys.Array, epsilon: float = 0.0) -> toys.Array:
    return (m - m.min()) / (m.max() - m.min() + epsilon)


def takes_the_image_in_model_space(make: Make) -> None:
    """An image that is the mean colour is zero there: it adds nothing, and only layers are left."""
    x = np.broadcast_to(np.array([0.4, 0.5, 0.3]).reshape(3, 1, 1), (3, 8, 8)).copy()
    space = replace(toys.pixels(TOY), zero=x[:, :1, :1])
    maps, _ = TOY.beside(x, ONE)
    answer = toys.explain(make(rescale=Rescale.CHANNEL, align_corners=False), TOY, x, 1, space=space)
    expected = sum(enlarged(unit(abs(channel))) for layer in maps for channel in layer)
    assert heat(answer) == pytest.approx(expected, abs=1e-12)


def is_paper_s_fullgrad(make: Make) -> None:
    x, other = PICTURES[0], FullGrad(rescale=Rescale.CHANNEL, align_corners=False)
    assert (toys.explain(make(), TOY, x, 1).values == toys.explain(other, TOY, x, 1).values).all()


def is_released_fullgrad(make: Make) -> None:
    x, other = PICTURES[0], FullGrad(rescale=Rescale.LAYER, align_corners=True)
    assert (toys.explain(make(), TOY, x, 1).values == toys.explain(other, TOY, x, 1).values).all()


ROWS: dict[str, Row] = {
    "grad-cam": row(GradCAM, is_grad_cam, takes_its_layer),
    "layer-cam": row(LayerCAM, is_layer_cam, takes_its_layer),
    "hires-cam": row(HiResCAM, is_hires_cam, takes_its_layer),
    "score-cam": row(ScoreCAM, is_score_cam, is_as_printed),
    "score-cam-repo": row(ScoreCAM.repo, is_score_cam, is_as_released),
    "fullgrad": row(FullGrad, is_full_gradients, takes_the_image_in_model_space, is_paper_s_fullgrad),
    "fullgrad-repo": row(FullGrad.repo, is_full_gradients, takes_the_image_in_model_space, is_released_fullgrad),
}


class FirstLayer(GradCAM):
    """Looks at the first layer whatever it is told."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", 0)


class WithoutMean(GradCAM):
    """Sums gradients over places where their mean is meant."""

    def map(self, a: toys.Array, g: toys.Array) -> toys.Array:
        return super().map(a, 4 * g)


class Signed(LayerCAM):
    """Keeps negative gradients."""

    def map(self, a: toys.Array, g: toys.Array) -> toys.Array:
        return np.maximum((g * a).sum(axis=0), 0)


class Averaged(HiResCAM):
    """Averages gradients over places."""

    def map(self, a: toys.Array, g: toys.Array) -> toys.Array:
        return super().map(a, g.mean(axis=(1, 2), keepdims=True))


def listening(make: Make, change: Any) -> Make:
    """A method whose requests are changed on their way."""

    def made(**parameters: Any) -> Any:
        method = make(**parameters)

        def call(x: toys.Array, task: Task) -> Program[Attribution]:
            program = method(x, task)
            request: Request = next(program)
            while True:
                try:
                    request = program.send((yield change(request)))
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]

        return call

    return made


def black(request: Request) -> Request:
    """Masks towards black, though it is the mean colour that says nothing."""
    return replace(request, x=request.x * 0.9) if isinstance(request, Logits) else request


def of_probability(request: Request) -> Request:
    return (
        replace(request, objective=replace(request.objective, kind=Kind.PROB))
        if isinstance(request, Biases)
        else request
    )


def of_pixels(**parameters: Any) -> Any:
    """Takes the image as it is, whatever the space says."""
    return lambda x, task: FullGrad(**parameters)(x, replace(task, space=toys.pixels(TOY)))


WRONG: Wrong = [
    ("Grad-CAM by sums", WithoutMean, is_grad_cam),
    ("Grad-CAM of the first layer", FirstLayer, takes_its_layer),
    ("LayerCAM with negative gradients", Signed, is_layer_cam),
    ("HiResCAM by means", Averaged, is_hires_cam),
    ("Score-CAM of other images", listening(ScoreCAM, black), is_score_cam),
    ("Score-CAM scaled", answers(ScoreCAM, lambda a, x: a / max(a.max(), 1e-9)), is_score_cam),
    ("Score-CAM of the code", ScoreCAM.repo, is_as_printed),
    ("Score-CAM of the paper", ScoreCAM, is_as_released),
    ("FullGrad of the probability", listening(FullGrad, of_probability), is_full_gradients),
    (
        "FullGrad of pixels",
        lambda **p: lambda x, task: FullGrad(**p)(x, toys.task(TOY, 1)),
        takes_the_image_in_model_space,
    ),
    ("FullGrad of the code", FullGrad.repo, is_paper_s_fullgrad),
    ("FullGrad of the paper", FullGrad, is_released_fullgrad),
]
