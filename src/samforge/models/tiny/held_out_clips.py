"""Labelled clips in the protocol of the model card: every shape by its phrase, some by a click."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.labelled import LabelledClip, LabelledVideo, VideoQuestion
from samforge.core.masks import Masks
from samforge.models.tiny.crossing import FRAMES, draw_crossing
from samforge.models.tiny.scenes import ANY, COLOURS, SHAPES, SIZE, SPLITS

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


def labelled_videos(
    count: int, *, first: int = 0, frames: int = FRAMES, split: str = "held-out", size: int = SIZE
) -> Iterator[LabelledVideo]:
    """The same clips as videos, each asked one more phrase, which names nothing in it.

    The arguments and errors are those of :func:`labelled_clips`.
    """
    for number in range(first, first + count):
        (clip,) = labelled_clips(1, first=number, frames=frames, split=split, size=size)
        nothing = Detections.empty((size, size))
        none = tuple(_tracks({}, ANY, nothing) for _ in clip.masks)
        yield LabelledVideo(
            name=clip.name,
            length=len(clip.images_rgb),
            frames=partial(iter, clip.images_rgb),
            questions=(
                VideoQuestion(
                    text=clip.phrase,
                    tracks=tuple(_tracks(one, clip.phrase, nothing) for one in clip.masks),
                ),
                VideoQuestion(text=_absent(number, split), tracks=none),
            ),
            shown=clip.shown,
        )


def _tracks(
    masks: Mapping[int, npt.NDArray[np.bool_]], phrase: str, nothing: Detections
) -> Detections:
    """The truth of one frame."""
    if not masks:
        return replace(nothing, ids=np.zeros(0, np.int64))
    packed = Masks.from_dense(np.stack(list(masks.values())))
    return Detections(
        masks=packed,
        boxes_xyxy=packed.boxes.astype(np.float32),
        scores=np.ones(len(masks), np.float32),
        labels=(phrase,) * len(masks),
        size_hw=packed.size_hw,
        ids=np.fromiter(masks, np.int64, len(masks)),
    )


def _absent(number: int, split: str) -> str:
    """A colour and shape of no shape in the clip: the same in every run."""
    (scene,) = draw_crossing(number, frames=1, split=split)
    missing = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in scene.concepts]
    rng = np.random.default_rng([SPLITS[split], number, len(missing)])
    return " ".join(missing[int(rng.integers(len(missing)))])
