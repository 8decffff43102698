"""Nodes that a runtime would not run on its device, told from the graph alone: two tables and `unsupported`.

ONNX Runtime leaves a node that its CUDA provider has no kernel for to the CPU, without a word; TensorRT's parser
refuses the model. Neither runtime, nor a GPU, is needed to know. What no table knows is said to be not known.

*CUDA*. The rows are the kernel registry of onnxruntime-gpu 1.31.1, as its own `get_all_opkernel_def()` lists it.
A kernel without an upper version matches only nodes whose `since_version` is the one that it starts at, so a row reads
"operator, first version - last version", of the versions that are in force from opset 18 on. A type parameter of the
operator's schema that is not named in a row is not limited, but for strings, sequences and types of less than 16 bits
that are not integers. The cases below the rows were read off where that version places ONNX's node cases.

*TensorRT*. The rows are the operators' page of the parser of TensorRT 10.15 (onnx-tensorrt, `docs/operators.md`), which
covers opsets 9 to 24; 11.5 states 25. The cases are from the same page, but for those marked RTX, which are what the
parser of TensorRT for RTX 1.7.1 says of ONNX's node cases and of small models like them. Float64 is accepted, and
computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.control import subgraphs
from onnxplain.adapters.gradient.sweep import kind, label, reads

Runtime: TypeAlias = Literal["cuda", "tensorrt"]
Half: TypeAlias = Literal["forward", "backward"]
Case: TypeAlias = Callable[[ir.Node], str | None]  # why a node is not run although its operator is; None if it is

OLDEST = 18  # the opset that tables begin at; models are raised to it before they are differentiated
ALIASES = {
    "FLOATS": "float16 float double",
    "INTEGERS": "int8 int16 int32 int64 uint8 uint16 uint32 uint64",
    "TENSORRT_FLOATS": "float16 bfloat16 float double",
}
TYPES = frozenset(["bool", "bfloat16", *ALIASES["FLOATS"].split(), *ALIASES["INTEGERS"].split()])  # that tables know

# CUDA provider of onnxruntime-gpu 1.31.1

CUDA_OPSET = 27  # the newest that has kernels in it
CUDA_ROWS = {
    "": """
        Abs 13, Add 14, And 7, AveragePool 11-22, Cast 13-25, Compress 11, Concat 13, ConcatFromSequence 11,
        ConstantOfShape 9-25, Conv 11-22, ConvTranspose 11, Cos 7-22, DeformConv 19-22, Div 14, Dropout 13, Elu
        6, Erf 13, Exp 13, Expand 13, Flatten 13-25, GRU 14, Gather 13, GatherElements 13, Gelu 20,
        GlobalAveragePool 1, GlobalMaxPool 1, HardSigmoid 6-22, HardSwish 14-22, Identity 16-25, If 16-25,
        InstanceNormalization 6, IsInf 10-20, IsNaN 13-20, LSTM 14, Loop 16-25, MaxPool 12, Mul 14, Neg 13,
        NonMaxSuppression 11, Not 1, Or 7, RMSNormalization 23, RNN 14, RandomNormal 1-22, RandomNormalLike
        1-22, RandomUniform 1-22, RandomUniformLike 1-22, Range 11, Reshape 14-25, ReverseSequence 10, RoiAlign
        16-22, RotaryEmbedding 23, Round 11, Scan 16-25, ScatterElements 18, ScatterND 18, Selu 6, SequenceAt
        11, SequenceConstruct 11, SequenceEmpty 11, SequenceErase 11, SequenceInsert 11, SequenceLength 11,
        Shape 15-25, Shrink 9, Sigmoid 13, Sign 13, Sin 7-22, Size 13-25, Slice 13, Softmax 13, Softplus 1-22,
        Softsign 1-22, Split 18, Sqrt 13, Squeeze 13-25, Sub 14, Sum 13, Tanh 13, TensorScatter 24,
        ThresholdedRelu 10, Transpose 13-25, Trilu 14, Unsqueeze 13-25, Xor 7
    """,
    "T: FLOATS": """
        ArgMax 13, ArgMin 13, Ceil 13, ConvTranspose 22, DepthToSpace 13, Einsum 12, Floor 13, GRU 22,
        GlobalAveragePool 22, GlobalMaxPool 22, LRN 13, LSTM 22, LeakyRelu 16, Log 13, LogSoftmax 13, PRelu 16,
        RNN 22, Reciprocal 13, ReduceLogSum 18, ReduceLogSumExp 18, ReduceSumSquare 18, Round 22, SpaceToDepth
        13
    """,
    "T: FLOATS bfloat16": "Gemm 13, MatMul 13, Relu 14",
    "T: FLOATS bool": "Pad 18-25",
    "T: FLOATS int32": "ReduceL1 18, ReduceL2 18, ReduceProd 18",
    "T: FLOATS bfloat16 int32": "ReduceMean 18",
    "T: FLOATS bfloat16 int32 int64": "ReduceSum 13, Tile 13",
    "T: FLOATS bfloat16 int32 int64 uint8": "Where 16",
    "T: FLOATS bfloat16 int32 int64 uint32 uint64": "Max 13, Min 13, Mod 13",
    "T: FLOATS bool bfloat16 int64": "GatherND 13",
    "T: FLOATS bool int32 int64 uint32 uint64": "Equal 13-19",
    "T: FLOATS int32 int64 uint32 uint64": "CumSum 14, Greater 13, GreaterOrEqual 16, Less 13, LessOrEqual 16",
    "T: FLOATS int8 int64 uint8 uint64": "Clip 13",
    "T: FLOATS int8 int32 int64 uint8": "ReduceMax 18-20, ReduceMin 18-20",
    "T: FLOATS int8 int16 int32 int64 uint8": "TopK 11",
    "T: FLOATS bfloat16 int8 int16 int32 int64 uint8": "TopK 24",
    "T: float16 float": "LpNormalization 1",
    "T: float16 bfloat16 float": "LpNormalization 22",
    "T: float double int16 int32 int64": "Range 27",
    "T: bool float16 float int32 int64 uint8": "NonZero 13",
    "T: FLOATS; T1: FLOATS; T2: FLOATS": "BatchNormalization 15",
    "U: float": "LayerNormalization 17",
    "T1: float; T2: float": "GridSample 16-22",
    "T1: FLOATS int32 uint8": "Resize 18-19",
    "T1: FLOATS bfloat16 int32 int64": "Pow 15",
    "T1: float16 bfloat16 float; T2: float16 bfloat16 float; U: bool float16 bfloat16 float": "Attention 23-24",
    "T1: float double int32 int64 uint64; T2: float double int32 int64 uint64": "EyeLike 9",
    "T1: int32 int64; T2: int32 int64; T3: float16 float int64": "OneHot 11",
    "T1: int8; T2: int8": "MatMulInteger 10",
    "T: int8 uint8": "DequantizeLinear 13",
    "T1: int8 uint8; T2: float16 float": "DequantizeLinear 19-21",
    "T1: int8 uint8; T2: float16 float; T3: float16 float": "DequantizeLinear 23-25",
    "T1: float": "QuantizeLinear 13",
    "T1: float16 float": "QuantizeLinear 19",
    "T1: float16 float; T2: int8 uint8": "QuantizeLinear 21",
    "T1: float16 float; T2: float16 float; T3: int8 uint8": "QuantizeLinear 23-25",
}
# No provider has a kernel for these: ONNX Runtime puts their function's body in their place when it loads the model.
CUDA_EXPANDED = frozenset(("Bernoulli", "CastLike", "GroupNormalization", "Mish", "Swish"))

# Parser of TensorRT 10.15. "data" is the type of the output, or of the input where the output's does not follow it.

TENSORRT_OPSET = 25
TENSORRT_ROWS = {
    "data: TENSORRT_FLOATS": """
        Acos, Acosh, Asin, Asinh, Atan, Atanh, Attention, AveragePool, BatchNormalization, Ceil, Celu, Clip,
        Conv, ConvTranspose, Cos, Cosh, DequantizeLinear, Dropout, Einsum, Elu, Erf, Exp, Floor, GRU,
        Gemm, GlobalAveragePool, GlobalLpPool, GlobalMaxPool, GroupNormalization, HardSigmoid, Hardmax,
        InstanceNormalization, IsInf, LRN, LSTM, LayerNormalization, LeakyRelu, Log, LogSoftmax,
        LpNormalization, LpPool, MatMul, MaxPool, MeanVarianceNormalization, PRelu, RMSNormalization, RNN,
        RandomNormal, RandomNormalLike, RandomUniform, RandomUniformLike, Reciprocal, Resize, RotaryEmbedding,
        Round, Scan, Selu, Sigmoid, Sin, Sinh, Softmax, Softplus, Softsign, Sqrt, Swish, Tan, Tanh,
        ThresholdedRelu, Upsample
    """,  # Swish, and below it CumSum of integers: RTX
    "data: TENSORRT_FLOATS int32 int64": """
        Abs, Add, ArgMax, ArgMin, CumSum, DepthToSpace, Div, Equal, Gelu, Greater, GreaterOrEqual, IsNaN, Less,
        LessOrEqual, Max, Mean, Min, Mod, Mul, Neg, Pad, Pow, Range, ReduceL1, ReduceL2, ReduceLogSum,
        ReduceLogSumExp, ReduceMax, ReduceMean, ReduceMin, ReduceProd, ReduceSum, ReduceSumSquare, Relu,
        ScatterElements, ScatterND, Shrink, Sign, SpaceToDepth, Sub, Sum, TopK
    """,
    "data: TENSORRT_FLOATS bool int32 int64": """
        Concat, ConstantOfShape, Expand, EyeLike, Flatten, Gather, GatherElements, GatherND, Identity, If, Loop,
        OneHot, Reshape, ReverseSequence, Shape, Size, Slice, Split, Squeeze, Tile, Transpose, Trilu, Unsqueeze,
        Where
    """,
    "data: TENSORRT_FLOATS bool int32 int64 uint8": "Cast, CastLike",
    "data: float16 float double": "DeformConv, GridSample, HardSwish, Mish, NonZero, RoiAlign",  # HardSwish: RTX
    "": "BlackmanWindow, HammingWindow, HannWindow, NonMaxSuppression",
    "data: TENSORRT_FLOATS int32": "TensorScatter",
    "data: float double": "STFT",
    "data: bool": "And, Not, Or, Xor",
    "data: int8": "QuantizeLinear",
}
TENSORRT_LACKS = frozenset(("int16", "uint16", "uint32", "uint64"))  # types that no tensor may have
TENSORRT_REFUSED = frozenset(
    (
        "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
        "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det",
        "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
        "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
        "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
        "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
        "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique",
    )
)  # fmt: skip


# Cases: an operator that is run in general, but not like this


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def lopsided(node: ir.Node) -> str | None:
    pads = attribute(node, "pads", ())
    half = len(pads) // 2
    same = attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return "pads that differ between the two ends" if same or list(pads[:half]) != list(pads[half:]) else None


def last_of_equals(node: ir.Node) -> str | None:
    return "select_last_index" if attribute(node, "select_last_index", 0) else None


def training(node: ir.Node) -> str | None:
    return "training mode" if attribute(node, "training_mode", 0) else None


def not_as_cudnn(node: ir.Node) -> str | None:
    """What cuDNN's recurrent layers do not have."""
    usual = {"RNN": ["tanh"], "GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"]}[node.op_type]
    activations = [name.lower() for name in attribute(node, "activations", ())]
    if any(name in node.attributes for name in ("activation_alpha", "activation_beta", "clip")):
        return "activation_alpha, activation_beta or clip"
    if activations not in ([], usual, usual * 2):
        return f"activations other than {' '.join(usual)}"
    if attribute(node, "input_forget", 0) or given(node, 7) is not None:
        return "input_forget or peepholes"
    if node.op_type == "GRU" and attribute(node, "linear_before_reset", 0) != 1:
        return "linear_before_reset = 0"
    return None


