"""Help, versions, exit codes, and that nothing heavy is imported before a command runs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from tiny import complain, run

from onnxplain.cli import options
from onnxplain.cli.main import COMMANDS, cli
from onnxplain.engine.heatmap import Reduction
from onnxplain.engine.methods import METHODS
from onnxplain.engine.metrics import METRICS, PROTOCOLS

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "cv2", "matplotlib", "PIL")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_every_option(name, flag):
    result = run(name, flag)
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"onnxplain {name}" in result.stdout
    words = "".join(re.sub(r"[│╭╰╮╯─]", " ", result.stdout).split())  # long names are broken over lines
    command = cli.get_command(None, name)
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help
            assert all(option in words or option[:12] in words for option in parameter.opts)
        else:
            assert parameter.name.upper() in words


def test_the_help_of_the_whole_lists_commands_and_exit_codes():
    text = run("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"│ {name} ", text)
    for code in range(6):
        assert re.search(rf"^ +{code}  \w", text, re.MULTILINE)


def test_help_and_version_import_nothing_heavy():
    for args in (["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
        code = (
            "import sys\nfrom onnxplain.cli.main import cli\n"
            f"assert cli.main({args!r}, standalone_mode=False) in (None, 0)\n"
            f"sys.exit(', '.join(name for name in {HEAVY!r} if name in sys.modules) or None)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, (args, done.stderr)


def test_the_version():
    assert run("--version").stdout == f"onnxplain {version('onnxplain')}\n"


def test_names_in_help_texts_are_those_of_the_engine():
    assert options.METHODS.split(", ") == list(METHODS)
    assert options.METRICS.split(", ") == list(METRICS)
    assert options.PROTOCOLS.split(", ") == list(PROTOCOLS)
    assert list(options.REDUCTIONS) == list(Reduction)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["paint"], ["No such command 'paint'", "onnxplain --help"]),
        (["explain"], ["Missing argument 'MODEL'", "onnxplain explain --help"]),
        (["explain", "m.onnx", "a.png", "-o", "out"], ["Missing option '--method'"]),
        (["inspect", "m.onnx", "--colour"], ["No such option", "--colour"]),
        (["inspect", "m.onnx", "--format", "xml"], ["'xml' is not one of"]),
        (["score", "m.onnx", "a.npz", "--step", "0"], ["--step"]),
        (["explain", "m.onnx", "a.png", "-o", "out", "--method", "ig", "--target", "-1"], ["--target"]),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(args, words):
    complain(run(*args), 2, "error: ", *words)


def test_without_a_command_there_is_help_and_exit_code_2():
    result = run()
    assert result.exit_code == 2
    assert "Usage: onnxplain" in result.output


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "onnxplain", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"onnxplain {version('onnxplain')}\n")
