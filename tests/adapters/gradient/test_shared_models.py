"""Real classifiers, where they are at hand: `../shared/data` beside the repository.

They have no twin in another framework, so each is held against its own forward values: <Jᵀ t, v> = <t, J v>, J v being
a difference of logits. The classifiers with kinks are held to it at a step so small that few are crossed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.differentiate import coverage
from onnxplain.adapters.gradient.registry import ALLOWED
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.requests import Kind
from onnxplain.models.preprocess import PreprocessSpec, load_image, normalise, to_input

DATA = Path(__file__).parents[4] / "shared" / "data"
LENGTH = 3e-4  # of the step in pixel space, over all pixels together
MODELS = [
    *("imagenet/models/efficientnet_lite0", "imagenet/models/mobilenet_v2_1.0_224"),
    *("imagenet/models/squeezenet1_1_caffe", "imagenet/models/mobilenet_v1_0.25_128"),
    *(
        "cifar10/models/resnet20_cifar10",
        "cifar10/models/resnet56_cifar10",
        "cifar10/models/resnet8_mlperftiny_cifar10",
    ),
    *("cifar10/models/resnet_large_mlperftiny_cifar10", "cifar10/models/tiniest_cifar10"),
    "cifar10/models/vggstyle_cnn_cifar10",
]


def at_hand(name: str) -> Path:
    path = DATA / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand (../shared/data)")
    return path


def photos(name: str) -> tuple[PreprocessSpec, np.ndarray]:
    """Two photos as the gradient model takes them: RGB in [0,1]."""
    spec = PreprocessSpec.from_json_file(DATA / f"{name}.preprocessor_config.json")
    folder = DATA / ("imagenet/images/nips17_100" if name.startswith("imagenet") else "cifar10/images/test100")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))[:2]
    return spec, np.stack([to_input(load_image(file, spec)) for file in files])


def feeds(x: np.ndarray, t: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "input": x,
        "onnxplain_target": t.astype(x.dtype),
        "onnxplain_objective": np.full(len(x), Kind.LOGIT, np.int64),
    }


@pytest.mark.parametrize("name", MODELS, ids=lambda name: name.split("/")[-1])
def test_the_gradient_predicts_the_change_of_the_logits(name: str) -> None:
    """Along its own direction, for the predicted class of two photos, logits in float32.

    Along the gradient the change is as large as it can be, 1e-3 of a logit and more, so that float32 (1e-5 of 10) is a
    per cent of it at the worst. What remains are curvature, kinks that the step crosses, and ties: in saturated areas
    of a photo equal neighbours stand in one pooling window (1 % in SqueezeNet at any step). 3 % covers these.
    """
    path = at_hand(name)
    spec, x = photos(name)
    graph = gradient_model(path, preprocess=spec)
    assert {node.op_type for node in graph.graph.node} <= ALLOWED | {n.op_type for n in onnx.load(path).graph.node}
    assert coverage(path).complete
    backward = OnnxRuntimeExecutor(graph, optimise=False)
    plain = OnnxRuntimeExecutor(onnx.load(path), optimise=False)
    logits = plain({"input": normalise(x, spec)})["logits"]
    t = np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(1)]
    out = backward(feeds(x, t))
    np.testing.assert_array_equal(out["logits"], logits)
    gradient = out["gradient"]
    assert np.isfinite(gradient).all()
    size = np.sqrt((gradient.astype(np.float64) ** 2).sum((1, 2, 3)))
    assert (size > 0).all()
    wide = gradient.astype(np.float64)
    step = LENGTH * wide / size[:, None, None, None]
    up, down = (x + step).astype(np.float32), (x - step).astype(np.float32)
    change = backward(feeds(up, t))["value"].astype(np.float64) - backward(feeds(down, t))["value"]
    np.testing.assert_allclose(change, (wide * (up.astype(np.float64) - down)).sum((1, 2, 3)), rtol=0.03)


def test_a_smooth_classifier_obeys_the_adjoint_law_in_float64() -> None:
    """tiniest_cifar10 has no kinks: five-point stencil along a random direction.

    Constants that the rules emitted (shares of a mean, say) were rounded to float32 before the graph was made float64:
    6e-8 of each term. The stencil adds h^4/30 f^(5), which at h = 1e-5 is nothing beside that.
    """
    model = onnx.load(at_hand("cifar10/models/tiniest_cifar10"))
    _, x = photos("cifar10/models/tiniest_cifar10")
    backward = ReferenceExecutor(in_float64(gradient_model(model)))
    rng = np.random.default_rng(0)
    x, t, h = x[:1].astype(np.float64), rng.normal(size=(1, 10)), 1e-5
    v = rng.choice([-1.0, 1.0], x.shape)
    a, b, c, d = (float(backward(feeds(x + k * h * v, t))["value"][0]) for k in (-2, -1, 1, 2))
    terms = backward(feeds(x, t))["gradient"] * v
    assert abs((a - 8 * b + 8 * c - d) / (12 * h) - terms.sum()) < 6e-8 * np.abs(terms).sum()


def in_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every float32 tensor in float64, the target input too."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    for tensor in out.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*out.graph.input, *out.graph.output, *out.graph.value_info):
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.FLOAT:
            kind.elem_type = onnx.TensorProto.DOUBLE
    for node in out.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.DOUBLE
    return out
