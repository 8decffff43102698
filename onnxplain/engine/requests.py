"""What a method or a metric may ask of a model, and what it gets back.

A program is a generator: it yields a request, is sent the answer, and returns its result. It never sees a runtime.
Every array of a request has a leading axis of rows; dtype is that of the image that the program was given.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import UsageError

Array: TypeAlias = NDArray[Any]


class Kind(IntEnum):
    """The scalar that is differentiated, with t the target row, p = head(z) and q = head(p) (see `Head`).

    The numbers are the codes of the graph input `onnxplain_objective`; they are part of the file format.
    """

    LOGIT = 0  # <t, z>
    PROB = 1  # <t, p>
    LOGPROB = 2  # <t, log p>
    CE = 3  # -<t, log p>
    SOFT_CE = 4  # the distance from t = p*: -<t, log p>; of a sigmoid head -<t, log p> - <1 - t, log(1 - p)>
    LOGIT_L2 = 5  # |z - t|^2 / 2 with t = z*, logits
    CE_ON_PROBS = 6  # -<t, log q>: the double softmax of some released code
    PROB_ON_PROBS = 7  # <t, q>


def softmax(z: Array) -> Array:
    """softmax over the last axis."""
    e: Array = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def log_softmax(z: Array) -> Array:
    """log softmax over the last axis."""
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


class Head(StrEnum):
    """What makes probabilities p of logits z (..., K)."""

    SOFTMAX = "softmax"  # classes that exclude one another: p sums to 1
    SIGMOID = "sigmoid"  # labels, each by itself; a model with one output has one label

    def log_probability(self, z: Array) -> Array:
        """log p, in the dtype of z."""
        return log_softmax(z) if self is Head.SOFTMAX else np.asarray(-np.logaddexp(0, -z), z.dtype)

    def probability(self, z: Array) -> Array:
        """p, in the dtype of z."""
        return softmax(z) if self is Head.SOFTMAX else np.exp(self.log_probability(z))


@dataclass(frozen=True, eq=False)
class Objective:
    """A `kind` and its `target`: a class index, or a row (K,) of weights, probabilities p* or logits z*.

    `head` is that of the model which is asked.
    """

    kind: Kind
    target: int | Array
    head: Head = Head.SOFTMAX

    def row(self, classes: int) -> Array:
        """The target as a float32 row (K,): one-hot for a class index."""
        if isinstance(self.target, np.ndarray):
            if self.target.shape != (classes,):
                raise UsageError(f"target: expected {classes} weights, got shape {self.target.shape}")
            return self.target.astype(np.float32, copy=False)
        if not 0 <= self.target < classes:
            raise UsageError(
                f"target {self.target} is out of range: the model has {classes} classes (0 to {classes - 1})"
            )
        row = np.zeros(classes, np.float32)
        row[self.target] = 1
        return row

    def value(self, logits: Array) -> Array:
        """The objective of logits (..., K), in float64: what the gradient model computes as `value`."""
        z = logits.astype(np.float64)
        t = self.row(z.shape[-1]).astype(np.float64)
        p, log_p = self.head.probability, self.head.log_probability
        match self.kind:
            case Kind.LOGIT:
                return z @ t
            case Kind.PROB:
                return p(z) @ t
            case Kind.LOGPROB:
                return log_p(z) @ t
            case Kind.SOFT_CE if self.head is Head.SIGMOID:
                return -(log_p(z) @ t) - log_p(-z) @ (1 - t)
            case Kind.CE | Kind.SOFT_CE:
                return -(log_p(z) @ t)
            case Kind.LOGIT_L2:
                return np.asarray(((z - t) ** 2).sum(-1) / 2)
            case Kind.CE_ON_PROBS:
                return -(log_p(p(z)) @ t)
            case Kind.PROB_ON_PROBS:
                return p(p(z)) @ t


class Validity(Enum):
    """Which points of a path may speak for a feature: the rules of credible path attribution.

    At x~ = start + t * step, with g = grad F(x~), `reference` = grad F(x) and x = start + step, a feature is valid if
    the two quantities have the same sign and the first is strictly larger in magnitude.
    """

    LITERAL = "literal"  # reference        against  (x - x~) * g     (Algorithm 2 as printed)
    PATH = "path"  # step * reference  against  (x - x~) * g     (the consistent reading of its footnote)
    GRAD = "grad"  # reference        against  g                (Definition 7)
    SIGN_ONLY = "sign_only"  # reference against g, signs only (ablation)


@dataclass(frozen=True, eq=False)
class Logits:
    """Forward only, at points `x` (n, ...). Answer: logits (n, K)."""

    x: Array


@dataclass(frozen=True, eq=False)
class Blends:
    """Forward only, at n blends of two images, which never exist all at once. Answer: logits (n, K).

    Blend i is `finish` where `shown[i]`, and `start` elsewhere.
    """

    start: Array  # one image
    finish: Array  # one image
    shown: Array  # (n, ...) bool; each broadcasts against an image


@dataclass(frozen=True, eq=False)
class Points:
    """Values and gradients at points `x` (n, ...). Answer: `Gradients`.

    `classes` (n,), if given, are the targets of the points, one each, in place of the objective's.
    """

    x: Array
    objective: Objective
    classes: Array | None = None


@dataclass(frozen=True, eq=False)
class Line:
    """Weighted gradient sums along n straight paths, whose points never exist all at once. Answer: `PathSum`.

    Point j of path i is `start[i] + t[i, j] * step[i]`; the sum is over `weights[i, j] * gradient`.
    With `validity`, only valid features are added; `reference` (one image) is the gradient that they are held against.
    """

    start: Array  # (n, ...)
    step: Array  # (n, ...)
    t: Array  # (n, T) float64
    weights: Array  # (n, T) float64
    objective: Objective
    validity: Validity | None = None
    reference: Array | None = field(default=None)


class Stop(Enum):
    """Where a walk ends before it has taken all of its steps, told by the logits that it meets."""

    NEVER = "never"
    ARRIVED = "arrived"  # where the model predicts the class of the walk
    LEFT = "left"  # where it predicts another one


@dataclass(frozen=True, eq=False)
class Walk:
    """n sign-gradient walks side by side, each from the same image. Answer: `Walked`.

    Walk i takes `steps[i]` steps, at least one, unless `stop` ends it earlier:
        x <- clip(x + step[i] * sign(g) * moving[i]);  path_sum += D * h, with D what has been added to x
    g is the gradient of `objective`, whose targets are `classes`, one each, if given; h is that of `along`, g itself
    without one. Clipping is to `low` and `high`, without which there is none. The logits at each x tell, before each
    step, whether the walk stops; where it comes with its last step, nobody asks. `stop` needs `classes`.
    """

    start: Array  # one image
    step: Array  # (n, ...), each broadcasts against an image; its sign is the direction: up or down
    steps: Array  # (n,) int
    objective: Objective
    classes: Array | None = None  # (n,) int
    moving: Array | None = None  # (n, ...) bool, each broadcasts against an image; None: all features move
    low: Array | None = None  # broadcasts against an image; both bounds or none
    high: Array | None = None
    along: Objective | None = None
    along_at_start: Array | None = None  # the gradient of `along` at `start`, where it is known: it need not be asked
    stop: Stop = Stop.NEVER

    def __post_init__(self) -> None:
        count = len(self.steps)
        each = [part for part in (self.step, self.classes, self.moving) if part is not None]
        if not count or any(len(part) != count for part in each) or min(self.steps) < 1:
            raise UsageError(
                f"Walk: expected for each walk a step, at least one of steps, and a class and a mask if any; got steps "
                f"{np.asarray(self.steps).tolist()} with {[len(part) for part in each]} of the others"
            )
        if (self.low is None) != (self.high is None):
            raise UsageError("Walk: expected both bounds, low and high, or none")
        if self.stop is not Stop.NEVER and self.classes is None:
            raise UsageError(f"Walk: stop={self.stop.value!r} needs classes")


@dataclass(frozen=True, eq=False)
class Activations:
    """Inner layers and gradients with respect to them, at points `x` (n, ...). Answer: `LayerGradients`."""

    x: Array
    objective: Objective


@dataclass(frozen=True, eq=False)
class Biases:
    """What every layer adds to the objective by itself, at points `x` (n, ...). Answer: `BiasGradients`."""

    x: Array
    objective: Objective


@dataclass(frozen=True, eq=False)
class Multipliers:
    """DeepLIFT multipliers of points `x` (n, ...) against their references (n, ...). Answer: `Gradients`.

    They stand in the place of gradients: `gradient * (x - reference)` is what each feature contributes to the change of
    the objective from the reference to the point.
    """

    x: Array
    reference: Array
    objective: Objective


@dataclass(frozen=True, eq=False)
class Gradients:
    """The answer to `Points` and to `Multipliers`."""

    logits: Array  # (n, K)
    value: Array  # (n,)
    gradient: Array  # (n, ...)


@dataclass(frozen=True, eq=False)
class PathSum:
    """The answer to `Line`. `count` is the number of points that were valid, per feature (T without `validity`)."""

    value: Array  # (n, T)
    gradient: Array  # (n, ...): sum over valid points of weight * gradient
    count: Array  # (n, ...)


@dataclass(frozen=True, eq=False)
class Walked:
    """The answer to `Walk`."""

    point: Array  # (n, ...): where each walk has come
    path_sum: Array  # (n, ...)
    first: Array  # (n, K): the logits at the start
    last: Array  # (n, K): the last that were met: those that ended the walk, or those before its last step
    iterations: Array  # (n,): steps taken
    stopped: Array  # (n,) bool: ended by `stop`


@dataclass(frozen=True, eq=False)
class LayerGradients:
    """The answer to `Activations`: one array a layer, in the order in which the model was told them."""

    logits: Array  # (n, K)
    value: Array  # (n,)
    gradient: Array  # (n, ...)
    activations: tuple[Array, ...]  # (n, C, h, w)
    gradients: tuple[Array, ...]  # of the value with respect to each of them


@dataclass(frozen=True, eq=False)
class BiasGradients:
    """The answer to `Biases`: gradient times bias, of each layer that lies on the picture, from the image on."""

    logits: Array  # (n, K)
    value: Array  # (n,)
    gradient: Array  # (n, ...)
    maps: tuple[Array, ...]  # (n, C, h, w)
    sum: Array  # (n,): of all layers, those that do not lie on the picture too


Request: TypeAlias = Logits | Blends | Points | Line | Walk | Activations | Biases | Multipliers
Result = TypeVar("Result")
Program: TypeAlias = Generator[Request, Any, Result]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What a method returns: an array in the shape of the image, and numbers that tell how far to trust it."""

    values: Array
    diagnostics: dict[str, Any] = field(default_factory=dict)
