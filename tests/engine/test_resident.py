"""State on the device: the same points and gradients as on the host, and next to nothing on the bus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bound
import numpy as np
import pytest
import tiny
import toys
import walks
from hypothesis import given
from hypothesis import strategies as st

import onnxplain as ox
from onnxplain.engine.drive import GRADIENT, LINE, LOGITS, WALK, Model, Outcome, Usage, drive, run
from onnxplain.engine.executors.function import FunctionExecutor
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.methods import AGI, BIG, ISA, CrediblePath, DeltaLoss, IntegratedGradients, Method, Rule
from onnxplain.engine.requests import (
    Attribution,
    Kind,
    Line,
    Logits,
    Objective,
    PathSum,
    Program,
    Stop,
    Validity,
    Walk,
    Walked,
)
from onnxplain.errors import NonFinite, OutOfMemory, UsageError

METHODS: list[Method] = [
    ISA(k=2),
    ISA(k=3, t1=2, t2=5),
    ISA(k=6, mask_ascent=False, delta_loss=DeltaLoss.EVALUATED, literal=True),
    AGI(),
    BIG(eta=0.02, steps=9),
    BIG.isa(steps=9),
    IntegratedGradients(steps=9, rule=Rule.RIGHT),
    CrediblePath(starts=np.full((2, 6), [[0.5], [0.2]]), steps=30, max_iter=5),
]
BATCHES = [1, 3, 8]


def in_order(outcomes: Iterator[Outcome[Any]]) -> list[Any]:
    return [outcome.unwrap() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


def same_walks(one: Walked, other: Walked) -> bool:
    names = ("point", "path_sum", "first", "last", "iterations", "stopped")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def same_lines(one: PathSum, other: PathSum, line: Any) -> bool:
    """Bit for bit in values and counts.

    A sum of T products has an error of (T - 1) eps / 2 of the sum of their magnitudes, in whatever order they are
    added; two of them differ by twice that. A model's gradients here are at most 4 in magnitude.
    """
    size = np.abs(line.weights).sum(axis=1).reshape(-1, *(1,) * (line.start.ndim - 1)) * 4
    gap = np.abs(one.gradient - other.gradient)
    bits = np.array_equal(one.value, other.value) and np.array_equal(one.count, other.count)
    return bits and bool((gap <= line.t.shape[1] * np.finfo(line.start.dtype).eps * size).all())


# Walks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_walks_on_the_device_are_those_on_the_host(batch_size: int, dtype: Any) -> None:
    """Of all kinds, in one drive, bit for bit: the operations are the same, and each is rounded by itself."""
    drawn = [walks.drawn(seed, walks.IMAGES[seed % 12].astype(dtype)) for seed in range(60)]
    host = in_order(drive(map(walks.asks, drawn), toys.model_of(walks.TOY, dtype, batch_size)))
    model = bound.model_of(walks.TOY, dtype, batch_size)
    assert model.on_device
    usage = Usage()
    device = in_order(drive(map(walks.asks, drawn), model, usage=usage))
    assert usage.calls[WALK] > 0
    for walk, here, there in zip(drawn, host, device, strict=True):
        assert same_walks(here, there), walk


@given(order=st.permutations(range(12)), batch_size=st.integers(1, 7))
def test_company_changes_no_walk(order: list[int], batch_size: int) -> None:
    host = [run(walks.asks(walks.drawn(i)), toys.model_of(walks.TOY)) for i in order]
    together = in_order(
        drive((walks.asks(walks.drawn(i)) for i in order), bound.model_of(walks.TOY, batch_size=batch_size))
    )
    for here, there in zip(host, together, strict=True):
        assert same_walks(here, there)


def runtime_pair(batch_size: int) -> tuple[ox.Explainer, ox.Explainer]:
    how: dict[str, Any] = {"preprocess": None, "range": (0, 1), "threads": 1, "batch_size": batch_size}
    return tuple(ox.open(tiny.classifier(), **how, step_graphs=on) for on in (False, True))  # type: ignore[return-value]


@pytest.mark.parametrize("batch_size", BATCHES)
def test_walks_and_lines_bound_in_onnx_runtime(batch_size: int) -> None:
    """The real thing, in float32 and on the CPU: the memory is the host's, all else is as on a GPU."""
    images = np.random.default_rng(0).random((6, 3, 8, 8), np.float32)
    requests: list[Any] = [walks.drawn(seed, images[seed % 6], classes=5) for seed in range(24)]
    requests += [
        walks.line(seed, validity, points=11, shape=(3, 8, 8), dtype=np.float32)
        for seed in range(3)
        for validity in (None, *Validity)
    ]
    host, device = runtime_pair(batch_size)
    with host, device:
        answers = [
            in_order(drive(map(walks.asks, requests), explainer.model, usage=explainer.usage))
            for explainer in (host, device)
        ]
        assert host.usage.calls.keys() == {GRADIENT, LOGITS}
        assert min(device.usage.calls[WALK], device.usage.calls[LINE]) > 0
        for request, here, there in zip(requests, *answers, strict=True):
            if isinstance(request, Walk):
                assert same_walks(here, there), request
            else:
                assert same_lines(here, there, request), request


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
def test_methods(batch_size: int, method: Method) -> None:
    """Attributions of ISA and AGI bit for bit, path integrals to float noise."""

    def programs() -> Iterator[Program[Attribution]]:
        for i, x in enumerate(walks.IMAGES):
            yield method(x, toys.task(walks.TOY, i % 3, seed=i))

    usage = Usage()
    host = in_order(drive(programs(), toys.model_of(walks.TOY, batch_size=batch_size)))
    device = in_order(drive(programs(), bound.model_of(walks.TOY, batch_size=batch_size), usage=usage))
    assert usage.calls[WALK] + usage.calls[LINE] > 0
    for here, there in zip(host, device, strict=True):
        if method.id in ("isa", "agi"):
            assert here.values.tobytes() == there.values.tobytes()
            assert here.diagnostics == there.diagnostics
        else:
            assert there.values == pytest.approx(here.values, abs=1e-14)
            if method.id == "big":
                names = ("success", "iteration", "label", "distance")
                assert [here.diagnostics[name] for name in names] == [there.diagnostics[name] for name in names]


