"""Several pictures with titles on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from samforge.core.errors import ShapeError
from samforge.core.images import RgbImage
from samforge.draw.tags import font_for

_PAPER, _INK = (255, 255, 255), (30, 30, 30)


def grid(
    images: Sequence[RgbImage],
    titles: Sequence[str],
    *,
    columns: int | None = None,
    cell: int = 360,
) -> RgbImage:
    """Lay pictures out in rows, each fitted into a square cell with its title above.

    Args:
        images: Pictures (H, W, 3), uint8, of any sizes; the aspect ratio is kept.
        titles: One for each picture, shortened where it is too long.
        columns: Pictures in a row; None makes the sheet about square.
        cell: Side of a cell, pixels.

    Returns:
        uint8 RGB.

    Raises:
        ShapeError: There is no picture, or not one title for each.
    """
    if not images or len(images) != len(titles):
        raise ShapeError(
            f"A sheet wants one title for each of at least one picture, got {len(images)} "
            f"pictures and {len(titles)} titles."
        )
    columns = min(len(images), columns or math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    font = font_for((cell * 2, cell * 2))
    gap = max(4, cell // 30)
    line = round(ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), "Ágj|", font=font)[3])
    step_x, step_y = cell + gap, cell + line + 2 * gap
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (rgb, title) in enumerate(zip(images, titles, strict=True)):
        left, top = gap + (i % columns) * step_x, gap + (i // columns) * step_y
        shown = title
        while shown and pen.textlength(shown, font=font) > cell:
            shown = shown.removesuffix("…")[:-1].rstrip() + "…" if len(shown) > 1 else ""
        pen.text((left, top), shown, fill=_INK, font=font)
        sheet.paste(_fitted(rgb, cell), (left, top + line + gap // 2))
    return np.asarray(sheet)


def _fitted(rgb: RgbImage, cell: int) -> Image.Image:
    picture = Image.fromarray(rgb)
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
