"""How far two answers to the same question are apart."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from meta_comparison.answers import (
    Answer,
    Features,
    answer_path,
    features_path,
    read_answer,
    read_features,
)
from meta_comparison.questions import Questions
from samforge.measure.predictions import SAME_OBJECT
from samforge.runtime.postprocess import sigmoid


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """What both admit, and what one of the two alone."""

    both: int
    """Admitted by both: the same query, or else masks of an IoU of at least 0.5."""
    only_first: int
    """Admitted by the first side alone."""
    only_second: int
    """Admitted by the second side alone."""
    iou_mean: float | None
    """Mean IoU of the masks of those in both, at the picture's size."""
    iou_min: float | None
    """The worst of them."""
    pixels: int
    """Pixels that differ in the masks of those in both, all together."""
    score: float | None
    """Largest difference of a score of those in both."""
    box_px: float | None
    """Largest difference of a box's side of those in both, pixels of the picture."""

    @property
    def same(self) -> bool:
        """Whether both admit the same."""
        return self.only_first == self.only_second == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One picture and one prompt: largest differences over all queries, admitted or not."""

    picture: str
    """Its name."""
    prompt: str
    """The phrase, or how many boxes."""
    threshold: float
    """Objects score above it."""
    same_tokens: bool
    """Whether both read the phrase as the same tokens."""
    text: float
    """Of the phrase's features."""
    presence: float
    """Of the presence logit."""
    logits: float
    """Of the queries' logits."""
    scores: float
    """Of the queries' scores."""
    boxes: float
    """Of the queries' boxes, fractions of the picture."""
    masks: float
    """Of the queries' mask logits, as the network gives them."""
    masks_size: float
    """The largest mask logit of the first side: what the difference is of."""
    signs: float
    """Share of mask logits that lie on another side of 0."""
    objects: Objects
    """What is admitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vision:
    """One picture before any prompt."""

    picture: str
    """Its name."""
    pixels: float
    """Share of the network's input values that differ."""
    levels: float
    """Largest of these differences, grey levels."""
    features: float
    """Largest difference in the three feature maps."""
    features_size: float
    """The largest feature of the first side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two sides over all pictures and prompts."""

    first: str
    """The side that says what is right."""
    second: str
    """The side that is held against it."""
    pixels: str
    """What the second was fed: ``the same pixels`` or ``its own resize``."""
    vision: tuple[Vision, ...]
    """Each picture."""
    cases: tuple[Case, ...]
    """Each prompt on each picture."""

    def summary(self) -> dict[str, Any]:
        """Worst figures, and what all cases have together."""
        objects = [case.objects for case in self.cases]
        means = [
            one.iou_mean for one in objects for _ in range(one.both) if one.iou_mean is not None
        ]
        return {
            **{name: max(getattr(case, name) for case in self.cases) for name in WORST},
            "masks_relative": max(case.masks / (case.masks_size or 1.0) for case in self.cases),
            "features": max(one.features for one in self.vision),
            "features_relative": max(
                one.features / (one.features_size or 1.0) for one in self.vision
            ),
            "cases": len(self.cases),
            "cases_with_the_same_objects": sum(one.same for one in objects),
            "cases_with_the_same_tokens": sum(case.same_tokens for case in self.cases),
            **{name: sum(getattr(one, name) for one in objects) for name in COUNTS},
            "iou_mean": statistics.fmean(means) if means else None,
            "iou_min": min(
                (one.iou_min for one in objects if one.iou_min is not None), default=None
            ),
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain values, the summary first."""
        return {
            "first": self.first,
            "second": self.second,
            "pixels": self.pixels,
            "summary": self.summary(),
            "vision": [dataclasses.asdict(one) for one in self.vision],
            "cases": [dataclasses.asdict(case) for case in self.cases],
        }


WORST = ("text", "presence", "logits", "scores", "boxes", "masks", "signs")
COUNTS = ("both", "only_first", "only_second", "pixels")


def compare_runs(
    questions: Questions, first: tuple[str, Path], second: tuple[str, Path], pixels: str
) -> Comparison:
    """Compare two folders of answers, one answer of each in memory at a time.

    Args:
        questions: What was asked.
        first: Name and folder of the side that says what is right.
        second: Name and folder of the other.
        pixels: What the second was fed, in words.
    """
    vision, cases = [], []
    for i, picture in enumerate(questions.pictures):
        features = (read_features(features_path(run[1], i)) for run in (first, second))
        vision.append(compare_features(picture.name, *features))
        for j, prompt in enumerate(questions.prompts):
            answers = (read_answer(answer_path(run[1], i, j)) for run in (first, second))
            cases.append(compare_answers((picture.name, prompt.name), *answers))
    return Comparison(
        first=first[0], second=second[0], pixels=pixels, vision=tuple(vision), cases=tuple(cases)
    )


def compare_features(picture: str, first: Features, second: Features) -> Vision:
    """Compare what two visions make of one picture."""
    levels = np.abs(first.pixels.astype(np.int16) - second.pixels)
    maps = [(getattr(first, name), getattr(second, name)) for name in ("fpn_0", "fpn_1", "fpn_2")]
    return Vision(
        picture=picture,
        pixels=float(np.mean(levels > 0)),
        levels=float(levels.max()),
        features=max(largest(one, other) for one, other in maps),
        features_size=max(float(np.abs(one).max()) for one, _ in maps),
    )


def compare_answers(names: tuple[str, str], first: Answer, second: Answer) -> Case:
    """Compare two answers to one prompt on one picture.

    Args:
        names: Of the picture and of the prompt.
        first: Says what is right.
        second: Held against it.
    """
    scores = [sigmoid(one.logits) * sigmoid(one.presence_logit) for one in (first, second)]
    differing = int(np.bitwise_count(first.signs ^ second.signs).sum())
    return Case(
        picture=names[0],
        prompt=names[1],
        threshold=float(first.threshold),
        same_tokens=bool(np.array_equal(first.input_ids, second.input_ids)),
        text=largest(first.text_features, second.text_features),
        presence=largest(first.presence_logit, second.presence_logit),
        logits=largest(first.logits, second.logits),
        scores=largest(*scores),
        boxes=largest(first.boxes, second.boxes),
        masks=largest(first.masks, second.masks),
        masks_size=float(np.abs(first.masks).max()),
        signs=differing / (8 * first.signs.size),
        objects=compare_objects(first, second),
    )


def compare_objects(first: Answer, second: Answer) -> Objects:
    """Pair what is admitted, and compare the pairs at the picture's size."""
    rows, columns = paired(first, second)
    masks = first.found_masks[rows], second.found_masks[columns]
    ious = [float(_iou(one, other)) for one, other in zip(*masks, strict=True)]
    return Objects(
        both=len(rows),
        only_first=len(first.admitted) - len(rows),
        only_second=len(second.admitted) - len(rows),
        iou_mean=statistics.fmean(ious) if ious else None,
        iou_min=min(ious, default=None),
        pixels=int(np.bitwise_count(masks[0] ^ masks[1]).sum()),
        score=largest(first.found_scores[rows], second.found_scores[columns]) if ious else None,
        box_px=largest(first.found_boxes[rows], second.found_boxes[columns]) if ious else None,
    )


def paired(first: Answer, second: Answer) -> tuple[list[int], list[int]]:
    """Places of the objects that both admit.

    A query is the same object on both sides. Of near duplicates one side may admit another query
    than the other: what is left over is paired by its masks.
    """
    place = {int(query): index for index, query in enumerate(second.admitted)}
    pairs = [
        (row, place[int(query)]) for row, query in enumerate(first.admitted) if int(query) in place
    ]
    rows = [row for row in range(len(first.admitted)) if row not in {pair[0] for pair in pairs}]
    columns = sorted(set(place.values()) - {pair[1] for pair in pairs})
    if rows and columns:
        iou = np.array(
            [[_iou(first.found_masks[r], second.found_masks[c]) for c in columns] for r in rows]
        )
        iou[iou < SAME_OBJECT] = 0.0
        matched = zip(*linear_sum_assignment(iou, maximize=True), strict=True)
        pairs += [(rows[r], columns[c]) for r, c in matched if iou[r, c] > 0]
    pairs.sort()
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def largest(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Largest absolute difference; infinite where one of the two is no number."""
    difference = np.abs(first.astype(np.float64) - second)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def _iou(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    """IoU of two packed masks; two empty ones are the same."""
    union = int(np.bitwise_count(first | second).sum())
    return int(np.bitwise_count(first & second).sum()) / union if union else 1.0


def worst_case(cases: Sequence[Case], name: str) -> Case:
    """The case with the largest difference of a name."""
    return max(cases, key=lambda case: float(getattr(case, name)))
