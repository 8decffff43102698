"""The loops in PyTorch compute what the engine computes: float64, on smooth nets, where no sign hangs on a rounding."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from frameworks import framework

torch = framework("torch")
import onnxplain as ox  # noqa: E402
from bench.measure import images  # noqa: E402
from bench.nets import export  # noqa: E402
from onnxplain.adapters import reference  # noqa: E402
from onnxplain.adapters.reference import agi, credible_path, isa  # noqa: E402
from onnxplain.adapters.reference.net import ReferenceNet  # noqa: E402
from onnxplain.comparison.sides import parameters_for  # noqa: E402
from onnxplain.engine.methods import (  # noqa: E402
    AGI,
    BIG,
    ISA,
    CrediblePath,
    FastIG,
    GradientXInput,
    GuidedIG,
    IntegratedGradients,
    Saliency,
)
from onnxplain.engine.methods.quadrature import Alphas  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec  # noqa: E402

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
    (ISA, {"k": 100, "t1": 0, "t2": 3}),
    (ISA, {"k": 100, "t1": 3, "t2": 0}),
    (ISA, {"k": 431, "t1": 3, "t2": 2}),  # a last round of one feature
    (CrediblePath, {"steps": 6, "max_iter": 3}),  # kernels wider than the image
    (CrediblePath, SEARCH | {"epsilon": 0.8, "eta": 0.001}),  # ends while the logits still come nearer
    (GuidedIG, {"steps": 20, "max_dist": 0.3}),
    (GuidedIG, {"steps": 20, "fraction": 0.1}),
    (FastIG, {}),
]


def small_net(dtype=torch.float64):
    torch.manual_seed(0)
    inputs = 3 * SIZE * SIZE
    layers = torch.nn.Flatten(), torch.nn.Linear(inputs, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    made = torch.nn.Sequential(*layers).to(dtype)
    for layer in (made[1], made[3]):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return made.eval().requires_grad_(False)


def opened(net, **how):
    return ox.open(export(net, SIZE), **{"preprocess": None, "batch_size": BATCH, "threads": 1} | how)


@pytest.fixture(scope="module")
def net():
    return small_net()


@pytest.fixture(scope="module")
def explainer(net):
    with opened(net, range=(0, 1)) as made:
        yield made


def both(net, explainer, method, parameters, layout=None, classes=None):
    """The attributions by the engine, its explanations, and those of the loop."""
    x = images(5, SIZE).astype(str(net[1].weight.dtype).removeprefix("torch."))
    more = {"alphas": Alphas.MIDPOINT} if method is CrediblePath else {}
    found = explainer.explain(x, method(**parameters, **more), target=classes)
    given = {}
    if method is AGI:
        given = {"others": torch.tensor([e.diagnostics["classes"] for e in found])}
    elif method is FastIG:
        given = {"zero": torch.zeros(())}  # without preprocessing
    x = torch.from_numpy(x).contiguous(memory_format=layout or torch.contiguous_format)
    explained = torch.tensor([e.target for e in found])
    theirs = reference.loop(method.id)(net, x, classes=explained, batch=BATCH, **given, **parameters)
    return np.stack([e.attribution for e in found]), found, theirs.numpy()


def close(ours, theirs) -> bool:
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))


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


@pytest.fixture(scope="module")
def single():
    net = small_net(torch.float32)
    with opened(net, range=(0, 1)) as made:
        yield net, made


@pytest.mark.parametrize(("method", "parameters"), CASES, ids=lambda value: getattr(value, "id", ""))
def test_nearly_the_same_in_float32(single, method, parameters) -> None:
    """Not to the last feature on every machine, for the sign of a small gradient turns with its rounding."""
    ours, _, theirs = both(*single, method, parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert np.isclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()).mean() > 0.99


def test_features_that_the_net_does_not_see() -> None:
    """Their scores are all 0: of equal ones the first are retired first."""
    net = small_net()
    net[1].weight[:, ::2] = 0
    with opened(net, range=(0, 1)) as explainer:
        ours, _, theirs = both(net, explainer, ISA, {"k": 100, "t1": 4, "t2": 3})
    assert close(ours, theirs)


def test_a_net_that_is_sure_in_float32() -> None:
    """Its loss is as small as what float32 rounds away of it, and so is the loss's change."""
    net = small_net(torch.float32)
    net[3].weight *= 40
    with opened(net, range=(0, 1)) as explainer:
        ours, found, theirs = both(net, explainer, ISA, {"k": 100, "t1": 4, "t2": 3})
    assert min(abs(change) for e in found for change in e.diagnostics["loss_changes"][0]) < 1e-7
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [FastIG(), GuidedIG(steps=10), Saliency()], ids=lambda method: method.id)
@pytest.mark.parametrize("flip", [False, True])
def test_in_pixels_the_net_is_told_how_to_normalise(method, flip: bool) -> None:
    net = small_net(torch.float32)
    spec = PreprocessSpec(
        size=(SIZE, SIZE), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25), do_flip_channel_order=flip
    )
    with opened(net, preprocess=spec) as explainer:
        x, space = images(5, SIZE), explainer.space
        found = explainer.explain(x, method)
    theirs = ReferenceNet(net, zero=space.zero, scale=space.scale, flip=flip, batch=BATCH).explain(
        method.id, x, np.array([e.target for e in found]), parameters_for(method)
    )
    assert close([e.attribution for e in found], theirs)


