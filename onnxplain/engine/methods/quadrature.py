"""Rules for the integral of a function over [0, 1] as a weighted sum over K points."""

from __future__ import annotations

from enum import Enum

import numpy as np

from onnxplain.engine.methods.method import MOST_STEPS, Array, require_whole


class Rule(Enum):
    """Where the points lie and what they weigh, k = 1 ... K."""

    MIDPOINT = "midpoint"  # (k - 1/2) / K, equal weights
    RIGHT = "right"  # k / K, equal weights: the sum of the original paper
    ENDPOINTS_MEAN = "endpoints_mean"  # both ends included, equal weights: PAIR saliency, LPI
    TRAPEZOID = "trapezoid"  # both ends included, at half weight
    CAPTUM_TRAPEZOID = "captum_trapezoid"  # the same with 1/K for 1/(K - 1): the weights sum to 1 - 1/K
    GAUSS_LEGENDRE = "gauss_legendre"  # exact for polynomials up to degree 2K - 1


class Alphas(Enum):
    """Where on a path M points lie that all weigh the same."""

    UNIFORM = "uniform"  # independent draws
    STRATIFIED = "stratified"  # one draw in each of M equal parts
    MIDPOINT = "midpoint"  # the middle of each part: nothing random


MOST_NODES = 1000  # of GAUSS_LEGENDRE: they are the eigenvalues of a matrix of that size, and stay exact that far
WITH_ENDS = (Rule.ENDPOINTS_MEAN, Rule.TRAPEZOID, Rule.CAPTUM_TRAPEZOID)


def quadrature(rule: Rule, steps: int) -> tuple[Array, Array]:
    """Points and weights, float64 (K,) each."""
    least, most = 2 if rule in WITH_ENDS else 1, MOST_NODES if rule is Rule.GAUSS_LEGENDRE else MOST_STEPS
    require_whole(f"steps of the rule {rule.value}", steps, least, most)
    equal = np.full(steps, 1 / steps)
    ends_halved = np.ones(steps)
    ends_halved[[0, -1]] = 0.5
    match rule:
        case Rule.MIDPOINT:
            return (np.arange(steps) + 0.5) / steps, equal
        case Rule.RIGHT:
            return np.arange(1, steps + 1) / steps, equal
        case Rule.ENDPOINTS_MEAN:
            return np.linspace(0, 1, steps), equal
        case Rule.TRAPEZOID:
            return np.linspace(0, 1, steps), ends_halved / (steps - 1)
        case Rule.CAPTUM_TRAPEZOID:
            return np.linspace(0, 1, steps), ends_halved / steps
        case Rule.GAUSS_LEGENDRE:
            t, w = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
            return (t + 1) / 2, w / 2


def positions(alphas: Alphas, paths: int, points: int, rng: np.random.Generator) -> Array:
    """`points` positions on each of `paths` paths, float64 (paths, points)."""
    shape = paths, points
    if alphas is Alphas.UNIFORM:
        return rng.random(shape)
    inside = rng.random(shape) if alphas is Alphas.STRATIFIED else np.full(shape, 0.5)
    return np.asarray((np.arange(points) + inside) / points)