def one_output(node: ir.Node) -> str | None:
    return "outputs beyond the first" if any(y.name for y in list(node.outputs)[1:]) else None


def dilated(node: ir.Node) -> str | None:
    return "dilations" if any(d != 1 for d in attribute(node, "dilations", ())) else None


def spatial(node: ir.Node) -> str | None:
    """RTX: images and volumes, and whatever has one spatial axis as an image of one row."""
    x = given(node, 0)
    return "more than three spatial axes" if x is not None and x.shape is not None and len(x.shape) > 5 else None


def average_pool(node: ir.Node) -> str | None:
    return spatial(node) or dilated(node)


def max_pool(node: ir.Node) -> str | None:
    return spatial(node) or one_output(node) or dilated(node)


def lp_pool(node: ir.Node) -> str | None:
    if attribute(node, "p", 2) not in (1, 2):  # this and the next: RTX
        return "p other than 1 and 2"
    return "one spatial axis" if len(attribute(node, "kernel_shape", ())) == 1 else average_pool(node)


def convolution(node: ir.Node) -> str | None:
    """RTX: a kernel may be computed, but how many channels it has must be known; no cropping by negative pads."""
    kernel = given(node, 1)
    if kernel is not None and kernel.shape is not None and not all(isinstance(d, int) for d in list(kernel.shape)[:2]):
        return "a kernel whose channels are not fixed"
    if node.op_type == "ConvTranspose" and any(pad < 0 for pad in attribute(node, "pads", ())):
        return "negative pads"
    return spatial(node)