@pytest.mark.parametrize(("method", "parameters"), CASES, ids=lambda value: getattr(value, "id", ""))
def test_an_image_is_the_same_alone(net, method, parameters) -> None:
    x, loop = torch.from_numpy(images(5, SIZE).astype(np.float64)), reference.loop(method.id)
    given = {"zero": torch.zeros(5, 1, 1, 1)} if method is FastIG else {}
    if method is AGI:
        given = {"others": torch.arange(4).repeat(5, 1)}
    classes = torch.full((5,), 4)
    alone = [
        loop(
            net, x[i : i + 1], classes=classes[:1], batch=1, **parameters, **{k: v[i : i + 1] for k, v in given.items()}
        )
        for i in range(5)
    ]
    many = loop(net, x, classes=classes, batch=1000, **parameters, **given)
    torch.testing.assert_close(torch.cat(alone), many, rtol=1e-9, atol=1e-12)


def test_every_loop_is_among_the_cases() -> None:
    assert {method.id for method, _ in CASES} == set(reference.LOOPS)


def test_searches_and_walks_end_early_and_late(net, explainer) -> None:
    """Or the cases that are there for it would show nothing."""
    iterations = [n for e in both(net, explainer, *CASES[6])[1] for n in e.diagnostics["iterations"]]
    assert min(iterations) < max(iterations)
    arrived = {a for case in CASES[7:9] for e in both(net, explainer, *case)[1] for a in e.diagnostics["arrived"]}
    assert arrived == {False, True}
    found = {e.diagnostics["success"] for case in CASES[9:11] for e in both(net, explainer, *case)[1]}
    assert found == {False, True}


WRONG = [
    (isa, "walks", lambda right: lambda *a: (lambda sums, changes: (sums, changes.flip(0)))(*right(*a)), 3),
    (isa, "cross_entropy", lambda right: lambda z, c: -z.gather(1, c[:, None])[:, 0], 3),
    (credible_path, "keep_away", lambda right: lambda point, x, delta: point.clamp(0, 1), 5),
    (credible_path, "blur", lambda right: lambda x, kernel: right(x, 3), 5),
    (credible_path, "cross_entropy", lambda right: lambda z, c: -right(z, c), 5),
    (agi, "probability", lambda right: lambda z, c: z.gather(1, c[:, None])[:, 0], 7),
]
# Files, what is wrong with them, and the words that make it so.
MUTANTS = [
    ("isa", "no step", "x[on] += step", "x[on] += 0 * step"),
    ("isa", "ways swapped", "* g.sign()", "* -g.sign()"),
    ("isa", "half the change", "- begun", "- begun / 2"),
    ("isa", "one gradient", "gradients(net, x[on]", "gradients(net, x0[on % len(x0)]"),
    ("isa", "the dead move", "g = g * alive[on]", ""),
    ("isa", "nothing removed", "x * mask,", "x,"),
    ("isa", "the highest retire first", "stable=True", "descending=True"),
    ("isa", "rounds forgotten", "s * share + r", "s * share"),
    ("isa", "the last one sinks", "float(r == rounds - 1)", "0.0"),
    ("credible_path", "up the loss", "here[going] - eta", "here[going] + eta"),
    ("credible_path", "no least over the steps", "(distance < nearest[active])", "True"),
    ("credible_path", "never enough", "distance > enough[active]", "distance > -1"),
    ("credible_path", "unscaled", "(1 - alpha) * way[path] * gradient,", "gradient,"),
    ("credible_path", "signs ignored", "(at_x.sign() == scaled.sign()) &", ""),
    ("credible_path", "mean over all points", "count.clamp_min(1)", "steps"),
    ("credible_path", "zero outside", 'mode="reflect"', 'mode="edge"'),
    ("integrated_gradients", "no input", "(x - start) * total", "total"),
    ("gradients", "left ends", "+ 0.5)", "+ 0.0)"),
    ("agi", "towards the explained class", "-= slope", "+= slope"),
    ("agi", "never arrives", "z.argmax(1) != aim[active]", "aim[active] >= 0"),
    ("agi", "along the wrong gradient", "-= slope * (", "-= up[going] * ("),
    ("agi", "out of range", ".clamp(0, 1)", ""),
    ("big", "down the loss", "+ eta * gradient", "- eta * gradient"),
    ("big", "never there", "z.argmax(1) == classes[active]", "classes[active] >= 0"),
    ("guided_ig", "the largest first", "(size <= size", "(size >= size"),
    ("guided_ig", "unbounded", "min(t + max_dist, 1)", "1"),
    ("guided_ig", "left behind", "torch.maximum(point, max(t - max_dist, 0) * end)", "point"),
    ("guided_ig", "back", "(moved - point) * gradient", "(point - moved) * gradient"),
    ("fast_ig", "no input", "(x - zero) *", "1 *"),
    ("saliency", "signs kept", ".abs()", ""),
]


@pytest.mark.parametrize(("file", "what", "old", "new"), MUTANTS)
def test_a_wrong_line_is_told_from_the_engine(net, explainer, monkeypatch, file, what, old, new) -> None:
    """All loops are made anew from their sources, of which one has another word."""
    folder = Path(reference.__file__).parent
    for name in ("gradients", "integrated_gradients", *{file} - {"gradients", "integrated_gradients"}):
        text = (folder / f"{name}.py").read_text("utf-8")
        assert name != file or text.count(old) == 1
        made = ModuleType(f"{reference.__name__}.{name}")
        monkeypatch.setitem(sys.modules, made.__name__, made)
        exec(compile(text.replace(old, new) if name == file else text, made.__name__, "exec"), made.__dict__)
    told = [case for case in CASES if reference.LOOPS[case[0].id][0] in (file, "integrated_gradients")]
    assert not all(close(ours, theirs) for ours, _, theirs in (both(net, explainer, *case) for case in told))


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
        assert all(f"{name}.".startswith("onnxplain.adapters.reference.") for name in ours), path
        assert len(path.read_text("utf-8").splitlines()) <= 90, "to be read beside its paper"
