"""Text of others - names of files, categories, phrases, manifests - in a form that is safe to show.

What a terminal obeys stays in the file it came from: escape sequences, control characters, marks
that turn the direction of writing, and halves of characters that no encoding has.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from samforge.core.structure import json_from_value

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format (bidi marks are), surrogate, line and paragraph separator."""
_SUSPECT = re.compile(r"[^ -~]")
_HALF = re.compile("[\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: object, *, lines: bool = False) -> str:
    r"""Show text without what moves or colours a terminal: ``\x1b[2J`` instead of a blank screen.

    Args:
        text: Anything; its ``str`` is taken.
        lines: Whether ends of lines stay, in text of our own that has several.

    Returns:
        The text with such characters as in a Python literal; a byte of a file name that is no
        UTF-8 as ``\xff``.
    """

    def shown(match: re.Match[str]) -> str:
        one = match.group()
        if (lines and one == "\n") or unicodedata.category(one) not in _OBEYED:
            return one
        code = ord(one)
        if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for a byte
            return f"\\x{code - 0xDC00:02x}"
        if code < 0x100:
            return _SHORT.get(one, f"\\x{code:02x}")
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _SUSPECT.sub(shown, str(text))


def encodable(text: str) -> str:
    r"""Text with halves of characters as in :func:`escaped`; every other character stays.

    For names in data sets: they have to be UTF-8, and are still those of the files where they can
    be: marks that join letters, as Persian has them, are part of a name.
    """
    return _HALF.sub(lambda match: escaped(match.group()), text)


def json_text(value: object, *, indent: int | None = 2, ascii_only: bool = False) -> str:
    """Plain values or dataclasses as JSON that any terminal and any encoding survives.

    Characters as in :func:`escaped` stand as JSON's own escapes, so readers get the very same text:
    ``os.fsencode`` of a name in it is the name of the file.

    Args:
        value: See ``json_from_value``.
        indent: Spaces of each level, or None for one line.
        ascii_only: Escape everything beyond ASCII: for an output that is not UTF-8.
    """
    text = json.dumps(
        json_from_value(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False
    )
    return _SUSPECT.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    one = match.group()
    if one == "\n" or unicodedata.category(one) not in _OBEYED:  # of the indentation: json escaped
        return one
    code = ord(one)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def relative_names(files: Sequence[Path]) -> list[str]:
    """Name files relative to the folder that all of them share: ``cats/1.png``, ``dogs/1.png``.

    Files of one folder have their bare names.
    """
    places = [file.absolute() for file in files]
    folders = {place.parent for place in places}
    if len(folders) <= 1:
        return [place.name for place in places]
    shared = _shared(folders)
    return [
        place.relative_to(shared).as_posix() if shared else place.as_posix() for place in places
    ]


def _shared(folders: set[Path]) -> Path | None:
    first, *others = folders
    for candidate in (first, *first.parents):
        if all(folder.is_relative_to(candidate) for folder in others):
            return candidate
    return None  # on two drives
