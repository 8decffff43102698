"""`onnxplain`: the commands, loaded when they are used, and the one place where errors become messages."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import rich_click as click
from click.exceptions import Exit

from onnxplain.cli.options import terminal_options
from onnxplain.cli.terminal import terminal
from onnxplain.errors import OnnxplainError

COMMANDS = ("inspect", "export", "verify", "explain", "score", "evaluate", "compare", "models", "demo", "doctor")

click.rich_click.TEXT_MARKUP = None  # brackets mean themselves


class Commands(click.RichGroup):
    """Commands that are imported when they are used. `main` and `invoke` turn errors into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"onnxplain.cli.{cmd_name}").command
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "onnxplain"
            click.echo(f"error: {one_line(error.format_message()).rstrip('.')}; next: {where} --help", err=True)
            code = error.exit_code
        except click.Abort:
            code = 1
        except OSError as error:  # of help and version, whose writing is click's; a closed pipe is click's business too
            click.echo(f"error: standard output: cannot be written ({error.strerror}); next: make room", err=True)
            code = 1
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
        except (click.ClickException, click.Abort, Exit, BrokenPipeError):
            raise  # click knows what they mean
        except (KeyboardInterrupt, Exception) as error:
            message, code = explained(error)
            if terminal().traceback:
                traceback.print_exception(error)
            click.echo(message, err=True)
            return code
        return result


class Said(logging.Handler):
    """What the library logs, on the terminal: warnings always, the rest with -v."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        terminal().say(f"{'warning: ' * warning}{record.getMessage()}", -1 if warning else 1)


@contextmanager
def logs_said() -> Iterator[None]:
    """While a command runs, what the library logs goes to its terminal, and nowhere else."""
    log, handler = logging.getLogger("onnxplain"), Said()
    before = log.propagate, log.level
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before[0]
        log.setLevel(before[1])


def explained(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 1
    if isinstance(error, OnnxplainError):
        return f"error: {error}", error.exit_code
    what = f"{type(error).__name__}: {one_line(str(error))}".rstrip(": ")
    return f"internal error: {what}; next: please report it, --traceback shows where it happened", 1


def one_line(text: str) -> str:
    return " ".join(text.split())


@click.group("onnxplain", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxplain", message="onnxplain %(version)s")
@terminal_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Explain the classifier that you deploy: attributions of ONNX models, without their framework.

    Results are printed on stdout, everything else on stderr.

    \b
    Examples:
      onnxplain demo -o demo-out
      onnxplain doctor
      onnxplain inspect model.onnx
      onnxplain explain model.onnx photo.jpg --method isa -o out
      onnxplain score model.onnx out/*.npz --protocol rise
      onnxplain evaluate isa-table1 --models exported/ --images imagenet/ -o out

    \b
    Exit codes:
      0  done
      1  failed
      2  usage: arguments that are wrong, do not go together, or name a file that is not there
      3  finished, but some items failed
      4  a device, a runtime or a package is not usable
      5  the model is not supported
    """
    logging.getLogger("onnx_ir").addHandler(logging.NullHandler())  # our errors say it, in one line
    ctx.with_resource(logs_said())


def main() -> None:
    """The console entry point."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text, nor a terminal know all of it
    cli(prog_name="onnxplain")
