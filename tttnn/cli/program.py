"""The command `tttnn`: its commands, and how an error becomes one sentence and an exit code.

Results go to standard output, all else to standard error. Knows the names of commands. Does not know what one does.
"""

from __future__ import annotations

import os

# Read when torch is imported: threads that spin while they wait slow every other process down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import errno
import sys
import traceback

import click
from click.shell_completion import get_completion_class

from ..errors import IndexCorruptError, StoreCorruptError, StoreVersionError, TttnnError
from ..version import __version__
from . import (
    answers,
    clusters,
    datastore,
    demonstration,
    experts,
    inspection,
    measurement,
    neighbors,
    pages,
    serving,
    texts,
)
from .exit_codes import DAMAGED, FAILED, INTERRUPTED, USAGE
from .manual import man_page

# Errors whose message is a sentence for the person who typed the command.
_EXPECTED = (TttnnError, ValueError, IndexError, OSError)

_COMPLETE = "_TTTNN_COMPLETE"
"""The variable by which a shell asks for completions."""


def _print_completion(context: click.Context, _: click.Parameter, shell: str | None) -> None:
    found = None if shell is None else get_completion_class(shell)
    if found is not None:
        click.echo(found(app, {}, "tttnn", _COMPLETE).source())
        context.exit()


def _print_man_page(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(man_page(app, __version__), nl=False)
        context.exit()


@click.group("tttnn", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tttnn")
@click.option("--traceback", is_flag=True, expose_value=False, help="Show where an error happened.")
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    is_eager=True,
    expose_value=False,
    callback=_print_completion,
    help="Print what completes commands and flags in a shell, and exit.",
)
@click.option(
    "--man",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_man_page,
    help="Print the manual page of every command, for man -l -, and exit.",
)
def app() -> None:
    """Test-time training on nearest neighbors.

    \b
    Examples:
      tttnn demo
      tttnn build train.jsonl.zst pile-00
      tttnn search pile-00 "def quicksort(" -k 3
      tttnn generate pile-00 "def quicksort(" --model smollm2-135m
      tttnn eval pile-00 test.jsonl --out results.jsonl
      tttnn report results.jsonl -o report.html
    """


for command in (
    demonstration.demo,
    datastore.build,
    datastore.append,
    datastore.delete,
    datastore.compact,
    experts.precompute,
    experts.export_expert,
    texts.import_,
    texts.export,
    texts.repair,
    inspection.info,
    inspection.verify,
    neighbors.search,
    answers.generate,
    answers.replay,
    measurement.eval_,
    measurement.audit,
    measurement.lm_eval,
    pages.report,
    serving.serve,
    clusters.cluster,
):
    app.add_command(command)


def main() -> None:
    """Run the command line, turning errors into one sentence and an exit code."""
    _fill_standard_streams()
    try:
        code = app.main(standalone_mode=False, complete_var=_COMPLETE)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone; so that Python's own flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        sys.exit(_told(error))


def _fill_standard_streams() -> None:
    """Give a process that was started without standard streams some that lead nowhere; no file takes their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _told(error: Exception) -> int:
    """Say in one sentence what went wrong; return the exit code."""
    if "--traceback" in sys.argv:
        traceback.print_exception(error)
    sentence = " ".join(str(error).split())
    if isinstance(error, StoreCorruptError | StoreVersionError | IndexCorruptError):
        code = DAMAGED
    elif isinstance(error, ValueError | IndexError | FileNotFoundError | FileExistsError | NotADirectoryError):
        code = USAGE
    else:
        code = USAGE if isinstance(error, IsADirectoryError) else FAILED
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        path = None if error.filename is None else os.fsdecode(error.filename).encode("utf-8", "backslashreplace")
        if path is None and error.strerror == os.strerror(errno.ENOSPC):
            path = b"standard output"  # files are named: `files.explained`
        sentence = error.strerror if path is None else f"{path.decode()}: {error.strerror}"
    if isinstance(error, MemoryError):
        sentence = f"there is not enough memory. {sentence}".strip()
    elif not isinstance(error, _EXPECTED) or not sentence:
        sentence = f"{type(error).__name__}: {sentence}. Where it happened is shown with: --traceback"
    # Names that are no UTF-8 stand in messages; not every standard error takes them.
    click.echo(f"tttnn: {sentence}".encode("utf-8", "backslashreplace").decode(), err=True)
    return code