def local_response(node: ir.Node) -> str | None:
    """RTX."""
    size, bias, beta = attribute(node, "size", 1), attribute(node, "bias", 1.0), attribute(node, "beta", 0.75)
    x = given(node, 0)
    if size % 2 == 0 or size > 15:
        return "a size that is even or above 15"
    if bias < 1e-5 or beta < 0.01:
        return "a bias below 0.00001 or a beta below 0.01"
    return "a line" if x is not None and x.shape is not None and len(x.shape) == 3 else None


def recurrent(node: ir.Node) -> str | None:
    if "affine" in [name.lower() for name in attribute(node, "activations", ())]:
        return "activation Affine"  # RTX
    if attribute(node, "input_forget", 0):
        return "input_forget"
    return "layout = 1" if node.op_type == "LSTM" and attribute(node, "layout", 0) else None


def slice_(node: ir.Node) -> str | None:
    """RTX: without axes it wants a start for each, where ONNX leaves the last axes whole."""
    x, starts = given(node, 0), given(node, 1)
    if given(node, 3) is not None or x is None or x.shape is None or starts is None or starts.shape is None:
        return None
    fewer = isinstance(starts.shape[0], int) and starts.shape[0] < len(x.shape)
    return "starts for the first axes only, without axes" if fewer else None


