"""The loops on nets of three tanh or linear units: numbers computed from the papers by an implementation of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import toys
from frameworks import framework

torch = framework("torch")
from onnxplain.adapters import reference  # noqa: E402
from onnxplain.adapters.reference import credible_path, guided_ig, isa  # noqa: E402
from onnxplain.adapters.reference.gradients import cross_entropy, gradients, logit, logits  # noqa: E402

Net = Callable[[Any], Any]
X = torch.tensor(toys.X).reshape(1, 1, 1, 6)
W, V, B = map(torch.tensor, (toys.W, toys.V, toys.B))


def toy_l(x: Any) -> Any:
    return x.flatten(1) @ W.T


def toy_t(x: Any) -> Any:
    return torch.tanh(x.flatten(1) @ W.T + B) @ V.T


NETS = [(toy_l, 1), (toy_t, 0)]  # with the class to explain


def near(*numbers: float) -> Any:
    return pytest.approx(numbers, abs=1e-5)


def attribution(id: str, net: Net, explained: int, x: Any = X, **parameters: Any) -> list[float]:
    found = reference.loop(id)(net, x, classes=torch.tensor([explained]), batch=7, **parameters)
    return found.flatten().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("net", "z", "loss", "slope"),
    [
        (NETS[0], near(1.325, 1.4, 0.05), 0.782523, near(0.034299, -1.331903, 0.873393, 1.213365, -1.450441, 0.495965)),
        (
            NETS[1],
            near(0.498727, 0.215511, 0.328556),
            0.954310,
            near(0.277485, 0.364296, -0.621529, -0.311003, 0.417588, -0.475859),
        ),
    ],
)
def test_cross_entropy(net: tuple[Net, int], z: Any, loss: float, slope: Any) -> None:
    function, explained = net
    classes = torch.tensor([explained])
    found, gradient = gradients(function, X, classes, cross_entropy, 1)
    assert found[0].tolist() == z
    assert cross_entropy(found, classes).item() == pytest.approx(loss, abs=1e-5)
    assert gradient.flatten().tolist() == slope


LINEAR = near(0.45, 0.2, -0.6, 0, 1.4, -0.05)


@pytest.mark.parametrize(
    ("id", "net", "expected", "parameters"),
    [
        ("ig", NETS[0], LINEAR, {}),
        ("ig", NETS[1], near(0.147866, -0.287577, 0.549159, 0.666645, -0.846411, 0.058191), {}),
        ("fig", NETS[0], LINEAR, {"zero": 0}),
        ("gradient-x-input", NETS[0], LINEAR, {}),
        ("saliency", NETS[0], near(0.5, 1, 1, 0, 2, 0.5), {}),
    ],
)
def test_gradients_alone_and_along_a_line(id: str, net: tuple[Net, int], expected: Any, parameters: Any) -> None:
    assert attribution(id, *net, **parameters) == expected


@pytest.mark.parametrize(
    ("net", "k", "expected"),
    [
        (NETS[0], 2, near(0, 2.1, 3.1, 1, 2, 1.1)),
        (NETS[0], 4, near(0, 1, 0.783243, 1.1, 2.1, 0.431098)),
        (NETS[1], 2, near(0, 3.1, 2.1, 1.1, 2, 1)),
        (NETS[1], 4, near(0, 0.687645, 2.1, 0.275290, 1.1, 1)),
    ],
)
def test_isa(net: tuple[Net, int], k: int, expected: Any) -> None:
    assert attribution("isa", *net, k=k) == expected


@pytest.mark.parametrize(
    ("net", "scores", "changes"),
    [
        (NETS[0], near(0.012617, 0.493437, 0.323670, 0.449465, 0.537410, 0.183821), near(0.090360, -0.082468)),
        (NETS[1], near(0.224044, 0.295730, 0.503004, 0.252742, 0.338717, 0.384960), near(0.040154, -0.039003)),
    ],
)
def test_first_round_of_isa(net: tuple[Net, int], scores: Any, changes: Any) -> None:
    function, explained = net
    walked = isa.walks(function, X, torch.tensor([explained]), torch.ones_like(X), 2, (8, 8), (0.002, -0.002))
    assert walked[1].tolist() == changes
    assert (walked[0].flatten(1) / walked[1][:, None]).sum(0).tolist() == scores


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (NETS[0], near(0.016968, -0.093763, 0.122843, -0.073177, 0.180671, 0.074425)),
        (NETS[1], near(-0.000526, 0.013050, -0.010866, 0.014657, 0.011442, -0.007491)),
    ],
)
def test_agi(net: tuple[Net, int], expected: Any) -> None:
    others = [other for other in range(3) if other != net[1]]
    assert attribution("agi", *net, others=torch.tensor([others])) == expected


def test_search_of_credible_path() -> None:
    """By cross-entropy the nearest point is the one of iteration 4; later ones go away again."""
    goal = toy_t(X)
    found = credible_path.search(toy_t, X, X.mean().expand_as(X), goal, goal.argmax(1), 1, 200, 1 / 255, 5 / 255, 0.01)
    assert (toy_t(found) - goal).norm().item() == pytest.approx(0.662487, abs=1e-5)
    assert (found - X).abs().min() >= 5 / 255 - 1e-15


def test_paths_of_credible_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a baseline with logits nearer than those that the search comes to."""
    start = torch.tensor([173.25, 99.25, 73.25, 165.25, 151.25, 73.25], dtype=torch.float64).reshape(X.shape) / 255
    monkeypatch.setattr(credible_path, "search", lambda *_: start)
    found = attribution("credible", toy_t, 0, kernels=(3,), steps=50)
    assert found == near(-0.029976, 0, 0.150300, 0, -0.036671, 0)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"max_dist": 0}, (53.946, 26.973)),
        ({"fraction": 1.0, "max_dist": 1}, (53.946, 26.973)),
        ({"fraction": 0.1, "max_dist": 1}, (71.892, 9.018)),
        ({"fraction": 0.1, "max_dist": 0.2}, (65.444, 15.471)),
    ],
)
def test_guided_integrated_gradients(how: Any, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of (2a + b)^2 at (3, 3), as in the tests of its authors."""
    x = torch.full((1, 1, 1, 2), 3.0, dtype=torch.float64)

    def net(x: Any) -> Any:
        return (2 * x[:, 0, :, 0] + x[:, 0, :, 1]) ** 2

    monkeypatch.setattr(guided_ig, "probability", logit)
    assert attribution("gig", net, 0, x, steps=1000, **how) == pytest.approx(expected, abs=1e-3)


def test_big_ends_at_the_first_point_of_another_class() -> None:
    """On a linear net the integral is w * (x - x'), and x' is as many steps away as the margin needs."""
    found = attribution("big", toy_l, 1, eta=0.001)
    margin, slope = 1.4 - 1.325, W[0] - W[1]
    steps = int(margin / 0.001 / float(slope.abs().sum())) + 1
    # the loss rises where z_0 - z_1 does: the third class is too small to turn a sign
    moved = 0.001 * steps * slope.sign()
    assert logits(toy_l, X + moved.reshape(X.shape), 1).argmax() == 0
    assert found == pytest.approx((-W[1] * moved).tolist(), abs=1e-12)
