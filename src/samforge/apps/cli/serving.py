"""Options of ``samforge serve`` as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from samforge.core.errors import SettingError
from samforge.serving import Limits, Shadowing

_SHORTEST = 16


def devices_from_text(text: str) -> tuple[str, ...]:
    """Devices with commas between them: ``cuda:0,cuda:1``."""
    return tuple(one.strip() for one in text.split(",") if one.strip()) or ("auto",)


def limits_from_texts(texts: Iterable[str]) -> Limits:
    """Limits by name: ``pixels=20e6``.

    Raises:
        SettingError: A name or a number is none.
    """
    known = asdict(Limits())
    given: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise SettingError(f"There is no limit {name!r:.40}. Give one of {', '.join(known)}.")
        if name in given:
            raise SettingError(f"The limit {name} came twice. Give it once.")
        try:
            given[name] = type(known[name])(float(value))
        except (ValueError, OverflowError) as error:
            raise SettingError(f"The limit {name} is {value!r:.40}. Give a number.") from error
    return Limits(**given)  # type: ignore[arg-type]  # each of its field's type


def shadowing_from_text(text: str) -> Shadowing:
    """Which bundle is asked again, and how often: ``fp32=0.05``.

    Raises:
        SettingError: The share is no number from 0 to 1.
    """
    name, _, share = text.rpartition("=")
    try:
        return Shadowing(reference=name, share=float(share))
    except ValueError as error:
        raise SettingError(f"--shadow is {text!r:.40}. Give NAME=SHARE: fp32=0.05.") from error


def tokens_from_file(path: Path) -> dict[str, str]:
    """Tokens by name: a line ``NAME:TOKEN`` each; empty lines and those behind # are left out.

    Raises:
        SettingError: The file cannot be read, or a line is something else. No token is shown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read: {error}. Give a file of tokens.") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, token = (part.strip() for part in line.partition(":"))
        if not name or len(token) < _SHORTEST or not token.isascii():
            raise SettingError(
                f"Line {number} of {path} is not NAME:TOKEN with a token of {_SHORTEST} characters "
                "or more, all of them ASCII."
            )
        if name in tokens or token in tokens.values():
            raise SettingError(
                f"Line {number} of {path} has a name or a token that a line above has. Give each "
                "client one line, with a name and a token of its own."
            )
        tokens[name] = token
    if not tokens:
        raise SettingError(f"{path} holds no token. Write a line NAME:TOKEN for each client.")
    return tokens
