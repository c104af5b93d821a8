"""Detections with run-length encoded masks: thousands of answers fit in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.rle import mask_from_segmentation, segmentation_from_mask


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedDetections:
    """What :class:`Detections` holds; a mask takes hundreds of bytes, whatever its resolution."""

    segmentations: tuple[Mapping[str, Any], ...]
    """COCO's compressed RLE, one a mask."""
    boxes_xyxy: npt.NDArray[np.float32]
    """(N, 4)."""
    scores: npt.NDArray[np.float32]
    """(N,)."""
    labels: tuple[str, ...]
    """N of them."""
    size_hw: tuple[int, int]
    """Height and width of the image."""
    best_scores: Mapping[str, float]
    """Best score seen for each phrase."""

    def unpack(self) -> Detections:
        """The detections as they were."""
        masks = np.zeros((len(self.segmentations), *self.size_hw), np.bool_)
        for mask, segmentation in zip(masks, self.segmentations, strict=True):
            mask[:] = mask_from_segmentation(segmentation, self.size_hw)
        return Detections(
            masks=masks,
            boxes_xyxy=self.boxes_xyxy,
            scores=self.scores,
            labels=self.labels,
            size_hw=self.size_hw,
            best_scores=self.best_scores,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; :func:`packed_from_dict` gives back an equal answer."""
        return {
            "segmentations": [dict(one) for one in self.segmentations],
            "boxes_xyxy": self.boxes_xyxy.tolist(),
            "scores": self.scores.tolist(),
            "labels": list(self.labels),
            "size_hw": list(self.size_hw),
            "best_scores": dict(self.best_scores),
        }


def packed_from_dict(table: Mapping[str, Any]) -> PackedDetections:
    """Read what :meth:`PackedDetections.to_dict` wrote."""
    height, width = table["size_hw"]
    return PackedDetections(
        segmentations=tuple(table["segmentations"]),
        boxes_xyxy=np.array(table["boxes_xyxy"], np.float32).reshape(-1, 4),
        scores=np.array(table["scores"], np.float32),
        labels=tuple(table["labels"]),
        size_hw=(height, width),
        best_scores=table["best_scores"],
    )


def pack(detections: Detections) -> PackedDetections:
    """Encode the masks; nothing of the dense ones stays alive."""
    return PackedDetections(
        segmentations=tuple(segmentation_from_mask(mask) for mask in detections.masks),
        boxes_xyxy=detections.boxes_xyxy.copy(),
        scores=detections.scores.copy(),
        labels=detections.labels,
        size_hw=detections.size_hw,
        best_scores=dict(detections.best_scores),
    )
