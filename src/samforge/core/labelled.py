"""Images and videos with questions whose answers are known: what accuracy is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.images import RgbImage


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """One prompt and the masks that answer it."""

    text: str | None
    """A phrase, or None when boxes alone ask."""
    boxes_xyxy: npt.NDArray[np.float32] | None = None
    """(K, 4), pixels, exemplar boxes; None for a phrase alone."""
    box_labels: npt.NDArray[np.int64] | None = None
    """(K,), 1 for *like this* and 0 for *not like this*."""
    masks: npt.NDArray[np.bool_]
    """(M, H, W), what is asked for; M is 0 when the concept is absent."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledImage:
    """One image and its questions."""

    name: str
    """Says which one it is: ``scene 17``."""
    image_rgb: RgbImage
    """(H, W, 3)."""
    questions: tuple[Question, ...]
    """In the order they are asked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledClip:
    """One clip of a video and the objects in it."""

    name: str
    """Says which one it is: ``clip 17``."""
    images_rgb: tuple[RgbImage, ...]
    """T frames (H, W, 3) of one size."""
    masks: tuple[Mapping[int, npt.NDArray[np.bool_]], ...]
    """T times the mask (H, W) of each object that is to be seen, by its number, which it keeps."""
    phrase: str
    """Names all objects that are to be found, and no other."""
    shown: tuple[int, ...]
    """Objects of the first frame that are worth being shown there by a click."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoQuestion:
    """One phrase and the tracks that answer it."""

    text: str
    """The phrase."""
    tracks: tuple[Detections, ...]
    """What it names on each of T frames, with ids; nothing on any frame where it is absent."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledVideo:
    """One video and what is asked of it; its frames are read when they are needed."""

    name: str
    """Says which one it is: ``clip 17``."""
    length: int
    """T, frames."""
    frames: Callable[[], Iterator[RgbImage]]
    """Reads the T frames (H, W, 3) in order, anew for every call."""
    questions: tuple[VideoQuestion, ...]
    """In the order they are asked; no id belongs to two of them."""
    shown: tuple[int, ...] = ()
    """Objects of the first frame that are shown there by a click."""
