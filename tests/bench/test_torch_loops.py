"""The loops that the engine is timed against compute what the engine computes: float64, on a smooth net."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from frameworks import framework

torch = framework("torch")
import onnxplain as ox  # noqa: E402
from bench.measure import images  # noqa: E402
from bench.nets import export  # noqa: E402
from bench.torch_loops import credible_path, integrated_gradients, isa  # noqa: E402
from onnxplain.engine.methods import ISA, CrediblePath, IntegratedGradients  # noqa: E402
from onnxplain.engine.methods.quadrature import Alphas  # noqa: E402

SIZE, BATCH = 12, 4
SEARCH = {"kernels": (3, 5), "steps": 12, "max_iter": 9}
CASES = [
    (IntegratedGradients(steps=6), lambda net, x: integrated_gradients(net, x, batch=BATCH, steps=6)),
    (ISA(k=100, t1=4, t2=3), lambda net, x: isa(net, x, batch=BATCH, k=100, t1=4, t2=3)),
    (ISA(k=144, t1=2, t2=3), lambda net, x: isa(net, x, batch=BATCH, k=144, t1=2, t2=3)),
    (CrediblePath(**SEARCH, alphas=Alphas.MIDPOINT), lambda net, x: credible_path(net, x, batch=BATCH, **SEARCH)),
    (
        CrediblePath(**SEARCH, alphas=Alphas.MIDPOINT, epsilon=0.995, eta=0.02),
        lambda net, x: credible_path(net, x, batch=BATCH, epsilon=0.995, eta=0.02, **SEARCH),
    ),
]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    inputs = 3 * SIZE * SIZE
    layers = torch.nn.Flatten(), torch.nn.Linear(inputs, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    made = torch.nn.Sequential(*layers).double()
    for layer in (made[1], made[3]):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("method", "loop"), CASES, ids=lambda value: getattr(value, "id", ""))
def test_same_as_the_engine(net, method, loop: Callable, layout) -> None:
    x = images(5, SIZE).astype(np.float64)
    with ox.open(export(net, SIZE), preprocess=None, range=(0, 1), batch_size=BATCH, threads=1) as explainer:
        found = explainer.explain(x, method)
    expected = loop(net, torch.from_numpy(x).contiguous(memory_format=layout)).numpy()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.attribution, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


def test_the_last_search_stops_early(net) -> None:
    """Or the case above that is there for it would show nothing."""
    method = CASES[-1][0]
    with ox.open(export(net, SIZE), preprocess=None, range=(0, 1), batch_size=BATCH, threads=1) as explainer:
        found = explainer.explain(images(5, SIZE).astype(np.float64), method)
    iterations = [n for one in found for n in one.diagnostics["iterations"]]
    assert min(iterations) < max(iterations)
