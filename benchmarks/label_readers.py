"""Reads labels with the readers of other tools, and compares every mask with COCO's.

    PYTHON benchmarks/label_readers.py OUT PICTURES [--file RESULT]

OUT is a folder of `samforge label --format coco --format yolo --format labelstudio --format cvat`,
PICTURES its source, one folder. PYTHON is of an environment with pycocotools and one or more of
ultralytics, datumaro and label-studio-sdk, which need versions that samforge's own environment
cannot have; samforge is not needed. What is not installed is left out, and keeps its result.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

Compared = tuple[int, list[float]]
"""Pictures read, and the IoU of each mask with COCO's."""


def iou(one: Any, two: Any) -> float:
    """Of two masks."""
    one, two = np.asarray(one, bool), np.asarray(two, bool)
    return float((one & two).sum() / max(1, (one | two).sum()))


def masks(coco: COCO, name: str) -> list[Any]:
    """Masks of a picture, in order."""
    (image_id,) = [i for i, image in coco.imgs.items() if image["file_name"] == name]
    annotations = sorted(coco.loadAnns(coco.getAnnIds(imgIds=[image_id])), key=lambda a: a["id"])
    return [coco.annToMask(one) for one in annotations]


def by_ultralytics(out: Path, _: Path, coco: COCO) -> Compared:
    """YOLO's data set by ultralytics' own loader, drawn by its own function."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    data = check_det_dataset(str(out / "yolo" / "data.yaml"), autodownload=False)
    assert list(data["names"].values()) == [one["name"] for one in coco.loadCats(coco.getCatIds())]
    loaded = YOLODataset(img_path=data["train"], data=data, task="segment", augment=False)
    names = {
        image["file_name"].replace("/", "_"): image["file_name"] for image in coco.imgs.values()
    }
    found = []
    for label in loaded.labels:
        height, width = label["shape"]
        wanted = masks(coco, names[Path(label["im_file"]).name])
        assert len(wanted) == len(label["segments"])
        for segment, mask in zip(label["segments"], wanted, strict=True):
            points = (segment * [width, height]).reshape(1, -1)
            found.append(iou(polygon2mask((height, width), points), mask))
    return len(loaded.labels), found


def by_datumaro(out: Path, pictures: Path, coco: COCO) -> Compared:
    """CVAT's file by datumaro."""
    import datumaro

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(out / "cvat.xml", Path(folder) / "annotations.xml")
        shutil.copytree(pictures, Path(folder) / "images")
        data = datumaro.Dataset.import_from(folder, "cvat")
        names = {Path(i["file_name"]).with_suffix("").as_posix(): i["file_name"]
                 for i in coco.imgs.values()}  # fmt: skip
        found = []
        for item in data:
            wanted = masks(coco, names[item.id])
            assert len(wanted) == len(item.annotations)
            found += [iou(a.image, b) for a, b in zip(item.annotations, wanted, strict=True)]
        return len(data), found


def by_label_studio(out: Path, _: Path, coco: COCO) -> Compared:
    """Label Studio's tasks by its SDK."""
    from label_studio_sdk.converter.brush import decode_rle

    tasks = json.loads((out / "labelstudio" / "tasks.json").read_text())
    found = []
    for task in tasks:
        results = task["predictions"][0]["result"]
        wanted = masks(coco, coco.imgs[task["id"]]["file_name"])
        for result, mask in zip(results, wanted, strict=True):
            size = result["original_height"], result["original_width"]
            values = decode_rle(result["value"]["rle"]).reshape(*size, 4)
            found.append(iou(values[..., 3] > 0, mask))
    return len(tasks), found


READERS: dict[str, tuple[str, Callable[[Path, Path, COCO], Compared]]] = {
    "ultralytics": ("yolo", by_ultralytics),
    "datumaro": ("cvat", by_datumaro),
    "label-studio-sdk": ("labelstudio", by_label_studio),
}
LEAST = {"ultralytics": 0.9, "datumaro": 1.0, "label-studio-sdk": 1.0}
"""Least IoU of a mask: outlines of large objects are simplified, and seams are drawn."""


def main() -> int:
    """Compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", type=Path)
    default = Path(__file__).parent / "results" / "label_readers.json"
    parser.add_argument("--file", type=Path, default=default)
    asked = parser.parse_args()
    coco = COCO(str(asked.out / "coco.json"))
    rows: dict[str, Any] = json.loads(asked.file.read_text()) if asked.file.is_file() else {}
    for package, (form, read) in READERS.items():
        try:
            known = version(package)
        except PackageNotFoundError:
            continue
        pictures, found = read(asked.out, asked.pictures, coco)
        rows[package] = {
            "version": known,
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "format": form,
            "pictures": pictures,
            "objects": len(found),
            "objects_in_coco": len(coco.anns),
            "least_iou": round(min(found), 4),
            "mean_iou": round(float(np.mean(found)), 4),
            "holds": len(found) == len(coco.anns) and min(found) >= LEAST[package],
        }
    asked.file.write_text(json.dumps(rows, indent=2) + "\n")
    print(json.dumps(rows, indent=2))
    return 0 if all(row["holds"] for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
