"""COCO data sets of several images."""

from __future__ import annotations

import numpy as np

from samforge.core.detections import Detections
from samforge.formats import coco_dataset


def _detections(*labels: str, best: tuple[str, ...] = ()) -> Detections:
    masks = np.zeros((len(labels), 4, 6), np.bool_)
    masks[:, 1:3, 2:5] = True
    return Detections(
        masks=masks,
        boxes_xyxy=np.tile(np.array([2, 1, 5, 3], np.float32), (len(labels), 1)),
        scores=np.full(len(labels), 0.5, np.float32),
        labels=labels,
        size_hw=(4, 6),
        best_scores=dict.fromkeys(best, 0.1),
    )


def test_numbers_run_through_all_images() -> None:
    images = [
        ("a.png", _detections("star", "ring")),
        ("b.png", _detections("ring", best=("disc",))),
    ]
    dataset = coco_dataset(images, categories=("cross", "ring"), description="a run")
    assert dataset["info"] == {"description": "a run"}
    assert dataset["images"] == [
        {"id": 1, "file_name": "a.png", "width": 6, "height": 4},
        {"id": 2, "file_name": "b.png", "width": 6, "height": 4},
    ]
    names = {one["id"]: one["name"] for one in dataset["categories"]}
    assert names == {1: "cross", 2: "ring", 3: "star", 4: "disc"}
    found = [(a["id"], a["image_id"], names[a["category_id"]]) for a in dataset["annotations"]]
    assert found == [(1, 1, "star"), (2, 1, "ring"), (3, 2, "ring")]
    assert all(a["bbox"] == [2, 1, 3, 2] and a["area"] == 6 for a in dataset["annotations"])


def test_nothing_found_is_a_data_set_too() -> None:
    dataset = coco_dataset([("a.png", _detections())])
    assert (dataset["annotations"], dataset["categories"]) == ([], [])
    assert len(dataset["images"]) == 1
