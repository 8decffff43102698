"""Recurrent networks: their formulas against ONNX Runtime's kernels, their gradients against PyTorch's autograd."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conformance.samples import of_op
from conformance.samples.recurrent import GATES
from conformance.samples.sample import adjoint_gap
from frameworks import framework

from onnxplain.adapters.gradient import control
from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.expr import Emit, Expr
from onnxplain.adapters.gradient.registry import EXPANSIONS
from onnxplain.adapters.gradient.rules import recurrent
from onnxplain.adapters.gradient.sweep import attribute_values
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import NotDifferentiable

STEPS, BATCH, FEATURES, UNITS = 5, 2, 3, 4
EPS = float(np.finfo(np.float32).eps)


def model(
    op: str, *, states: bool = True, bias: bool = True, peepholes: bool = False, lens: Any = None, **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node in float32, and its feeds."""
    rng = np.random.default_rng(3)
    ways, gates = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op]
    first = (BATCH, ways) if attributes.get("layout") else (ways, BATCH)

    def draw(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.6).astype(np.float32)

    x = draw(BATCH, STEPS, FEATURES) if attributes.get("layout") else draw(STEPS, BATCH, FEATURES)
    weights = {
        "w": draw(ways, gates * UNITS, FEATURES),
        "r": draw(ways, gates * UNITS, UNITS),
        "b": draw(ways, 2 * gates * UNITS),
    }
    feeds = {"x": x, "h": draw(*first, UNITS), "c": draw(*first, UNITS)}
    weights["p"] = draw(ways, 3 * UNITS)
    names = ["x", "w", "r", "b" if bias else "", "", "h" if states else ""]
    if lens is not None:
        weights["lens"], names[4] = np.asarray(lens, np.int32), "lens"
    if op == "LSTM":
        names += ["c" if states else "", "p" if peepholes else ""]
    outputs = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, outputs, hidden_size=UNITS, **attributes)],
        "recurrent",
        [
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape)
            for n, a in feeds.items()
            if n in names
        ],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in weights.items() if n in names],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto), {n: a for n, a in feeds.items() if n in names}


