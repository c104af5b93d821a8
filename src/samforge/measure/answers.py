"""Detections as plain JSON values and back: answers that one step of a build keeps for another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from samforge.core.detections import Detections
from samforge.core.masks import Masks


def table_from_detections(detections: Detections) -> dict[str, Any]:
    """Everything, masks as COCO's compressed RLE; :func:`detections_from_table` reads it."""
    return {
        "segmentations": [detections.masks.rle(i) for i in range(len(detections))],
        "boxes_xyxy": detections.boxes_xyxy.tolist(),
        "scores": detections.scores.tolist(),
        "labels": list(detections.labels),
        "size_hw": list(detections.size_hw),
        "best_scores": dict(detections.best_scores),
        "cut_off": detections.cut_off,
        "ids": None if detections.ids is None else detections.ids.tolist(),
    }


def detections_from_table(table: Mapping[str, Any]) -> Detections:
    """Read what :func:`table_from_detections` wrote."""
    height, width = table["size_hw"]
    ids = table.get("ids")
    return Detections(
        masks=Masks.from_rle(table["segmentations"], (height, width)),
        boxes_xyxy=np.array(table["boxes_xyxy"], np.float32).reshape(-1, 4),
        scores=np.array(table["scores"], np.float32),
        labels=tuple(table["labels"]),
        size_hw=(height, width),
        best_scores=table["best_scores"],
        cut_off=table.get("cut_off", 0),
        ids=None if ids is None else np.array(ids, np.int64),
    )
