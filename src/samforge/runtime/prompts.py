"""Checks what a caller asks for and brings it to the form the detector wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.boxes import rounding_px
from samforge.core.errors import PromptError

PADDING = -10
"""Label of a box, or of a point, that is there only to fill the row."""
VISUAL = "visual"
"""The phrase SAM 3 was trained with when boxes alone say what to find."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Exemplars:
    """Boxes that show what to find, or what not to, in one image."""

    boxes_xyxy: npt.NDArray[np.float64]
    """(K, 4), pixels."""
    labels: npt.NDArray[np.int64]
    """(K,), 1 for what to find, 0 for what to leave out."""
    size_hw: tuple[int, int]
    """Height and width of the image, pixels."""

    def tensors(self, slots: int | None) -> dict[str, npt.NDArray[np.float32 | np.int64]]:
        """Bring the boxes to the detector's inputs.

        Args:
            slots: Boxes that the detector was built for, filled up with padding; None for any
                number.

        Returns:
            ``boxes_cxcywh`` (1, 1, K, 4), centre and size as fractions of the image, and
            ``box_labels`` (1, 1, K).

        Raises:
            PromptError: There are more boxes than slots.
        """
        count = len(self.labels)
        if slots is not None and count > slots:
            raise PromptError(
                f"This bundle takes at most {slots} boxes, got {count}. Give fewer boxes."
            )
        height, width = self.size_hw
        corners = self.boxes_xyxy / np.array([width, height, width, height])
        first, second = corners[:, :2], corners[:, 2:]
        boxes = np.zeros((1, 1, slots or count, 4), np.float32)
        boxes[0, 0, :count] = np.concatenate([(first + second) / 2, second - first], axis=1)
        labels = np.full((1, 1, slots or count), PADDING, np.int64)
        labels[0, 0, :count] = self.labels
        return {"boxes_cxcywh": boxes, "box_labels": labels}


def phrases_from_text(text: str | Sequence[str] | None, *, has_boxes: bool) -> tuple[str, ...]:
    """List the phrases asked for, each once, in order.

    Raises:
        PromptError: Neither text nor boxes, or several phrases with boxes.
    """
    if text is None:
        if not has_boxes:
            raise PromptError(
                "Say what to find: text='red circle', or boxes_xyxy=[[left, top, right, bottom]], "
                "or both."
            )
        return (VISUAL,)
    listed = [text] if isinstance(text, str) else text
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
        raise PromptError(
            f"Phrases are text, one or a list of it, got {text!r:.80}. Give text='red circle'."
        )
    phrases = tuple(dict.fromkeys(listed))
    if not phrases:
        raise PromptError("The list of phrases is empty. Give at least one, such as 'red circle'.")
    if has_boxes and len(phrases) > 1:
        raise PromptError(
            f"Boxes go with one phrase, got {len(phrases)}: {list(phrases)!r}. "
            "Call predict once for each phrase."
        )
    return phrases


def exemplars_from_boxes(
    boxes_xyxy: npt.ArrayLike, box_labels: npt.ArrayLike | None, size_hw: tuple[int, int]
) -> Exemplars:
    """Check exemplar boxes and their labels.

    Args:
        boxes_xyxy: (K, 4), pixels of the image: left, top, right, bottom.
        box_labels: (K,), 1 (find this) or 0 (leave this out); None for all 1.
        size_hw: Height and width of the image, pixels.

    Raises:
        PromptError: Names the first box that is not inside the image or has no area, or the first
            label that is neither 0 nor 1.
    """
    try:
        boxes = np.asarray(boxes_xyxy, np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"Boxes are numbers, got {boxes_xyxy!r}: {error}.") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise PromptError(
            "Boxes have the shape (K, 4): one list of left, top, right, bottom for each box, "
            f"got {boxes.shape}. A single box is [[left, top, right, bottom]]."
        )
    for i, box in enumerate(boxes):
        _check_box(i, box, size_hw)
    height, width = size_hw
    boxes = boxes.clip(0, [width, height, width, height])  # what rounding alone put outside
    return Exemplars(
        boxes_xyxy=boxes, labels=_checked_labels(box_labels, len(boxes)), size_hw=size_hw
    )


def _check_box(index: int, box: npt.NDArray[np.float64], size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    left, top, right, bottom = box.tolist()
    name = f"Box {index} ({left:g}, {top:g}, {right:g}, {bottom:g})"
    if not np.isfinite(box).all():
        raise PromptError(f"{name} is not finite. Give pixels.")
    if not (left < right and top < bottom):
        raise PromptError(
            f"{name} has no area. A box is left, top, right, bottom in pixels, with "
            "left < right and top < bottom."
        )
    slack = rounding_px(size_hw)
    if min(left, top) < -slack or right > width + slack or bottom > height + slack:
        raise PromptError(
            f"{name} leaves the image, which is {width} wide and {height} high. "
            "Give pixels of the image, clipped to it."
        )
    # As the model gets them: less than about 1e-45 of a side is nothing in float32.
    across = np.float32((min(right, width) - max(left, 0)) / width)
    down = np.float32((min(bottom, height) - max(top, 0)) / height)
    if not (across > 0 and down > 0):
        raise PromptError(f"{name} has no area inside the image, {width} wide and {height} high.")


def _checked_labels(box_labels: npt.ArrayLike | None, count: int) -> npt.NDArray[np.int64]:
    if box_labels is None:
        return np.ones(count, np.int64)
    try:
        labels = np.asarray(box_labels, np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"Box labels are 1 or 0, got {box_labels!r}.") from error
    if labels.shape != (count,):
        raise PromptError(
            f"There are {count} boxes and labels of the shape {labels.shape}. "
            "Give one label for each box: 1 to find it, 0 to leave it out."
        )
    for i, label in enumerate(labels.tolist()):
        if label not in (0, 1):
            raise PromptError(
                f"The label of box {i} is {label:g}. Give 1 to find it, 0 to leave it out."
            )
    return labels.astype(np.int64)
