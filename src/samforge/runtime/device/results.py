"""From a detector's raw output to detections, with the heavy part where the output is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.core.boxes import clipped_boxes
from samforge.core.detections import Detections, best_positions
from samforge.core.errors import OutOfMemory
from samforge.core.masks import Masks
from samforge.runtime.postprocess import Thresholds, refuse_infinite_masks, refuse_nan

COLUMNS = 6
"""Of a summary: score, left, top, right, bottom, sum of the mask's logits."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """What the detector says of a batch, small enough to come to the host."""

    scores: npt.NDArray[np.float32]
    """(B, P, Q)."""
    boxes: npt.NDArray[np.float32]
    """(B, P, Q, 4), left, top, right, bottom as fractions of the image."""
    finite: npt.NDArray[np.bool_]
    """(B, P, Q): whether all logits of the mask are."""


def summary(outputs: Mapping[str, Tensor]) -> Tensor:
    """What the host wants of all queries in one tensor: one small copy instead of four.

    Returns:
        (B, P, Q, 6), float32: ``sigmoid(logit) * sigmoid(presence)``, then the box, then the sum of
        the mask's logits. That is finite where all of them are, and takes one pass.
    """
    presence = outputs["presence_logit"].float().sigmoid()[..., None]
    scores = outputs["pred_logits"].float().sigmoid() * presence
    sums = outputs["pred_masks"].sum((-1, -2), dtype=torch.float32)
    boxes = outputs["pred_boxes"].float()
    return torch.cat([scores[..., None], boxes, sums[..., None]], dim=-1)


def found_from_summary(values: Tensor) -> Found:
    """Read what :func:`summary` made, once it is on the host."""
    array = values.numpy()
    return Found(scores=array[..., 0], boxes=array[..., 1:5], finite=np.isfinite(array[..., 5]))


def admitted(scores: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.intp]:
    """Queries above a threshold, best score first, (Q,) -> (K,)."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] > np.float32(threshold)]


def lost_masks(phrases: Sequence[str]) -> OutOfMemory:
    """What is said of masks that were not taken before the detector may have run again."""
    return OutOfMemory(
        f"The masks of {', '.join(phrases)} could not be taken out of the detector's answer, and "
        "it may have run again since. Ask again; where the GPU has no room, with fewer phrases."
    )


def detections_from_found(
    found: Found,
    masks: Masks,
    chosen: Mapping[tuple[int, int], npt.NDArray[np.intp]],
    *,
    image: int,
    labels: tuple[str, ...],
    cut_off: int = 0,
) -> Detections:
    """Put the detections of one image of a batch together.

    Args:
        found: Scores and boxes of the batch.
        masks: Those of this image in the order of ``chosen``.
        chosen: Admitted queries by image and phrase.
        image: Which image of the batch.
        labels: The phrases.
        cut_off: How many more would have been admitted.

    Raises:
        FidelityError: Scores or boxes hold NaN, or masks infinity.
    """
    height, width = masks.size_hw
    extent = np.array([width, height, width, height], np.float32)
    boxes, scores, names = [], [], []
    for index, label in enumerate(labels):
        queries = chosen[image, index]
        refuse_nan("scores", found.scores[image, index], label)
        boxes.append(found.boxes[image, index, queries] * extent)
        refuse_nan("boxes", boxes[-1], label)
        refuse_infinite_masks(bool(found.finite[image, index, queries].all()), label)
        scores.append(found.scores[image, index, queries])
        names += [label] * len(queries)
    return Detections(
        masks=masks,
        boxes_xyxy=clipped_boxes(np.concatenate(boxes).astype(np.float32), masks.size_hw),
        scores=np.concatenate(scores).astype(np.float32),
        labels=tuple(names),
        size_hw=masks.size_hw,
        best_scores={
            label: float(found.scores[image, index].max()) for index, label in enumerate(labels)
        },
        cut_off=cut_off,
    )


def answers_from_joined(  # all that is known of a batch
    joined: Detections,
    found: Found,
    chosen: Mapping[tuple[int, int], npt.NDArray[np.intp]],
    thresholds: Sequence[Thresholds],
    labels: tuple[str, ...],
    image: int,
) -> list[Detections]:
    """Take the detections of one image apart again, phrase by phrase."""
    answers, start = [], 0
    for phrase, label in enumerate(labels):
        count = len(chosen[image, phrase])
        scores = found.scores[image, phrase]
        answers.append(
            replace(
                joined[start : start + count],
                best_scores={label: float(scores.max())},
                cut_off=len(admitted(scores, thresholds[phrase].score)) - count,
            )
        )
        start += count
    return answers


def chosen_from_found(
    found: Found,
    thresholds: Sequence[Thresholds],
    most: int | None = None,
    *,
    apart: bool = False,
) -> tuple[dict[tuple[int, int], npt.NDArray[np.intp]], tuple[int, ...]]:
    """Choose queries.

    Args:
        found: Scores of the batch.
        thresholds: One for each phrase.
        most: Detections of an image, over all phrases; None for all.
        apart: Whether each phrase has a most of its own instead, with its thresholds.

    Returns:
        Admitted queries by image and phrase, and how many each image has beyond the most wanted.
    """
    chosen: dict[tuple[int, int], npt.NDArray[np.intp]] = {}
    cut_off = []
    images, phrases = found.scores.shape[:2]
    for image in range(images):
        scores = found.scores[image]
        queries = [admitted(scores[phrase], thresholds[phrase].score) for phrase in range(phrases)]
        count = sum(map(len, queries))
        if apart:
            queries = [
                one[: own.max_detections] for one, own in zip(queries, thresholds, strict=True)
            ]
        elif most is not None and count > most:
            queries = _best(scores, queries, most)
        chosen |= {(image, phrase): one for phrase, one in enumerate(queries)}
        cut_off.append(count - sum(map(len, queries)))
    return chosen, tuple(cut_off)


def _best(
    scores: npt.NDArray[np.float32], queries: list[npt.NDArray[np.intp]], most: int
) -> list[npt.NDArray[np.intp]]:
    """The best of one image over all its phrases, as ``Detections.best`` keeps them."""
    every = np.concatenate([scores[phrase, one] for phrase, one in enumerate(queries)])
    kept = best_positions(every, most)
    ends = np.cumsum([len(one) for one in queries])
    return [
        one[kept[(kept >= end - len(one)) & (kept < end)] - (end - len(one))]
        for one, end in zip(queries, ends.tolist(), strict=True)
    ]
