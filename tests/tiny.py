"""A tiny classifier, photos, and a way to run commands: milliseconds each."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxplain.cli.main import cli

SPEC = {
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "do_flip_channel_order": True,
}
FAST = ("--method", "ig", "--set", "steps=4")


def classifier(
    *,
    size: int = 8,
    inputs: int = 1,
    extra: Sequence[str] = (),
    softmax: bool = False,
    outputs: int = 1,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """conv, relu, gemm; with operators `extra`, of a domain that nobody knows, before the gemm."""
    draw = np.random.default_rng(0)
    features = 4 * size * size
    constants = [
        numpy_helper.from_array(draw.normal(size=(4, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array((draw.normal(size=(5, features)) / 10).astype(np.float32), "f"),
    ]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b0"])]
    for i, op in enumerate(extra):
        nodes.append(helper.make_node(op, [f"b{i}"], [f"b{i + 1}"], name=f"odd{i}", domain="com.example"))
    nodes.append(helper.make_node("Flatten", [f"b{len(extra)}"], ["c"]))
    nodes.append(helper.make_node("Gemm", ["c", "f"], ["logits"], transB=1))
    names = ["logits"]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
        names = ["p"]
    if dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [names[0]], ["whole"], to=dtype))
        names = ["whole"]
    for i in range(outputs - 1):
        nodes.append(helper.make_node("Tanh", ["logits"], [f"more{i}"]))
        names.append(f"more{i}")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, size, size]) for n in ("x", "y", "z")[:inputs]],
        [
            helper.make_tensor_value_info(n, dtype if i == 0 else TensorProto.FLOAT, ["N", 5])
            for i, n in enumerate(names)
        ],
        constants,
        value_info=[
            helper.make_tensor_value_info(f"b{i + 1}", TensorProto.FLOAT, ["N", 4, size, size])
            for i in range(len(extra))
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)], ir_version=8
    )


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG whose header states a size that its content does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))
    return path


@dataclass
class Place:
    """A folder with a model, its preprocessing and photos."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "m.onnx"

    @property
    def photos(self) -> list[Path]:
        return sorted((self.root / "photos").iterdir())

    @property
    def out(self) -> Path:
        return self.root / "out"

    def add_photo(self, name: str, seed: int = 0) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def add_model(self, name: str, model: onnx.ModelProto, spec: object = SPEC) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        if spec is not None:
            (self.root / f"{path.stem}.preprocessor_config.json").write_text(json.dumps(spec))
        return path

    def files(self) -> dict[str, bytes]:
        """Everything there is, to see that nothing changed."""
        return {str(p.relative_to(self.root)): p.read_bytes() for p in sorted(self.root.rglob("*")) if p.is_file()}

    def explained(self) -> list[Path]:
        """Heatmap files of the photos, made once a test."""
        if not self.out.exists():
            assert run("explain", self.model, *self.photos, *FAST, "-o", self.out).exit_code == 0
        return sorted(self.out.glob("*.npz"))


def run(*args: object) -> Result:
    """Run a command in this process; an exception that escapes fails the test."""
    return CliRunner(catch_exceptions=False).invoke(
        cli, [os.fspath(a) if isinstance(a, Path) else str(a) for a in args]
    )


def complain(result: Result, code: int, *words: str, lines: int = 1) -> str:
    """What was said on stderr, if it is that failure: its code, its words, its number of lines, and no traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert "internal error" not in result.output
    for word in words:
        assert word in result.stderr
    assert len(result.stderr.splitlines()) == lines, result.stderr
    return result.stderr
