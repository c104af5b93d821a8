"""HTML and SVG as values: text is escaped because it is text, markup only comes from ``tag``."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

_EMPTY = {"meta", "img", "br", "col", "line", "rect", "circle", "path"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
"""Text, markup, numbers, or any nesting of them; None is nothing."""


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Make one element.

    Args:
        name: Of the element.
        children: Its content; what is not :class:`Markup` is escaped.
        attributes: ``_`` becomes ``-``, a trailing one is dropped (``class_``); None and False are
            left out, True stands without a value.
    """
    opening = "".join([f"<{name}", *(_attribute(key, value) for key, value in attributes.items())])
    if name in _EMPTY and not children:
        return Markup(f"{opening}/>")
    return Markup(f"{opening}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """Put children behind each other."""
    return Markup("".join(_flat(children)))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, (str, int, float)):
            yield escape(_printable(str(child)))
        elif child is not None:
            yield from _flat(child)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(_printable(text))}"'


def _printable(text: str) -> str:
    """Control characters and lone surrogates, which no HTML may hold, become a visible box."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def section(title: str, hint: str, *children: Child) -> Markup:
    """One section of the page: a title, what to know before reading it, and its content."""
    return tag(
        "section", tag("h2", title), tag("p", hint, class_="hint") if hint else None, children
    )


def folded(title: str, content: Child) -> Markup:
    """Content that a click opens."""
    return tag("details", tag("summary", title), content)


def key(*entries: tuple[str, str]) -> Markup:
    """What colours mean: names with their classes."""
    return tag("ul", [tag("li", name, class_=kind or None) for name, kind in entries], class_="key")
