"""The one result type: what was found in one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.errors import MissingExtra, SettingError, ShapeError
from samforge.core.rle import mask_from_segmentation, segmentation_from_mask

if TYPE_CHECKING:
    import supervision

_LARGEST = float(np.finfo(np.float32).max)

Index: TypeAlias = int | slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """What was found in one image, best score first within each phrase.

    Raises:
        ShapeError: The arrays do not describe the same N detections of an image of ``size_hw``.
    """

    masks: npt.NDArray[np.bool_]
    """(N, H, W), at image resolution."""
    boxes_xyxy: npt.NDArray[np.float32]
    """(N, 4), pixels: left, top, right, bottom; what a segmenter finds lies inside the image."""
    scores: npt.NDArray[np.float32]
    """(N,), 0 to 1."""
    labels: tuple[str, ...]
    """The phrase that found each, N of them."""
    size_hw: tuple[int, int]
    """Height and width of the image."""
    best_scores: Mapping[str, float] = field(default_factory=dict)
    """Best score seen for each phrase, admitted or not: says how far an empty answer was off."""

    def __post_init__(self) -> None:
        count = len(self.labels)
        if len(self.size_hw) != 2 or min(self.size_hw) < 1:
            raise ShapeError(
                f"Detections want size_hw as (height, width) of at least 1, got {self.size_hw}."
            )
        _check("masks", self.masks, np.bool_, (count, *self.size_hw))
        _check("boxes_xyxy", self.boxes_xyxy, np.float32, (count, 4))
        _check("scores", self.scores, np.float32, (count,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Index) -> Detections:
        """Choose detections by one integer, a slice, integers, or N booleans.

        ``best_scores`` stays whole, because it speaks of the image and not of the detections.

        Raises:
            IndexError: An integer is outside -N to N-1, or the booleans are not N.
        """
        if isinstance(index, (int, np.integer)):
            index = [int(index)]
        # An empty list would become a float array, which numpy refuses as an index.
        chosen = index if isinstance(index, slice) else np.asarray(index)
        if isinstance(chosen, np.ndarray) and chosen.size == 0 and chosen.dtype != np.bool_:
            chosen = chosen.astype(np.intp)
        kept = np.arange(len(self))[chosen]
        return Detections(
            masks=self.masks[kept],
            boxes_xyxy=self.boxes_xyxy[kept],
            scores=self.scores[kept],
            labels=tuple(self.labels[i] for i in kept),
            size_hw=self.size_hw,
            best_scores=self.best_scores,
        )

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """Pixels that each mask covers, (N,)."""
        return np.array([np.count_nonzero(mask) for mask in self.masks], np.int64)

    def filter(
        self, *, min_score: float = 0.0, label: str | None = None, min_area: int = 0
    ) -> Detections:
        """Keep the detections that pass every condition.

        Args:
            min_score: Lowest score kept.
            label: The only phrase kept, or None for all of them.
            min_area: Smallest mask kept, in pixels; 1 drops empty masks.
        """
        keep = self.scores >= min_score
        if label is not None:
            keep &= np.array([one == label for one in self.labels], np.bool_)
        if min_area > 0:
            keep &= self.areas >= min_area
        return self[keep]

    @classmethod
    def empty(
        cls, size_hw: tuple[int, int], best_scores: Mapping[str, float] | None = None
    ) -> Detections:
        """Nothing found in an image of ``size_hw``."""
        return cls(
            masks=np.zeros((0, *size_hw), np.bool_),
            boxes_xyxy=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=(),
            size_hw=size_hw,
            best_scores=dict(best_scores or {}),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Join the detections of one image, in order; of equal phrases the best score counts.

        Raises:
            ShapeError: There is nothing to join, or the images differ in size.
        """
        sizes = sorted({part.size_hw for part in parts})
        if len(sizes) != 1:
            raise ShapeError(f"Detections of one image size can be joined, got sizes {sizes}.")
        if len(parts) == 1:  # masks can be gigabytes: do not copy them for nothing
            return parts[0]
        best_scores: dict[str, float] = {}
        for part in parts:
            for phrase, score in part.best_scores.items():
                best_scores[phrase] = max(score, best_scores.get(phrase, score))
        return cls(
            masks=np.concatenate([part.masks for part in parts]),
            boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            labels=tuple(label for part in parts for label in part.labels),
            size_hw=sizes[0],
            best_scores=best_scores,
        )

    def _category_ids(self) -> dict[str, int]:
        """Number the phrases from 1, in the order they were asked for.

        Phrases without a find count too, so that the same phrases give the same numbers on every
        image.
        """
        return {
            name: i for i, name in enumerate(dict.fromkeys([*self.best_scores, *self.labels]), 1)
        }

    def to_coco(
        self, *, image_id: int | str = 0, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Write the detections as COCO results, ready for ``json.dump``.

        Args:
            image_id: Copied into every entry.
            category_ids: Number of each phrase; None numbers the phrases of the call from 1.

        Returns:
            One dictionary a detection: ``image_id``, ``category_id``, ``category_name``,
            ``segmentation`` (RLE: ``size`` is height, width; ``counts`` is text), ``bbox`` (left,
            top, width, height, pixels), ``area`` (pixels), ``score``, ``iscrowd`` 0. A data set
            made of several images has to add its own ``id``. The format:
            https://cocodataset.org/#format-results.

        Raises:
            SettingError: ``category_ids`` lacks a phrase.
        """
        ids = self._category_ids() if category_ids is None else category_ids
        missing = sorted(set(self.labels) - set(ids))
        if missing:
            raise SettingError(
                f"category_ids knows {sorted(ids)} but not {missing}. Add a number for each."
            )
        areas = self.areas
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[label]),
                "category_name": label,
                "segmentation": segmentation_from_mask(self.masks[i]),
                "bbox": [left, top, right - left, bottom - top],
                "area": int(areas[i]),
                "score": float(self.scores[i]),
                "iscrowd": 0,
            }
            for i, (label, (left, top, right, bottom)) in enumerate(
                zip(self.labels, self.boxes_xyxy.tolist(), strict=True)
            )
        ]

    @classmethod
    def from_coco(
        cls, annotations: Sequence[Mapping[str, Any]], size_hw: tuple[int, int]
    ) -> Detections:
        """Read COCO annotations or results of one image.

        Args:
            annotations: Each with ``segmentation`` (RLE with text, bytes or plain counts, or
                polygons) and ``category_name`` or ``category_id``; ``score`` defaults to 1 and
                ``bbox`` to the box around the mask.
            size_hw: Height and width of the image, pixels.

        Raises:
            ShapeError: An RLE is of another image size.
            SettingError: A key is missing or malformed.
        """
        if not annotations:
            return cls.empty(size_hw)
        masks, boxes, scores, labels = [], [], [], []
        for i, annotation in enumerate(annotations):
            if not isinstance(annotation, Mapping):
                raise SettingError(f"COCO annotation {i} is an object, got {annotation!r:.80}.")
            label = annotation.get("category_name", annotation.get("category_id"))
            if "segmentation" not in annotation or label is None:
                raise SettingError(
                    f"COCO annotation {i} has the keys {sorted(map(str, annotation))}. "
                    "It needs segmentation, and category_name or category_id."
                )
            mask = mask_from_segmentation(annotation["segmentation"], size_hw)
            bbox = annotation.get("bbox") or _box_around(mask)
            left, top, width, height = _numbers(bbox, 4, f"bbox of COCO annotation {i}")
            masks.append(mask)
            boxes.append((left, top, left + width, top + height))
            scores += _numbers([annotation.get("score", 1.0)], 1, f"score of COCO annotation {i}")
            labels.append(str(label))
        best = {
            name: max(s for s, n in zip(scores, labels, strict=True) if n == name)
            for name in labels
        }
        return cls(
            masks=np.stack(masks),
            boxes_xyxy=np.array(boxes, np.float32),
            scores=np.array(scores, np.float32),
            labels=tuple(labels),
            size_hw=size_hw,
            best_scores=best,
        )

    def to_supervision(self) -> supervision.Detections:
        """Hand the detections to roboflow's supervision.

        Returns:
            ``supervision.Detections``; ``class_id`` numbers the phrases from 0 in the order they
            were asked for, ``data["class_name"]`` holds the phrases.

        Raises:
            MissingExtra: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise MissingExtra("supervision", "supervision") from error
        ids = self._category_ids()
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            mask=self.masks,
            confidence=self.scores,
            class_id=np.array([ids[label] - 1 for label in self.labels], np.int64),
            data={"class_name": np.array(self.labels, np.str_)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Summarize without masks, for JSON: sizes, scores, boxes and pixel counts."""
        return {
            "size_hw": list(self.size_hw),
            "count": len(self),
            "best_scores": {phrase: float(score) for phrase, score in self.best_scores.items()},
            "detections": [
                {"label": label, "score": score, "box_xyxy": box, "area": area}
                for label, score, box, area in zip(
                    self.labels,
                    self.scores.tolist(),
                    self.boxes_xyxy.tolist(),
                    self.areas.tolist(),
                    strict=True,
                )
            ],
        }


def _box_around(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what a mask covers; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def _numbers(values: object, count: int, name: str) -> list[float]:
    """Finite numbers from a file.

    Raises:
        SettingError: They are not ``count`` of them, or float32 cannot hold one.
    """
    usable = (
        isinstance(values, Sequence | np.ndarray)
        and not isinstance(values, str | bytes)
        and len(values) == count
        and all(isinstance(one, int | float | np.integer | np.floating) for one in values)
        and all(abs(one) <= _LARGEST for one in values)  # NaN fails too
    )
    if not usable:
        raise SettingError(f"The {name} is {count} finite numbers, got {values!r:.80}.")
    return [float(one) for one in values]  # type: ignore[attr-defined]  # checked above


def _check(
    name: str, array: npt.NDArray[Any], dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ShapeError(
            f"Detections want {name} as {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}."
        )
