"""How near methods come to Captum and PAIR saliency on real classifiers: a table.

    python bench/references.py [MODEL ...] --photos 10

A MODEL is a name under ../shared/data, such as cifar10/models/resnet20_cifar10. The comparisons are those of
tests/engine/methods/test_against_*.py and test_perturbation_captum.py, with the steps that methods have by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/engine/methods")]

import pytest  # noqa: E402
import test_against_captum as captum  # noqa: E402
import test_against_pair as pair  # noqa: E402
import test_perturbation_captum as perturbation  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402
from shared_photos import classifier  # noqa: E402

from onnxplain.engine.methods import (  # noqa: E402
    BlurIG,
    Grid,
    GuidedIG,
    IntegratedGradients,
    Method,
    Occlusion,
    Rule,
    Saliency,
    SmoothGrad,
)
from onnxplain.engine.methods.method import generator  # noqa: E402
from onnxplain.engine.requests import Array, Kind  # noqa: E402
from onnxplain.explainer import Explainer  # noqa: E402

Theirs = Callable[[Explainer, Array, Array], Array]
MODELS = ("imagenet/models/mobilenet_v1_0.25_128", "cifar10/models/resnet20_cifar10")


def from_captum(attribute: Callable[..., Array]) -> Theirs:
    return lambda explainer, x, classes: attribute(captum.OnnxInTorch(explainer), x, classes)


def smoothed(kind: str, method: SmoothGrad) -> Theirs:
    """Captum's noise tunnel with the noise that our method draws."""

    def attribute(explainer: Explainer, x: Array, classes: Array) -> Array:
        net = captum.OnnxInTorch(explainer)
        with pytest.MonkeyPatch.context() as patch:
            return np.stack(
                [
                    captum.smooth(patch, net, image, target, kind, method, generator(0, image, method))
                    for image, target in zip(x, classes.tolist(), strict=True)
                ]
            )

    return attribute


def from_pair(make: type, **told: object) -> Theirs:
    def attribute(explainer: Explainer, x: Array, classes: Array) -> Array:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "quantile", lambda a, q, interpolation: pair.quantile(a, q, method=interpolation))
            masks = [
                make().GetMask(
                    np.moveaxis(image, 0, -1).astype(np.float64),
                    pair.gradients_of(explainer, target, Kind.PROB),
                    **told,
                )
                for image, target in zip(x, classes.tolist(), strict=True)
            ]
        return np.moveaxis(np.stack(masks), -1, 1)

    return attribute


def occluded(method: Occlusion) -> Theirs:
    """Captum's map, shared out among the channels."""

    def attribute(explainer: Explainer, x: Array, classes: Array) -> Array:
        maps = [
            perturbation.occlusion(explainer.logits, image, perturbation.zero_of(explainer, image), target, method)
            for image, target in zip(x, classes.tolist(), strict=True)
        ]
        return np.broadcast_to(np.stack(maps)[:, None] / x.shape[1], x.shape)

    return attribute


PAIRS: list[tuple[str, Method, Theirs]] = [
    *(
        (f"IG, {name}, 50 steps (Captum)", IntegratedGradients(rule=rule), from_captum(captum.integrated(name, 50)))
        for name, rule in {
            "gausslegendre": Rule.GAUSS_LEGENDRE,
            "riemann_trapezoid": Rule.CAPTUM_TRAPEZOID,
            "riemann_middle": Rule.MIDPOINT,
            "riemann_right": Rule.RIGHT,
        }.items()
    ),
    (
        "IG, 25 steps, both ends (PAIR)",
        IntegratedGradients(steps=25, rule=Rule.ENDPOINTS_MEAN, objective=Kind.PROB),
        from_pair(pair.pair.IntegratedGradients),
    ),
    ("Saliency (Captum)", Saliency(), from_captum(captum.saliency(absolute=True))),
    *(
        (f"{kind}, 25 copies (Captum)", method, smoothed(kind, method))
        for kind, method in {
            "smoothgrad": SmoothGrad(samples=25),
            "smoothgrad_sq": SmoothGrad.squared(samples=25),
            "vargrad": SmoothGrad.variance(samples=25),
        }.items()
    ),
    *(
        (f"Occlusion, windows of {method.window}, stride {method.stride} (Captum)", method, occluded(method))
        for method in (Occlusion(objective=Kind.LOGIT), Occlusion(window=5, stride=2, objective=Kind.LOGIT))
    ),
    ("Guided IG, 200 steps (PAIR)", GuidedIG(), from_pair(pair.pair.GuidedIG)),
    ("Blur IG, 100 steps (PAIR)", BlurIG(), from_pair(pair.pair.BlurIG)),
    ("Blur IG, roots (PAIR)", BlurIG(grid=Grid.SQRT), from_pair(pair.pair.BlurIG, sqrt=True)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--photos", type=int, default=10)
    told = parser.parse_args()
    print("| classifier | method | least Spearman | largest difference, of the largest element |\n|---|---|---|---|")
    for name in told.models:
        with classifier(name, told.photos) as (explainer, x, classes):
            for title, method, theirs in PAIRS:
                ours = [e.attribution for e in explainer.explain(x, method, classes.tolist())]
                both = list(zip(ours, theirs(explainer, x, classes), strict=True))
                order = min(spearmanr(a.ravel(), b.ravel()).statistic for a, b in both)
                off = max(np.abs(a - b).max() / np.abs(b).max() for a, b in both)
                print(f"| {name.split('/')[-1]} | {title} | {order:.7f} | {off:.1e} |", flush=True)


if __name__ == "__main__":
    main()
