"""The one result type: what was found in one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from samforge.core.errors import MissingExtra, SettingError, ShapeError
from samforge.core.masks import Dense, Index, Masks, positions
from samforge.core.rle import Segmentation

if TYPE_CHECKING:
    import supervision

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """What was found in one image, best score first within each phrase.

    Raises:
        ShapeError: The arrays do not describe the same N detections of an image of ``size_hw``.
    """

    masks: Masks
    """N masks at image resolution, kept as crops; a dense array, bool (N, H, W), is packed."""
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
    cut_off: int = 0
    """How many more were above the threshold: those with the lowest scores, which
    ``max_detections`` left out."""
    ids: npt.NDArray[np.int64] | None = None
    """(N,), which object of a video each is, the same through all its frames; None for images.
    Those of a video stand by ascending id."""
    logits: npt.NDArray[np.float32] | None = None
    """(N, h, w), of clicks: the model's own small masks before the sigmoid, within -32 to 32. A
    call that refines these answers feeds them back. None where there are none to refine."""

    def __post_init__(self) -> None:
        count = len(self.labels)
        if len(self.size_hw) != 2 or min(self.size_hw) < 1:
            raise ShapeError(
                f"Detections want size_hw as (height, width) of at least 1, got {self.size_hw}."
            )
        object.__setattr__(self, "masks", _packed(self.masks, (count, *self.size_hw)))
        _check("boxes_xyxy", self.boxes_xyxy, np.float32, (count, 4))
        _check("scores", self.scores, np.float32, (count,))
        if self.ids is not None:
            _check("ids", self.ids, np.int64, (count,))
        if self.logits is not None:
            _check("logits", self.logits, np.float32, (count, *self.logits.shape[1:]))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | Index) -> Detections:
        """Choose detections by one integer, a slice, integers, or N booleans.

        ``best_scores`` and ``cut_off`` stay whole, because they speak of the image and not of the
        detections.

        Raises:
            IndexError: An integer is outside -N to N-1, or the booleans are not N.
        """
        if isinstance(index, (int, np.integer)):
            index = [int(index)]
        kept = positions(index, len(self))
        return replace(
            self,
            masks=self.masks[kept],
            boxes_xyxy=self.boxes_xyxy[kept],
            scores=self.scores[kept],
            labels=tuple(self.labels[i] for i in kept),
            ids=None if self.ids is None else self.ids[kept],
            logits=None if self.logits is None else self.logits[kept],
        )

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """Pixels that each mask covers, (N,)."""
        return self.masks.areas

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

    def best(self, most: int | None) -> Detections:
        """Keep those with the best scores, in their order; ``cut_off`` counts the others.

        Args:
            most: How many at most, over all phrases; of equal scores the first. None keeps all.
        """
        if most is None or len(self) <= most:
            return self
        kept = best_positions(self.scores, most)
        return replace(self[kept], cut_off=self.cut_off + len(self) - most)

    def compact(self) -> Detections:
        """The same detections with masks in a hundredth of the memory: see ``Masks.compact``."""
        return replace(self, masks=self.masks.compact())

    @classmethod
    def empty(
        cls, size_hw: tuple[int, int], best_scores: Mapping[str, float] | None = None
    ) -> Detections:
        """Nothing found in an image of ``size_hw``."""
        return cls(
            masks=Masks.empty(size_hw),
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
            ShapeError: There is nothing to join, the images differ in size, or only some of the
                parts that hold anything have ids.
        """
        sizes = sorted({part.size_hw for part in parts})
        if len(sizes) != 1:
            raise ShapeError(f"Detections of one image size can be joined, got sizes {sizes}.")
        best_scores: dict[str, float] = {}
        for part in parts:
            for phrase, score in part.best_scores.items():
                best_scores[phrase] = max(score, best_scores.get(phrase, score))
        return cls(
            masks=Masks.concatenate([part.masks for part in parts]),
            boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            labels=tuple(label for part in parts for label in part.labels),
            size_hw=sizes[0],
            best_scores=best_scores,
            cut_off=sum(part.cut_off for part in parts),
            ids=_joined_ids(parts),
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
            top, width, height, pixels), ``area`` (pixels), ``score``, ``iscrowd`` 0, and
            ``track_id`` of objects of a video. A data set made of several images has to add its
            own ``id``. The format:
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
                "segmentation": self.masks.rle(i),
                "bbox": [left, top, right - left, bottom - top],
                "area": int(areas[i]),
                "score": float(self.scores[i]),
                "iscrowd": 0,
            }
            | ({} if self.ids is None else {"track_id": int(self.ids[i])})
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
        masks = Masks.from_rle(_segmentations(annotations), size_hw)
        around = masks.boxes
        boxes, scores, labels = [], [], []
        for i, annotation in enumerate(annotations):
            bbox = annotation.get("bbox") or _xywh(around[i])
            left, top, width, height = _numbers(bbox, 4, f"bbox of COCO annotation {i}")
            boxes.append((left, top, left + width, top + height))
            scores += _numbers([annotation.get("score", 1.0)], 1, f"score of COCO annotation {i}")
            labels.append(_label(annotation))
        best = {
            name: max(s for s, n in zip(scores, labels, strict=True) if n == name)
            for name in labels
        }
        return cls(
            masks=masks,
            boxes_xyxy=np.array(boxes, np.float32),
            scores=np.array(scores, np.float32),
            labels=tuple(labels),
            size_hw=size_hw,
            best_scores=best,
        )

    def to_supervision(self, *, compact: bool = False) -> supervision.Detections:
        """Hand the detections to roboflow's supervision.

        Args:
            compact: Give masks as ``supervision.CompactMask``, which most annotators take and few
                array methods; else dense, a byte for every pixel of every mask.

        Returns:
            ``supervision.Detections``; ``class_id`` numbers the phrases from 0 in the order they
            were asked for, ``data["class_name"]`` holds the phrases, ``tracker_id`` the ids.

        Raises:
            MissingExtra: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise MissingExtra("supervision", "supervision") from error
        ids = self._category_ids()
        masks: Any
        if compact:
            inclusive = (self.masks.boxes - [0, 0, 1, 1]).clip(0)
            rles = [self.masks.rle(i) for i in range(len(self))]
            masks = supervision.CompactMask.from_coco_rle(rles, inclusive, self.size_hw)
        else:
            masks = self.masks.dense()
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            mask=masks,
            confidence=self.scores,
            class_id=np.array([ids[label] - 1 for label in self.labels], np.int64),
            tracker_id=None if self.ids is None else self.ids.copy(),
            data={"class_name": np.array(self.labels, np.str_)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Summarize without masks, for JSON: sizes, scores, boxes and pixel counts."""
        return {
            "size_hw": list(self.size_hw),
            "count": len(self),
            "cut_off": self.cut_off,
            "best_scores": {phrase: float(score) for phrase, score in self.best_scores.items()},
            "detections": [
                {"label": label, "score": score, "box_xyxy": box, "area": area}
                | ({} if number is None else {"id": number})
                for label, score, box, area, number in zip(
                    self.labels,
                    self.scores.tolist(),
                    self.boxes_xyxy.tolist(),
                    self.areas.tolist(),
                    [None] * len(self) if self.ids is None else self.ids.tolist(),
                    strict=True,
                )
            ],
        }


