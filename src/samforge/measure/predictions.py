"""How far the answers of one segmenter are from another's: the proof that a bundle still segments.

No labels are needed: the reference, usually fp32, says what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import tee
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from samforge.core.errors import SettingError
from samforge.core.timing import Timings
from samforge.measure.accuracy import mask_iou
from samforge.measure.asking import ask
from samforge.measure.cgf1 import PairOutcome, outcome_from_iou

if TYPE_CHECKING:
    from samforge.core.detections import Detections
    from samforge.core.labelled import LabelledImage
    from samforge.runtime import Segmenter

SAME_OBJECT = 0.5
"""IoU from which two masks are the same object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerFidelity:
    """One answer against the reference's answer to the same question."""

    ious: tuple[float, ...]
    """IoU of each pair of masks that are the same object."""
    score_shifts: tuple[float, ...]
    """Score minus the reference's, of each pair."""
    reference_objects: int
    """What the reference found."""
    objects: int
    """What was found."""
    best_score_shift: float
    """Best score seen, admitted or not, minus the reference's."""
    box_ious: tuple[float, ...] = ()
    """IoU of the boxes of each pair."""
    outcome: PairOutcome | None = None
    """What was found with the reference's masks as the truth: cgF1 without labels."""

    @property
    def same_objects(self) -> bool:
        """Whether both found the same: every object has its pair."""
        return len(self.ious) == self.reference_objects == self.objects


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionFidelity:
    """Answers to many questions against the reference's."""

    questions: int
    """How many were compared."""
    reference_objects: int
    """Objects the reference found."""
    objects: int
    """Objects found."""
    pairs: int
    """Objects that both found: masks that overlap by an IoU of at least ``SAME_OBJECT``."""
    mask_iou: float | None
    """Mean IoU of the pairs: what the gate limits. None when there is no pair."""
    mask_iou_min: float | None
    """IoU of the worst pair."""
    box_iou: float | None
    """Mean IoU of the pairs' boxes. None when there is no pair."""
    mask_iou_all: float | None
    """The same mean with 0 for every object that only one of the two found, so that a lost or a
    made-up object counts. None when neither found any."""
    agreement: float | None
    """F1 of the objects, 1 when both found the same ones. None when neither found any."""
    score_shift_mean: float | None
    """Mean absolute difference of the pairs' scores. None when there is no pair."""
    score_shift_max: float | None
    """Largest absolute difference of the pairs' scores."""
    best_score_shift_mean: float
    """Mean absolute difference of the best score seen for a question, admitted or not. It holds the
    presence score, which drifts before masks do, also where nothing is found."""
    best_score_shift_max: float
    """Largest of those differences."""
    absent_score_shift: float | None
    """Mean of those differences over the questions to which the reference finds nothing. None when
    it finds something every time."""
    made_up: int
    """Questions to which the reference finds nothing and something was found."""
    presence_agreement: float
    """Share of questions to which both answer *something*, or both *nothing*."""
    same_objects: float
    """Share of questions to which both admit the same objects."""

    def to_dict(self) -> dict[str, float | int | None]:
        """The figures as plain JSON values."""
        return asdict(self)


def compare_detections(reference: Detections, found: Detections) -> AnswerFidelity:
    """Compare two answers to one question.

    Masks are paired so that the sum of IoU is largest; pairs below ``SAME_OBJECT`` are two objects.

    Raises:
        ShapeError: They are of images of different sizes.
    """
    iou = mask_iou(reference.masks, found.masks)
    rows, columns = _pairs(iou)
    shifts = found.scores[columns].astype(np.float64) - reference.scores[rows]
    return AnswerFidelity(
        ious=tuple(iou[rows, columns].tolist()),
        score_shifts=tuple(shifts.tolist()),
        reference_objects=len(reference),
        objects=len(found),
        best_score_shift=_best_score(found) - _best_score(reference),
        box_ious=tuple(_box_ious(reference.boxes_xyxy[rows], found.boxes_xyxy[columns])),
        outcome=outcome_from_iou(iou.T),
    )


