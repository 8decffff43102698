"""The loops in PyTorch compute what the engine computes: float64, on smooth nets, where no sign hangs on a rounding."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework

torch = framework("torch")
import onnxplain as ox  # noqa: E402
from bench.measure import images  # noqa: E402
from bench.nets import export  # noqa: E402
from onnxplain.adapters import reference  # noqa: E402
from onnxplain.adapters.reference import agi, credible_path, isa  # noqa: E402
from onnxplain.engine.methods import (  # noqa: E402
    AGI,
    BIG,
    ISA,
    CrediblePath,
    GradientXInput,
    IntegratedGradients,
    Saliency,
)
from onnxplain.engine.methods.quadrature import Alphas  # noqa: E402

SIZE, BATCH = 12, 4
SEARCH = {"kernels": (3, 5), "steps": 12, "max_iter": 9}
CASES = [
    (IntegratedGradients, {"steps": 6}),
    (Saliency, {}),
    (GradientXInput, {}),
    (ISA, {"k": 100, "t1": 4, "t2": 3}),
    (ISA, {"k": 144, "t1": 2, "t2": 3, "eta1": 0.004, "eta2": 0.001, "s": 1.3}),
    (CrediblePath, SEARCH),
    (CrediblePath, SEARCH | {"epsilon": 0.995, "eta": 0.02}),
    (AGI, {"m": 12, "epsilon": 0.02}),
    (AGI, {"m": 2, "epsilon": 0.0005}),
    (BIG, {"steps": 6, "attack_steps": 5, "eta": 0.0002}),
    (BIG, {"steps": 6, "attack_steps": 40, "eta": 0.02}),
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


@pytest.fixture(scope="module")
def explainer(net):
    with ox.open(export(net, SIZE), preprocess=None, range=(0, 1), batch_size=BATCH, threads=1) as made:
        yield made


def both(net, explainer, method, parameters, layout=None, classes=None):
    """The attributions by the engine, its explanations, and those of the loop."""
    x = images(5, SIZE).astype(np.float64)
    more = {"alphas": Alphas.MIDPOINT} if method is CrediblePath else {}
    found = explainer.explain(x, method(**parameters, **more), target=classes)
    given = {"others": torch.tensor([e.diagnostics["classes"] for e in found])} if method is AGI else {}
    x = torch.from_numpy(x).contiguous(memory_format=layout or torch.contiguous_format)
    explained = torch.tensor([e.target for e in found])
    theirs = reference.loop(method.id)(net, x, classes=explained, batch=BATCH, **given, **parameters)
    return np.stack([e.attribution for e in found]), found, theirs.numpy()


def close(ours, theirs) -> bool:
    return np.allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("method", "parameters"), CASES, ids=lambda value: getattr(value, "id", ""))
def test_same_as_the_engine(net, explainer, method, parameters, layout) -> None:
    ours, _, theirs = both(net, explainer, method, parameters, layout)
    assert np.abs(theirs).max() > 0
    assert close(ours, theirs)


@pytest.mark.parametrize(("method", "parameters"), CASES, ids=lambda value: getattr(value, "id", ""))
def test_same_for_a_class_that_is_not_predicted(net, explainer, method, parameters) -> None:
    ours, _, theirs = both(net, explainer, method, parameters, classes=[0, 1, 2, 3, 4])
    assert close(ours, theirs)


def test_every_loop_is_among_the_cases() -> None:
    assert {method.id for method, _ in CASES} == set(reference.LOOPS)


def test_searches_and_walks_end_early_and_late(net, explainer) -> None:
    """Or the cases that are there for it would show nothing."""
    iterations = [n for e in both(net, explainer, *CASES[6])[1] for n in e.diagnostics["iterations"]]
    assert min(iterations) < max(iterations)
    arrived = {a for case in CASES[7:9] for e in both(net, explainer, *case)[1] for a in e.diagnostics["arrived"]}
    assert arrived == {False, True}
    found = {e.diagnostics["success"] for case in CASES[9:] for e in both(net, explainer, *case)[1]}
    assert found == {False, True}


WRONG = [
    (isa, "walks", lambda right: lambda *a: (lambda up, down, cu, cd: (up, 0 * down, cu, cd))(*right(*a)), 3),
    (isa, "cross_entropy", lambda right: lambda z, c: -z.gather(1, c[:, None])[:, 0], 3),
    (credible_path, "keep_away", lambda right: lambda point, x, delta: point.clamp(0, 1), 5),
    (credible_path, "blur", lambda right: lambda x, kernel: right(x, 3), 5),
    (credible_path, "cross_entropy", lambda right: lambda z, c: -right(z, c), 5),
    (agi, "probability", lambda right: lambda z, c: z.gather(1, c[:, None])[:, 0], 7),
]


@pytest.mark.parametrize(("module", "name", "wrong", "case"), WRONG)
def test_wrong_loops_are_told_from_the_engine(net, explainer, monkeypatch, module, name, wrong, case) -> None:
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    ours, _, theirs = both(net, explainer, *CASES[case])
    assert not close(ours, theirs)


def test_no_code_is_shared_with_the_engine() -> None:
    folder = Path(reference.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        ours = {name for name in imported if name and name.startswith("onnxplain")}
        assert all(name.startswith("onnxplain.adapters.reference.") for name in ours), path
        assert len(path.read_text("utf-8").splitlines()) <= 90, "to be read beside its paper"
