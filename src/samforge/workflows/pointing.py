"""Clicks and boxes that show objects, as command lines and plans give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from samforge.core.errors import PromptError
from samforge.runtime import ObjectPrompt

Box: TypeAlias = tuple[float, float, float, float]
Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointing:
    """One object by clicks, with at most one box around it; or several by a box each.

    Raises:
        PromptError: Clicks come with several boxes.
    """

    points_xy: tuple[Point, ...] = ()
    """Clicks, pixels."""
    point_labels: tuple[int, ...] = ()
    """1 (on the object) or 0 (beside it) for each click."""
    boxes_xyxy: tuple[Box, ...] = ()
    """Boxes around objects, pixels."""

    def __post_init__(self) -> None:
        if self.points_xy and len(self.boxes_xyxy) > 1:
            raise PromptError(
                f"Points belong to one object, and there are {len(self.boxes_xyxy)} object boxes. "
                "Leave the points out, or give one box."
            )

    def __bool__(self) -> bool:
        return bool(self.points_xy or self.boxes_xyxy)

    def objects(self) -> tuple[ObjectPrompt, ...]:
        """A prompt for each object that is shown.

        Raises:
            PromptError: All clicks say what is not the object.
        """
        if not self.points_xy:
            return tuple(ObjectPrompt(box_xyxy=box) for box in self.boxes_xyxy)
        if not self.boxes_xyxy and 1 not in self.point_labels:
            raise PromptError(
                "All points say what is not the object. Add --point 'x,y' on it, or an "
                "--object-box around it."
            )
        (box,) = self.boxes_xyxy or (None,)
        return (ObjectPrompt(points=self.points_xy, labels=self.point_labels, box_xyxy=box),)


def pointing_from_texts(
    on: Sequence[str] | None, beside: Sequence[str] | None, boxes: Sequence[str] | None
) -> Pointing:
    """Read clicks on and beside an object, and boxes, as the command line takes them.

    Raises:
        PromptError: One is no point or no box, or points come with several boxes.
    """
    on, beside = on or (), beside or ()
    return Pointing(
        points_xy=tuple(point_from_text(one) for one in (*on, *beside)),
        point_labels=(1,) * len(on) + (0,) * len(beside),
        boxes_xyxy=tuple(box_from_text(one) for one in boxes or ()),
    )


def box_from_text(text: str) -> Box:
    """Read a box as the command line takes it: ``10,20,90,120``.

    Raises:
        PromptError: It is not four numbers.
    """
    try:
        left, top, right, bottom = (float(word) for word in text.split(","))
    except ValueError as error:
        raise PromptError(
            f"A box is four numbers, left,top,right,bottom in pixels, got {text!r}. "
            "Write it like --box 10,20,90,120."
        ) from error
    return left, top, right, bottom


def point_from_text(text: str) -> Point:
    """Read a point as the command line takes it: ``10,20``.

    Raises:
        PromptError: It is not two numbers.
    """
    try:
        x, y = (float(word) for word in text.split(","))
    except ValueError as error:
        raise PromptError(
            f"A point is two numbers, x,y in pixels, got {text!r}. Write it like --point 10,20."
        ) from error
    return x, y