def test_methods_side_by_side() -> None:
    """Walks with one gradient a step and with two, clipped and not, lines and points, in one drive."""
    order = [(i, METHODS[i % len(METHODS)]) for i in range(40)]

    def programs() -> Iterator[Program[Attribution]]:
        for i, method in order:
            yield method(walks.IMAGES[i % 12], toys.task(walks.TOY, i % 3, seed=i))

    alone = [run(program, toys.model_of(walks.TOY)) for program in programs()]
    for batch_size in BATCHES:
        usage = Usage()
        outcomes = list(drive(programs(), bound.model_of(walks.TOY, batch_size=batch_size), usage=usage))
        for here, there in zip(alone, in_order(iter(outcomes)), strict=True):
            assert there.values == pytest.approx(here.values, abs=1e-14)
        for role in (GRADIENT, LOGITS):
            assert sum(outcome.rows[role] for outcome in outcomes) == usage.rows[role]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_bounds_that_differ_never_share_a_convoy(order: tuple[int, ...]) -> None:
    """One pair of bounds is on the device at a time; walks without any go with every other."""
    some = [walks.plain(steps=3, low=np.zeros(6), high=np.full(6, top)) for top in (0.5, 0.7)] + [walks.plain(steps=3)]
    requests = [some[order[i % 3]] for i in range(9)]
    usage = Usage()
    got = in_order(drive(map(walks.asks, requests), bound.model_of(walks.TOY, batch_size=12), usage=usage))
    for walk, there in zip(requests, got, strict=True):
        assert same_walks(run(walks.asks(walk), toys.model_of(walks.TOY)), there)
    assert usage.calls[WALK] < 9 * 3  # some have shared one


