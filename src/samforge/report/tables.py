"""Tables and figures of the report, written the same way everywhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from samforge.core.images import RgbImage
from samforge.core.markup import Child, Markup, tag

PICTURE_PX = 640
"""Longest side of a picture on the page."""
_PNG_BYTES = 160_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell with a look of its own."""

    content: Child
    """What stands in it."""
    look: str
    """``good``, ``bad``, ``path`` or ``word`` (not broken across lines)."""


def table(columns: Sequence[str], rows: Iterable[Sequence[Child | Cell]]) -> Markup:
    """Make a table that scrolls sideways where it is too wide.

    Args:
        columns: Headings; one that ends in ``#`` is of a column of numbers.
        rows: Cells in the order of the headings; None is shown as a dash.
    """
    numbers = [column.endswith("#") for column in columns]
    head = [
        tag("th", column.rstrip("#"), class_="number" if number else None, scope="col")
        for column, number in zip(columns, numbers, strict=True)
    ]
    body = [
        tag("tr", [_cell(cell, number) for cell, number in zip(row, numbers, strict=True)])
        for row in rows
    ]
    content = tag("table", tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", content, class_="scroll", tabindex="0")


def _cell(cell: Child | Cell, number: bool) -> Markup:
    if isinstance(cell, Cell):
        return tag("td", cell.content, class_=cell.look)
    return tag("td", "–" if cell is None else cell, class_="number" if number else None)


def figure(value: float | None, digits: int = 4) -> str | None:
    """A figure with a fixed number of digits after the point; None stays None."""
    return None if value is None else f"{value:.{digits}f}"


def small(value: float) -> str:
    """A difference: 0 is exact and says so, others are in powers of ten."""
    return "0" if value == 0 else f"{value:.1e}"


def decibel(value: float) -> str:
    """A ratio in dB."""
    if math.isfinite(value):
        return f"{value:.1f}"
    return "exact" if value > 0 else "not finite"


def mebibytes(count: int) -> str:
    """Bytes in MiB."""
    mib = count / (1 << 20)
    return f"{mib:,.1f}" if mib >= 1 else f"{mib:.3f}"


def picture(rgb: RgbImage, text: str) -> Markup:
    """An image element that holds its own bytes.

    PNG keeps drawn scenes exact; photographs, whose PNG is large, become JPEG.

    Args:
        rgb: (H, W, 3), uint8.
        text: What it shows, for those who do not see it.
    """
    image = Image.fromarray(rgb)
    if max(image.size) > PICTURE_PX:
        image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    kind, content = "png", _encoded(image, "PNG", optimize=True)
    if len(content) > _PNG_BYTES:
        kind, content = "jpeg", _encoded(image, "JPEG", quality=88, subsampling=0)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return tag("img", src=source, alt=text, width=image.width, height=image.height)


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()
