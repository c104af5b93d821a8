"""Write ``docs/cli.md`` from the commands themselves; a test fails when the page is stale.

    .venv/bin/python tools/write_cli_docs.py

It reads what typer was given (help, names, defaults of every parameter) and not the rendered help
pages, which look different in every version of typer and rich.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from typer.models import ArgumentInfo, CommandInfo, OptionInfo

import samforge
from samforge.apps.cli import app
from samforge.apps.cli.output import INTERRUPTED, USAGE
from samforge.core import errors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

HEAD = f"""\
# Command line

<!-- Written by tools/write_cli_docs.py from the commands' own help. Do not edit it by hand. -->

`samforge COMMAND --help` shows the same on a terminal; `samforge --version` prints the version.
Results go to standard output; errors, warnings and progress go to standard error. Every command
takes `--json` and then prints one JSON object with the keys `schema`, `command` and `ok`, followed
by the command's own; after a failure it has the key `error` with `kind`, `message` and
`exit_code`. Keys are added within a schema version, never renamed or removed.

The exit status is 0 only on success, {USAGE} also for wrong usage, and {INTERRUPTED} after Ctrl-C.
Other statuses say which kind of error it was:
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, _exit_table()]
    for command in app.registered_commands:
        parts += _command(command)
    return "\n".join(parts)


def _exit_table() -> str:
    rows = ["| status | error | meaning |", "|---|---|---|"]
    kinds = [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, samforge.SamforgeError)
    ]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        meaning = (inspect.getdoc(kind) or "").splitlines()[0]
        rows.append(f"| {kind.exit_code} | `{kind.__name__}` | {meaning} |")
    return "\n".join(rows) + "\n"


def _command(command: CommandInfo) -> Iterator[str]:
    function = command.callback
    assert function is not None
    name = command.name or function.__name__
    arguments = [one for one in _parameters(function) if isinstance(one.info, ArgumentInfo)]
    options = [one for one in _parameters(function) if isinstance(one.info, OptionInfo)]
    required = [f"{one.shown} {one.value}" for one in options if one.required]
    words = [f"samforge {name}", *(one.shown for one in arguments), *required, "[OPTIONS]"]
    yield f"## samforge {name}\n"
    yield f"```text\n{' '.join(words)}\n```\n"
    yield (inspect.getdoc(function) or "") + "\n"
    if arguments:
        yield _table("argument", [(f"`{one.shown}`", one.help) for one in arguments])
    yield _table("option", [(one.cell, one.help) for one in options])


def _table(what: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {what} | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in rows]
    return "\n".join(lines) + "\n"


class _Parameter:
    """One parameter of a command as typer knows it."""

    def __init__(self, name: str, kind: Any, default: Any) -> None:
        annotated = typing.get_args(kind)
        self.info: ArgumentInfo | OptionInfo = annotated[1]
        self.required = default is inspect.Parameter.empty
        several = "list" in str(annotated[0])
        self.value = "" if annotated[0] is bool else _value_name(annotated[0])
        if isinstance(self.info, ArgumentInfo):
            self.shown = (self.info.metavar or name.upper()) + (" ..." if several else "")
        else:
            # Inside Annotated, typer takes the first name for the default and sorts it out later.
            names = (self.info.default, *(self.info.param_decls or ()))
            self.shown = ", ".join(str(one) for one in names).replace("/", ", ")
        self.cell = f"`{self.shown} {self.value}`"
        if "bool" in str(annotated[0]):
            self.cell = ", ".join(f"`{one}`" for one in self.shown.split(", "))
        self.help = f"{self.info.help}{self._note(default)}"

    def _note(self, default: Any) -> str:
        if self.required:
            return " Required." if isinstance(self.info, OptionInfo) else ""
        shown = self.info.show_default
        hidden = default is None or default is False
        text = shown if isinstance(shown, str) else "" if hidden else str(default)
        return f" Default: {text.replace('<', '&lt;')}." if text else ""


def _value_name(kind: Any) -> str:
    names = {"int": "NUMBER", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}
    return next((word for key, word in names.items() if key in str(kind)), "")


def _parameters(function: Callable[..., Any]) -> Iterator[_Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if typing.get_origin(hints[name]) is Annotated:
            yield _Parameter(name, hints[name], parameter.default)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
