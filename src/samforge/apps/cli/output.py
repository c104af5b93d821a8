"""What commands print: tables for people or one JSON object for machines, and errors of both kinds.

Standard output carries results only; errors and warnings for people go to standard error. Text is
never read as rich markup: paths and phrases may hold square brackets. What a terminal would obey is
escaped here, whoever wrote it (:mod:`samforge.core.words`).
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO, TypeAlias

import typer
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

import samforge
from samforge.core.words import escaped, json_text

SCHEMA_VERSION = 1
"""Version of the JSON envelope; keys are added within a version, never renamed or removed."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""

USAGE = 2
"""Exit status of a wrong option or argument, the same as of an ``InputError``."""

_ENDLESS = 10_000

JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object for machines instead of tables.")
]
"""The ``--json`` option; every command that prints a result takes it."""


def print_json(command: str, payload: Mapping[str, object], *, ok: bool = True) -> None:
    """Print a result for machines in its envelope.

    Args:
        command: Name of the command: ``build``.
        payload: The result, as plain values or dataclasses; infinity and NaN become the strings
            ``inf``, ``-inf`` and ``nan``, as in manifests.
        ok: Whether the command succeeded.
    """
    envelope = {"schema": SCHEMA_VERSION, "command": command, "ok": ok, **payload}
    typer.echo(json_text(envelope, ascii_only=not _takes_unicode(sys.stdout)))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    unbroken: Sequence[str] = (),
) -> None:
    """Print a table for people.

    Args:
        title: Line above it.
        columns: Headings, of several lines where a short column has a long name.
        rows: Cells in the order of the headings; None is shown as a dash, a tuple as lines.
        numbers: Headings of the columns that are aligned to the right.
        unbroken: Headings of columns whose words others make room for.
    """
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(
            Text(column),
            justify="right" if column in numbers else "left",
            overflow="fold",
            no_wrap=column in numbers or column in unbroken,
        )
    console = stdout()
    dash = "–" if _takes_unicode(sys.stdout) else "-"
    for row in rows:
        table.add_row(*(Text(dash if cell is None else _cell(cell)) for cell in row))
    roomy = console.options.update_width(_ENDLESS)
    if Measurement.get(console, roomy, table).maximum > console.width:
        # Too wide for the terminal: the frame goes before words are broken.
        table.box, table.pad_edge, table.collapse_padding = box.SIMPLE_HEAD, False, True
    # As the table's own title it would be broken to the width of a narrow table.
    console.print(Text(escaped(title), style="bold"), soft_wrap=True)
    console.print(table)


def print_line(text: str, *, style: str = "") -> None:
    """Print one line for people; it is not wrapped, so that commands in it can be copied."""
    stdout().print(Text(escaped(text), style=style), soft_wrap=True)


def print_note(text: str, *, style: str = "yellow") -> None:
    """Print a paragraph to standard error: seen by people, out of the way of results."""
    stderr().print(Text(escaped(text, lines=True), style=style), soft_wrap=True)


def _cell(cell: object) -> str:
    return "\n".join(map(escaped, cell)) if isinstance(cell, tuple) else escaped(cell)


def _takes_unicode(stream: TextIO) -> bool:
    return (
        (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")
    )


@contextmanager
def lenient_output() -> Iterator[None]:
    """Have standard output escape what its encoding lacks, instead of ending in a traceback.

    A finished command must not fail over a dash in ISO-8859-1. Standard error does so by itself.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or stream.errors != "strict":
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if not stream.closed:
            stream.reconfigure(errors="strict")


def mebibytes(count: int) -> str:
    """Bytes as a number for a column headed MiB; small files keep what tells them from nothing."""
    mib = count / (1 << 20)
    return f"{mib:.1f}" if mib >= 1 else f"{mib:.3f}"


def shown_path(path: Path) -> str:
    """A path for people: relative where it lies below the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def stdout() -> Console:
    """A console on standard output as it is now (tests and pipes replace it)."""
    return Console()


def stderr() -> Console:
    """A console on standard error as it is now; progress bars belong here."""
    return Console(stderr=True)


def report_error(
    error: samforge.SamforgeError | typer.TyperException, *, command: str, as_json: bool
) -> int:
    """Tell an error: one red paragraph on standard error, or the JSON envelope on standard output.

    Returns:
        The exit status for it.
    """
    if isinstance(error, typer.TyperException):
        kind, message, status = "UsageError", error.format_message(), USAGE
        context = getattr(error, "ctx", None)  # of the command whose words are wrong
        page = context.command_path if context is not None else "samforge"
        message = f"{message.rstrip('.')}. See: {page} --help."
    else:
        kind, message, status = type(error).__name__, str(error), error.exit_code
    if as_json:
        details = {"kind": kind, "message": message, "exit_code": status}
        print_json(command, {"error": details}, ok=False)
    else:
        print_note(f"{kind}: {message}", style="red")
    return status


def report_interrupt(*, command: str, as_json: bool) -> None:
    """Tell that the user stopped the command."""
    message = "Stopped."
    if command in ("build", "demo"):
        message += " Finished steps of a build are kept; run it again to resume."
    elif command == "label":
        message += " What was labelled is kept; run it again to go on."
    if as_json:
        details = {"kind": "Interrupted", "message": message, "exit_code": INTERRUPTED}
        print_json(command, {"error": details}, ok=False)
    else:
        print_note(message)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Show samforge's warnings as yellow lines, each time; others in Python's words."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", samforge.SamforgeWarning)
        # torch.export.save pickles a tree spec through torch's own deprecated class (torch 2.13):
        # once a step, and nothing that a user can change.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,  # noqa: ARG001  the hook's form
            line: str | None = None,
        ) -> None:
            if issubclass(category, samforge.SamforgeWarning):
                print_note(f"Warning: {message}")
            else:
                text = warnings.formatwarning(message, category, filename, lineno, line)
                print_note(text.rstrip("\n"), style="")

        # The documented hook; catch_warnings puts the old one back.
        warnings.showwarning = show
        yield
