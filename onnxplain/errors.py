"""Every error that onnxplain raises on purpose.

    OnnxplainError
    ├─ ModelError              the given model
    │  ├─ InvalidModel             unreadable, corrupt, or not an image classifier
    │  ├─ NotDifferentiable        operators without a gradient rule; `.gaps` lists them all
    │  └─ ExportError              a framework's model that cannot be converted, or whose export differs from it
    ├─ ExecutionError
    │  ├─ BackendMissing           a runtime or package is not installed; `.extra` (also ImportError)
    │  ├─ FeedMismatch             an array does not fit an input (also ValueError)
    │  ├─ BackendFailed            the runtime itself failed; its own error is `__cause__`
    │  │  ├─ DeviceMissing            no such device, or a driver or library that does not fit
    │  │  └─ OutOfMemory              the device has too little memory for this batch
    │  └─ NonFinite                NaN or Inf where a number must be
    ├─ DownloadError           no network, or not the file that it has to be
    ├─ InputError              a file given to us: a photo, a heatmap, a preprocessing spec, weights
    │  └─ MissingFile              one that is not there, models among them
    ├─ OutputError             a file or folder that we cannot write, or that is already there
    └─ UsageError              arguments that are out of range or do not go together (also ValueError)

A message says what failed, where, why (expected and got), and what to do next.
`exit_code` is what the command line ends with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class OnnxplainError(Exception):
    """Base of every error that onnxplain raises on purpose."""

    exit_code = 1


class ModelError(OnnxplainError):
    """Something is wrong with the given model."""

    exit_code = 5


class InvalidModel(ModelError):
    """The model cannot be read, or is not a classifier of images."""


class ExportError(ModelError):
    """A framework's model cannot be converted, or what was made of it is not the same classifier."""


@dataclass(frozen=True)
class Gap:
    """A node that the gradient cannot pass, and why."""

    op: str
    node: str
    why: str


def by_operator(gaps: Sequence[Gap]) -> list[str]:
    """Gaps as text: operator, number of nodes, the first one's name, and why."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for gap in gaps:
        kinds.setdefault((gap.op, gap.why), []).append(gap.node)
    return [
        f"{op} x{len(nodes)} ({'node' if len(nodes) == 1 else 'first'}: {nodes[0]}): {why}"
        for (op, why), nodes in sorted(kinds.items())
    ]


class NotDifferentiable(ModelError):
    """One or more operators on the way from input to output have no gradient."""

    def __init__(self, gaps: Sequence[Gap], model: str = "the model") -> None:
        self.gaps = tuple(gaps)
        count = len({gap.op for gap in self.gaps})
        super().__init__(
            f"cannot differentiate {model}: {count} operator{'s' * (count != 1)} without a usable gradient rule\n"
            + "\n".join(f"  {line}" for line in by_operator(gaps))
            + "\nnext: export it differently, explain an output before these nodes, or add a rule "
            "(docs/how-to/unsupported-operators.md)"
        )


class PartialGradientWarning(UserWarning):
    """A gradient that stops at operators without one: it is not that of the model. `gaps` lists them."""

    def __init__(self, gaps: Sequence[Gap]) -> None:
        self.gaps = tuple(gaps)
        super().__init__("the gradient is not that of the model, it stops at " + "; ".join(by_operator(gaps)))


class ExecutionError(OnnxplainError):
    """A model could not be run."""


RUNTIMES = ("cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino")  # extras that are runtimes


class BackendMissing(ExecutionError, ImportError):
    """A runtime or an optional package is not installed. `extra` names what to install."""

    exit_code = 4

    def __init__(self, what: str, extra: str, command: str | None = None) -> None:
        self.extra = extra
        how = command or f'pip install "onnxplain[{extra}]"'
        how += "; `onnxplain doctor` tells what this machine can run" * (extra in RUNTIMES)
        if extra == "cuda":  # which pip would install over an ONNX Runtime that is there
            how = "`onnxplain doctor --on cuda` tells what this machine lacks, and the command that mends it"
        super().__init__(f"{what} is not installed; next: {how}")


@contextmanager
def importing(what: str, extra: str) -> Iterator[None]:
    """Around the import of what may not be installed: raises `BackendMissing` if it cannot be imported.

    Ctrl-C stays Ctrl-C: native modules make an ImportError of it when it comes while they are loaded.
    """
    try:
        yield
    except ImportError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__
        raise BackendMissing(what, extra) from error


class FeedMismatch(ExecutionError, ValueError):
    """An array does not fit the input of a model: name, dtype or shape."""


class BackendFailed(ExecutionError):
    """The runtime failed; its own error is the cause."""

    exit_code = 4


class DeviceMissing(BackendFailed):
    """There is no such device on this machine, or its driver or a library of the runtime does not fit."""


class OutOfMemory(BackendFailed):
    """The device has too little memory for a batch of this size; a smaller one may fit."""


class NonFinite(ExecutionError):
    """NaN or Inf came out of the model or went into an attribution."""


class DownloadError(OnnxplainError):
    """A file cannot be had: no network, offline mode, or a checksum that is not the known one."""


class InputError(OnnxplainError):
    """A given file cannot be used: a photo, a heatmap, a preprocessing spec, a weight file."""


class MissingFile(InputError):
    """A given file or folder is not there."""

    exit_code = 2


def input_error(error: OSError) -> type[InputError]:
    """Which error a file that cannot be read is."""
    return MissingFile if isinstance(error, FileNotFoundError | NotADirectoryError) else InputError


def unreadable(what: str, path: object, error: OSError) -> InputError:
    """What to raise of a file that cannot be read, in the system's words. `what` says what it should have been."""
    return input_error(error)(f"cannot read {what} {path}: {error.strerror or error}; next: check the path")


class OutputError(OnnxplainError):
    """Something cannot be written, or would overwrite what is already there."""


class UsageError(OnnxplainError, ValueError):
    """Arguments that are out of range or do not go together."""

    exit_code = 2
