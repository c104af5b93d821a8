"""Labelled COCO files: what is asked of which image, and every way a file can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samforge.core.errors import ImageError, SettingError
from samforge.core.labelled import LabelledImage
from samforge.core.rle import segmentation_from_mask
from samforge.formats import coco_data_from_file
from samforge.media import write_png

SIZE = (12, 16)
LEFT = [0, 0, 4, 0, 4, 12, 0, 12]
"""A polygon: the left quarter."""
Table = dict[str, Any]


def rle(top: int, left: int, bottom: int, right: int) -> Table:
    mask = np.zeros(SIZE, np.bool_)
    mask[top:bottom, left:right] = True
    return segmentation_from_mask(mask)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Two images, four categories: cats and a dog in the first, the second empty; no horse yet."""
    for name in ("one.png", "two.png"):
        write_png(tmp_path / name, np.zeros((*SIZE, 3), np.uint8))
    size = {"height": SIZE[0], "width": SIZE[1]}
    return {
        "images": [
            {"id": 1, "file_name": "one.png", **size},
            {"id": 2, "file_name": "two.png", **size},
        ],
        "categories": [
            {"id": 7, "name": "cat"},
            {"id": 8, "name": "guide_dog"},
            {"id": 9, "name": "horse"},
            {"id": 10, "name": "bird"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [LEFT]},
            {"id": 2, "image_id": 1, "category_id": 8, "segmentation": rle(0, 10, 6, 16)},
            {"id": 3, "image_id": 1, "category_id": 7, "segmentation": rle(2, 5, 4, 9)},
        ],
    }


def read(tmp_path: Path, table: object, **options: Any) -> dict[str, LabelledImage]:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(table))
    return {one.name: one for one in coco_data_from_file(path, **options).images()}


def asked(image: LabelledImage) -> dict[str, int]:
    """Number of masks by phrase."""
    return {q.text: len(q.masks) for q in image.questions if q.text is not None}


def test_categories_become_phrases(tmp_path: Path, table: Table) -> None:
    # No horse and no bird is labelled anywhere: they are not asked for.
    images = read(tmp_path, table)
    assert asked(images["one.png"]) == {"cat": 2, "guide dog": 1}
    cats = images["one.png"].questions[0].masks
    assert cats.shape == (2, *SIZE)
    assert cats[0].sum() == 4 * 12
    assert cats[0, :, :4].all()
    assert cats[1].sum() == 2 * 4


def test_one_box_around_the_largest_of_what_there_is_most_of(tmp_path: Path, table: Table) -> None:
    images = read(tmp_path, table)
    (box,) = [q for q in images["one.png"].questions if q.boxes_xyxy is not None]
    assert box.text is None
    assert box.boxes_xyxy is not None
    assert box.boxes_xyxy.tolist() == [[0, 0, 4, 12]]
    assert box.box_labels is not None
    assert box.box_labels.tolist() == [1]
    assert len(box.masks) == 2
    assert all(q.boxes_xyxy is None for q in images["two.png"].questions)


def test_absent_phrases_are_drawn_from_what_an_image_lacks(tmp_path: Path, table: Table) -> None:
    for category in (9, 10):
        table["annotations"].append(
            {"image_id": 2, "category_id": category, "segmentation": [LEFT]}
        )
    images = read(tmp_path, table)
    assert asked(images["one.png"]) == {"cat": 2, "guide dog": 1, "horse": 0, "bird": 0}
    assert asked(images["two.png"]) == {"horse": 1, "bird": 1, "cat": 0, "guide dog": 0}


def test_an_empty_image_is_asked_for_one_thing_that_is_not_there(
    tmp_path: Path, table: Table
) -> None:
    drawn = [read(tmp_path, table, seed=seed)["two.png"] for seed in range(8)]
    assert all(list(asked(image).values()) == [0] for image in drawn)
    assert {phrase for image in drawn for phrase in asked(image)} == {"cat", "guide dog"}
    again = read(tmp_path, table, seed=3)["two.png"]
    assert asked(again) == asked(drawn[3]), "the same seed draws the same"


def test_lvis_files_say_what_is_absent_and_what_is_partly_labelled(
    tmp_path: Path, table: Table
) -> None:
    first, second = table["images"]
    first |= {"neg_category_ids": [9], "not_exhaustive_category_ids": [8]}
    second |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    images = read(tmp_path, table)
    assert asked(images["one.png"]) == {"cat": 2, "horse": 0}
    assert list(images) == ["one.png"], "nothing is known of the second"


def test_crowds_are_neither_asked_nor_absent(tmp_path: Path, table: Table) -> None:
    table["annotations"][0]["iscrowd"] = 1
    assert asked(read(tmp_path, table)["one.png"]) == {"guide dog": 1}


def test_saco_files_hold_one_phrase_an_entry(tmp_path: Path, table: Table) -> None:
    table["images"] = [
        {"id": 1, "file_name": "one.png", "text_input": "striped cat"},
        {"id": 2, "file_name": "one.png", "text_input": "car"},
        {"id": 3, "file_name": "one.png", "text_input": "leaf", "is_instance_exhaustive": 0},
        {"id": 4, "file_name": "two.png", "text_input": "car"},
    ]
    table["annotations"][1]["image_id"] = 4
    images = read(tmp_path, table)
    assert asked(images["one.png"]) == {"striped cat": 2, "car": 0}
    assert asked(images["two.png"]) == {"car": 1}


def test_masks_thinner_than_a_pixel_are_left_out(tmp_path: Path, table: Table) -> None:
    table["annotations"][1]["segmentation"] = [[3, 3, 3, 3, 3, 3]]
    assert asked(read(tmp_path, table)["one.png"]) == {"cat": 2}


