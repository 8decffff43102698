"""What writing the gradient model of a large classifier costs: seconds, and memory beyond what the process had before.

    python bench/large.py FOLDER                # needs 10 GB there: 3.2 GB of weights, and twice that written

Memory is counted twice: `anonymous`, which is the process's own, and `resident`, which holds the pages of mapped files
too; those are the system's to take back.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

import onnxplain as ox

WIDTH, LAYERS = 8192, 12


def memory() -> dict[str, int]:
    """Of this process, in MiB."""
    names = {"RssAnon": "anonymous", "VmRSS": "resident"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {names[name[:-1]]: int(rest[0]) // 1024 for name, *rest in lines if name[:-1] in names}


def write_classifier(path: Path) -> int:
    """A chain of matrix products with its weights in a file beside it; their bytes."""
    shapes = [(3 * 32 * 32, WIDTH), *[(WIDTH, WIDTH)] * LAYERS, (WIDTH, 10)]
    row = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32) / 100
    weights, offset = [], 0
    with path.with_suffix(".data").open("wb") as file:
        for i, (rows, columns) in enumerate(shapes):
            size = 4 * rows * columns
            tensor = onnx.TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=(rows, columns))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": path.stem + ".data", "offset": str(offset), "length": str(size)}.items():
                tensor.external_data.add(key=key, value=value)
            for k in range(rows):
                file.write(np.roll(row, k)[:columns].tobytes())
            weights.append(tensor)
            offset += size
    nodes, value = [helper.make_node("Flatten", ["x"], ["h"])], "h"
    for i in range(len(shapes)):
        last = i == len(shapes) - 1
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], ["logits" if last else f"m{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [value := f"h{i}"]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "large", [image], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return offset


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    source = folder / "large.onnx"
    size = write_classifier(source)
    write, before = ox.write_gradient_model, memory()
    peak = dict(before)

    def watch() -> None:
        while True:
            peak.update({name: max(peak[name], value) for name, value in memory().items()})
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    done = write(source, folder / "large.grad.onnx", preprocess=None, verify=False, overwrite=True)
    click.echo(
        json.dumps(
            {
                "weights_gb": size / 1e9,
                "written_gb": done.files[0].bytes / 1e9,
                "seconds": time.perf_counter() - start,
                "mib_beyond_before": {name: peak[name] - before[name] for name in peak},
            }
        )
    )


if __name__ == "__main__":
    main()