def constant(index: int, name: str) -> Case:
    """An input that must be known when the engine is built."""

    def case(node: ir.Node) -> str | None:
        x = given(node, index)
        return f"{name} that are not constant" if x is not None and x.const_value is None else None

    return case


def dropout(node: ir.Node) -> str | None:
    mode = given(node, 2)
    off = mode is None or (mode.const_value is not None and not mode.const_value.numpy().any())
    return None if off else "training mode"


def reduction(node: ir.Node) -> str | None:  # of ScatterElements: RTX
    return None if attribute(node, "reduction", "none") == "none" else "a reduction"


def top_k(node: ir.Node) -> str | None:
    if not attribute(node, "sorted", 1):
        return "sorted = 0"
    k = given(node, 1)
    large = k is not None and k.const_value is not None and k.const_value.numpy() >= 3840
    return "k of 3840 or more" if large else None


def zero_point(node: ir.Node) -> str | None:
    x, zero = given(node, 0), given(node, 2)
    if node.op_type == "DequantizeLinear" and x is not None and x.dtype in (ir.DataType.UINT8, ir.DataType.UINT4):
        return "unsigned integers"
    if zero is None:
        return None
    return "a zero point other than 0" if zero.const_value is None or zero.const_value.numpy().any() else None


def attention(node: ir.Node) -> str | None:
    q = given(node, 0)
    if q is not None and q.shape is not None and len(q.shape) != 4:
        return "queries that are not 4-D"
    if any(given(node, i) is not None for i in (4, 5, 6)):
        return "past keys, past values or lengths"
    if attribute(node, "softcap", 0.0) or "softmax_precision" in node.attributes:  # the latter: RTX
        return "softcap or softmax_precision"
    return one_output(node)


def tensor_scatter(node: ir.Node) -> str | None:
    cache = given(node, 0)
    if cache is not None and cache.shape is not None and len(cache.shape) != 4:
        return "a cache that is not 4-D"
    if attribute(node, "axis", -2) not in (-2, 2):
        return "an axis other than -2"
    return None if attribute(node, "mode", "linear") == "linear" else "a mode other than linear"  # the latter: RTX


RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")


def resize(node: ir.Node) -> str | None:
    """The page does not list mode cubic, which the parser takes (RTX)."""
    if attribute(node, "antialias", 0):
        return "antialias"
    if attribute(node, "coordinate_transformation_mode", "half_pixel") not in RESIZE_COORDINATES:
        return f"coordinates {attribute(node, 'coordinate_transformation_mode')}"
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "an aspect ratio that is kept"
    scales, x = given(node, 2), given(node, 0)
    axes = attribute(node, "axes")
    some = axes is not None and (x is None or x.shape is None or len(axes) != len(x.shape))
    if scales is not None and some:
        return "scales of some axes only"
    free = x is not None and x.shape is not None and not x.shape.is_static()
    if some and free and attribute(node, "coordinate_transformation_mode") in ("asymmetric", "align_corners"):  # RTX
        return "asymmetric or align_corners with sizes of some axes of an input whose shape is not fixed"
    return constant(2, "scales")(node)


