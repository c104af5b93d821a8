"""Pictures and prompts in the form that both sides read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meta_comparison.settings import Settings
from samforge.core.images import RgbImage
from samforge.media import list_images, read_image, write_png
from samforge.models.tiny.scenes import draw_scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture, written where both sides read the same pixels."""

    name: str
    """For people."""
    file: str
    """PNG."""
    size_hw: tuple[int, int]
    """Height and width, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One question, put to every picture."""

    name: str
    """For people: the phrase, or how many boxes."""
    text: str | None
    """A phrase; None where boxes alone ask."""
    boxes: tuple[tuple[float, float, float, float, int], ...] = ()
    """Left, top, right, bottom as fractions of the picture, and 1 or 0."""

    def for_meta(self) -> dict[str, Any]:
        """As Meta's processor takes it: centre, width and height of boxes."""
        boxes = [
            ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, label)
            for left, top, right, bottom, label in self.boxes
        ]
        return {"text": self.text, "boxes": boxes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Every prompt is put to every picture."""

    pictures: tuple[Picture, ...]
    """In order."""
    prompts: tuple[Prompt, ...]
    """In order."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)


def prompts_from_settings(settings: Settings) -> tuple[Prompt, ...]:
    """Each phrase once, then the boxes."""
    prompts = [Prompt(name=phrase, text=phrase) for phrase in dict.fromkeys(settings.phrases)]
    if settings.boxes:
        count = len(settings.boxes)
        name = f"{count} {'box' if count == 1 else 'boxes'}"
        prompts.append(Prompt(name=name, text=None, boxes=settings.boxes))
    return tuple(prompts)


def drawn(number: int) -> tuple[str, RgbImage]:
    """Draw a picture: 1008 pixels, the network's own size, or one that has to be resized."""
    if number % 2 == 0:
        return f"scene {number}", draw_scene(number, split="demo", size=1008).image
    wide = draw_scene(number, split="demo", size=1280).image[240:1040]
    return f"scene {number}, 1280 x 800", wide


def pictures_from_settings(settings: Settings, folder: Path) -> tuple[Picture, ...]:
    """Write the pictures as both sides read them: how a JPEG is decoded is not the question.

    Raises:
        ImageError: A file cannot be read.
        SettingError: There is no picture.
    """
    named: list[tuple[str, RgbImage | Path]]
    if settings.images is None:
        named = [drawn(number) for number in range(settings.scenes)]
    else:
        files = [settings.images] if settings.images.is_file() else list_images(settings.images)
        named = [(file.name, file) for file in files]
    pictures = []
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, source) in enumerate(named):
        rgb = read_image(source)
        file = folder / f"{index:04d}.png"
        write_png(file, rgb)
        pictures.append(Picture(name=name, file=str(file), size_hw=(rgb.shape[0], rgb.shape[1])))
    return tuple(pictures)