def expanded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its node replaced by the formulas."""
    ours = ir.from_proto(proto)
    graph, emit = ours.graph, Emit(ours.graph)
    (node,) = graph
    xs = [None if x is None else Expr(emit, x) for x in node.inputs]
    outputs = EXPANSIONS[node.op_type](*xs, **attribute_values(node))
    for old, new in zip(node.outputs, outputs, strict=True):
        new.value.name, old.name = old.name, None
    graph.outputs[:] = [new.value for new in outputs]
    graph.remove(node)
    return ir.to_proto(ours)


WAYS = ("forward", "reverse", "bidirectional")
FORMS: list[tuple[str, dict[str, Any]]] = [
    *((op, {"direction": way, "states": states}) for op, way, states in itertools.product(GATES, WAYS, (True, False))),
    *((op, {"bias": False}) for op in GATES),
    *((op, {"lens": [STEPS] * BATCH}) for op in GATES),
    *((op, {"clip": clip}) for op in GATES for clip in (0.3, 0.05)),
    *(("GRU", {"linear_before_reset": 1, "states": s, "bias": b}) for s in (True, False) for b in (True, False)),
    ("GRU", {"linear_before_reset": 1, "clip": 0.3}),
    ("LSTM", {"peepholes": True}),
    ("LSTM", {"peepholes": True, "states": False}),
    ("LSTM", {"peepholes": True, "direction": "bidirectional"}),
    ("LSTM", {"peepholes": True, "clip": 0.2}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"input_forget": 1, "peepholes": True}),
    *(("RNN", {"activations": [name]}) for name in ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh")),
    *(("RNN", {"activations": [name]}) for name in ("Elu", "HardSigmoid", "LeakyRelu")),
    *(("RNN", {"activations": [n], "activation_alpha": [0.3]}) for n in ("Elu", "LeakyRelu", "ThresholdedRelu")),
    *(
        ("RNN", {"activations": [name], "activation_alpha": [0.3], "activation_beta": [0.4]})
        for name in ("Affine", "HardSigmoid", "ScaledTanh")
    ),
    ("GRU", {"activations": ["HardSigmoid", "LeakyRelu"], "activation_alpha": [0.3, 0.2], "activation_beta": [0.4]}),
    (
        "LSTM",
        {
            "direction": "bidirectional",
            "activations": ["HardSigmoid", "Tanh", "ScaledTanh", "Sigmoid", "Relu", "LeakyRelu"],
            "activation_alpha": [0.3, 1.5, 0.2],
            "activation_beta": [0.4, 0.7],
        },
    ),
]


@pytest.mark.parametrize(("op", "how"), FORMS, ids=str)
def test_the_formulas_give_what_the_runtime_s_kernel_gives(op: str, how: dict[str, Any]) -> None:
    """In float32: five steps of ten products each, every number near one or below: 16 eps."""
    proto, feeds = model(op, **how)
    kernel = OnnxRuntimeExecutor(proto, threads=1, optimise=False)(feeds)
    formulas = OnnxRuntimeExecutor(expanded(proto), threads=1, optimise=False)(feeds)
    assert list(kernel) == list(formulas)
    for name, values in kernel.items():
        assert values.shape == formulas[name].shape
        np.testing.assert_allclose(formulas[name], values, rtol=0, atol=16 * EPS * max(1, np.abs(values).max()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_time_first_transposed(op: str, way: str) -> None:
    """ONNX Runtime has no kernel for layout = 1, so the evaluator is asked."""
    proto, feeds = model(op, direction=way, layout=1)
    kernel, formulas = ReferenceExecutor(proto)(feeds), ReferenceExecutor(expanded(proto))(feeds)
    for name, values in kernel.items():
        np.testing.assert_allclose(formulas[name], values, rtol=0, atol=16 * EPS)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "different lengths": ("LSTM", {"lens": [STEPS, STEPS - 1]}),
    "more parameters than its activations have": (
        "LSTM",
        {"activations": ["Sigmoid", "Tanh", "LeakyRelu"], "activation_alpha": [0.0, 0.0, 0.2]},
    ),
    "Affine without its parameters": ("RNN", {"activations": ["Affine"]}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_runtimes_read_differently_is_refused(why: str) -> None:
    """And sequences whose end is not that of the tensor."""
    op, how = REFUSED[why]
    with pytest.raises(NotDifferentiable, match=why):
        differentiate(model(op, **how)[0], wrt=["x"])


@pytest.mark.parametrize("length", [STEPS, STEPS - 1])
def test_a_length_may_be_repeated_for_each_sample_of_a_free_batch(length: int) -> None:
    """As some exporters do: the whole length is taken, any other is refused."""
    proto, feeds = model("RNN", states=False, lens=[length])
    (node,) = proto.graph.node
    node.input[4] = "each"
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "N"
    del proto.graph.output[1:], node.output[1:]
    proto.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "N"
    before = [
        onnx.helper.make_node("Shape", ["x"], ["batch"], start=1, end=2),
        onnx.helper.make_node("Expand", ["lens", "batch"], ["each"]),
    ]
    proto.graph.node.extend([*before, node])
    del proto.graph.node[0]
    if length < STEPS:
        with pytest.raises(NotDifferentiable, match="different lengths"):
            differentiate(proto, wrt=["x"])
    else:
        grad = np.ones((STEPS, 1, BATCH, UNITS), np.float32)
        out = OnnxRuntimeExecutor(differentiate(proto, wrt=["x"]), threads=1)(feeds | {"grad_y": grad})
        plain = OnnxRuntimeExecutor(differentiate(model("RNN", states=False)[0], of=["y"], wrt=["x"]), threads=1)
        np.testing.assert_array_equal(out["grad_x"], plain(feeds | {"grad_y": grad})["grad_x"])


def test_a_sequence_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written out."""
    monkeypatch.setattr(recurrent, "MOST_NODES", 4 * recurrent.NODES)
    assert control.MOST_NODES > 10_000
    with pytest.raises(NotDifferentiable, match="5 steps are too many"):
        differentiate(model("GRU")[0], wrt=["x"])


def test_one_copy_of_a_weight_serves_all_steps() -> None:
    """The kernel's own, one for the steps and one for the way back."""
    made = differentiate(model("LSTM")[0], wrt=["x"])
    assert sum(sorted(w.dims) == [UNITS, 4 * UNITS] for w in made.graph.initializer) == 2


# Formulas that are wrong on purpose: name -> (operator, the formula). The samples must reject every one of them.


def other_gates(op: str, order: list[int]) -> Any:
    """The gates in another order."""

    def formulas(x: Expr, w: Expr, r: Expr, b: Expr | None = None, *rest: Any, **attributes: Any) -> Any:
        def turned(e: Expr | None, copies: int) -> Expr | None:
            if e is None or e.constant is None:
                return e
            parts = np.split(e.constant, GATES[op] * copies, axis=1)
            return e.emit.constant(
                np.concatenate([parts[k * GATES[op] + i] for k in range(copies) for i in order], axis=1)
            )

        return RIGHT[op](x, turned(w, 1), turned(r, 1), turned(b, 2), *rest, **attributes)

    return formulas