def test_images_elsewhere_and_a_limit(tmp_path: Path, table: Table) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("one.png", "two.png"):
        (tmp_path / name).rename(tmp_path / "photos" / name)
    with pytest.raises(
        ImageError, match=r"2 of the 2 pictures of .* the first is one.png. Say where .* --images"
    ):
        read(tmp_path, table)
    assert list(read(tmp_path, table, folder=tmp_path / "photos", limit=1)) == ["one.png"]


def test_a_picture_of_another_size_is_named(tmp_path: Path, table: Table) -> None:
    table["images"][0]["width"] = 99
    with pytest.raises(
        ImageError, match=r"one.png is \(12, 16\) \(H, W\) when it is turned upright.*\(12, 99\)"
    ):
        read(tmp_path, table)
    # Written sideways: viewers and samforge show it upright, the labels were made on it as it lay.
    turned = Image.fromarray(np.zeros((16, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "one.png", exif=exif)
    del table["images"][0]["width"]
    assert asked(read(tmp_path, table)["one.png"]) == {"cat": 2, "guide dog": 1}


def _without(table: Table, kind: str, key: str) -> Table:
    del table[kind][0][key]
    return table


def _changed(table: Table, kind: str, index: int, **values: Any) -> Table:
    table[kind][index] |= values
    return table


BROKEN = {
    "a list": (lambda t: t["annotations"], "is a list, as COCO result files are"),
    "a number": (lambda _: 3, "is no COCO data set: it holds 3, and images, annotations, cate"),
    "other keys": (lambda _: {"shapes": []}, r"it holds the keys \['shapes'\], and images"),
    "no list": (lambda t: t | {"images": {}}, r"images of .* is a list in COCO, got \{\}"),
    "no object": (
        lambda t: t | {"images": ["one.png"]},
        r"images\[0\] of .*labels.json is an object in COCO, got 'one.png'",
    ),
    "no file name": (
        lambda t: _without(t, "images", "file_name"),
        r"images\[0\] of .* has no file_name, only height, id, width",
    ),
    "id twice": (
        lambda t: _changed(t, "images", 1, id=1),
        r"images\[1\] of .* has the id 1 of an earlier image",
    ),
    "category's id twice": (
        lambda t: _changed(t, "categories", 1, id=t["categories"][0]["id"]),
        r"categories\[1\] of .* has the id .* of an earlier category",
    ),
    "list as id": (
        lambda t: _changed(t, "images", 1, id=[1]),
        r"id of images\[1\] of .* is a number or a text, got \[1\]",
    ),
    "size": (
        lambda t: _changed(t, "images", 0, height=0),
        r"height and width of images\[0\] of .* are pixels, got \(0, 16\)",
    ),
    "name": (
        lambda t: _changed(t, "categories", 2, name="_"),
        r"The name of categories\[2\] of .* is a text that says what to find, got '_'",
    ),
    "unknown image": (
        lambda t: _changed(t, "annotations", 2, image_id=5),
        r"annotations\[2\] of .* belongs to the image 5, which is not in images",
    ),
    "unknown category": (
        lambda t: _changed(t, "annotations", 2, category_id=5),
        r"annotations\[2\] of .* is of the category 5, which is not in categories",
    ),
    "boxes only": (
        lambda t: _changed(t, "annotations", 0, segmentation=[], bbox=[0, 0, 4, 4]),
        r"annotations\[0\] of .* has no segmentation.*not with boxes alone",
    ),
    "a box as polygon": (
        lambda t: _changed(t, "annotations", 0, segmentation=[[0, 0, 4, 4]]),
        r"annotations\[0\] of .* has a polygon that is no list of x, y",
    ),
    "an odd polygon": (
        lambda t: _changed(t, "annotations", 0, segmentation=[[0, 0, 4, 4, 2, 2, 1]]),
        r"annotations\[0\] of .* has a polygon that is no list of x, y",
    ),
    "damaged RLE": (
        lambda t: _changed(t, "annotations", 1, segmentation={"size": [12, 16], "counts": [5]}),
        r"annotations\[1\] of .* is not usable: The counts of an RLE add up to 5",
    ),
    "RLE of another size": (
        lambda t: _changed(t, "annotations", 1, segmentation={"size": [9, 9], "counts": [81]}),
        r"annotations\[1\] of .* is not usable: The RLE is of an image of \(9, 9\)",
    ),
    "ids that are no list": (
        lambda t: _changed(t, "images", 0, neg_category_ids=7),
        r"neg_category_ids of images\[0\] of .* is a list of category ids, got 7",
    ),
    "a way out": (
        lambda t: _changed(t, "images", 0, file_name="../one.png"),
        r"names the picture '../one.png', which leaves the folder of the pictures",
    ),
    "nothing to ask": (
        lambda t: t | {"annotations": []},
        r"asks nothing: no image has a phrase, present or absent",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_where(tmp_path: Path, table: Table, name: str) -> None:
    change, message = BROKEN[name]
    with pytest.raises(SettingError, match=message):
        read(tmp_path, change(table))


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"The COCO file .*labels.json cannot be read: No such"):
        coco_data_from_file(tmp_path / "labels.json")
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(SettingError, match=r"The COCO file .*labels.json is not valid JSON"):
        coco_data_from_file(tmp_path / "labels.json")
    (tmp_path / "labels.json").write_text("[" * 100_000)
    with pytest.raises(SettingError, match="is not valid JSON"):
        coco_data_from_file(tmp_path / "labels.json")


def test_a_broken_picture_is_named(tmp_path: Path, table: Table) -> None:
    (tmp_path / "one.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"one.png is not an image that samforge reads"):
        read(tmp_path, table)
