"""Labelled clips in the protocol of the model card: every shape by its phrase, some by a click."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samforge.core.labelled import LabelledClip
from samforge.models.tiny.crossing import FRAMES, draw_crossing
from samforge.models.tiny.scenes import ANY, SIZE

SHOWN = 0.4
"""Visible share on the first frame from which an object is shown by a click."""


def labelled_clips(
    count: int,
    *,
    first: int = 0,
    frames: int = FRAMES,
    split: str = "held-out",
    size: int = SIZE,
) -> Iterator[LabelledClip]:
    """Draw clips in which shapes hide each other, leave and come back, and label them.

    Args:
        count: How many clips.
        first: Number of the first one.
        frames: Pictures of each.
        split: ``held-out`` or ``demo``; ``train`` is what the tracker has seen.
        size: Height and width in pixels.

    Raises:
        SettingError: The split is unknown, a seed negative, no frames or the size below 56.
    """
    for number in range(first, first + count):
        scenes = list(draw_crossing(number, frames=frames, split=split, size=size))
        yield LabelledClip(
            name=f"clip {number}",
            images_rgb=tuple(scene.image for scene in scenes),
            masks=tuple(
                {
                    index: scene.instances == index + 1
                    for index in np.flatnonzero(scene.visible_shares).tolist()
                }
                for scene in scenes
            ),
            phrase=ANY,
            shown=tuple(np.flatnonzero(scenes[0].visible_shares >= SHOWN).tolist()),
        )
