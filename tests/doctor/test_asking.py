"""A probe that answers, and probes that crash, hang, or talk rubbish."""

from __future__ import annotations

import sys
import time

import pytest

from onnxplain.doctor import asking
from onnxplain.doctor.asking import Answer, ask, ask_all, exit_name


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A probe with this code."""

    def write(code):
        path = tmp_path / "probe.py"
        path.write_text(code)
        monkeypatch.setattr(asking, "PROBE", path)

    return write


def test_an_answer(probe):
    probe("import sys; print('{\"answer\": %d}' % len(sys.argv))")
    assert ask_all([("a",), ("a", "b")]) == {("a",): Answer(value=2), ("a", "b"): Answer(value=3)}
    assert ask_all([]) == {}


def test_an_error_with_its_causes_and_what_was_printed(probe):
    probe('import sys; print(\'noise\', file=sys.stderr); print(\'{"error": "E: x", "causes": ["F: y"]}\')')
    answer = ask(("q",))
    assert answer == Answer(error="E: x", causes=("F: y",), log="noise")
    assert all(answer.says(word) for word in ("x", "F: y", "noise"))
    assert not answer.says("z")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGABRT", "SIGILL"])
def test_a_probe_that_crashes(probe, signal):
    probe(
        "import os, signal, sys; print('last words', file=sys.stderr, flush=True)\n"
        f"os.kill(os.getpid(), signal.{signal})"
    )
    assert ask(("q",)).error == f"it crashed with {signal}, and its last words were: last words"


def test_a_probe_that_exits_without_an_answer(probe):
    probe("raise SystemExit(3)")
    assert ask(("q",)).error == "it crashed with exit code 3, and its last words were: nothing"
    assert exit_name(0xC0000005) == "exit code 0xc0000005"


def test_a_probe_that_hangs(probe):
    probe("import time; time.sleep(60)")
    started = time.monotonic()
    assert ask(("q",), seconds=0.5).error == "it did not answer within 0 s"
    assert time.monotonic() - started < 20


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_a_hanging_probe_whose_child_keeps_the_pipes(probe, monkeypatch):
    """As good as one that cannot be killed: its pipes stay open."""
    probe("import os, time\nif os.fork() == 0: time.sleep(5)\nelse: time.sleep(60)")
    monkeypatch.setattr(asking, "GRACE", 0.2)
    started = time.monotonic()
    assert ask(("q",), seconds=0.5).error == "it did not answer within 0 s"
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    "rubbish", ["", "hello", "[1, 2]", "3", "null", '{"neither": 1}', '{"answer": 1} {"answer": 2}']
)
def test_a_probe_that_talks_rubbish(probe, rubbish):
    probe(f"print({rubbish!r})")
    assert "is no answer" in ask(("q",)).error


def test_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert ask(("q",)).error == "no process could be started (No such file or directory)"
