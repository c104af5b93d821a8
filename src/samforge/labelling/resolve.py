"""From what phrases found to objects of classes: each thing once, and one winner where two claim.

All of it works on the masks' crops: nothing dense is made, whatever the picture's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.masks import Masks
from samforge.labelling.ontology import Ontology, spelled

RULED_OUT = -1
"""Class of what a negative phrase found."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Resolved:
    """Objects of one picture."""

    found: Detections
    """The objects: class by class, best score first."""
    classes: npt.NDArray[np.int64]
    """(N,), the class of each, from 0."""


def resolve(found: Detections, ontology: Ontology) -> Resolved:
    """Turn detections into objects of classes.

    In this order: objects with too few pixels go; so do those that a negative phrase claims; of
    masks of one class that are one object, the best score stays; of masks of two classes, the
    winner; where the ontology says so, pixels that several cover are left to the winner.

    Args:
        found: What the phrases found in one picture.
        ontology: Whose phrases they are.
    """
    claims = _Claims(found, ontology)
    claims.drop_small()
    claims.drop_ruled_out()
    claims.drop_twins(across=False)
    if ontology.overlap != "both":
        claims.drop_twins(across=True)
    if ontology.exclusive:
        claims.cut()
        claims.drop_small()
    return claims.resolved()


class _Claims:
    """Detections of which some have been dropped."""

    def __init__(self, found: Detections, ontology: Ontology) -> None:
        self._found, self._ontology = found, ontology
        owners = {
            spelled(phrase): number
            for number, one in enumerate(ontology.classes)
            for phrase in one.sought
        }
        self._spelled = [spelled(label) for label in found.labels]
        self._classes = np.array([owners.get(one, RULED_OUT) for one in self._spelled], np.int64)
        self._kept = np.ones(len(found), np.bool_)
        self._areas = found.areas

    def drop_small(self) -> None:
        """Drop objects with fewer pixels than their class wants, and empty masks."""
        least = np.array([self._ontology.min_area_of(one) for one in self._ontology.classes])
        wanted = np.where(self._classes == RULED_OUT, 1, least[self._classes])
        self._kept &= self._areas >= wanted

    def drop_ruled_out(self) -> None:
        """Drop what negative phrases of its class claim with at least its score."""
        scores, kept = self._found.scores, self._kept.copy()
        for number, one in enumerate(self._ontology.classes):
            ruled_out = set(map(spelled, one.negatives))
            against = [
                row for row, phrase in enumerate(self._spelled) if kept[row] and phrase in ruled_out
            ]
            for row in np.flatnonzero(kept & (self._classes == number)):
                stronger = [other for other in against if scores[other] >= scores[row]]
                iou = self._iou(int(row), stronger)
                if (iou >= self._ontology.negative_iou).any():
                    self._kept[row] = False
        self._kept &= self._classes != RULED_OUT

    def drop_twins(self, *, across: bool) -> None:
        """Of masks that are one object keep the first, in the order in which they win."""
        limit = self._ontology.nms_across if across else self._ontology.nms_within
        if limit is None:
            return
        winners: list[int] = []
        for row in self._ranked(by_class=across and self._ontology.overlap == "order"):
            same = self._classes[winners] == self._classes[row]
            rivals = np.array(winners, np.int64)[same != across]
            if (self._iou(row, rivals.tolist()) >= limit).any():
                self._kept[row] = False
            else:
                winners.append(row)

    def cut(self) -> None:
        """Leave each pixel to the first object that covers it, in the order in which they win."""
        masks = self._found.masks
        crops = {row: masks.crop(row) for row in np.flatnonzero(self._kept).tolist()}
        before: list[int] = []
        for row in self._ranked(by_class=self._ontology.overlap == "order"):
            crop, place = crops[row]
            for other in before:
                crop = _without(crop, place, *crops[other])
            crops[row] = crop, place
            before.append(row)
        empty = np.zeros((0, 0), np.bool_), (0, 0)
        cut = Masks.from_crops((crops.get(i, empty) for i in range(len(masks))), masks.size_hw)
        self._found, self._areas = replace(self._found, masks=cut), cut.areas

    def resolved(self) -> Resolved:
        """What is left: class by class, best score first."""
        rows = sorted(
            np.flatnonzero(self._kept).tolist(),
            key=lambda row: (self._classes[row], -self._found.scores[row], row),
        )
        return Resolved(found=self._found[rows], classes=self._classes[rows])

    def _ranked(self, *, by_class: bool) -> Iterator[int]:
        """Rows that are left, the one that wins first; of equal scores the first class wins."""
        scores = self._found.scores

        def place(row: int) -> tuple[float, float, int]:
            first, second = float(self._classes[row]), -float(scores[row])
            return (first, second, row) if by_class else (second, first, row)

        return iter(sorted(np.flatnonzero(self._kept).tolist(), key=place))

    def _iou(self, row: int, others: Sequence[int]) -> npt.NDArray[np.float64]:
        if not others:
            return np.zeros(0)
        masks = self._found.masks
        return np.asarray(masks[[row]].iou(masks[list(others)])[0], np.float64)


def _without(
    crop: npt.NDArray[np.bool_],
    place: tuple[int, int],
    other: npt.NDArray[np.bool_],
    there: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """A crop without the pixels that another covers."""
    top, left = max(place[0], there[0]), max(place[1], there[1])
    bottom = min(place[0] + crop.shape[0], there[0] + other.shape[0])
    right = min(place[1] + crop.shape[1], there[1] + other.shape[1])
    if top >= bottom or left >= right:
        return crop
    cut = crop.copy()
    cut[top - place[0] : bottom - place[0], left - place[1] : right - place[1]] &= ~other[
        top - there[0] : bottom - there[0], left - there[1] : right - there[1]
    ]
    return cut
