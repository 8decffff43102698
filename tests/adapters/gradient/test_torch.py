"""Gradient models against PyTorch's autograd, which nobody here wrote.

In float64 the two must agree to 1e-10: both round at 1e-16, and the nets amplify it by less than 10^5. In float32 a
deep net sits on many kinks of ReLU and MaxPool, where either side may be taken: there the cosine is the yardstick.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from frameworks import framework

torch = framework("torch")
framework("onnxscript")

import torch_nets  # noqa: E402

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.engine.requests import Kind  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec  # noqa: E402

SHAPE = (3, 16, 16)
TRACED = ["plain", "depthwise", "inception", "dense", "vgg", "squeeze"]
DYNAMO = ["plain", "residual", "depthwise", "transformer"]
EXPORTS = [*((name, False) for name in TRACED), *((name, True) for name in DYNAMO)]


@cache
def net(name: str):
    return torch_nets.build(torch_nets.SMALL[name])


@cache
def exported(name: str, dynamo: bool):
    return torch_nets.to_onnx(net(name), SHAPE, dynamo=dynamo)


def objective(kind: Kind, z, t):
    """Each objective from its definition: z are logits, t is what the target means for this objective."""
    log_p = torch.log_softmax(z, 0)
    p = log_p.exp()
    log_q = torch.log_softmax(p, 0)
    match kind:
        case Kind.LOGIT:
            return (t * z).sum()
        case Kind.PROB:
            return (t * p).sum()
        case Kind.LOGPROB:
            return (t * log_p).sum()
        case Kind.CE | Kind.SOFT_CE:
            return -(t * log_p).sum()
        case Kind.LOGIT_L2:
            return 0.5 * ((z - t) ** 2).sum()
        case Kind.CE_ON_PROBS:
            return -(t * log_q).sum()
        case Kind.PROB_ON_PROBS:
            return (t * log_q.exp()).sum()


def targets(kinds: list[Kind], classes: int, rng: np.random.Generator) -> np.ndarray:
    """What callers give: one-hot rows, weights of any sign, p* for SOFT_CE, z* for LOGIT_L2."""
    rows = []
    for i, kind in enumerate(kinds):
        one_hot = np.eye(classes)[rng.integers(classes)]
        weights = rng.normal(size=classes)
        drawn = {Kind.SOFT_CE: rng.dirichlet(np.ones(classes)), Kind.LOGIT_L2: 2 * weights}
        rows.append(drawn.get(kind, weights if i % 3 == 0 else one_hot))
    return np.asarray(rows, np.float32)


def autograd(model, x: np.ndarray, kinds: list[Kind], t: np.ndarray):
    """Logits, values and gradients by PyTorch."""
    points = torch.from_numpy(x).requires_grad_()
    z = model(points)
    values = torch.stack(
        [objective(k, row, torch.from_numpy(w).double()) for k, row, w in zip(kinds, z, t, strict=True)]
    )
    (gradient,) = torch.autograd.grad(values.sum(), points)
    return {"logits": z.detach().numpy(), "value": values.detach().numpy(), "gradient": gradient.numpy()}


def feeds(x: np.ndarray, kinds: list[Kind], t: np.ndarray) -> dict[str, np.ndarray]:
    return {"input": x, "onnxplain_target": t, "onnxplain_objective": np.asarray(kinds, np.int64)}


def assert_near(got, want, tolerance: float) -> None:
    """Relative to the largest element of each output."""
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(
    ("name", "dynamo"), EXPORTS, ids=lambda value: {True: "dynamo", False: "traced"}.get(value, value)
)
def test_every_objective_mixed_in_one_batch_is_autograd_s(name: str, dynamo: bool) -> None:
    """Logits, values and gradients of all kinds at once, in float64 to 1e-10."""
    rng = np.random.default_rng(1)
    kinds = [*Kind, *Kind]
    x, t = rng.normal(size=(len(kinds), *SHAPE)), targets(kinds, 10, rng)
    want = autograd(net(name), x, kinds, t)
    assert all(np.abs(row).max() > 0 for row in want["gradient"])
    assert_near(ReferenceExecutor(gradient_model(exported(name, dynamo)))(feeds(x, kinds, t)), want, 1e-10)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
def test_an_objective_alone_is_autograd_s(kind: Kind) -> None:
    """The same for batches of one kind, of one and of three images."""
    rng = np.random.default_rng(int(kind))
    backward = ReferenceExecutor(gradient_model(exported("plain", False)))
    for rows in (1, 3):
        kinds = [kind] * rows
        x, t = rng.normal(size=(rows, *SHAPE)), targets(kinds, 10, rng)
        assert_near(backward(feeds(x, kinds, t)), autograd(net("plain"), x, kinds, t), 1e-10)


SPECS = {
    "imagenet": PreprocessSpec(size=(16, 16), image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)),
    "bytes": PreprocessSpec(size=(16, 16), rescale_factor=1.0),
    "bgr bytes": PreprocessSpec(
        size=(16, 16),
        rescale_factor=1.0,
        image_mean=(123.68, 116.78, 103.94),
        image_std=(58.4, 57.1, 57.4),
        do_flip_channel_order=True,
    ),
    "-1 to 1": PreprocessSpec(size=20, crop_size=(16, 16), image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5)),
}


@pytest.mark.parametrize("name", SPECS)
def test_with_preprocessing_folded_in_the_gradient_is_with_respect_to_pixels(name: str) -> None:
    """Autograd through (255 x rescale_factor - mean) / std, then to BGR, which is how the specification is defined.

    The graph holds mean and std in float32 (eps/2 = 6e-8 each): z moves by 6e-8 of (mean/std + x/std) at most, and the
    logits of this smooth net with it: 1e-6 of their size is an order of magnitude more than both.
    """
    spec = SPECS[name]
    scale = (
        0.01 if spec.rescale_factor == 1 and spec.image_std == (1.0, 1.0, 1.0) else 1.0
    )  # keeps tanh from saturating

    def model(x):
        mean, std = (
            torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (spec.image_mean, spec.image_std)
        )
        space = (255 * spec.rescale_factor * x - mean) / std
        return net("plain")(space.flip(1) if spec.do_flip_channel_order else space)

    rng = np.random.default_rng(2)
    kinds = list(Kind)
    x, t = scale * rng.uniform(size=(len(kinds), *SHAPE)), targets(kinds, 10, rng)
    graph = gradient_model(exported("plain", False), preprocess=spec)
    assert_near(ReferenceExecutor(graph)(feeds(x, kinds, t)), autograd(model, x, kinds, t), 1e-6)


DEEP = {"resnet50": (torch_nets.resnet50, (3, 64, 64)), "inception_v3": (torch_nets.inception_v3, (3, 107, 107))}


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_net_in_float32_on_onnx_runtime_has_autograd_s_gradient(name: str) -> None:
    """Cosine of at least 0.9999 with float64 autograd, image by image, and logits that are those of the net."""
    make, shape = DEEP[name]
    rng = np.random.default_rng(3)
    model = torch_nets.build(make)
    torch_nets.settle(model, torch.from_numpy(rng.normal(size=(8, *shape))))
    kinds = [Kind.LOGIT, Kind.PROB, Kind.CE, Kind.LOGIT_L2]
    x, t = rng.normal(size=(len(kinds), *shape)).astype(np.float32), targets(kinds, 20, rng)
    want = autograd(model, x.astype(np.float64), kinds, t)
    graph = gradient_model(torch_nets.to_onnx(model.float(), shape, dtype=torch.float32))
    got = OnnxRuntimeExecutor(graph)(feeds(x, kinds, t))
    for mine, theirs in zip(got["gradient"].astype(np.float64), want["gradient"], strict=True):
        assert (mine * theirs).sum() / np.sqrt((mine**2).sum() * (theirs**2).sum()) >= 0.9999
    np.testing.assert_allclose(got["logits"], want["logits"], rtol=0, atol=1e-4 * np.abs(want["logits"]).max())
    alone = OnnxRuntimeExecutor(graph, optimise=False)
    forward = OnnxRuntimeExecutor(forward_model(graph), optimise=False)
    np.testing.assert_array_equal(forward({"input": x})["logits"], alone(feeds(x, kinds, t))["logits"])