def in_reference_order(reference: Detections, found: Detections) -> Detections:
    """Put detections in the order of the reference's, new ones last: drawn, they keep its colours.

    Raises:
        ShapeError: They are of images of different sizes.
    """
    _, columns = _pairs(mask_iou(reference.masks, found.masks))
    others = np.setdiff1d(np.arange(len(found)), columns)
    return found[np.concatenate([columns, others])]


def fidelity_from_answers(answers: Iterable[AnswerFidelity]) -> PredictionFidelity:
    """Sum answers up.

    Raises:
        SettingError: There is no answer.
    """
    compared = tuple(answers)
    if not compared:
        raise SettingError("Fidelity needs at least one question, got none.")
    ious = np.array([iou for answer in compared for iou in answer.ious])
    shifts = np.abs([shift for answer in compared for shift in answer.score_shifts])
    boxes = np.array([iou for answer in compared for iou in answer.box_ious])
    best = np.abs([answer.best_score_shift for answer in compared])
    absent = np.array([answer.reference_objects == 0 for answer in compared])
    reference = sum(answer.reference_objects for answer in compared)
    objects = sum(answer.objects for answer in compared)
    pairs = len(ious)
    anything = reference + objects > 0
    presence = [(answer.reference_objects > 0) == (answer.objects > 0) for answer in compared]
    return PredictionFidelity(
        questions=len(compared),
        reference_objects=reference,
        objects=objects,
        pairs=pairs,
        mask_iou=float(ious.mean()) if pairs else None,
        mask_iou_min=float(ious.min()) if pairs else None,
        box_iou=float(boxes.mean()) if len(boxes) else None,
        mask_iou_all=float(ious.sum()) / (reference + objects - pairs) if anything else None,
        agreement=2 * pairs / (reference + objects) if anything else None,
        score_shift_mean=float(shifts.mean()) if pairs else None,
        score_shift_max=float(shifts.max()) if pairs else None,
        best_score_shift_mean=float(best.mean()),
        best_score_shift_max=float(best.max()),
        absent_score_shift=float(best[absent].mean()) if absent.any() else None,
        made_up=sum(not answer.reference_objects and answer.objects > 0 for answer in compared),
        presence_agreement=sum(presence) / len(compared),
        same_objects=sum(answer.same_objects for answer in compared) / len(compared),
    )


def compare_predictions(
    reference: Segmenter,
    segmenter: Segmenter,
    images: Iterable[LabelledImage],
    *,
    boxes: bool = True,
    done: Callable[[], None] | None = None,
) -> PredictionFidelity:
    """Ask two segmenters the same questions, and compare their answers.

    Each encodes every image once. The questions' ``masks`` are not read: they may be empty.

    Args:
        reference: Says what is right.
        segmenter: Compared with it.
        images: Gone through once, one in memory at a time.
        boxes: Whether to ask the questions with boxes too.
        done: Called after each image.

    Raises:
        SettingError: There is no question, or boxes are asked of a segmenter that takes none.
    """
    first, second = tee(images)
    timings = Timings()
    wanted = ask(reference, first, timings=timings, boxes=boxes)
    answers = ask(segmenter, second, timings=timings, boxes=boxes, done=done)
    return fidelity_from_answers(
        compare_detections(one.found, other.found)
        for one, other in zip(wanted, answers, strict=True)
    )


def _pairs(
    iou: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the masks that are the same object, by row."""
    iou = np.where(iou >= SAME_OBJECT, iou, 0.0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    same = iou[rows, columns] > 0
    return rows[same], columns[same]


def _box_ious(wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> list[float]:
    """IoU of each box with the one in its place; equal boxes without area have 1."""
    first, second = wanted.astype(np.float64), found.astype(np.float64)
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    overlap = sides.clip(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0] + areas[1] - overlap
    same = (first == second).all(1)
    # Where a box is no number, so is its IoU: no gate takes that for a pass.
    ious: list[float] = np.where(same, 1.0, overlap / np.where(union == 0, 1.0, union)).tolist()
    return ious


def _best_score(found: Detections) -> float:
    best: Mapping[str, float] = found.best_scores
    return max([*best.values(), *found.scores.tolist()], default=0.0)
