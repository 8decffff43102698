"""Parameter randomisation end to end: an ONNX classifier, its layers drawn anew, and explanations that must change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from frameworks import framework

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.adapters.randomise import randomised, weight_layers
from onnxplain.engine.drive import GRADIENT, LOGITS, Model
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.methods import IntegratedGradients, Saliency, Task
from onnxplain.engine.metrics import Cascade, ParameterRandomisation, Scores
from onnxplain.engine.space import Space

framework("torch")

import torch_nets  # noqa: E402

SHAPE = (3, 16, 16)
IMAGES = np.random.default_rng(1).random((2, *SHAPE))


def opened(proto: onnx.ModelProto) -> Model:
    gradient = gradient_model(proto)
    forward, backward = ReferenceExecutor(forward_model(gradient)), ReferenceExecutor(gradient)
    return Model({LOGITS: lambda: forward, GRADIENT: lambda: backward})


def reopening(proto: onnx.ModelProto, seed: int) -> Callable[[Sequence[str]], Iterator[Model]]:
    @contextmanager
    def reopen(layers: Sequence[str]) -> Iterator[Model]:
        yield opened(randomised(proto, layers, seed))

    return reopen


def tasks() -> list[Task]:
    return [Task(target, Space.model((0.0, 1.0)), np.random.default_rng(0)) for target in (3, 7)]


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return torch_nets.to_onnx(torch_nets.build(torch_nets.SMALL["plain"]), SHAPE)


def test_a_gradient_is_lost_with_the_weights(proto: onnx.ModelProto) -> None:
    layers, model = weight_layers(proto), opened(proto)
    assert len(layers) > 1
    metric = ParameterRandomisation(depths=(1, len(layers)))
    for method in (Saliency(signed=True), IntegratedGradients(steps=4)):
        found = metric.score(model, reopening(proto, 0), layers, IMAGES, method, tasks())
        for rows in (one.rows() for one in found):
            assert [row["protocol"] for row in rows[::2]] == [
                f"cascading, depth={k}/{len(layers)}" for k in metric.depths
            ]
            assert abs(rows[2]["value"]) < 0.5
        assert all(summary["n"] == 2 for summary in Scores.of(row for one in found for row in one.rows()).compute())
        again = metric.score(model, reopening(proto, 0), layers, IMAGES, method, tasks())
        assert [one.rows() for one in again] == [one.rows() for one in found]


def test_the_first_of_a_cascade_is_that_layer_alone(proto: onnx.ModelProto) -> None:
    layers, model = weight_layers(proto), opened(proto)
    values = [
        [
            row["value"]
            for one in ParameterRandomisation(cascade=cascade, depths=(1,)).score(
                model, reopening(proto, 0), layers, IMAGES, Saliency(), tasks()
            )
            for row in one.rows()
        ]
        for cascade in Cascade
    ]
    assert values[0] == values[1]
    assert all(value < 1 for value in values[0])


def test_no_layer_drawn_changes_nothing(proto: onnx.ModelProto) -> None:
    model = opened(proto)

    @contextmanager
    def unchanged(layers: Sequence[str]) -> Iterator[Model]:
        yield opened(randomised(proto, [], 0))

    found = ParameterRandomisation().score(model, unchanged, ["any"], IMAGES, Saliency(), tasks())
    assert [row["value"] for one in found for row in one.rows()] == pytest.approx([1.0] * 4)
