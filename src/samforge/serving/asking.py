"""What a client wants to know about a picture, checked against the server's limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samforge.core.capabilities import BOXES, POINTS
from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SettingError, TooLarge
from samforge.runtime import EncodedImage, ObjectPrompt, Question, Segmenter, question_from
from samforge.serving.jobs import Work
from samforge.serving.limits import Limits

MOST_WORD = 512
"""Characters of a phrase: the text part reads 32 tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ask:
    """Phrases, boxes that show what to find, or clicks on objects.

    Raises:
        PromptError: Clicks come with phrases or boxes, or what refines them without clicks.
    """

    text: tuple[str, ...] | None = None
    """Noun phrases."""
    boxes_xyxy: Any = None
    """(K, 4), pixels: examples of what to find, with one phrase at most."""
    box_labels: Any = None
    """(K,), 1 to find it, 0 to leave it out; None for all 1."""
    objects: tuple[ObjectPrompt, ...] = ()
    """Clicks, a box or a mask of each object."""
    earlier: Detections | None = None
    """What is known of the objects: the clicks correct it."""
    candidates: bool = False
    """Whether each object gets three masks to choose from."""
    threshold: float | tuple[float, ...] = 0.5
    """Detections score above it; one number, or one for each phrase."""
    mask_threshold: float = 0.5
    """Pixels of a mask have a probability above it."""
    hole_area: int | None = None
    """Cells of the largest hole that is filled in masks of clicks; None for what Meta's does."""
    max_detections: int | None = None
    """Those with the best scores; None for as many as the server gives."""

    def __post_init__(self) -> None:
        if self.objects and (self.text is not None or self.boxes_xyxy is not None):
            raise PromptError(
                "Clicks segment the objects that they show, and phrases or boxes find objects: ask "
                "one after the other. Clicks can correct what phrases found: give it as earlier."
            )
        if self.box_labels is not None and self.boxes_xyxy is None:
            raise PromptError("box_labels came without boxes_xyxy. Give the boxes they belong to.")
        of_clicks = self.earlier is not None or self.candidates or self.hole_area is not None
        if of_clicks and not self.objects:
            raise PromptError(
                "earlier, candidates and hole_area go with clicks. Give objects: points, or a box, "
                "of each."
            )

    @property
    def masks_bytes(self) -> int:
        """What it holds beside numbers and words."""
        known = self.earlier
        if known is None:
            return 0
        return known.masks.nbytes + (0 if known.logits is None else int(known.logits.nbytes))

    def within(self, limits: Limits) -> Ask:
        """The same, with no more detections than the server gives.

        Raises:
            TooLarge: There are too many prompts.
            SettingError: ``max_detections`` is none.
        """
        phrases = self.text or ()
        check_at_most("phrases", len(phrases), limits.phrases)
        longest = max(map(len, phrases), default=0)
        check_at_most("characters in a phrase", longest, MOST_WORD)
        check_at_most("boxes", _length(self.boxes_xyxy), limits.boxes)
        check_objects(self.objects, limits)
        most = self.max_detections
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise SettingError(f"max_detections is {most!r:.40}. Give a whole number from 1.")
        if most is None or most > limits.detections:
            return replace(self, max_detections=limits.detections)
        return self

    def question(self) -> Question | None:
        """The question, where it is one of phrases alone.

        Raises:
            PromptError: There is nothing to find, or a phrase is not usable.
            SettingError: A threshold is outside 0 to 1.
        """
        if self.objects or self.boxes_xyxy is not None:
            return None
        return question_from(
            self.text, self.threshold, self.mask_threshold, self.max_detections, has_boxes=False
        )

    def work(self) -> Work:
        """What to do with an encoded picture, where it is no question of phrases alone."""
        return self._clicked if self.objects else self._boxed

    def needs(self) -> Callable[[Sequence[str]], bool]:
        """Tells of a bundle's parts whether they are enough."""
        if self.objects:
            return POINTS.among
        return BOXES.among if self.boxes_xyxy is not None else lambda _: True

    def _boxed(self, segmenter: Segmenter, encoded: EncodedImage | None) -> Detections:
        assert encoded is not None  # noqa: S101  # jobs of pictures bring them
        return segmenter.predict(
            encoded,
            text=self.text,
            boxes_xyxy=self.boxes_xyxy,
            box_labels=self.box_labels,
            threshold=self.threshold,
            mask_threshold=self.mask_threshold,
            max_detections=self.max_detections,
        )

    def _clicked(self, segmenter: Segmenter, encoded: EncodedImage | None) -> Detections:
        assert encoded is not None  # noqa: S101  # jobs of pictures bring them
        return segmenter.predict_objects(
            encoded,
            self.objects,
            earlier=self.earlier,
            candidates=self.candidates,
            mask_threshold=self.mask_threshold,
            hole_area=self.hole_area,
        )


def check_objects(objects: Sequence[ObjectPrompt], limits: Limits) -> None:
    """Make sure that no more objects and points are shown than a server takes.

    Raises:
        TooLarge: There are more.
    """
    check_at_most("objects", len(objects), limits.boxes)
    check_at_most("points", sum(_length(one.points) for one in objects), limits.points)


def check_at_most(what: str, count: int, most: int) -> None:
    """Make sure that there are no more of something than a server takes.

    Raises:
        TooLarge: There are more.
    """
    if count > most:
        raise TooLarge(f"There are {count:,} {what}, at most {most:,} are taken. Ask in parts.")


def _length(values: Any) -> int:
    """Rows of a list or an array; an array of no dimension has none."""
    return len(values) if hasattr(values, "__len__") and getattr(values, "shape", True) else 0
