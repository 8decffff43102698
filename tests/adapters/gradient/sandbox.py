"""A process of its own that opens models of strangers, with limits to its memory and time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

MEBIBYTE = 2**20
ENTRIES = ("differentiate", "gradient_model", "inspect")
TESTS = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an entry point made of a file: "done", or the name of the error and what it says.

    `expected` tells whether it is a result or an error that onnxplain raises on purpose.
    """

    entry: str
    expected: bool
    what: str
    lines: int  # of the error's message, or of everything on stderr
    seconds: float  # of the processor


class Sandbox:
    """Opens files in a child process; a new one is started where the last one died.

    `mebibytes` are beyond what a child has when it is ready, `seconds` are of its processor. By the clock it may take
    ten times as long, on a busy machine.
    """

    def __init__(self, mebibytes: int = 1024, seconds: int = 20) -> None:
        self.mebibytes = mebibytes
        self.seconds = seconds
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def open(self, path: Path, entries: tuple[str, ...] = ENTRIES) -> list[Outcome]:
        """What each entry point makes of a file."""
        return [self._ask(path, entry) for entry in entries]

    def _ask(self, path: Path, entry: str) -> Outcome:
        if self._child is None:
            self._child = start(self.mebibytes, self.seconds)
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps([entry, str(path)]) + "\n")
        child.stdin.flush()
        begun = time.monotonic()
        ready = select.select([child.stdout], [], [], 10 * self.seconds)[0]
        line = child.stdout.readline() if ready else ""
        if not line:
            child.kill() if not ready else child.wait()
            self._stop()
            taken = f"{self.mebibytes} MiB, {self.seconds} s"
            what = f"the process ended with {child.returncode} (limits: {taken})" if ready else f"no answer ({taken})"
            return Outcome(entry=entry, expected=False, what=what, lines=0, seconds=time.monotonic() - begun)
        return Outcome(entry=entry, **json.loads(line))

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def start(mebibytes: int, seconds: int) -> subprocess.Popen[str]:
    """A child that is ready: all that it needs is imported, and from here on its memory is limited."""
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, __file__, str(mebibytes), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **one, "PYTHONPATH": path},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


# In the child


def serve(mebibytes: int, seconds: int) -> None:
    """Answer requests from stdin until it ends."""
    import resource

    import tiny

    import onnxplain as ox

    answers, sys.stdout = sys.stdout, io.StringIO()
    warm = tiny.classifier()
    ox.differentiate(warm)
    ox.gradient_model(warm)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * MEBIBYTE, resource.RLIM_INFINITY))
    answers.write("ready\n")
    answers.flush()
    for request in sys.stdin:
        entry, path = json.loads(request)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds, resource.RLIM_INFINITY))
        answers.write(json.dumps(attempt(entry, path)) + "\n")
        answers.flush()


def attempt(entry: str, path: str) -> dict[str, Any]:
    """One entry point on one file."""
    import tiny

    import onnxplain as ox
    from onnxplain.errors import OnnxplainError

    begun, noise = time.process_time(), io.StringIO()
    expected, what, lines = True, "done", 0
    try:
        with contextlib.redirect_stderr(noise):
            if entry == "inspect":
                result = tiny.run("inspect", path, "--preprocess", "none")
                assert result.exit_code in (0, 5), f"exit code {result.exit_code}: {result.stderr}"
                what = result.stderr or "done"
                noise.write(result.stderr)
            else:
                getattr(ox, entry)(path)
    except OnnxplainError as error:
        what, lines = f"{type(error).__name__}: {error}", len(str(error).splitlines())
    except Exception as error:
        expected, what = False, f"{type(error).__name__}: {error}"
    lines = max(lines, len(noise.getvalue().splitlines()))
    return {"expected": expected, "what": what[:2000], "lines": lines, "seconds": time.process_time() - begun}


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
