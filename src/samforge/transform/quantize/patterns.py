"""Patterns that name parts and module paths, and what to say when one matches nothing."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from samforge.core.errors import SettingError

NEAREST = 3
"""How many near names a message offers."""


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names a module or one that it stands in.

    ``layers.3``, ``layers.*`` and ``*.attention`` all match ``layers.3.attention.q_proj``.
    """
    pieces = path.split(".")
    return any(fnmatchcase(".".join(pieces[:end]), pattern) for end in range(len(pieces), 0, -1))


def split(pattern: str) -> tuple[str, str]:
    """Part and module path of ``part/module.path``; a part alone means all of it."""
    part, slash, path = pattern.partition("/")
    return part, path if slash else "*"


def path_pattern(pattern: str, part: str) -> str | None:
    """The module path of a pattern as far as it speaks of this part, or None."""
    own, path = split(pattern)
    return path if fnmatchcase(part, own) else None


def check_patterns(
    setting: str, patterns: Iterable[str], paths_by_part: dict[str, tuple[str, ...]]
) -> None:
    """Refuse patterns that match nothing in any part.

    Args:
        setting: Name of the setting, for the message.
        patterns: ``part`` or ``part/module.path``.
        paths_by_part: Module paths of every part that is built.

    Raises:
        SettingError: With the nearest names.
    """
    for pattern in patterns:
        part, path = split(pattern)
        parts = [name for name in paths_by_part if fnmatchcase(name, part)]
        if not parts:
            raise SettingError(
                f"{setting}: '{pattern}' names no part that is built. "
                f"{_near(part, paths_by_part, 'Parts')}"
            )
        known = dict.fromkeys(own for name in parts for own in paths_by_part[name])
        if not any(matches(path, own) for own in known):
            raise SettingError(
                f"{setting}: '{pattern}' matches no layer of {', '.join(parts)}. "
                f"{_near(path, _with_parents(known), 'Nearest names')}"
            )


def _with_parents(paths: Iterable[str]) -> dict[str, None]:
    """Every path and every module on the way to it."""
    found: dict[str, None] = {}
    for path in paths:
        pieces = path.split(".")
        found |= dict.fromkeys(".".join(pieces[:end]) for end in range(1, len(pieces) + 1))
    return found


def _near(wanted: str, known: Iterable[str], title: str) -> str:
    names = list(known)
    near = get_close_matches(wanted, names, NEAREST, cutoff=0.4) or names[:NEAREST]
    return f"{title}: {', '.join(near)}."


def check_choices(setting: str, values: Iterable[str], allowed: tuple[str, ...]) -> None:
    """Refuse names that are not in a short list.

    Raises:
        SettingError: With the nearest names.
    """
    for value in values:
        if value not in allowed:
            near = get_close_matches(value, allowed, NEAREST, cutoff=0.4) or allowed
            raise SettingError(
                f"{setting}: there is no operator '{value}'. Nearest names: {', '.join(near)}."
            )
