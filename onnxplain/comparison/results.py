"""What a comparison finds, and the thresholds that it is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What both sides have to agree by. The values are for float32 on both."""

    logits: float = 1e-3  # the largest difference over the largest logit; float32 comes to 1e-5
    cosine: float = 0.9999  # of gradients, the median; float32 comes to 0.99995 by itself (Inception v3, random)
    # of gradients, the least: where the input of a ReLU rounds across its kink, one side has a part of the gradient
    # that the other has not, and both are right
    cosine_least: float = 0.99
    length: float = 0.05  # of a gradient, which neither its cosine nor ranks tell: how far the ratio may be from one
    spearman: float = 0.999  # of each image's attributions, unless a method takes sign steps
    auc: float = 0.01  # the difference of the mean insertion AUC of methods that take sign steps
    images: int = 20  # fewer say nothing of a mean

    def met(self, cosines: Sequence[float]) -> bool:
        """Whether gradients agree; none are no contradiction."""
        # each by itself: the least of several hides a NaN
        return not cosines or (all(one >= self.cosine_least for one in cosines) and median(cosines) >= self.cosine)


@dataclass(frozen=True, kw_only=True)
class ImageGradients:
    """Logits and the gradient of the predicted class at one image; differences as in `Gradients`."""

    image: str
    logits: float
    gradient: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Logits and gradients of the predicted classes at the images."""

    side: str
    logits: float  # the largest difference over the largest logit
    gradient: float  # the largest difference over the largest value
    cosine: float  # the median
    cosine_least: float
    length: float  # how many times as long as theirs, where it is furthest from one
    passed: bool
    images: list[ImageGradients]


@dataclass(frozen=True, kw_only=True)
class ImageAgreement:
    """One image's attributions by one method on both sides, and how they score."""

    image: str
    method: str
    side: str
    cosine: float
    spearman: float
    top: float  # the share of the top 1 % features that both have
    insertion: float  # AUC, of ours
    insertion_theirs: float
    deletion: float
    deletion_theirs: float


@dataclass(frozen=True, kw_only=True)
class MethodAgreement:
    """One method over all images. `verdict` is None where nothing can be said; `why` says what was judged, and how."""

    method: str
    side: str
    verdict: bool | None
    why: list[str]
    cosine: float  # the least of an image
    spearman: float  # the least
    spearman_mean: float
    top: float  # the mean
    insertion: float  # the means
    insertion_theirs: float
    deletion: float
    deletion_theirs: float
    points: int | None  # where the engine asked for gradients and was checked
    points_saturated: int | None  # and where it asked, but float32 has no digits of the gradient
    points_cosine: float | None  # the median
    points_cosine_least: float | None
    spearman_float64: float | None  # the mean agreement of PyTorch in float32 with itself in float64
    insertion_float64: float | None
    seconds: float
    seconds_theirs: float
    memory: float | None  # MiB
    memory_theirs: float | None

    @property
    def speed(self) -> float:
        """How many times as long the other side took."""
        return self.seconds_theirs / self.seconds


@dataclass(kw_only=True)
class Comparison:
    """What `compare` found."""

    model: str
    on: str
    precision: str
    batch_size: int
    threads: int
    protocol: str
    thresholds: Thresholds
    gradients: list[Gradients] = field(default_factory=list)
    methods: list[MethodAgreement] = field(default_factory=list)
    images: list[ImageAgreement] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing missed its threshold."""
        return all(one.passed for one in self.gradients) and all(one.verdict is not False for one in self.methods)
