"""COCO data sets: detections of several images in one file that every COCO tool reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from samforge.core.detections import Detections


def coco_dataset(
    images: Iterable[tuple[str, Detections]],
    *,
    categories: Sequence[str] = (),
    description: str = "",
) -> dict[str, Any]:
    """Put detections into the form of a COCO data set, ready for ``json.dump``.

    Args:
        images: File name and detections of each.
        categories: Phrases to number first, so that files of one run number them alike; phrases
            met on the way follow.
        description: Written into ``info``.

    Returns:
        ``info``, ``images``, ``categories`` and ``annotations``, all numbered from 1, the latter as
        ``Detections.to_coco`` writes them. The format: https://cocodataset.org/#format-data.
    """
    ids = {name: number for number, name in enumerate(dict.fromkeys(categories), 1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, detections) in enumerate(images, 1):
        for name in (*detections.best_scores, *detections.labels):
            ids.setdefault(name, len(ids) + 1)
        height, width = detections.size_hw
        entries.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for annotation in detections.to_coco(image_id=image_id, category_ids=ids):
            annotations.append({"id": len(annotations) + 1, **annotation})
    return {
        "info": {"description": description},
        "images": entries,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": annotations,
    }
