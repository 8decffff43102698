"""Options that several commands share, each in one wording."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
from click.core import ParameterSource

from onnxplain.cli.terminal import terminal

F = TypeVar("F", bound=Callable[..., Any])

# Spelt out, since asking the engine would import it; a test holds them against it.
METHODS = (
    "isa, isa-repo, isa-table1, credible, agi, agi-repo, big, big-reference, big-isa, ig, ig-average, "
    "ig-gaussian, eg, gig, gig-isa, fig, fig-isa, blur-ig, saliency, saliency-isa, smoothgrad, "
    "smoothgrad-squared, vargrad, smoothgrad-pair, smoothgrad-captum, gradient-x-input, deeplift, rise, "
    "rise-repo, occlusion, lime, lime-repo, kernel-shap, grad-cam, layer-cam, hires-cam, score-cam, "
    "score-cam-repo, fullgrad, fullgrad-repo"
)
METRICS = "insertion-deletion, sensitivity-n, diffid"
PROTOCOLS = "rise, agi_isa, agi_isa-union, cpa"
REDUCTIONS = ("sum", "abs_sum", "max_abs")

FILE = click.Path(path_type=Path)


def command(name: str) -> Callable[[Callable[..., Any]], click.RichCommand]:
    """A command with the options that all commands have, listed last."""

    def decorate(function: Callable[..., Any]) -> click.RichCommand:
        settings = {"help_option_names": ["-h", "--help"]}
        made: click.RichCommand = click.command(name, context_settings=settings)(terminal_options(function))
        made.params.sort(key=lambda parameter: not parameter.expose_value)
        return made

    return decorate


def terminal_flag(*names: str, attribute: str, worth: int | None = None, help: str) -> Callable[[F], F]:
    """A flag that goes to the terminal and not to the command: `attribute` becomes `worth`, or the flag's own value."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if ctx.get_parameter_source(str(parameter.name)) is not ParameterSource.DEFAULT:
            setattr(terminal(), attribute, value if worth is None else worth)

    return click.option(*names, is_flag=True, default=None, expose_value=False, callback=callback, help=help)


def terminal_options(function: F) -> F:
    """`-v`, `-q`, `--progress`, `--traceback`."""
    for flag in (
        terminal_flag("--traceback", attribute="traceback", help="Show where in the program an error came from."),
        terminal_flag(
            "--progress/--no-progress",
            attribute="progress",
            help="Show a progress bar, or none. [default: if stderr is a terminal]",
        ),
        terminal_flag("-q", "--quiet", attribute="verbosity", worth=-1, help="Say errors and warnings only."),
        terminal_flag("-v", "--verbose", attribute="verbosity", worth=1, help="Say more."),
    ):
        function = flag(function)
    return function


model = click.argument("model", type=FILE, metavar="MODEL", help="An .onnx file: a classifier or a gradient model.")
preprocess = click.option(
    "--preprocess",
    metavar="FILE|none",
    help="The classifier's preprocessor_config.json (or timm config.json); none: its input is taken as it is. "
    "[default: looked for beside the model and in its metadata]",
)
output_name = click.option("--output-name", metavar="NAME", help="The output with the logits, where there are several.")
head = click.option(
    "--head",
    type=click.Choice(("softmax", "sigmoid")),
    help="What makes probabilities of logits: classes that exclude one another, or labels that do not. "
    "[default: as the model ends; sigmoid for one output, else softmax]",
)


def sizes(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers with commas between them."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"expected whole numbers with commas between, such as 3,224,224, got {text!r}"
        ) from None


input_shape = click.option(
    "--input-shape",
    metavar="C,H,W",
    callback=sizes,
    help="The sizes of an image that the model leaves open and no preprocessing says; H,W,C for channels last.",
)
layers = click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME|auto",
    help="An inner value, or the node that makes it, that methods such as grad-cam look at; may be repeated.",
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace results that are there already.")
on_unsupported = click.option(
    "--on-unsupported",
    type=click.Choice(("error", "stop-gradient")),
    default="error",
    show_default=True,
    help="What an operator without a gradient is: an error, or an end of the gradient, which then is not the model's.",
)
on = click.option(
    "--on",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="Runtime and device: cpu, cuda[:N], tensorrt[:N], tensorrt-rtx[:N], openvino, or a provider of ONNX Runtime.",
)
precision = click.option(
    "--precision",
    type=click.Choice(("fp32", "tf32", "fp16", "bf16")),
    help="What the model is computed in; images, logits and gradients are float32 in all of them. "
    "[default: fp32, or what the gradient model was written in]",
)
provider_options = click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    metavar="K=V",
    help="An option of the runtime or its provider, by its name there; may be repeated.",
)
cache = click.option(
    "--cache",
    metavar="DIR|none",
    help="Where engines and batch sizes are kept. [default: the platform's cache folder]",
)
threads = click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    show_default=True,
    help="Threads of the runtime; 0: it decides.",
)


