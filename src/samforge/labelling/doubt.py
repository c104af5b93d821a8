"""How unsure labels are: which pictures a person should look at first, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from samforge.core.masks import Masks
from samforge.formats import LabelledObject, LabelledPicture
from samforge.labelling.ontology import Ontology, spelled

BINS = 20
"""Of a histogram, from 0 to 1."""
SAME_IOU = 0.5
"""IoU from which objects of two runs are one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedPicture:
    """How unsure the labels of one picture are."""

    name: str
    """In the data set."""
    id: int
    """In the data set."""
    doubt: float
    """0 (every score is 0 or 1) to 1 (a score is at its threshold)."""
    near: str
    """The phrase whose score is nearest to its threshold."""
    near_score: float
    """That score."""
    objects: int
    """Labels."""
    cut_off: int
    """Objects that a limit left out."""
    disagreement: float | None = None
    """0 (the other run has the same labels) to 1 (no object in common); None without another."""


@dataclass(kw_only=True, slots=True)
class ScoreHistogram:
    """Scores of one class."""

    threshold: float
    """Above it objects are labels."""
    objects: list[int] = field(default_factory=lambda: [0] * BINS)
    """Labels by score."""
    misses: list[int] = field(default_factory=lambda: [0] * BINS)
    """Pictures without a label of the class, by the best score of its phrases."""


def doubt_of(score: float, threshold: float) -> float:
    """How unsure a decision is: 1 at the threshold, 0 where the score cannot be further off."""
    if score == threshold:
        return 1.0
    room = 1 - threshold if score > threshold else threshold
    return 1 - abs(score - threshold) / room


class Doubts:
    """Ranks pictures, and counts scores, as they come."""

    def __init__(self, ontology: Ontology) -> None:
        self._thresholds = [ontology.threshold_of(one) for one in ontology.classes]
        self._owners = {
            spelled(phrase): number
            for number, one in enumerate(ontology.classes)
            for phrase in one.sought
        }
        self.histograms = {
            name: ScoreHistogram(threshold=threshold)
            for name, threshold in zip(ontology.names, self._thresholds, strict=True)
        }
        self._names = ontology.names
        self.ranked: list[RankedPicture] = []

    def add(self, picture: LabelledPicture, other: LabelledPicture | None = None) -> None:
        """Take a picture into account.

        Args:
            picture: With its labels.
            other: The same picture as another run labelled it.
        """
        self._count(picture)
        doubt, near, score = max(self._doubts(picture), default=(0.0, "", 0.0))
        self.ranked.append(
            RankedPicture(
                name=picture.name,
                id=picture.id,
                doubt=round(doubt, 6),
                near=near,
                near_score=score,
                objects=len(picture.objects),
                cut_off=picture.cut_off,
                disagreement=None if other is None else round(disagreement(picture, other), 6),
            )
        )

    def most_unsure_first(self) -> list[RankedPicture]:
        """The pictures in the order in which a person should look at them."""
        return sorted(self.ranked, key=lambda one: (-(one.disagreement or 0), -one.doubt, one.id))

    def _doubts(self, picture: LabelledPicture) -> Iterable[tuple[float, str, float]]:
        for one in picture.objects:
            yield doubt_of(one.score, self._thresholds[one.category]), one.phrase, one.score
        for phrase, score, number in self._best(picture):
            # Above the threshold it is an object's score, or one that was resolved away.
            if score <= self._thresholds[number]:
                yield doubt_of(score, self._thresholds[number]), phrase, score

    def _best(self, picture: LabelledPicture) -> Iterable[tuple[str, float, int]]:
        for phrase, score in picture.best_scores.items():
            number = self._owners.get(spelled(phrase))
            if number is not None:
                yield phrase, score, number

    def _count(self, picture: LabelledPicture) -> None:
        held = {one.category for one in picture.objects}
        for one in picture.objects:
            self.histograms[self._names[one.category]].objects[_bin(one.score)] += 1
        best: dict[int, float] = {}
        for _, score, number in self._best(picture):
            best[number] = max(score, best.get(number, 0.0))
        for number, score in best.items():
            if number not in held:
                self.histograms[self._names[number]].misses[_bin(score)] += 1


def _bin(score: float) -> int:
    return min(BINS - 1, int(score * BINS))


def disagreement(one: LabelledPicture, two: LabelledPicture) -> float:
    """How differently two runs labelled a picture, 0 to 1.

    One less the sum of the IoUs of matched objects over the mean number of objects: the panoptic
    quality of Kirillov et al. (CVPR 2019), class by class and summed before it is divided. Objects
    match from the best pair on, at an IoU of at least :data:`SAME_IOU`.
    """
    total = len(one.objects) + len(two.objects)
    if total == 0:
        return 0.0
    shared = 0.0
    if one.size_hw == two.size_hw:
        categories = {each.category for each in one.objects} & {o.category for o in two.objects}
        shared = sum(_matched(_of(one, number), _of(two, number), one) for number in categories)
    return 1 - 2 * shared / total


def _of(picture: LabelledPicture, category: int) -> list[LabelledObject]:
    return [one for one in picture.objects if one.category == category]


def _matched(
    mine: Sequence[LabelledObject], theirs: Sequence[LabelledObject], picture: LabelledPicture
) -> float:
    iou = _masks(mine, picture).iou(_masks(theirs, picture))
    total = 0.0
    while iou.size:
        row, column = np.unravel_index(int(iou.argmax()), iou.shape)
        if iou[row, column] < SAME_IOU:
            break
        total += float(iou[row, column])
        iou = np.delete(np.delete(iou, row, axis=0), column, axis=1)
    return total


def _masks(objects: Sequence[LabelledObject], picture: LabelledPicture) -> Masks:
    size = list(picture.size_hw)
    return Masks.from_rle(({"size": size, "counts": o.counts} for o in objects), picture.size_hw)
