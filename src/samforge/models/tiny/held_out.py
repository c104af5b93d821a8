"""Labelled scenes in the protocol of the model card: two phrases and two box prompts a scene."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samforge.core.labelled import LabelledImage, Question
from samforge.models.tiny.prompts import (
    VISUAL,
    ScenePrompt,
    box_prompt,
    mixed_prompt,
    prompt_rng,
    text_prompt,
)
from samforge.models.tiny.scenes import SIZE, SPLITS, Scene, draw_scene

_TRIES = 8
"""Draws of a phrase that was not asked yet; a scene of one shape has few that are there."""


def labelled_scenes(
    count: int,
    *,
    first: int = 0,
    split: str = "held-out",
    size: int = SIZE,
    more_phrases: int = 0,
) -> Iterator[LabelledImage]:
    """Draw scenes and ask about each: two phrases, a box, and a box with or without a phrase.

    The questions of a scene follow from its number alone and stay as they are, whatever mix of
    prompts the model is trained on: figures of different versions can be compared.

    Args:
        count: How many scenes.
        first: Number of the first one.
        split: ``held-out`` or ``demo``; ``train`` is what the model has seen.
        size: Height and width in pixels.
        more_phrases: Phrases to ask beyond these, in turn one that is absent and one that is there.

    Raises:
        SettingError: The split is unknown, a number negative or the size too small.
    """
    for seed in range(first, first + count):
        scene = draw_scene(seed, split=split, size=size)
        masks = scene.masks
        yield LabelledImage(
            name=f"scene {seed}",
            image_rgb=scene.image,
            questions=tuple(
                Question(
                    text=None if prompt.has_boxes and prompt.text == VISUAL else prompt.text,
                    boxes_xyxy=prompt.boxes_xyxy if prompt.has_boxes else None,
                    box_labels=prompt.box_labels if prompt.has_boxes else None,
                    masks=masks[prompt.targets],
                )
                for prompt in (
                    *scene_prompts(scene, seed, split=split),
                    *_more_prompts(scene, seed, split, more_phrases),
                )
            ),
        )


def scene_prompts(scene: Scene, seed: int, *, split: str = "held-out") -> tuple[ScenePrompt, ...]:
    """Two phrases, then boxes alone, then boxes alone or with a phrase; exact boxes."""
    rng = prompt_rng(seed, split=split)
    texts = (text_prompt(scene, rng), text_prompt(scene, rng))
    alone = box_prompt(scene, rng)
    other = box_prompt if rng.random() < 0.4 else mixed_prompt
    return (*texts, alone, other(scene, rng))


def _more_prompts(scene: Scene, seed: int, split: str, count: int) -> Iterator[ScenePrompt]:
    """Phrases from a stream of their own, none twice: those of the protocol stay what they are."""
    rng = np.random.default_rng([SPLITS[split], seed, 2])
    asked = {prompt.text for prompt in scene_prompts(scene, seed, split=split)}
    for index in range(count):
        for _ in range(_TRIES):
            prompt = text_prompt(scene, rng, absent_share=float(index % 2 == 0))
            if prompt.text not in asked:
                asked.add(prompt.text)
                yield prompt
                break