def vector_left(node: ir.Node) -> str | None:
    """RTX: it makes a stack of matrices of the vector, and cannot undo that."""
    a, b = (x.shape if x is not None and x.shape is not None and x.shape.is_static() else () for x in node.inputs)
    return "a vector times a stack of matrices" if len(a) == 1 and len(b) > 2 else None


CUDA_CASES: dict[str, Case] = {
    "ArgMax": last_of_equals,
    "ArgMin": last_of_equals,
    "BatchNormalization": training,
    "ConvTranspose": lopsided,
    "GRU": not_as_cudnn,
    "LSTM": not_as_cudnn,
    "RNN": not_as_cudnn,
}
TENSORRT_CASES: dict[str, Case] = {
    "Attention": attention,
    "AveragePool": average_pool,
    "BatchNormalization": training,
    "Conv": convolution,
    "ConvTranspose": convolution,
    "CumSum": constant(1, "axes"),
    "DequantizeLinear": zero_point,
    "Dropout": dropout,
    "GRU": recurrent,
    "LRN": local_response,
    "LSTM": recurrent,
    "LayerNormalization": one_output,
    "LpPool": lp_pool,
    "MatMul": vector_left,
    "MaxPool": max_pool,
    "OneHot": constant(1, "depths"),
    "QuantizeLinear": zero_point,
    "RNN": recurrent,
    "Resize": resize,
    "ScatterElements": reduction,
    "ScatterND": reduction,
    "STFT": constant(2, "windows"),
    "Slice": slice_,
    "Squeeze": constant(1, "axes"),
    "TensorScatter": tensor_scatter,
    "TopK": top_k,
    "Unsqueeze": constant(1, "axes"),
    **{f"Reduce{name}": constant(1, "axes") for name in
       ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}  # fmt: skip


# Reading the tables


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a runtime has for some versions of an operator: the types that each type parameter may be."""

    first: int
    last: int
    types: Mapping[str, frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that is known of a runtime. `opset`: the newest one that it was made for."""

    name: str
    rows: Mapping[str, Sequence[Row]]
    cases: Mapping[str, Case]
    opset: int
    refused: frozenset[str] | None  # operators without a row are refused if listed here; all of them, if None
    expanded: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()  # types


def parse(rows: Mapping[str, str]) -> dict[str, list[Row]]:
    """The rows by operator."""
    found: dict[str, list[Row]] = {}
    for signature, operators in rows.items():
        types = {}
        for part in filter(None, signature.split("; ")):
            parameter, names = part.split(": ")
            types[parameter] = frozenset(" ".join(ALIASES.get(name, name) for name in names.split()).split())
        for entry in operators.replace("\n", " ").split(","):
            op_type, *versions = entry.split()
            first, _, last = (versions or ["0-999"])[0].partition("-")
            found.setdefault(op_type, []).append(Row(first=int(first), last=int(last or first), types=types))
    return found


TABLES: dict[Runtime, Table] = {
    "cuda": Table(
        name="the CUDA provider",
        rows=parse(CUDA_ROWS),
        cases=CUDA_CASES,
        opset=CUDA_OPSET,
        refused=None,
        expanded=CUDA_EXPANDED,
    ),
    "tensorrt": Table(
        name="TensorRT",
        rows=parse(TENSORRT_ROWS),
        cases=TENSORRT_CASES,
        opset=TENSORRT_OPSET,
        refused=TENSORRT_REFUSED,
        lacks=TENSORRT_LACKS,
    ),
}


@dataclass(frozen=True)
class Unsupported:
    """A node that a runtime would not run on its device, or that is not known to be run, and why."""

    node: str
    op: str
    why: str


@dataclass(frozen=True)
class Note:
    """The same for all nodes of an operator in one half of a gradient model: how many there are, and the first."""

    half: Half
    op: str
    count: int
    first: str
    why: str


def unsupported(model: ir.Model | ir.Graph, runtime: Runtime) -> list[Unsupported]:
    """The nodes that a runtime would leave to the CPU ("cuda") or refuse ("tensorrt"), branches and bodies included.

    Types are looked at where they are known, so shapes should have been inferred.
    """
    return [Unsupported(label(node), kind(node), why) for _, node, why in complaints(graph_of(model), TABLES[runtime])]


def notes(model: ir.Model | ir.Graph, runtime: Runtime, forward: str | None = None) -> list[Note]:
    """What `unsupported` finds, by half and operator. `forward` names the output that the forward half is for."""
    graph = graph_of(model)
    ends = [y for y in graph.outputs if y.name == forward] or list(graph.outputs)
    needed = set(ends)
    for node in reversed(graph):
        if any(y in needed for y in node.outputs):
            needed.update(reads(node))
    found: dict[tuple[Half, str, str], list[str]] = {}
    for outer, node, why in complaints(graph, TABLES[runtime]):
        half: Half = "forward" if any(y in needed for y in outer.outputs) else "backward"
        found.setdefault((half, kind(node), why), []).append(label(node))
    return [Note(half, op, len(nodes), nodes[0], why) for (half, op, why), nodes in found.items()]


def graph_of(model: ir.Model | ir.Graph) -> ir.Graph:
    return model.graph if isinstance(model, ir.Model) else model


def complaints(graph: ir.Graph, table: Table) -> Iterator[tuple[ir.Node, ir.Node, str]]:
    """Each node of the graph, itself or with one inside it, and why the latter is not run."""
    opset = graph.opset_imports.get("", 1)
    for outer in graph:
        for node in (outer, *(child for inner in subgraphs(outer) for child in inner.all_nodes())):
            why = complaint(node, opset, table)
            if why is not None:
                yield outer, node, why


def complaint(node: ir.Node, opset: int, table: Table) -> str | None:
    """Why a node is not run, or not known to be run; None if it is."""
    if node.domain == "ai.onnx.ml" and node.op_type != "LabelEncoder":  # of which some versions and types are there
        return f"{table.name} does not have it"
    schema = schema_of(node.op_type, opset) if not node.domain else None
    if schema is None:
        return "not known: it is no operator of ONNX"
    if opset < OLDEST:
        return f"not known: the table begins at opset {OLDEST}, and the model has {opset}"
    version = schema.since_version
    if node.op_type in table.expanded or node.op_type == "Constant":
        return None
    if version > table.opset:
        return f"not known: version {version} is newer than the table, which ends at opset {table.opset}"
    rows = table.rows.get(node.op_type)
    if rows is None:
        known = table.refused is None or node.op_type in table.refused
        return f"{table.name} does not have it" if known else "not known: the table does not have it"
    row = next((row for row in rows if row.first <= version <= row.last), None)
    if row is None:
        return f"{table.name} has it up to version {rows[-1].last} only, and opset {opset} has version {version}"
    case = table.cases.get(node.op_type)
    return wrong_type(node, version, row, table) or (case(node) if case is not None else None)


def wrong_type(node: ir.Node, version: int, row: Row, table: Table) -> str | None:
    """The first type of an input or output that the runtime does not take there."""
    for parameter, value in typed(node, version):
        allowed = row.types.get(parameter)
        if allowed is None and "data" in row.types and parameter == data_parameter(node.op_type, version):
            allowed = row.types["data"]
        name = value.dtype.name.lower() if value is not None and value.dtype is not None else None
        if name is not None and name not in TYPES:
            return f"not known: the table does not have the type {name}"
        if name in table.lacks or (name is not None and allowed is not None and name not in allowed):
            return f"{table.name} does not have it for {name}"
    return None


def typed(node: ir.Node, version: int) -> Iterator[tuple[str, ir.Value | None]]:
    """The inputs and outputs of a node, each with its type parameter in the schema; the last may stand for many."""
    for formal, actual in zip(parameters(node.op_type, version), (node.inputs, node.outputs), strict=True):
        for i, value in enumerate(actual):
            if formal:
                yield formal[min(i, len(formal) - 1)], value


@cache
def parameters(op_type: str, version: int) -> tuple[list[str], list[str]]:
    """The type parameters of an operator's inputs, and of its outputs."""
    schema = onnx.defs.get_schema(op_type, version, "")
    return [x.type_str for x in schema.inputs], [y.type_str for y in schema.outputs]


def data_parameter(op_type: str, version: int) -> str:
    inputs, outputs = parameters(op_type, version)
    return outputs[0] if outputs[0] in inputs or not inputs or op_type == "QuantizeLinear" else inputs[0]


@cache
def schema_of(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