def test_convoys_get_smaller_where_fewer_than_half_are_on_their_way() -> None:
    """Of 8 walks, 5 end after a step and 2 after three: 8 rows, 3 rows for two steps, and 1 row for four."""
    steps = np.array([1] * 5 + [3] * 2 + [7])
    walk = walks.plain(steps=steps, step=np.full((8, 1), 0.01))
    bus, usage = bound.Bus(), Usage()
    answer = run(walks.asks(walk), bound.model_of(walks.TOY, bus=bus), usage=usage)
    assert same_walks(answer, run(walks.asks(walk), toys.model_of(walks.TOY)))
    assert answer.iterations.tolist() == steps.tolist()
    # how many rows the logits had that came back
    assert [shape[0] for _, shape in bus.down if shape[1:] == (3,)] == [8, 3, 3, 1, 1, 1, 1]
    assert usage.rows[GRADIENT] == steps.sum()
    assert usage.calls[GRADIENT] == usage.calls[WALK] == 7


def test_what_crosses_the_bus() -> None:
    """A step: the logits of 8 rows and 8 flags come back, and nothing goes over; images do before and after a walk."""
    toy, x = toys.picture_net(0, (3, 16, 16)), np.random.default_rng(0).random((3, 16, 16)).astype(np.float32)
    image, steps = x.nbytes, 20
    walk = walks.plain(start=x, count=8, steps=steps, step=np.full((8, 1, 1, 1), 0.001, np.float32))
    bus = bound.Bus()
    run(walks.asks(walk), bound.model_of(toy, np.float32, bus=bus))
    down = [size for size, _ in bus.down]
    assert down == [8 * 4 * 4, 8] * steps + [8 * image] * 2  # float32 logits of 4 classes, bools; points and sums
    up = [size for size, _ in bus.up]
    told = 8 + 8 * 4 * 4 + 8 * 8 + 8  # which are bounded, targets, kinds, and once which are active
    assert sum(up) == 3 * 8 * image + told  # steps, points and sums
    # a path integral: per batch four numbers and a flag a point, logits, value and flags back
    bus = bound.Bus()
    line = walks.line(0, Validity.PATH, points=24, shape=(3, 16, 16), dtype=np.float32)
    run(walks.asks(line), bound.model_of(toy, np.float32, bus=bus))
    down = [size for size, _ in bus.down]
    assert down == 2 * ([8 * 4 * 4, 8 * 4, 8] * 3 + [image] * 2)
    assert sum(size for size, _ in bus.up) == 2 * (5 * image + 8 + 8 * 4 * 4 + 8 * 8 + 4 * 8 * (1 + 3 * 4))


@pytest.mark.parametrize("stop", [Stop.ARRIVED, Stop.LEFT])
def test_walks_that_stop_where_they_begin(stop: Stop) -> None:
    """Their start comes back as it was, even out of bounds, and they have taken no step."""
    start = walks.IMAGES[0] + 5
    here = int(walks.TOY.logits(start).argmax())
    labels = np.array([here, (here + 1) % 3, here])
    walk = walks.plain(start=start, count=3, classes=labels, stop=stop, low=np.zeros(6), high=np.ones(6), steps=3)
    answer = run(walks.asks(walk), bound.model_of(walks.TOY))
    assert same_walks(answer, run(walks.asks(walk), toys.model_of(walks.TOY)))
    at_once = (labels == here) == (stop is Stop.ARRIVED)
    assert (answer.stopped & (answer.iterations == 0) == at_once).all()
    assert (answer.point[at_once] == start).all()
    assert not answer.path_sum[at_once].any()


