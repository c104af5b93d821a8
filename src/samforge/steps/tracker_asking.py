"""What a build asks its tracker: clicks on pictures and clips, where fp32 finds objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

from samforge.core.images import RgbImage
from samforge.core.labelled import LabelledImage
from samforge.measure.clicking import first_click
from samforge.measure.tracker_questions import Questions, panned
from samforge.models import tiny
from samforge.runtime import ObjectPrompt, Segmenter
from samforge.runtime.tracking import PromptAt
from samforge.steps.context import BuildContext
from samforge.steps.phrases import knows_scenes

Clip: TypeAlias = tuple[tuple[RgbImage, ...], tuple[str, ...]]
"""Frames, and phrases that name what is in them."""
MOST_FOLLOWED = 3
"""Objects that are shown on the first frame of a clip, and phrases that are looked for in it."""


def questions_about(
    floating: Segmenter,
    pictures: Iterable[LabelledImage],
    clips: Iterable[Clip],
    *,
    most_clicked: int,
) -> Questions:
    """Let fp32 find objects, and ask about them.

    Args:
        floating: fp32.
        pictures: To click on, with their questions.
        clips: To follow objects through.
        most_clicked: Objects of a picture that are clicked on.
    """
    images, clicks = [], []
    for image in pictures:
        images.append(image.image_rgb)
        clicks.append(clicks_on(floating, image.image_rgb, phrases_of(image), most_clicked))
    shown = tuple(clips)
    return Questions(
        pictures=tuple(images),
        clicks=tuple(clicks),
        clips=tuple(clip for clip, _ in shown),
        shown=tuple(shown_in(floating, clip, phrases) for clip, phrases in shown),
        phrases=tuple(phrases for _, phrases in shown),
    )


def shown_in(
    floating: Segmenter, clip: Sequence[RgbImage], phrases: Sequence[str]
) -> tuple[PromptAt, ...]:
    """Clicks on objects of a clip's first frame."""
    prompts = clicks_on(floating, clip[0], phrases, MOST_FOLLOWED)
    return tuple(PromptAt(frame=0, prompt=one) for one in prompts)


def phrases_of(image: LabelledImage) -> list[str]:
    """Phrases that are asked of a picture."""
    return [one.text for one in image.questions if one.text and one.boxes_xyxy is None]


def clicks_on(
    segmenter: Segmenter, rgb: RgbImage, phrases: Sequence[str], most: int
) -> tuple[ObjectPrompt, ...]:
    """A click on each of the best objects that phrases find, or on the picture's middle."""
    height, width = rgb.shape[:2]
    places = [(width / 2, height / 2)]
    if phrases:
        found = segmenter.predict(rgb, text=list(phrases), max_detections=most)
        places = [first_click(mask) for mask in found.masks if mask.any()] or places
    return tuple(ObjectPrompt(points=[place]) for place in places)


def clips_of(
    context: BuildContext,
    pictures: Iterable[LabelledImage],
    *,
    split: str,
    first: int,
    count: int,
    frames: int,
) -> Iterator[Clip]:
    """Drawn clips for a model that knows drawn scenes, else windows that move over pictures.

    Args:
        context: Of the build.
        pictures: The user's, or whatever the model is shown.
        split: Of the drawn clips.
        first: Number of the first of them within its split.
        count: Clips.
        frames: Of each.
    """
    if context.recipe.calibration.source is None and knows_scenes(context):
        for seed in range(first, first + count):
            scenes = list(tiny.draw_crossing(seed, frames=frames, split=split))
            pairs = zip(scenes[0].colours, scenes[0].shapes, strict=True)
            named = dict.fromkeys(f"{colour} {shape}" for colour, shape in pairs)
            yield tuple(scene.image for scene in scenes), tuple(named)[:MOST_FOLLOWED]
        return
    for image in islice(pictures, count):
        phrases = tuple(dict.fromkeys(phrases_of(image)))
        yield panned(image.image_rgb, frames), phrases[:MOST_FOLLOWED]