def _joined_ids(parts: Sequence[Detections]) -> npt.NDArray[np.int64] | None:
    held = [part.ids for part in parts if len(part)] or [part.ids for part in parts]
    ids = [one for one in held if one is not None]
    if not ids:
        return None
    if len(ids) != len(held):
        raise ShapeError(
            "Some of the detections have ids and others have none. Join those of one video, or "
            "leave ids out: dataclasses.replace(detections, ids=None)."
        )
    return np.concatenate(ids)


def best_positions(scores: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.intp]:
    """Where the ``most`` best scores are, in rising order; of equal scores the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:most])


def _label(annotation: Mapping[str, Any]) -> str:
    return str(annotation.get("category_name", annotation.get("category_id")))


def _segmentations(annotations: Sequence[Mapping[str, Any]]) -> Iterator[Segmentation]:
    """The segmentation of each annotation, once it is known to have what it needs."""
    for i, annotation in enumerate(annotations):
        if not isinstance(annotation, Mapping):
            raise SettingError(f"COCO annotation {i} is an object, got {annotation!r:.80}.")
        label = annotation.get("category_name", annotation.get("category_id"))
        if "segmentation" not in annotation or label is None:
            raise SettingError(
                f"COCO annotation {i} has the keys {sorted(map(str, annotation))}. "
                "It needs segmentation, and category_name or category_id."
            )
        yield annotation["segmentation"]


def _xywh(box: npt.NDArray[np.int64]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box.tolist()
    return left, top, right - left, bottom - top


def _packed(masks: Masks | Dense, shape: tuple[int, ...]) -> Masks:
    if isinstance(masks, Masks):
        if masks.shape != shape:
            raise ShapeError(f"Detections want masks of {shape}, got masks of {masks.shape}.")
        return masks
    _check("masks", masks, np.bool_, shape)
    return Masks.from_dense(masks)


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
