"""A line of figures in the corner of a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from samforge.core.errors import ShapeError
from samforge.core.images import RgbImage
from samforge.draw.tags import Font, font_for

_INK = (255, 255, 255)
# The panel keeps this share of the picture: white text on it has a contrast above 7 on white
# ground (WCAG 2.2, enhanced), and more on any other.
_SHOWS_THROUGH = 0.3


def draw_readout(image_rgb: RgbImage, items: Sequence[str]) -> RgbImage:
    """Write short texts into the top left corner, white on a dark panel.

    Items that do not fit beside each other go below each other; an item wider than the picture is
    cut off. The panel's width does not follow the digits, so that it stays still in a video.

    Args:
        image_rgb: (H, W, 3), uint8.
        items: For example ``("onnxruntime int8", "185 ms", "5.4 fps")``; none draws nothing.

    Returns:
        A new picture of the same size.

    Raises:
        ShapeError: ``image_rgb`` is no picture.
    """
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise ShapeError(
            f"A picture is uint8 (H, W, 3), got {image_rgb.dtype} {image_rgb.shape}. "
            "samforge.media.read_image gives that of any image."
        )
    canvas = image_rgb.copy()
    if not items:
        return canvas
    height, width = canvas.shape[:2]
    font = font_for((width, height))
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, rise, _, fall = measure.textbbox((0, 0), "Ágj|", font=font)
    step = round(fall - rise)
    margin = max(2, round(step * 0.35))
    lines = _lines(measure, font, items, width - 2 * margin)
    across = max(_steady_width(measure, font, line) for line in lines)
    panel = np.s_[: len(lines) * step + 2 * margin, : round(across) + 2 * margin]
    canvas[panel] = (canvas[panel] * _SHOWS_THROUGH).astype(np.uint8)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        pen.text((margin, margin - rise + i * step), line, fill=_INK, font=font)
    return np.asarray(picture)


def _lines(pen: ImageDraw.ImageDraw, font: Font, items: Sequence[str], width: int) -> list[str]:
    """Put as many items into each line as fit."""
    lines = [items[0]]
    for item in items[1:]:
        longer = f"{lines[-1]}   {item}"
        if _steady_width(pen, font, longer) <= width:
            lines[-1] = longer
        else:
            lines.append(item)
    return lines


def _steady_width(pen: ImageDraw.ImageDraw, font: Font, text: str) -> float:
    """Width with every digit as wide as a zero, which is among the widest."""
    return pen.textlength(re.sub(r"\d", "0", text), font=font)
