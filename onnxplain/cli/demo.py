"""`onnxplain demo`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from onnxplain.cli import options
from onnxplain.cli.collect import Observe, collect
from onnxplain.cli.tables import METRICS, SHORT, as_text, wide
from onnxplain.cli.terminal import result, terminal

if TYPE_CHECKING:
    from onnxplain.engine.drive import Outcome
    from onnxplain.engine.explanation import Explanation
    from onnxplain.files import Scored

PROTOCOLS = ("rise", "agi_isa")
STEP = 896  # pixels; a quarter of the frames of the protocols' own 224, so that the demo fits into two minutes
EXPLAINED = {
    "method": "method",
    "value": "value",
    "completeness_gap": "gap",
    "heatmap": "heatmap",
    "overlay": "overlay",
}
NEXT = """
next, with photos and a model of your own in place of these:
  onnxplain inspect {model}
  onnxplain explain {model} {photo} --method saliency -o {output}
  onnxplain score {model} {output}/*.npz --protocol rise"""


@options.command("demo")
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    default="demo-out",
    show_default=True,
    metavar="DIR",
    help="The folder for the results.",
)
@options.batch_size
@options.threads
@options.overwrite
def command(output: Path, batch_size: int, threads: int, overwrite: bool) -> int:
    """Explain a photo of Grace Hopper with three methods, and score them. Needs no network; takes a minute or two.

    The classifier is EfficientNet-Lite0. It is written to DIR, to go on with: explain a photo of your own.

    \b
    Example:
      onnxplain demo -o demo-out
    """
    from onnx_ir import from_proto

    from onnxplain.adapters.gradient.write import write_model
    from onnxplain.engine.atomic import refuse_existing, writable_folder, write_atomically
    from onnxplain.engine.methods import ISA, CrediblePath, IntegratedGradients, Method
    from onnxplain.engine.metrics import InsertionDeletion, Protocol
    from onnxplain.engine.metrics.plot import plot_curves
    from onnxplain.engine.requests import Kind
    from onnxplain.explainer import open
    from onnxplain.files import explain_photos, plan_results, score_heatmaps, summary
    from onnxplain.models.demo import demo_model, demo_photo

    methods: list[Method] = [ISA(), CrediblePath(baseline_objective=Kind.LOGIT_L2), IntegratedGradients(steps=200)]
    metrics = [InsertionDeletion(Protocol.named(name, STEP)) for name in PROTOCOLS]
    photo, model, curves = output / demo_photo().name, output / "efficientnet_lite0.onnx", output / "curves.png"
    results = list(plan_results([photo], [method.id for method in methods], output, overwrite=overwrite).values())
    refuse_existing([photo, model, curves], overwrite=overwrite)
    classifier = demo_model()
    writable_folder(output)
    write_atomically(photo, demo_photo().read_bytes(), overwrite=overwrite)
    write_model(from_proto(classifier), model, overwrite=overwrite)

    with open(model, batch_size=batch_size, threads=threads) as explainer:

        def take(at: int, explanation: Explanation) -> list[dict[str, Any]]:
            heatmap, overlay = results[at]
            explanation.save(heatmap, overwrite=overwrite)
            explanation.save_overlay(overlay, overwrite=overwrite)
            return [summary(explanation, explainer.labels) | {"heatmap": str(heatmap), "overlay": str(overlay)}]

        def explain(observe: Observe) -> Iterator[Outcome[Explanation]]:
            return explain_photos(explainer, [photo], methods, observe=observe)

        def score(observe: Observe) -> Iterator[Outcome[Scored]]:
            return score_heatmaps(explainer, [heatmap for heatmap, _ in results], metrics, observe=observe)

        shape, usage = explainer.forward.image_shape, explainer.usage
        ids = [method.id for method in methods]
        made = collect("explaining", explain, take, names=ids, costs=[m.rows(shape) for m in methods], usage=usage)
        if made.exit_code:
            return made.exit_code
        names = [id for id in ids for _ in metrics]
        costs = [metric.rows(*shape[1:]) for metric in metrics]
        scored = collect("scoring", score, lambda _, scored: scored.rows, names=names, costs=costs, usage=usage)
    if scored.exit_code:
        return scored.exit_code
    plot_curves(scored.rows, curves, title=f"{photo.name}, {model.stem}", overwrite=overwrite)

    first = made.rows[0]
    by_protocol = sorted(wide(scored.rows), key=lambda row: PROTOCOLS.index(row["protocol"].partition("(")[0]))
    result(f"{photo}: class {first['target']} ({first['label']}), probability {first['probability']:.3f}\n")
    result(as_text(made.rows, EXPLAINED) + "\n")
    result(as_text(by_protocol, SHORT | METRICS) + "\n")
    result(f"higher is better, but for deletion lower; curves: {curves}; credible: its baselines by logit_l2")
    terminal().say(NEXT.format(model=model, photo=photo, output=output))
    return 0
