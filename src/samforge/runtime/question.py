"""What images are asked: phrases or boxes, and what counts as found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from samforge.core.errors import PromptError
from samforge.runtime.postprocess import Thresholds
from samforge.runtime.prompts import Exemplars, phrases_from_text

Scores: TypeAlias = float | Sequence[float]
"""One threshold, or one for each phrase."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """What images are asked."""

    phrases: tuple[str, ...]
    """Each is looked for in every image."""
    thresholds: tuple[Thresholds, ...]
    """What counts as found, one for each phrase; they differ in their scores alone."""
    exemplars: Exemplars | None = None
    """Boxes that show what to find, in the one image."""

    @property
    def mask(self) -> float:
        """Pixels of a mask have a probability above it."""
        return self.thresholds[0].mask

    @property
    def most(self) -> int | None:
        """Detections that are given of an image, over all phrases; None for all."""
        return self.thresholds[0].max_detections

    def part(self, start: int, count: int) -> Question:
        """The question for some of the phrases."""
        return Question(
            phrases=self.phrases[start : start + count],
            thresholds=self.thresholds[start : start + count],
            exemplars=self.exemplars,
        )


def question_from(
    text: str | Sequence[str] | None,
    threshold: Scores = 0.5,
    mask_threshold: float = 0.5,
    max_detections: int | None = None,
    *,
    has_boxes: bool = False,
) -> Question:
    """Check what is asked.

    Args:
        text: One or more noun phrases; None where boxes alone say what to find.
        threshold: One for all phrases, or one for each.
        mask_threshold: Of masks.
        max_detections: Of an image, over all phrases; None for all.
        has_boxes: Whether boxes come with it.

    Raises:
        PromptError: There is nothing to find, or there are more or fewer thresholds than phrases.
        SettingError: A threshold is outside 0 to 1.
    """
    phrases = phrases_from_text(text, has_boxes=has_boxes)
    if isinstance(threshold, Sequence | np.ndarray) and not isinstance(threshold, str):
        listed = [text] if text is None or isinstance(text, str) else list(text)
        if len(threshold) != len(listed):
            raise PromptError(
                f"There are {len(listed)} phrases and {len(threshold)} thresholds. Give one "
                "threshold for all, or one for each phrase."
            )
        first: dict[Any, float] = {}
        for phrase, score in zip(listed, threshold, strict=True):
            first.setdefault(phrase, score)
        scores = list(first.values())
    else:
        scores = [threshold] * len(phrases)
    return Question(
        phrases=phrases,
        thresholds=tuple(
            Thresholds(score=score, mask=mask_threshold, max_detections=max_detections)
            for score in scores
        ),
    )