# Lines ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validity", [None, *Validity])
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("points", [4, 9, 50])
def test_lines_on_the_device(validity: Validity | None, batch_size: int, dtype: Any, points: int) -> None:
    line = walks.line(points, validity, points=points, dtype=dtype)
    usage = Usage()
    here = run(walks.asks(line), toys.model_of(walks.TOY, dtype, batch_size))
    there = run(walks.asks(line), bound.model_of(walks.TOY, dtype, batch_size), usage=usage)
    assert same_lines(here, there, line)
    assert there.gradient.dtype == there.count.dtype == dtype
    batches = 2 * -(-points // batch_size)
    assert usage.calls == {GRADIENT: batches, LINE: batches, LOGITS: 0}
    assert usage.rows[GRADIENT] == 2 * points


def test_batches_of_a_line_are_even() -> None:
    """50 points in batches of at most 16: 13, 13, 13 and 11, not 16, 16, 16 and 2."""
    bus = bound.Bus()
    line = walks.line(0, None, points=50)
    run(walks.asks(line), bound.model_of(walks.TOY, batch_size=16, bus=bus))
    assert {shape[0] for _, shape in bus.down if shape[1:] == (3,)} == {13}


def test_short_lines_are_summed_on_the_host() -> None:
    """Less than half a batch: points of several lines share one, which they could not on the device."""
    usage = Usage()
    lines = [walks.line(seed, Validity.GRAD, points=3) for seed in range(4)]
    list(drive(map(walks.asks, lines), bound.model_of(walks.TOY), usage=usage))
    assert usage.calls == {GRADIENT: 3, LOGITS: 0}


# What may go wrong ----------------------------------------------------------------------------------------------------


def poisoned(where: str, spoils: Callable[[Any], bool], batch_size: int) -> Model:
    """The toy, but NaN comes out where images are of a kind."""
    forward, backward = toys.executors(walks.TOY)

    def fn(feeds: Mapping[str, Any]) -> dict[str, Any]:
        outputs = {name: array.copy() for name, array in backward(feeds).items()}
        for i, x in enumerate(feeds["x"]):
            if spoils(x):
                outputs[where][i] = np.nan
        return outputs

    return bound.joined(forward, FunctionExecutor(fn, backward.inputs, backward.outputs), batch_size=batch_size)


@pytest.mark.parametrize("where", ["logits", "gradient"])
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
def test_nan_ends_the_one_program_that_met_it(where: str, batch_size: int, method: Method) -> None:
    images = walks.IMAGES * 0.8  # no step of any method leads from here to 0.99
    images[4, 0] = 1

    def programs() -> Iterator[Program[Attribution]]:
        for i, x in enumerate(images):
            yield method(x, toys.task(walks.TOY, i % 3, seed=i))

    model = poisoned(where, lambda x: bool(x[0] > 0.99), batch_size)
    with np.errstate(invalid="ignore"):
        outcomes = sorted(drive(programs(), model), key=lambda outcome: outcome.index)
    assert [outcome.index for outcome in outcomes if outcome.error] == [4]
    assert isinstance(outcomes[4].error, NonFinite)
    assert f"the model gave NaN or Inf in its {where} at request" in str(outcomes[4].error)
    for i, (x, outcome) in enumerate(zip(images, outcomes, strict=True)):
        if not outcome.error:
            expected = run(method(x, toys.task(walks.TOY, i % 3, seed=i)), toys.model_of(walks.TOY))
            assert outcome.unwrap().values == pytest.approx(expected.values, abs=1e-14)


@pytest.mark.parametrize("request_", [walks.plain(steps=50), walks.line(0, None, points=80)], ids=["walk", "line"])
def test_nan_is_told_at_once(request_: Any) -> None:
    """What comes of it is not waited for."""
    usage = Usage()
    with pytest.raises(NonFinite), np.errstate(invalid="ignore"):
        run(walks.asks(request_), poisoned("gradient", lambda x: True, 8), usage=usage)
    assert usage.calls[GRADIENT] == 1


def test_nan_is_told_where_a_walk_ends() -> None:
    """The gradient there is not followed, but it is looked at, as on the host; that of `along` is not."""
    label = int(walks.TOY.logits(walks.IMAGES[0]).argmax())
    walk = walks.plain(classes=[label, label], stop=Stop.ARRIVED, along=Objective(Kind.PROB, 0))
    with pytest.raises(NonFinite, match="in its gradient"):
        run(walks.asks(walk), poisoned("gradient", lambda x: True, 8))

    def fn(feeds: Mapping[str, Any]) -> dict[str, Any]:
        outputs = dict(backward(feeds))
        outputs["gradient"][feeds["onnxplain_objective"] == Kind.PROB] = np.nan
        return outputs

    forward, backward = toys.executors(walks.TOY)
    model = bound.joined(forward, FunctionExecutor(fn, backward.inputs, backward.outputs))
    usage = Usage()
    assert run(walks.asks(walk), model, usage=usage).stopped.all()
    assert usage.calls[GRADIENT] == 1  # nobody is left to ask for
    with pytest.raises(NonFinite, match="in its gradient"):
        run(walks.asks(walks.plain(along=Objective(Kind.PROB, 0))), model)


@pytest.mark.parametrize("what", [Walk, Line])
@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("after", [0, 2])
def test_out_of_memory_loses_nothing(what: type, most: int, after: int) -> None:
    """At once, or after some calls, when walks and lines are half way: they go on from where they are."""
    forward, backward = toys.executors(walks.TOY)
    calls = iter(range(10**6))

    def fn(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(feeds["x"]) > most and next(calls) >= after:
            raise OutOfMemory("no memory")
        return backward(feeds)

    model = bound.joined(forward, FunctionExecutor(fn, backward.inputs, backward.outputs))
    requests: list[Any] = [walks.drawn(seed) for seed in range(12)]
    requests += [walks.line(seed, validity, points=30) for seed, validity in enumerate([*Validity, None])]
    requests = [request for request in requests if isinstance(request, what)]
    usage = Usage()
    answers = in_order(drive(map(walks.asks, requests), model, usage=usage))
    assert model.batch_size <= most
    if what is Line:
        assert usage.rows[GRADIENT] == 5 * 2 * 30  # no point twice
    for request, there in zip(requests, answers, strict=True):
        here = run(walks.asks(request), toys.model_of(walks.TOY))
        assert same_walks(here, there) if isinstance(request, Walk) else same_lines(here, there, request)


@pytest.mark.parametrize("request_", [walks.plain(steps=3, count=7), walks.line(0, Validity.GRAD, points=40)])
def test_no_memory_for_buffers(request_: Any) -> None:
    """Nobody is left behind where there is no room aboard."""
    model = bound.model_of(walks.TOY, most=3)
    there, here = run(walks.asks(request_), model), run(walks.asks(request_), toys.model_of(walks.TOY))
    assert model.batch_size <= 3
    assert same_walks(here, there) if isinstance(request_, Walk) else same_lines(here, there, request_)


def test_no_memory_for_one_row() -> None:
    with pytest.raises(OutOfMemory, match="a batch of 1, which is the smallest"):
        run(walks.asks(walks.plain()), bound.model_of(walks.TOY, most=0))


def test_whoever_stops_taking_outcomes_leaves_the_device_free() -> None:
    """Buffers of full batches are kept, and given to the next, not made anew."""
    model = bound.model_of(walks.TOY, batch_size=4)
    walk = walks.plain(steps=50, count=4)
    usage = Usage()
    outcomes = drive(map(walks.asks, (Logits(walks.IMAGES[:1]), walk)), model, usage=usage)
    assert next(outcomes).index == 0
    assert 0 < usage.calls[WALK] < 50  # it is half way
    assert not model.walk_rigs[False]
    outcomes.close()  # type: ignore[attr-defined]
    for _ in range(2):
        assert len(model.walk_rigs[False]) == 1
        run(walks.asks(walk), model)
    executor = model.executors[GRADIENT]
    assert isinstance(executor, bound.Bindable)
    assert executor.kept == 2  # one for each of the two buffers of the points


def test_threads_take_turns() -> None:
    """Each with buffers of its own."""
    model = bound.model_of(walks.TOY, batch_size=4)
    drawn = [walks.drawn(seed) for seed in range(24)]
    found: dict[int, list[Any]] = {}

    def work(part: int) -> None:
        found[part] = in_order(drive(map(walks.asks, drawn[part::3]), model))

    threads = [threading.Thread(target=work, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in range(3):
        for walk, there in zip(drawn[part::3], found[part], strict=True):
            assert same_walks(run(walks.asks(walk), toys.model_of(walks.TOY)), there)


def test_progress_is_told_by_gradient_rows() -> None:
    seen: list[Mapping[str, int]] = []
    requests: list[Any] = [walks.plain(steps=5, count=3), walks.line(0, None, points=20)]
    usage = Usage()
    outcomes = list(drive(map(walks.asks, requests), bound.model_of(walks.TOY), usage=usage, observe=seen.append))
    assert all(rows.keys() == {GRADIENT} for rows in seen)
    assert sum(rows[GRADIENT] for rows in seen) == usage.rows[GRADIENT] == 3 * 5 + 2 * 20
    assert sorted(outcome.rows[GRADIENT] for outcome in outcomes) == [15, 40]
    assert 0 < usage.runtime_seconds <= usage.seconds


def test_who_walks_on_the_device() -> None:
    """Who says so; else those whose device has memory of its own, and step models to go with it."""
    assert not toys.model_of(walks.TOY).on_device
    model = bound.model_of(walks.TOY)
    assert model.on_device
    assert not Model(model.start, step_graphs=False).on_device
    assert not Model({LOGITS: model.start[LOGITS], GRADIENT: model.start[GRADIENT]}).on_device
    with pytest.raises(UsageError, match="step_graphs: this runtime keeps nothing on its device; next: leave"):
        Model(toys.model_of(walks.TOY).start, step_graphs=True)
    how: dict[str, Any] = {"preprocess": None, "threads": 1}
    for wanted, taken in ((None, False), (False, False), (True, True)):
        with ox.open(tiny.classifier(), **how, step_graphs=wanted) as explainer:
            assert explainer.model.on_device is taken
            assert not explainer.forward.on_device


# Wrong step models ----------------------------------------------------------------------------------------------------


def walk_step(flaw: str | None) -> FunctionExecutor:
    """The step of a walk in NumPy, without one of its parts."""
    right = OnnxRuntimeExecutor(bound.walk_step((6,), np.dtype(np.float64)), threads=1)

    def fn(feeds: Mapping[str, Any]) -> dict[str, Any]:
        x, g, h = feeds["point"], feeds["gradient"], feeds["along"]
        on, clips = feeds["active"][:, None], feeds["bounded"][:, None]
        d = feeds["step"] * np.sign(g)
        d = np.abs(feeds["step"]) * np.sign(g) if flaw == "direction" else d
        d = np.where(d == 0, 0.01 * np.sign(g), d) if flaw == "mask" else d
        held = np.clip(x + d, feeds["low"], feeds["high"])
        clips = np.zeros_like(clips) if flaw == "clip" else np.ones_like(clips) if flaw == "bounded" else clips
        on = np.ones_like(on) if flaw == "active" else on
        moved = d if flaw == "moved" else np.where(clips, held - x, d)
        h = g if flaw == "along" else h
        spoilt = ~np.isfinite(g).all(axis=1) | ~np.isfinite(h).all(axis=1) & feeds["active"]
        return {
            "next_point": np.where(on, np.where(clips, held, x + d), x),
            "next_path_sum": np.where(on, moved * h, 0) + (0 if flaw == "sum" else feeds["path_sum"]),
            "spoilt": np.zeros_like(spoilt) if flaw == "spoilt" else spoilt,
        }

    return FunctionExecutor(fn, right.inputs, right.outputs)


def walks_like_the_host(flaw: str | None) -> None:
    """The laws above in short."""
    forward, backward = toys.executors(walks.TOY)
    drawn = [walks.drawn(seed) for seed in range(30)]
    model = bound.joined(forward, backward, **{WALK: lambda: walk_step(flaw)})
    with np.errstate(invalid="ignore"):
        for walk, there in zip(drawn, in_order(drive(map(walks.asks, drawn), model)), strict=True):
            assert same_walks(run(walks.asks(walk), toys.model_of(walks.TOY)), there)
        bad = poisoned("gradient", lambda x: bool(x[0] > 0.99), 8)
        model = Model({**bad.start, WALK: lambda: bound.Bindable(walk_step(flaw))})
        try:
            run(walks.asks(walks.plain(start=np.ones(6), steps=1)), model)
        except NonFinite:
            return
    raise AssertionError("NaN went by")


def test_the_step_to_spoil_is_right() -> None:
    walks_like_the_host(None)


@pytest.mark.parametrize("flaw", ["direction", "mask", "clip", "bounded", "active", "moved", "along", "sum", "spoilt"])
def test_a_wrong_step_is_caught(flaw: str) -> None:
    with pytest.raises((AssertionError, NonFinite)):
        walks_like_the_host(flaw)
