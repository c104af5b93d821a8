"""The ``samforge`` command: one file a command, put together here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import samforge
from samforge.apps.cli.bench import bench
from samforge.apps.cli.build import build
from samforge.apps.cli.compare import compare
from samforge.apps.cli.demo import demo
from samforge.apps.cli.doctor import doctor
from samforge.apps.cli.export_triton import export_triton
from samforge.apps.cli.features import features
from samforge.apps.cli.inspect import inspect
from samforge.apps.cli.label import label
from samforge.apps.cli.mesh_compare import mesh_compare
from samforge.apps.cli.output import (
    INTERRUPTED,
    lenient_output,
    report_error,
    report_interrupt,
    shown_warnings,
)
from samforge.apps.cli.predict import predict
from samforge.apps.cli.raster import raster
from samforge.apps.cli.serve import serve
from samforge.apps.cli.verify import verify
from samforge.apps.cli.video import video
from samforge.core.native import error_from_system
from samforge.core.quiet_loggers import quiet_third_parties
from samforge.core.telemetry import decline_for_process

app = typer.Typer(
    name="samforge",
    help="Take SAM 3 from a checkpoint to a fast bundle, with proof that it still segments.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(demo, build, predict, video, label, raster, serve, export_triton, features, inspect),
    *(compare, verify, mesh_compare, bench, doctor),
):
    app.command(command.__name__.replace("_", "-"))(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows ``samforge``; None takes the process's own.

    Returns:
        The exit status: 0 only on success, else the error's ``exit_code``, 2 for wrong usage and
        130 when interrupted. An error that samforge did not foresee is raised with its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    command = next((word for word in words if not word.startswith("-")), "samforge")
    quiet_third_parties()
    decline_for_process()
    with lenient_output(), shown_warnings():
        try:
            status = app(args=words, prog_name="samforge", standalone_mode=False)
        except (samforge.SamforgeError, typer.TyperException) as error:
            return report_error(error, command=command, as_json=as_json)
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except BrokenPipeError:
            return _unread()
        except (OSError, MemoryError) as error:
            return report_error(error_from_system(error), command=command, as_json=as_json)
    # typer turns an interrupt inside a command into this status without a word.
    if status == INTERRUPTED:
        report_interrupt(command=command, as_json=as_json)
    return status if isinstance(status, int) else 0


def _unread() -> int:
    """End quietly when nobody reads on, as behind ``| head``, with the status that shells give."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13  # SIGPIPE


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"samforge {samforge.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
