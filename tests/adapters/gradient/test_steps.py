"""The step models against their formulas, number by number, and against what runtimes run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxplain.adapters.gradient.portability import unsupported
from onnxplain.adapters.gradient.steps import line_step, walk_step
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.requests import Validity
from onnxplain.engine.resident import RULES

SHAPE = (2, 3, 4)
MAKES = [walk_step, line_step]
RUN = {"onnxruntime": lambda model: OnnxRuntimeExecutor(model, threads=1), "reference": ReferenceExecutor}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [SHAPE, (7,)], ids=str)
def test_they_are_models_that_run_on_the_device(make: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    """Strictly checked, standard operators, a symbolic batch; no node that CUDA or TensorRT would leave to the CPU."""
    model = make(shape, np.dtype(dtype))
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert [opset.version for opset in model.opset_import] == [18]
    for runtime in ("cuda", "tensorrt"):
        assert unsupported(ir.from_proto(model), runtime) == []  # type: ignore[arg-type]
    free = {d.dim_param for v in (*model.graph.input, *model.graph.output) for d in v.type.tensor_type.shape.dim}
    assert free == {"", "N"}


def walk_feeds(draw: np.random.Generator, rows: int, dtype: Any) -> dict[str, Any]:
    """Points in and out of bounds, signs of all three kinds, features that may not move."""

    def numbers(*shape: int) -> Any:
        return draw.normal(size=shape).astype(dtype)

    full = (rows, *SHAPE)
    gradient = numbers(*full) * (draw.random(full) < 0.8)
    low = -np.abs(numbers(*SHAPE))
    return {
        **{"point": numbers(*full), "path_sum": numbers(*full), "gradient": gradient.astype(dtype)},
        **{"along": numbers(*full), "step": (numbers(*full) * (draw.random(full) < 0.7)).astype(dtype)},
        **{"low": low, "high": (low + 1).astype(dtype)},
        **{"bounded": draw.random(rows) < 0.5, "active": draw.random(rows) < 0.7},
    }


@pytest.mark.parametrize("runtime", RUN)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_step_of_walks(runtime: str, dtype: Any, rows: int) -> None:
    """Every operation is rounded by itself, so that the numbers are the same bit for bit."""
    feeds = walk_feeds(np.random.default_rng(rows), rows, dtype)
    with RUN[runtime](walk_step(SHAPE, np.dtype(dtype))) as executor:
        got = executor(feeds)
    for i in range(rows):
        x, d = feeds["point"][i], feeds["step"][i] * np.sign(feeds["gradient"][i])
        to = x + d
        if feeds["bounded"][i]:
            to = np.clip(to, feeds["low"], feeds["high"])
            d = to - x
        if not feeds["active"][i]:
            to, d = x, 0 * d
        assert (got["next_point"][i] == to).all()
        assert (got["next_path_sum"][i] == feeds["path_sum"][i] + d * feeds["along"][i]).all()
    assert not got["spoilt"].any()


@pytest.mark.parametrize("runtime", RUN)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_step_tells_nan_and_inf(runtime: str, wrong: float) -> None:
    """Row by row: of g always, of h where the walk steps; what a row holds else does not matter, nor do its numbers."""
    feeds = walk_feeds(np.random.default_rng(0), 6, np.float32)
    feeds["active"][:] = [True, True, True, False, False, True]
    feeds["gradient"][0, 1, 2, 3] = feeds["along"][2, 0, 0, 0] = wrong
    feeds["gradient"][3, 0, 0, 0] = feeds["along"][4, 1, 2, 3] = wrong
    feeds["gradient"][5] = np.finfo(np.float32).max  # as large as numbers get
    feeds["low"][:] = feeds["high"][:] = np.nan  # nobody told: no walk is clipped
    feeds["bounded"][:] = False
    with RUN[runtime](walk_step(SHAPE, np.dtype(np.float32))) as executor, np.errstate(invalid="ignore"):
        got = executor(feeds)
    assert got["spoilt"].tolist() == [True, False, True, True, False, False]
    for i in (1, 3, 4, 5):  # those that are well, and those that stand still
        assert np.isfinite(got["next_point"][i]).all()
    for i in (3, 4):
        assert (got["next_point"][i] == feeds["point"][i]).all()
        assert (got["next_path_sum"][i] == feeds["path_sum"][i]).all()


@pytest.mark.parametrize("runtime", RUN)
@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_a_line(runtime: str, rule: Validity | None) -> None:
    """Where the definition of `Validity` holds weights and counts are added; the sum of 5 numbers is one of 5 terms.

    Two orders of adding up differ by (5 - 1) eps of the sum of magnitudes at most.
    """
    draw, rows = np.random.default_rng(4), 5
    feeds: dict[str, Any] = {name: draw.random(rows) for name in ("weight", "rest", "t")}
    feeds |= {name: draw.normal(size=SHAPE) for name in ("start", "step", "reference", "sum")}
    feeds |= {"count": draw.integers(0, 9, SHAPE).astype(np.float64), "gradient": draw.normal(size=(rows, *SHAPE))}
    feeds["reference"][0, 0], feeds["gradient"][:, 0, :, 0] = 0, 0  # zeros have the sign of zeros
    feeds |= {"used": np.array([True, True, False, True, True]), "rule": np.array([RULES.index(rule)])}
    with RUN[runtime](line_step(SHAPE, np.dtype(np.float64))) as executor:
        got = executor(feeds)
    total, count, size = feeds["sum"].copy(), feeds["count"].copy(), np.abs(feeds["sum"])
    for i in np.flatnonzero(feeds["used"]):
        g, remaining = feeds["gradient"][i], feeds["step"] * feeds["rest"][i]
        ours, theirs = {
            None: (feeds["reference"], g),
            Validity.LITERAL: (feeds["reference"], remaining * g),
            Validity.PATH: (feeds["step"] * feeds["reference"], remaining * g),
            Validity.GRAD: (feeds["reference"], g),
            Validity.SIGN_ONLY: (feeds["reference"], g),
        }[rule]
        valid = np.sign(ours) == np.sign(theirs)
        if rule is not Validity.SIGN_ONLY:
            valid &= np.abs(ours) > np.abs(theirs)
        valid |= rule is None
        assert rule is None or 0 < valid.mean() < 1
        total += feeds["weight"][i] * valid * g
        size += np.abs(feeds["weight"][i] * g)
        count += valid
    assert (np.abs(got["next_sum"] - total) <= 5 * np.finfo(np.float64).eps * size).all()
    assert (got["next_count"] == count).all()
    for i in range(rows):
        assert (got["point"][i] == feeds["start"] + feeds["t"][i] * feeds["step"]).all()
    assert not got["spoilt"].any()


@pytest.mark.parametrize("runtime", RUN)
def test_points_that_are_not_used_may_hold_anything(runtime: str) -> None:
    """What a buffer held before its first use is neither added nor waited for."""
    rows, nan = 3, np.full((3, *SHAPE), np.nan, np.float32)
    zero, one = np.zeros(SHAPE, np.float32), np.ones(rows, np.float32)
    feeds = {"weight": one, "rest": one, "t": one, "used": np.zeros(rows, bool), "rule": np.array([0])}
    feeds |= dict.fromkeys(("start", "step", "sum", "count"), zero) | {"reference": nan[0], "gradient": nan}
    with RUN[runtime](line_step(SHAPE, np.dtype(np.float32))) as executor:
        got = executor(feeds)
    assert not got["next_sum"].any()
    assert not got["next_count"].any()
    assert got["spoilt"].all()
