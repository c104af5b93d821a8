"""Legible label tags that stay inside the picture and off each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom, right and bottom outside
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito's set for colour-blind readers (without black), then four of Paul Tol's muted set.
PALETTE: tuple[Color, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (136, 204, 238),
    (170, 68, 153),
    (153, 153, 51),
    (136, 34, 85),
)
_SMALLEST = 12  # pixels: below, Pillow's font is no longer readable


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A line of text at a box."""

    text: str
    """What it says."""
    color: Color
    """Its background."""
    anchor: Box
    """The box it belongs to, pixels."""


def font_for(size: tuple[int, int]) -> Font:
    """Choose Pillow's font at 1.9 % of the longer side (width, height), at least 12 px."""
    return ImageFont.load_default(size=max(_SMALLEST, round(max(size) * 0.019)))


def stroke_for(size: tuple[int, int]) -> int:
    """Line width in pixels for a picture of (width, height)."""
    return max(1, round(max(size) / 320))


def draw_tags(image: Image.Image, tags: list[Tag]) -> None:
    """Draw tags, the first one with first choice of place.

    A text too wide for the picture is shortened; one that has no room at all is left out.
    """
    pen = ImageDraw.Draw(image)
    font = font_for(image.size)
    _, rise, _, fall = pen.textbbox((0, 0), "Ágj|", font=font)
    margin = max(2, round((fall - rise) * 0.2))
    taken: list[Box] = []
    for tag in tags:
        text = _fitted(pen, tag.text, font, image.width - 2 * margin)
        width = round(pen.textlength(text, font=font)) + 2 * margin
        height = round(fall - rise) + 2 * margin
        if not text or height > image.height:
            continue
        place = _place(tag.anchor, (width, height), image.size, taken)
        taken.append(place)
        left, top, right, bottom = place
        pen.rectangle((left, top, right - 1, bottom - 1), fill=tag.color)
        ink = (0, 0, 0) if _is_light(tag.color) else (255, 255, 255)
        pen.text((left + margin, top + margin - rise), text, fill=ink, font=font)


def _fitted(pen: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    text = " ".join(text.split())  # a line break would be drawn outside the tag
    if pen.textlength(text, font=font) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        shorter = text[:length].rstrip() + "…"
        if pen.textlength(shorter, font=font) <= width:
            return shorter
    return ""


def _place(anchor: Box, tag: tuple[int, int], size: tuple[int, int], taken: list[Box]) -> Box:
    """Choose the first free place, or the one that covers least of other tags."""
    places: list[tuple[int, Box]] = []
    for x, y in _candidates(anchor, tag, size[1]):
        left = min(max(x, 0), size[0] - tag[0])
        top = min(max(y, 0), size[1] - tag[1])
        place = (left, top, left + tag[0], top + tag[1])
        covered = sum(_overlap(place, other) for other in taken)
        if covered == 0:
            return place
        places.append((covered, place))
    return min(places)[1]


def _candidates(anchor: Box, tag: tuple[int, int], height: int) -> Iterator[tuple[int, int]]:
    left, top, right, bottom = anchor
    for x in (left, right - tag[0]):
        # Above the box, below it, then inside.
        yield from ((x, top - tag[1]), (x, bottom), (x, top), (x, bottom - tag[1]))
    # All taken: ever further away, along the box's sides and beside it.
    for offset in range(tag[1] // 2, height + 1, max(1, tag[1] // 2)):
        for x in (left, right - tag[0], right, left - tag[0], left + tag[0]):
            yield from ((x, top + offset), (x, top - offset))


def _overlap(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _is_light(color: Color) -> bool:
    # Luma of ITU-R BT.601: black text reads better above the middle.
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 128
