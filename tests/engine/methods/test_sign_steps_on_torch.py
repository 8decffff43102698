"""Methods that walk by signs of gradients, on a net exported from PyTorch, in float64.

A sign amplifies float noise, so that two right float32 implementations part after a few steps. Hence they are held
against PyTorch by the gradients at the very points that they asked for, and in float64 by the plain loops of `naive`
with PyTorch's own autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import frameworks
import naive
import numpy as np
import pytest
import toys

frameworks.framework("torch")
import torch  # noqa: E402
import torch_nets  # noqa: E402

import onnxplain as ox  # noqa: E402
from onnxplain.engine.drive import GRADIENT, LOGITS, Model, run  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.engine.methods import AGI, BIG, ISA, CrediblePath, Method, Task  # noqa: E402
from onnxplain.engine.methods.walk import on_host  # noqa: E402
from onnxplain.engine.requests import Attribution, Gradients, Kind, Points, Program  # noqa: E402
from onnxplain.engine.space import Space  # noqa: E402

SHAPE = (3, 16, 16)
X = np.random.default_rng(0).random(SHAPE)
NET = torch_nets.build(torch_nets.plain)


def pull_back(x: toys.Array, v: toys.Array) -> toys.Array:
    point = torch.tensor(x[None], requires_grad=True)
    (gradient,) = torch.autograd.grad((NET(point)[0] * torch.tensor(v)).sum(), point)
    return np.asarray(gradient[0].numpy())


TWIN = toys.Toy(lambda x: NET(torch.tensor(x[None]))[0].numpy(), pull_back, SHAPE, 10)
LABEL = int(TWIN.logits(X).argmax())


@pytest.fixture(scope="module")
def model() -> Model:
    """The exported net and its gradient model, in the reference executor: ONNX Runtime convolves in float32 only."""
    classifier = torch_nets.to_onnx(NET, SHAPE)
    gradient = ox.gradient_model(classifier)
    return Model({LOGITS: lambda: ReferenceExecutor(classifier), GRADIENT: lambda: ReferenceExecutor(gradient)})


def told() -> Task:
    return Task(LABEL, Space.model((0, 1)), np.random.default_rng(0))


@pytest.mark.parametrize(
    "method",
    [
        ISA(k=200),
        ISA.repo(k=200),
        CrediblePath(max_iter=20, kernels=(3, 5)),
        CrediblePath(max_iter=20, kernels=(3, 5), baseline_objective=Kind.LOGIT_L2),
        AGI(k=3, m=5),
        AGI.repo(k=3, m=5),
        BIG(eta=5e-4),
        BIG.reference(),
        BIG.isa(),
    ],
    ids=lambda method: method.id,
)
def test_gradients_at_the_points_that_are_asked_for(model: Model, method: Method) -> None:
    """Every logit, value and gradient that a walk is answered with is PyTorch's at that point."""
    seen: list[tuple[Points, toys.Array, Gradients]] = []

    def listen() -> Program[Attribution]:
        program, answer = on_host(method(X, told())), None
        while True:
            try:
                request = program.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            points = np.array(request.x) if isinstance(request, Points) else None
            answer = yield request
            if points is not None:
                seen.append((request, points, answer))  # type: ignore[arg-type]

    run(listen(), model)
    assert len(seen) > 5
    for request, points, answer in seen[:: max(1, len(seen) // 25)]:
        for i, x in enumerate(points):
            target: Any = request.objective.target if request.classes is None else int(request.classes[i])
            row = target.astype(np.float32) if isinstance(target, np.ndarray) else np.eye(10)[target]
            value, gradient = naive.ask(TWIN, request.objective.kind, row, x)
            assert answer.logits[i] == pytest.approx(TWIN.logits(x), abs=1e-10)
            assert answer.value[i] == pytest.approx(value, abs=1e-10)
            assert answer.gradient[i] == pytest.approx(gradient, abs=1e-10)


def released_isa(x: toys.Array) -> toys.Array:
    return naive.released_isa(TWIN, x, LABEL, np.random.default_rng(0), k=200)


def agi(x: toys.Array) -> toys.Array:
    return naive.adversarial_gradients(TWIN, x, LABEL, steps=6)[0]


def agi_repo(x: toys.Array) -> toys.Array:
    return naive.adversarial_gradients(TWIN, x, LABEL, steps=6, restart=True)[0]


def big(x: toys.Array) -> toys.Array:
    end = naive.sign_attack(TWIN, x, LABEL, steps=50, step=5e-4, earliest=True)
    return naive.integrated(TWIN, x, end, LABEL, naive.LOGIT, *naive.midpoint(50))


def big_reference(x: toys.Array) -> toys.Array:
    radii = (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1)
    end = naive.l2_attack(TWIN, x, LABEL, np.random.default_rng(0), radii=radii, steps=40)
    return naive.integrated(TWIN, x, end, LABEL, naive.LOGIT, *naive.captum_trapezoid(10))


def big_isa(x: toys.Array) -> toys.Array:
    end = naive.sign_attack(TWIN, x, LABEL, steps=50, step=0.001, earliest=False, code=naive.CE_ON_PROBS)
    return naive.integrated(TWIN, x, end, LABEL, naive.PROB, *naive.captum_trapezoid(50))


@pytest.mark.parametrize(
    ("method", "loops"),
    [
        (ISA.repo(k=200), released_isa),
        (AGI(m=6), agi),
        (AGI.repo(m=6), agi_repo),
        (BIG(eta=5e-4), big),
        (BIG.reference(), big_reference),
        (BIG.isa(), big_isa),
    ],
    ids=lambda value: getattr(value, "id", None),
)
def test_attributions(model: Model, method: Method, loops: Callable[[toys.Array], toys.Array]) -> None:
    values = run(method(X, told()), model).values
    expected = loops(X)
    assert np.abs(expected).max() > 0
    assert values == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(expected).max())
