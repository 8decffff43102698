"""Credible path attribution."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import toys
from conformance.methods.laws import VECTORS, Make, Row, Wrong, answers, row

from onnxplain.engine.methods import Alphas, CrediblePath, IntegratedGradients, Task
from onnxplain.engine.requests import Attribution, Line, Program, Request, Validity


def credible_on_affine(make: Make) -> None:
    """All gradients are equal: `grad` accepts no feature, `literal` those with x > x', `path` all of them."""
    for x in VECTORS:
        start = x[::-1].copy()
        tell = partial(make, starts=start[None], max_iter=1)
        expected = toys.W[0] * (x - start)

        def values(rule: Validity | None, tell: Make = tell, x: toys.Array = x) -> toys.Array:
            return toys.explain(tell(validity=rule), toys.TOY_L, x, 0).values

        assert not values(Validity.GRAD).any()
        assert values(Validity.LITERAL) == pytest.approx(np.where(x > start, expected, 0), abs=1e-13)
        assert values(Validity.PATH) == pytest.approx(expected, abs=1e-13)
        assert values(None) == pytest.approx(expected, abs=1e-13)


def none_is_ig(make: Make) -> None:
    """Without validity, one baseline and midpoints: integrated gradients."""
    for x in VECTORS:
        start = x[::-1].copy()
        method = make(starts=start[None], max_iter=1, validity=None, alphas=Alphas.MIDPOINT, steps=9)
        same = toys.explain(IntegratedGradients(steps=9, baseline=start), toys.TOY_T, x)
        assert toys.explain(method, toys.TOY_T, x).values == pytest.approx(same.values, abs=1e-14)


ROWS: dict[str, Row] = {
    "credible": row(partial(CrediblePath, max_iter=8, steps=12), credible_on_affine, none_is_ig),
}


class NotStrict(CrediblePath):
    """Accepts a gradient that is as large as that of the image."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        program = super().__call__(x, task)
        request: Request = next(program)
        while True:
            if isinstance(request, Line) and request.reference is not None:
                request = replace(request, reference=request.reference * (1 + 1e-9))
            try:
                request = program.send((yield request))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


WRONG: Wrong = [
    ("credible path, not strict", NotStrict, credible_on_affine),
    ("credible path, scaled", answers(partial(CrediblePath, steps=12), lambda a, x: 2 * a), none_is_ig),
]
