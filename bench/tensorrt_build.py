"""Whether TensorRT builds an engine of a gradient model, and what that takes: ahead of time, so without a GPU.

    python bench/tensorrt_build.py ../shared/data/*/models/*.onnx     # needs tensorrt-rtx-cu13, nothing else of NVIDIA
    python bench/tensorrt_build.py --as-is STEP.onnx                  # a model as it is, gradient or step graph

One JSON line for each model: nodes of the classifier and of what is built, seconds to differentiate, to parse and to
build, bytes of the engine, peak memory of the process in MB; or `refused`. Each model has a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import onnx

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.engine.executors.tensorrt_build import Library, Recipe, configured, network_flags, parse
from onnxplain.errors import OnnxplainError


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--capability", default="8.9", show_default=True, help="The GPU's compute capability.")
@click.option("--batch-size", default=32, show_default=True, help="The most rows.")
@click.option("--forward", is_flag=True, help="Only the forward half.")
@click.option("--as-is", is_flag=True, help="The files themselves, not their gradient models.")
@click.option("--one", is_flag=True, hidden=True)
def main(files: tuple[Path, ...], capability: str, batch_size: int, forward: bool, as_is: bool, one: bool) -> None:
    kind = "as-is" if as_is else "forward" if forward else "gradient"
    if one:
        print(json.dumps(found(files[0], kind, capability, batch_size)))
        return
    options = ["--capability", capability, "--batch-size", str(batch_size), "--one"]
    options += ["--forward"] * forward + ["--as-is"] * as_is
    for file in files:
        process = subprocess.run([sys.executable, __file__, str(file), *options], stdout=subprocess.PIPE, text=True)
        crashed = json.dumps({"model": file.stem, "refused": f"exit code {process.returncode}"})
        print(process.stdout.strip() if process.returncode == 0 else crashed, flush=True)


def found(file: Path, kind: str, capability: str, most_rows: int) -> dict[str, Any]:
    """What one model takes."""
    trt = Library("tensorrt-rtx")
    line: dict[str, Any] = {"model": file.stem, "what": kind, "tensorrt_rtx": trt.version, "rows": most_rows}
    start = time.perf_counter()
    try:
        model = made(file, kind)
        line |= {"classifier_nodes": len(onnx.load(file, load_external_data=False).graph.node)}
        line |= {"nodes": len(model.graph.node), "seconds": round(time.perf_counter() - start, 2)}
        line |= built(trt, model.SerializeToString(), Recipe(most_rows=most_rows, tf32=False, target=capability))
    except OnnxplainError as error:
        line |= {"refused": str(error).splitlines()}
    return line | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def made(file: Path, kind: str) -> onnx.ModelProto:
    """What is built of a file."""
    if kind == "as-is":
        return onnx.load(file)
    gradient = gradient_model(file, preprocess=None)
    return forward_model(gradient) if kind == "forward" else gradient


def built(trt: Library, model: bytes, recipe: Recipe) -> dict[str, Any]:
    """As `tensorrt_build.build` does it, with a clock between."""
    start = time.perf_counter()
    builder = trt.make("Builder")
    network = builder.create_network(network_flags(trt))
    parser = parse(trt, network, model, None)
    parsed = time.perf_counter()
    config = configured(trt, builder, network, recipe)
    engine = trt.need(builder.build_serialized_network(network, config), "build an engine")
    done = time.perf_counter()
    del parser  # it owns the weights
    seconds = {"parse_seconds": round(parsed - start, 2), "build_seconds": round(done - parsed, 2)}
    return {**seconds, "layers": network.num_layers, "engine_bytes": engine.nbytes}


if __name__ == "__main__":
    main()