def without(op: str, *, inputs: tuple[int, ...] = (), **fixed: Any) -> Any:
    """Inputs or attributes that nobody reads."""

    def formulas(*xs: Any, **attributes: Any) -> Any:
        return RIGHT[op](*(None if i in inputs else x for i, x in enumerate(xs)), **attributes | fixed)

    return formulas


def swapped_states(op: str) -> Any:
    def formulas(
        x: Any, w: Any, r: Any, b: Any = None, lens: Any = None, h: Any = None, c: Any = None, *p: Any, **a: Any
    ):
        return RIGHT[op](x, w, r, b, lens, c, h, *p, **a)

    return formulas


RIGHT = dict(EXPANSIONS)
MUTANTS = {
    "RNN: always forward": ("RNN", without("RNN", direction="forward")),
    "RNN: no bias": ("RNN", without("RNN", inputs=(3,))),
    "RNN: from zero": ("RNN", without("RNN", inputs=(5,))),
    "GRU: r before z": ("GRU", other_gates("GRU", [1, 0, 2])),
    "GRU: the other reset": ("GRU", lambda *xs, **a: RIGHT["GRU"](*xs, **a | {"linear_before_reset": 1})),
    "GRU: never linear before reset": ("GRU", without("GRU", linear_before_reset=0)),
    "GRU: from zero": ("GRU", without("GRU", inputs=(5,))),
    "LSTM: PyTorch's order of gates": ("LSTM", other_gates("LSTM", [0, 2, 3, 1])),
    "LSTM: no peepholes": ("LSTM", without("LSTM", inputs=(7,))),
    "LSTM: states swapped": ("LSTM", swapped_states("LSTM")),
    "LSTM: input_forget": ("LSTM", without("LSTM", input_forget=1)),
    "LSTM: no bias": ("LSTM", without("LSTM", inputs=(3,))),
}


@pytest.mark.parametrize("op", GATES)
def test_the_formulas_to_spoil_are_right(op: str) -> None:
    """Else every mutant would look caught."""
    assert all(adjoint_gap(sample) < sample.tolerance for sample in of_op(op))


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_formulas_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the adjoint law, or by failing: the samples are small."""
    op, formulas = MUTANTS[name]
    monkeypatch.setitem(EXPANSIONS, op, formulas)

    def caught(sample: Any) -> bool:
        try:
            return adjoint_gap(sample) >= sample.tolerance
        except Exception:  # whatever a wrong shape leads to
            return True

    assert any(caught(sample) for sample in of_op(op))


# PyTorch

NETS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"bias": False, "batch_first": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("GRU", {"bias": False}),
    ("RNN", {"num_layers": 2}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
]


EXPORTS = [*((*net, False) for net in NETS), (*NETS[1], True), (*NETS[3], True)]


@pytest.mark.parametrize(("kind", "how", "dynamo"), EXPORTS, ids=str)
def test_the_gradient_of_an_exported_net_is_autograd_s(kind: str, how: dict[str, Any], dynamo: bool) -> None:
    """A classifier of sequences with a free batch: 1e-10 of the largest element in float64.

    ONNX Runtime's kernels know no float64, and ONNX's evaluator no Relu in them: that net is run in float32, at 1e-5.
    """
    torch = framework("torch")
    framework("onnxscript")
    to_onnx = framework("torch_nets").to_onnx
    torch.manual_seed(0)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = getattr(torch.nn, kind)(FEATURES, UNITS, **how)
            self.head = torch.nn.Linear(UNITS * (2 if how.get("bidirectional") else 1), 3)

        def forward(self, x: Any) -> Any:
            y, _ = self.net(x if how.get("batch_first") else x.transpose(0, 1))
            return self.head(torch.tanh(y[:, -1] if how.get("batch_first") else y[0]))

    double = how.get("nonlinearity") != "relu"
    dtype, close, run = (
        (torch.float64, 1e-10, ReferenceExecutor)
        if double
        else (torch.float32, 1e-5, partial(OnnxRuntimeExecutor, threads=1))
    )
    net = Classifier().to(dtype).eval()
    executor = run(differentiate(to_onnx(net, (6, FEATURES), dynamo=dynamo, dtype=dtype)))
    x = torch.randn(3, 6, FEATURES, dtype=dtype, requires_grad=True)
    for rows in (1, 3):
        seed = torch.randn(rows, 3, dtype=dtype)
        z = net(x[:rows])
        (want,) = torch.autograd.grad((z * seed).sum(), x)
        out = executor({"input": x.detach().numpy()[:rows], "grad_logits": seed.numpy()})
        np.testing.assert_allclose(out["logits"], z.detach().numpy(), rtol=0, atol=close)
        np.testing.assert_allclose(out["grad_input"], want.numpy()[:rows], rtol=0, atol=close * want.abs().max().item())
