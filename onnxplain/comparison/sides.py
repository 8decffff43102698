"""Who is compared with: a PyTorch classifier and its loops, Captum on it, or this engine on another runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from onnxplain.adapters.original import require
from onnxplain.adapters.pytorch import require_ready
from onnxplain.adapters.reference import LOOPS
from onnxplain.engine.explanation import Explanation
from onnxplain.engine.methods import AGI, Alphas, CrediblePath, Method
from onnxplain.engine.requests import Array, Head, Kind
from onnxplain.errors import BackendMissing, UsageError
from onnxplain.explainer import Explainer

DRAWN = {"agi": "k"}  # how many of what the loop is given, for the engine draws them


class Side(Protocol):
    """Whoever answers as the engine does; images are in its space, (n, C, H, W)."""

    @property
    def name(self) -> str: ...

    def has(self, method: Method) -> bool:
        """Whether it has this method."""
        ...

    def require(self, methods: Sequence[Method]) -> None:
        """Raise `UsageError` for a method that it should have, and has not."""
        ...

    def logits(self, x: Array) -> Array: ...

    def gradients(self, x: Array, classes: Array, kind: Kind) -> Array:
        """Of the objective of each image's class."""
        ...

    def explain(self, x: Array, method: Method, found: Sequence[Explanation]) -> Array:
        """Attributions of the classes that the engine has explained, (n, C, H, W)."""
        ...


class TorchSide:
    """A PyTorch module, and the loops of `adapters.reference`."""

    def __init__(self, module: Any, explainer: Explainer, dtype: str = "float32") -> None:
        torch = require("torch", "pytorch")
        from onnxplain.adapters.reference.net import ReferenceNet

        require_ready(module, "the reference", evaluation=True)
        space = explainer.space
        if explainer.channel_axis == -1 or not (np.all(space.low == 0) and np.all(space.high == 1)):
            raise UsageError(
                "the loops in PyTorch take images (C, H, W) in [0,1]; next: compare a model that was exported with its "
                "preprocessing, channels first"
            )
        if explainer.head is not Head.SOFTMAX:
            raise UsageError(
                "the loops in PyTorch are for classes, not for labels (a sigmoid head); next: compare runtimes"
            )
        if explainer.setup.threads:
            torch.set_num_threads(explainer.setup.threads)
        spec = explainer.preprocess
        flip = spec is not None and spec.do_flip_channel_order
        self.name = "PyTorch" if dtype == "float32" else f"PyTorch in {dtype}"
        self.net = ReferenceNet(
            module, zero=space.zero, scale=space.scale, flip=flip, batch=explainer.batch_size, dtype=dtype
        )

    def has(self, method: Method) -> bool:
        return method.id in LOOPS

    def require(self, methods: Sequence[Method]) -> None:
        for method in methods:
            parameters_for(method)

    def logits(self, x: Array) -> Array:
        return self.net.logits(x)

    def gradients(self, x: Array, classes: Array, kind: Kind) -> Array:
        return self.net.gradients(x, classes, kind.name.lower())

    def explain(self, x: Array, method: Method, found: Sequence[Explanation]) -> Array:
        classes = classes_of(found)
        return self.net.explain(method.id, x, classes, parameters_for(method, found))


class CaptumSide(TorchSide):
    """Captum's attributions of a PyTorch module."""

    def __init__(self, module: Any, explainer: Explainer) -> None:
        if find_spec("captum") is None:  # no extra has it, for it wants an older NumPy than it needs
            raise BackendMissing("captum", "pytorch", "pip install --no-deps captum tqdm")
        super().__init__(module, explainer)
        self.name = "Captum"

    def has(self, method: Method) -> bool:
        from onnxplain.adapters.reference.captum import METHODS

        return method.id in METHODS

    def explain(self, x: Array, method: Method, found: Sequence[Explanation]) -> Array:
        from onnxplain.adapters.reference.captum import explain

        classes = classes_of(found)
        return explain(self.net, method.id, x, classes, parameters_for(method, found))


class RuntimeSide:
    """The engine itself, elsewhere."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self.name = f"{explainer.setup.place} {explainer.setup.precision}"

    def has(self, method: Method) -> bool:  # noqa: ARG002 (it has them all)
        return True

    def require(self, methods: Sequence[Method]) -> None:
        pass

    def logits(self, x: Array) -> Array:
        return self.explainer.logits(x)

    def gradients(self, x: Array, classes: Array, kind: Kind) -> Array:
        return self.explainer.gradients(x, classes, kind).gradient

    def explain(self, x: Array, method: Method, found: Sequence[Explanation]) -> Array:
        theirs = self.explainer.explain(x, method, classes_of(found))
        return np.stack([explanation.attribution for explanation in theirs])


def classes_of(found: Sequence[Explanation]) -> Array:
    """The class that each explanation is of, (n,)."""
    return np.asarray([explanation.target for explanation in found])


def matched(method: Method) -> Method:
    """The method without what it draws at random, as far as its loop has a counterpart of that."""
    return replace(method, alphas=Alphas.MIDPOINT) if isinstance(method, CrediblePath) else method


def parameters_for(method: Method, found: Sequence[Explanation] = ()) -> Mapping[str, Any]:
    """The parameters of a method's loop: those that both have, and the classes that the engine has drawn.

    Raises `UsageError` for a method without a loop, or one that is set to what its loop does not do.
    """
    if method.id not in LOOPS:
        raise UsageError(f"method {method.id}: there is no loop in PyTorch; next: compare one of {', '.join(LOOPS)}")
    from onnxplain.adapters.reference.net import parameters_of

    known = parameters_of(method.id)
    usual = matched(type(method)())
    given: dict[str, Any] = {}
    for name in (field.name for field in fields(method)):  # type: ignore[arg-type]
        value = getattr(method, name)
        if name in known:
            given[name] = value.value if isinstance(value, Enum) else value
        elif name not in ("id", DRAWN.get(method.id)) and value != getattr(usual, name):
            raise UsageError(f"method {method.id}: its loop in PyTorch has no {name}; next: leave {name} as it is")
    if isinstance(method, AGI):
        given["others"] = np.array([explanation.diagnostics["classes"] for explanation in found])
    return given
