"""What Ray's own command line and configuration files call: words in, an application out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from samforge.apps.ray.serving import Scaling, serve_application
from samforge.core.errors import SettingError
from samforge.core.structure import unknown_names
from samforge.serving import Served, Settings, named

T = TypeVar("T")
_OWN = ("bundle", "device", "threads", "digest", "tokens")


def application(arguments: dict[str, Any]) -> Any:
    """What ``serve run samforge.apps.ray:application bundle=FOLDER`` calls.

    Args:
        arguments: ``bundle``, a folder or NAME=FOLDER; and where wanted ``device``, ``threads``,
            ``digest``, ``tokens`` (a file with a line NAME:TOKEN each), and what :class:`Scaling`
            has: ``least``, ``most``, ``ongoing``, ``drain_seconds``.

    Returns:
        A ``ray.serve.Application``.

    Raises:
        SettingError: A word is unknown, ``bundle`` is missing, or a number is none.
    """
    scaled = {one.name: int if one.type == "int" else float for one in fields(Scaling)}
    if problem := unknown_names(arguments, (*_OWN, *scaled)):
        raise SettingError(f"The arguments are {problem}.")
    if not arguments.get("bundle"):
        raise SettingError("There is no bundle. Give bundle=FOLDER, or bundle=NAME=FOLDER.")
    ((name, folder),) = named([str(arguments["bundle"])]).items()
    threads, digest = arguments.get("threads"), arguments.get("digest")
    served = Served(
        name=name,
        path=Path(folder),
        devices=(str(arguments.get("device", "auto")),),
        threads=None if threads is None else _number(arguments, "threads", int),
        digests=() if digest is None else (str(digest),),
    )
    given = {one: _number(arguments, one, kind) for one, kind in scaled.items() if one in arguments}
    return serve_application(
        Settings(bundles=(served,)),
        scaling=Scaling(**given),  # type: ignore[arg-type]  # each of its field's type
        tokens=_tokens(arguments),
    )


def _tokens(arguments: Mapping[str, Any]) -> Any:
    if arguments.get("tokens") is None:
        return None
    from samforge.apps.cli.serving import tokens_from_file
    from samforge.apps.serve.door import Tokens

    return Tokens(by_name=tokens_from_file(Path(str(arguments["tokens"]))))


def _number(arguments: Mapping[str, Any], name: str, kind: Callable[[str], T]) -> T:
    try:
        return kind(str(arguments[name]))
    except ValueError as error:
        raise SettingError(f"{name} is {arguments[name]!r:.40}. Give a number.") from error
