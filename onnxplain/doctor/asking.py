"""Ask a probe, in a process of its own and not for ever."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

PROBE = Path(__file__).with_name("probe.py")
SECONDS = 60.0  # an engine of TensorRT takes some of them
GRACE = 2.0
LAST_WORDS = 20  # lines of stderr that are kept

Question = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a probe answered: a `value`, or an `error` with what it came from and what was printed meanwhile."""

    value: Any = None
    error: str | None = None
    causes: tuple[str, ...] = ()
    log: str = ""

    def says(self, *words: str) -> bool:
        """Whether the error, its causes or what was printed has one of these words in it."""
        told = "\n".join([self.error or "", *self.causes, self.log])
        return any(word in told for word in words)


def ask_all(questions: Sequence[Question]) -> dict[Question, Answer]:
    """The answers to several questions, asked at once."""
    if not questions:
        return {}
    with ThreadPoolExecutor(len(questions)) as pool:
        return dict(zip(questions, pool.map(ask, questions), strict=True))


def ask(question: Question, seconds: float = SECONDS) -> Answer:
    """The answer to a question of `probe.py`; a process that crashes, hangs or talks rubbish is an error."""
    # -P: the folder of the user is not searched, as it is not for the command itself.
    command = [sys.executable, "-P", str(PROBE), *question]
    with TemporaryFile() as said, TemporaryFile() as printed:  # pipes would be held open by a process that stays
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=printed)
        except OSError as error:
            return Answer(error=f"no process could be started ({error.strerror})")
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that waits for a driver inside the kernel cannot be killed
                process.wait(GRACE)
            return Answer(error=f"it did not answer within {seconds:.0f} s")
        said.seek(0)
        printed.seek(0)
        return understood(said.read(), printed.read().decode(errors="replace"), process.returncode)


def understood(said: bytes, printed: str, code: int) -> Answer:
    """What a probe said on stdout and printed on stderr, and its exit code, as an answer."""
    log = "\n".join(printed.splitlines()[-LAST_WORDS:])
    if code:
        last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "nothing")
        return Answer(error=f"it crashed with {exit_name(code)}, and its last words were: {last}", log=log)
    try:
        document = json.loads(said)
        if "answer" in document:
            return Answer(value=document["answer"], log=log)
        return Answer(error=str(document["error"]), causes=tuple(document["causes"]), log=log)
    except (ValueError, TypeError, KeyError):
        return Answer(error=f"it answered {said[:80]!r}, which is no answer", log=log)


def exit_name(code: int) -> str:
    """An exit code by its name: a signal on Linux and macOS, a status on Windows."""
    if code < 0 and -code in set(signal.Signals):
        return signal.Signals(-code).name
    return f"exit code {code if code < 1 << 16 else hex(code)}"
