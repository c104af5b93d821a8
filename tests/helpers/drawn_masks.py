"""Masks drawn from what is asked: no model is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from samforge.core.detections import Detections
from samforge.core.masks import Masks
from samforge.serving.asking import Ask

FINDS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    # x, y and radius as shares of the shorter side, score
    "star": ((0.25, 0.25, 0.12, 0.9), (0.75, 0.3, 0.1, 0.6)),
    "red circle": ((0.5, 0.75, 0.15, 0.8),),
    "cat": ((0.2, 0.8, 0.1, 0.21),),
}


def drawn(ask: Ask, size_hw: tuple[int, int]) -> Detections:
    """Discs where ``FINDS`` has them, boxes as they are, discs of a tenth around clicks."""
    rows: list[tuple[str, float, Any]] = []
    best: dict[str, float] = {}
    side = min(size_hw)
    if ask.objects:
        rows = [
            (f"object {index}", 0.95, _clicked(one, size_hw))
            for index, one in enumerate(ask.objects, 1)
        ]
    elif ask.boxes_xyxy is not None:
        label = (ask.text or ("visual",))[0]
        labels = ask.box_labels or [1] * len(ask.boxes_xyxy)
        rows = [
            (label, 0.88, _box(box, size_hw))
            for box, sign in zip(ask.boxes_xyxy, labels, strict=True)
            if sign
        ]
        best[label] = 0.88
    else:
        for index, phrase in enumerate(ask.text or ()):
            floor = ask.threshold[index] if isinstance(ask.threshold, tuple) else ask.threshold
            finds = FINDS.get(phrase, ())
            best[phrase] = max((one[3] for one in finds), default=0.01)
            rows += [
                (phrase, score, _disc((x * side, y * side), radius * side, size_hw))
                for x, y, radius, score in finds
                if score > floor
            ]
    masks = np.array([mask for _, _, mask in rows], bool).reshape(-1, *size_hw)
    found = Detections(
        masks=Masks.from_dense(masks),
        boxes_xyxy=_boxes(masks),
        scores=np.array([score for _, score, _ in rows], np.float32),
        labels=tuple(label for label, _, _ in rows),
        size_hw=size_hw,
        best_scores=best,
    )
    if ask.objects:
        logits = np.zeros((len(rows), 8, 8), np.float32)
        return dataclasses.replace(found, logits=logits)
    return found[: ask.max_detections]


def _disc(centre: Sequence[float], radius: float, size_hw: tuple[int, int]) -> Any:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def _box(box: Sequence[float], size_hw: tuple[int, int]) -> Any:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])


def _clicked(one: Any, size_hw: tuple[int, int]) -> Any:
    radius = 0.1 * min(size_hw)
    mask = np.zeros(size_hw, bool)
    if one.box_xyxy is not None:
        mask |= _box(np.asarray(one.box_xyxy).tolist(), size_hw)
    points = [] if one.points is None else np.asarray(one.points).reshape(-1, 2).tolist()
    labels = [1] * len(points) if one.labels is None else np.asarray(one.labels).tolist()
    for point, label in zip(points, labels, strict=True):
        disc = _disc(point, radius, size_hw)
        mask = mask | disc if label else mask & ~disc
    return mask


def _boxes(masks: Any) -> Any:
    rows = []
    for mask in masks:
        y, x = np.nonzero(mask)
        empty = len(x) == 0
        rows.append([0, 0, 0, 0] if empty else [x.min(), y.min(), x.max() + 1, y.max() + 1])
    return np.array(rows, np.float32).reshape(-1, 4)