class BatchSize(click.ParamType[int | str]):
    """A number of samples, or `auto`."""

    name = "batch size"

    def convert(self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if text == "auto":
            return text
        if not (re.fullmatch("[0-9]{1,5}", text) and 1 <= int(text) <= 65536):
            self.fail(f"expected a whole number from 1 to 65536, or auto, got {text[:20]!r}", parameter, ctx)
        return int(text)


batch_size = click.option(
    "-b",
    "--batch-size",
    type=BatchSize(),
    default=8,
    show_default=True,
    metavar="INT|auto",
    help="Samples in one call of the runtime; auto: as many as is fastest here, which is tried once.",
)
reduce = click.option(
    "--reduce",
    type=click.Choice(REDUCTIONS),
    default="sum",
    show_default=True,
    help="How the channels of a map become one number a pixel.",
)


def format(*formats: str) -> Callable[[F], F]:
    """`--format`, of those that a command prints."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How results are printed on stdout.",
    )


def opening(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model is opened; the command gets them as `opening`, the arguments of `open`."""

    @wraps(function)
    def command(
        *, preprocess: str | None, output_name: str | None, head: str | None, input_shape: tuple[int, ...] | None,
        **others: Any,
    ) -> Any:  # fmt: skip
        how = {"preprocess": preprocess_of(preprocess), "output": output_name, "head": head, "input_shape": input_shape}
        return function(opening=others.pop("running") | how, **others)

    made: Callable[..., Any] = running(command)
    for option in (input_shape, head, output_name, preprocess):  # the last one is listed first
        made = option(made)
    return made


def running(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model is run; the command gets them as `running`, arguments of `open`."""

    @wraps(function)
    def command(
        *, on: str, precision: str | None, batch_size: int | str, threads: int, provider_options: tuple[str, ...],
        cache: str | None, **others: Any,
    ) -> Any:  # fmt: skip
        how: dict[str, Any] = {"on": on, "precision": precision, "batch_size": batch_size, "threads": threads}
        how |= {"provider_options": pairs(provider_options), "cache": {None: "auto", "none": None}.get(cache, cache)}
        return function(running=how, **others)

    for option in (cache, provider_options, threads, batch_size, precision, on):  # the last one is listed first
        command = option(command)
    return command


def pairs(settings: Sequence[str]) -> dict[str, str]:
    """`K=V`, one or several."""
    parts = [setting.partition("=") for setting in settings]
    if wrong := [setting for setting, (name, equals, _) in zip(settings, parts, strict=True) if not name or not equals]:
        raise click.BadParameter(f"expected K=V, got {wrong[0]!r}", param_hint="--provider-option")
    return {name: value for name, _, value in parts}


@contextmanager
def warnings_said() -> Iterator[None]:
    """Say warnings of a gradient that stops, one line each; they are said even if the terminal is to be quiet."""
    from onnxplain.errors import PartialGradientWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PartialGradientWarning)
        yield
    for warning in caught:
        terminal().say(f"warning: {warning.message}", -1)


def preprocess_of(text: str | None) -> str | None:
    """The option `--preprocess` as `onnxplain.open` takes it."""
    return {None: "auto", "none": None}.get(text, text)


def settings_of(ids: Sequence[str], settings: Sequence[str], what: str) -> dict[str, dict[str, str]]:
    """`K=V` and `ID.K=V` by the ids of methods or metrics; `what` says which."""
    given: dict[str, dict[str, str]] = {id: {} for id in ids}
    for setting in settings:
        name, equals, value = setting.partition("=")
        id, dot, key = name.rpartition(".")
        if not equals or (dot and id not in given) or (not dot and len(given) > 1):
            raise click.BadParameter(
                f"expected {f'{what.upper()}.' * (len(given) > 1)}K=V ({what}s: {', '.join(given)}), got {setting!r}",
                param_hint="--set",
            )
        given[id if dot else ids[0]][key] = value
    return given
