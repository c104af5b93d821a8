"""What a user shows of one object on one frame: checked, and in the units of the parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.errors import PromptError, ShapeError
from samforge.runtime.prompts import exemplars_from_boxes
from samforge.runtime.tracking.calls import ask_masks, ask_points
from samforge.runtime.tracking.given import given_logits
from samforge.runtime.tracking.objects import Turn
from samforge.runtime.tracking.parts import TrackerFacts
from samforge.runtime.tracking.resize import resampled
from samforge.runtime.tracking.seen import Seen
from samforge.runtime.tracking.state import Floats

_UPPER_LEFT, _LOWER_RIGHT = 2, 3
"""Labels of the corners of a box."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObjectPrompt:
    """Points, a box with or without points, or a mask: what shows one object on one frame.

    Raises:
        PromptError: There is nothing, or a mask comes with points or a box, which exclude each
            other.
    """

    points: npt.ArrayLike | None = None
    """(K, 2), x and y in pixels of the frame."""
    labels: npt.ArrayLike | None = None
    """(K,), 1 on the object, 0 beside it; None for all 1."""
    box_xyxy: npt.ArrayLike | None = None
    """(4,), left, top, right, bottom in pixels of the frame: the box around the object."""
    mask: npt.ArrayLike | None = None
    """(H, W) of the frame, bool: the object itself."""

    def __post_init__(self) -> None:
        shown = self.points is not None or self.box_xyxy is not None
        if self.mask is not None and (shown or self.labels is not None):
            raise PromptError(
                "A mask says all of an object, and points and boxes ask for one: they exclude each "
                "other. Give the mask first, and correct it by points in a second call."
            )
        if self.mask is None and not shown:
            raise PromptError(
                "Show the object: points=[[x, y]], box_xyxy=[left, top, right, bottom], or a mask."
            )
        if self.labels is not None and self.points is None:
            raise PromptError("labels came without points. Give the points they belong to.")


def answer(turn: Turn, prompt: ObjectPrompt, earlier: Floats | None) -> Seen:
    """Ask a prompt on a frame: one row.

    Args:
        turn: The frame.
        prompt: Of one object.
        earlier: (4s, 4s), logits of what is known of it on this frame; points refine that.

    Raises:
        PromptError: The prompt does not fit the frame.
        FidelityError: The answer holds NaN.
    """
    size_hw, facts = turn.encoded.size_hw, turn.parts.facts
    if prompt.mask is not None:
        mask = _checked_mask(prompt.mask, size_hw)[None]
        given = resampled(mask, (facts.prompt_side, facts.prompt_side))
        # Its edge stays soft here, as at Meta's.
        logits = turn.parts.masks(given_logits(mask, facts, size_hw))
        return ask_masks(turn.parts, turn.features, given, logits)
    points, labels = points_of(prompt, size_hw, facts)
    return ask_points(turn.parts, turn.features, points, labels, earlier)


def points_of(
    prompt: ObjectPrompt, size_hw: tuple[int, int], facts: TrackerFacts
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Corners of the box, then points, as the parts take them; none of a mask.

    Args:
        prompt: Of one object.
        size_hw: Height and width of the frame, pixels.
        facts: Sizes of the tracker.

    Returns:
        (K, 2), x and y in pixels of the square image, and their labels (K,).

    Raises:
        PromptError: A point or the box does not fit the frame, or there are too many of them.
    """
    places, labels = np.zeros((0, 2)), np.zeros(0, np.int64)
    if prompt.box_xyxy is not None:
        box = _numbers("Corners of a box", prompt.box_xyxy)
        corners = exemplars_from_boxes(box.reshape(1, -1), None, size_hw).boxes_xyxy
        places, labels = corners.reshape(2, 2), np.array([_UPPER_LEFT, _LOWER_RIGHT])
    if prompt.points is not None:
        own = _checked_points(prompt.points, size_hw)
        places = np.concatenate([places, own])
        labels = np.concatenate([labels, _checked_labels(prompt.labels, len(own))])
    most = facts.most_points
    if most is not None and len(places) > most:
        raise PromptError(
            f"This bundle takes {most} points of an object, corners of its box included, got "
            f"{len(places)}. Give the others in a second call: it refines the first."
        )
    height, width = size_hw
    scaled = places / np.array([width, height]) * facts.image_size
    return scaled.astype(np.float32), labels.astype(np.int64)


def _checked_points(points: npt.ArrayLike, size_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    array = _numbers("Points", points)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise PromptError(
            f"Points have the shape (K, 2): x and y of each, got {array.shape}. A single point is "
            "[[x, y]]."
        )
    height, width = size_hw
    for x, y in array.tolist():
        if not (0 <= x <= width and 0 <= y <= height):  # NaN is not, either
            raise PromptError(
                f"The point ({x:g}, {y:g}) is not on the frame, which is {width} "
                f"wide and {height} high. Give pixels of the frame."
            )
    return array


def _checked_labels(labels: npt.ArrayLike | None, count: int) -> npt.NDArray[np.int64]:
    if labels is None:
        return np.ones(count, np.int64)
    array = _numbers("Labels", labels)
    if array.shape != (count,):
        raise PromptError(
            f"There are {count} points and labels of the shape {array.shape}. Give one for each: 1 "
            "on the object, 0 beside it."
        )
    for label in array.tolist():
        if label not in (0, 1):
            raise PromptError(f"The label of a point is {label:g}. Give 1 or 0.")
    return array.astype(np.int64)


def _checked_mask(mask: npt.ArrayLike, size_hw: tuple[int, int]) -> Floats:
    array: npt.NDArray[Any] = np.asarray(mask)
    if array.shape != size_hw:
        raise ShapeError(
            f"A mask has the frame's size {size_hw} (H, W), got {array.shape}. Resize it first."
        )
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise PromptError(f"A mask is bool, or 0 and 1, got {array.dtype}. Give mask > 0.")
    return array.astype(np.float32)


def _numbers(what: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{what} are numbers, got {values!r:.80}.") from error
