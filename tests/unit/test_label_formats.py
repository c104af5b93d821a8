"""Every format of labels, read back by a reader of that format or by its published rules."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from samforge.core.errors import OutputError, SettingError
from samforge.core.masks import Masks
from samforge.core.rle import mask_from_segmentation
from samforge.formats import LABEL_FORMATS, DataSet, LabelledObject, LabelledPicture, label_writer
from samforge.formats.labels import UniqueStems
from samforge.formats.outlines import polygons_from_crop

# numpy 2.4 says it of pycocotools 2.0.11's own arrays.
READER = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
H, W = 40, 60
CATEGORIES = ("ring", "two parts", 'disc "x" & <y>')


def shapes() -> dict[str, npt.NDArray[np.bool_]]:
    """A ring with a hole, an object of two parts, and a disc that lies over the ring."""
    y, x = np.mgrid[:H, :W]
    far = np.hypot(x - 20, y - 20)
    ring = (far < 15) & (far > 7)
    parts = np.zeros((H, W), np.bool_)
    parts[2:12, 40:50] = parts[20:38, 45:58] = True
    return {"ring": ring, "parts": parts, "disc": np.hypot(x - 30, y - 20) < 8}


def picture(name: str, identity: int, *, empty: bool = False) -> LabelledPicture:
    own = [] if empty else list(shapes().values())
    masks = Masks.from_dense(np.stack(own)) if own else Masks.empty((H, W))
    objects = []
    for row, (left, top, right, bottom) in enumerate(masks.boxes.tolist()):
        objects.append(
            LabelledObject(
                category=row,
                phrase=f"phrase {row}",
                score=(0.75, 0.5, 0.9)[row],
                bbox=(left, top, right - left, bottom - top),
                area=int(masks.areas[row]),
                counts=masks.rle(row)["counts"],
                track_id=7 if row == 0 else None,
            )
        )
    return LabelledPicture(
        id=identity,
        name=name,
        uri=f"/photos/{name}",
        sha256="0" * 64,
        size_hw=(H, W),
        objects=tuple(objects),
        best_scores={"phrase 0": 0.75, "phrase 3": 0.25},
    )


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes three pictures in a format: two of one file name, and one without objects."""
    source = tmp_path / "source"
    names = ("a/1.png", "b/1.png", "b/2.jpg")
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H)).save(source / name)
    out = tmp_path / "out"
    out.mkdir()

    def write(name: str, *, copy: bool = False) -> Path:
        data = DataSet(
            categories=CATEGORIES,
            provenance={"bundle": "b" * 64, "samforge": "0.1.0"},
            picture=lambda one: source / one,
            copy_pictures=copy,
        )
        before = set(out.iterdir())
        writer = label_writer(name, out, data)
        for number, one in enumerate(names, 1):
            writer.add(picture(one, number, empty=number == 3))
        # Nothing shows yet.
        assert [path.suffix for path in out.iterdir() if path not in before] == [".part"]
        path = writer.finish()
        assert [one.name for one in out.iterdir()] == [LABEL_FORMATS[name]]
        return path

    return write


@READER
def test_coco_is_read_by_pycocotools(written: Callable[..., Path]) -> None:
    from pycocotools.coco import COCO

    path = written("coco")
    table = json.loads(path.read_text())
    assert table["info"]["description"] == "samforge label"
    assert table["info"]["bundle"] == "b" * 64
    coco = COCO(path)
    assert [one["name"] for one in coco.loadCats([1, 2, 3])] == list(CATEGORIES)
    assert [coco.imgs[i]["file_name"] for i in (1, 2, 3)] == ["a/1.png", "b/1.png", "b/2.jpg"]
    assert coco.getAnnIds(imgIds=[3]) == []
    for row, mask in enumerate(shapes().values()):
        (one,) = coco.loadAnns(coco.getAnnIds(imgIds=[2], catIds=[row + 1]))
        assert np.array_equal(coco.annToMask(one), mask)
        assert one["area"] == mask.sum()
        assert one["iscrowd"] == 0
    assert coco.anns[10_001]["track_id"] == 7
    assert "track_id" not in coco.anns[10_002]


@READER
def test_coco_polygons_keep_parts_and_never_fill_holes(written: Callable[..., Path]) -> None:
    from pycocotools.coco import COCO

    coco = COCO(written("coco-polygons"))
    kinds = [type(one["segmentation"]) for one in coco.loadAnns(coco.getAnnIds(imgIds=[1]))]
    assert kinds == [dict, list, list]  # the ring has a hole: RLE
    assert len(coco.anns[10_002]["segmentation"]) == 2
    for number, mask in enumerate(shapes().values(), 1):
        assert iou(coco.annToMask(coco.anns[10_000 + number]).astype(bool), mask) > 0.95


def test_supervision_reads_coco_and_yolo(written: Callable[..., Path], tmp_path: Path) -> None:
    import supervision as sv

    path = written("coco")
    data = sv.DetectionDataset.from_coco(str(tmp_path / "source"), str(path), force_masks=True)
    found = data.annotations[str(tmp_path / "source" / "a/1.png")]
    assert len(data) == 3
    assert sorted(found.class_id.tolist()) == [0, 1, 2]
    assert np.array_equal(found.mask[0], shapes()["ring"])
    path.unlink()

    yolo = written("yolo")
    data = sv.DetectionDataset.from_yolo(
        str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"), force_masks=True
    )
    assert data.classes == list(CATEGORIES)
    assert len(data) == 3
    found = data.annotations[str(yolo / "images" / "b_1.png")]
    assert found.class_id.tolist() == [0, 1, 2]  # each object is one
    ring, parts, disc = shapes().values()
    assert iou(found.mask[0], ring) > 0.97
    assert not found.mask[0][18:23, 18:23].any()  # the hole is one
    assert iou(found.mask[1], parts) > 0.97  # the seam between its parts is drawn
    assert iou(found.mask[2], disc) > 0.97
    assert len(data.annotations[str(yolo / "images" / "b_2.jpg")]) == 0


def test_yolo_links_or_copies(written: Callable[..., Path], tmp_path: Path) -> None:
    linked = written("yolo")
    assert (linked / "images/a_1.png").readlink() == tmp_path / "source/a/1.png"
    assert (linked / "labels/b_2.txt").read_bytes() == b""
    lines = (linked / "labels/a_1.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    values = np.array([float(v) for line in lines for v in line.split()[1:]])
    assert 0 <= values.min() <= values.max() <= 1
    copied = written("yolo", copy=True)  # in the place of the other
    assert not (copied / "images/a_1.png").is_symlink()
    assert sorted(path.name for path in copied.iterdir()) == ["data.yaml", "images", "labels"]


def test_parquet_is_read_by_pyarrow(written: Callable[..., Path]) -> None:
    from pyarrow import parquet

    path = written("parquet")
    objects = parquet.read_table(path / "objects.parquet")
    rows = objects.to_pylist()
    assert [(row["image_id"], row["class_id"]) for row in rows] == [
        (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip
    first = rows[0]
    counts = {"size": [first["height"], first["width"]], "counts": first["rle_counts"].decode()}
    assert np.array_equal(mask_from_segmentation(counts, (H, W)), shapes()["ring"])
    assert (first["class"], first["phrase"], first["score"]) == ("ring", "phrase 0", 0.75)
    assert (first["track_id"], rows[1]["track_id"]) == (7, None)
    assert first["bundle_id"] == "b" * 64
    assert json.loads(objects.schema.metadata[b"samforge"])["samforge"] == "0.1.0"
    pictures = parquet.read_table(path / "pictures.parquet").to_pylist()
    assert [row["objects"] for row in pictures] == [3, 3, 0]
    assert dict(pictures[2]["best_scores"]) == {"phrase 0": 0.75, "phrase 3": 0.25}


def test_sa1b_has_its_layout(written: Callable[..., Path]) -> None:
    path = written("sa1b")
    table = json.loads((path / "a/1.json").read_text())
    assert table["image"] == {"image_id": 1, "width": W, "height": H, "file_name": "a/1.png"}
    first = table["annotations"][0]
    assert {"segmentation", "bbox", "area", "predicted_iou", "crop_box", "id"} <= set(first)
    assert first["stability_score"] is None
    mask = mask_from_segmentation(first["segmentation"], (H, W))
    assert np.array_equal(mask, shapes()["ring"])
    assert json.loads((path / "b/2.json").read_text())["annotations"] == []


def test_palette_and_numbers_show_the_best_score_on_top(written: Callable[..., Path]) -> None:
    path = written("masks")
    image = Image.open(path / "a/1.png")
    assert image.mode == "P"
    assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # of VOC
    expected = np.zeros((H, W), int)
    for number in (2, 1, 3):  # by rising score
        expected[list(shapes().values())[number - 1]] = number
    assert np.array_equal(np.asarray(image), expected)
    names = json.loads((path / "classes.json").read_text())["classes"]
    assert names["3"] == CATEGORIES[2]
    assert not np.asarray(Image.open(path / "b/2.png")).any()


def test_ids_are_numbers_of_16_bits(written: Callable[..., Path]) -> None:
    path = written("ids")
    image = Image.open(path / "b/1.png")
    assert image.mode == "I;16"
    numbers = np.asarray(image)
    assert sorted(np.unique(numbers).tolist()) == [0, 1, 2, 3]
    assert np.array_equal(numbers == 3, shapes()["disc"])
    lines = [json.loads(line) for line in (path / "objects.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a/1.png", "b/1.png", "b/2.png"]
    assert [one["class"] for one in lines[0]["objects"]] == list(CATEGORIES)


def test_label_studio_unpacks_its_brush(written: Callable[..., Path]) -> None:
    path = written("labelstudio")
    tasks = json.loads((path / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d={name}" for name in ("a/1.png", "b/1.png", "b/2.jpg")
    ]
    (prediction,) = tasks[0]["predictions"]
    for result, mask, name in zip(prediction["result"], shapes().values(), CATEGORIES, strict=True):
        assert result["value"]["brushlabels"] == [name]
        values = unpacked(result["value"]["rle"]).reshape(H, W, 4)
        assert np.array_equal(values == 255, np.repeat(mask[..., None], 4, axis=2))
    config = ET.fromstring((path / "config.xml").read_text())
    assert [one.get("value") for one in config.iter("Label")] == list(CATEGORIES)
    assert {result["from_name"] for result in prediction["result"]} == {
        one.get("name") for one in config.iter("BrushLabels")
    }


def test_equal_objects_are_regions_of_their_own_in_label_studio(tmp_path: Path) -> None:
    twice = picture("a.png", 1)
    twice = replace(twice, objects=(twice.objects[0], *twice.objects))
    data = DataSet(categories=CATEGORIES, provenance={}, picture=lambda _: b"")
    writer = label_writer("labelstudio", tmp_path, data)
    writer.add(twice)
    (task,) = json.loads((writer.finish() / "tasks.json").read_text())
    ids = [one["id"] for one in task["predictions"][0]["result"]]
    assert len(set(ids)) == len(twice.objects)


def unpacked(rle: list[int]) -> npt.NDArray[np.uint8]:
    """Label Studio's ``decode_rle``, by its rules."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out = np.zeros(total, np.uint8)
    at = 0
    while at < total:
        alike = read(1)
        end = at + 1 + read(sizes[read(2)])
        if alike:
            out[at:end] = read(word)
        else:
            out[at:end] = [read(word) for _ in range(end - at)]
        at = end
    return out


def test_cvat_has_its_runs(written: Callable[..., Path]) -> None:
    root = ET.parse(written("cvat")).getroot()
    assert root.findtext("version") == "1.1"
    assert [one.findtext("name") for one in root.iter("label")] == list(CATEGORIES)
    images = root.findall("image")
    assert [one.get("name") for one in images] == ["a/1.png", "b/1.png", "b/2.jpg"]
    for mask, expected in zip(images[0], shapes().values(), strict=True):
        left, top, width, height = (
            int(str(mask.get(key))) for key in ("left", "top", "width", "height")
        )
        counts = [int(count) for count in str(mask.get("rle")).split(",")]
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        whole = np.zeros((H, W), np.bool_)
        whole[top : top + height, left : left + width] = flat.reshape(height, width)
        assert np.array_equal(whole, expected)


def test_labelme_groups_parts(written: Callable[..., Path]) -> None:
    path = written("labelme")
    table = json.loads((path / "b/1.json").read_text())
    assert (path / "b" / table["imagePath"]).is_file()
    groups = [(one["label"], one["group_id"], one["shape_type"]) for one in table["shapes"]]
    assert groups == [
        ("ring", None, "polygon"),
        ("two parts", 2, "polygon"),
        ("two parts", 2, "polygon"),
        (CATEGORIES[2], None, "polygon"),
    ]
    image = Image.new("1", (W, H))
    for shape in table["shapes"][1:3]:
        ImageDraw.Draw(image).polygon([tuple(point) for point in shape["points"]], fill=1)
    assert iou(np.asarray(image), shapes()["parts"]) > 0.85


@pytest.mark.parametrize("name", sorted(LABEL_FORMATS))
def test_giving_up_leaves_what_was_there(name: str, written: Callable[..., Path]) -> None:
    path = written(name)
    files = {one: one.stat().st_mtime_ns for one in [path, *path.rglob("*")]}
    data = DataSet(categories=CATEGORIES, provenance={}, picture=lambda one: path)
    writer = label_writer(name, path.parent, data)
    writer.add(picture("b/2.jpg", 1, empty=True))
    writer.discard()
    assert {one: one.stat().st_mtime_ns for one in [path, *path.rglob("*")]} == files
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", sorted(LABEL_FORMATS))
def test_the_same_labels_are_the_same_bytes(
    name: str, written: Callable[..., Path], snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    first = snapshot(written(name).parent)
    assert first
    assert snapshot(written(name).parent) == first


@pytest.mark.parametrize("name", sorted(LABEL_FORMATS))
def test_a_place_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    data = DataSet(categories=("a",), provenance={}, picture=lambda one: tmp_path / one)
    with pytest.raises(OutputError, match="cannot be written"):
        label_writer(name, tmp_path / "absent", data)


def test_a_palette_has_room_for_255_classes(tmp_path: Path) -> None:
    many = tuple(map(str, range(256)))
    data = DataSet(categories=many, provenance={}, picture=lambda one: tmp_path / one)
    with pytest.raises(SettingError, match="holds 255 classes, the ontology has 256"):
        label_writer("masks", tmp_path, data)


def test_stems_are_never_alike() -> None:
    stems = UniqueStems()
    names = ["a/1.png", "a/1.jpg", "A/1.png", "a/1-2.png", "b.tar/1", ".png"]
    assert [stems.stem(name) for name in names] == [
        "a/1", "a/1-2", "A/1-3", "a/1-2-2", "b.tar/1", ".png",
    ]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_exact_outlines_are_the_mask(
    crop: npt.NDArray[np.bool_], top_left: tuple[int, int]
) -> None:
    from scipy import ndimage

    outline = polygons_from_crop(crop, top_left, tolerance_px=0)
    assert len(outline.parts) == ndimage.label(crop)[1]
    around = [area(ring) for ring, _ in outline.parts]
    inside = [area(hole) for _, holes in outline.parts for hole in holes]
    assert sum(around) + sum(inside) == crop.sum()  # holes run the other way
    assert area(outline.bridged()) == pytest.approx(float(crop.sum()))
    polygons = outline.as_coco()
    assert (polygons is None) == (outline.has_holes or not crop.any())
    if polygons is not None:
        whole = np.zeros((20, 20), np.bool_)
        top, left = top_left
        whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        assert np.array_equal(mask_from_segmentation(polygons, (20, 20)), whole)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_centres_are_inside_by_half_a_pixel(crop: npt.NDArray[np.bool_]) -> None:
    outline = polygons_from_crop(crop, (0, 0), tolerance_px=0, centres=True)
    drawn = Image.new("1", (crop.shape[1], crop.shape[0]))
    for ring, holes in outline.parts:
        for one in (ring, *holes):
            for x, y in one.tolist():
                assert crop[int(y), int(x)]  # on the mask, between its pixels' edges
                assert (x % 1, y % 1) == (0.5, 0.5)
        points = [(x - 0.5, y - 0.5) for x, y in ring.tolist()]
        if len(holes) == 0:
            ImageDraw.Draw(drawn).polygon(points, fill=1, outline=1)
    if not outline.has_holes:
        assert np.array_equal(np.asarray(drawn), crop)


def test_a_simpler_outline_stays_near() -> None:
    y, x = np.mgrid[:200, :200]
    disc = np.hypot(x - 100, y - 100) < 80
    exact = polygons_from_crop(disc, (0, 0), tolerance_px=0)
    simple = polygons_from_crop(disc, (0, 0))
    assert len(simple.parts[0][0]) * 8 < len(exact.parts[0][0])
    assert iou(mask_from_segmentation(simple.as_coco() or [], (200, 200)), disc) > 0.98


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)),
    st.sampled_from([0.0, 0.7, None]),
)
def test_what_a_bridged_ring_fills_is_the_mask(
    crop: npt.NDArray[np.bool_], tolerance: float | None
) -> None:
    """By parity of the rays through the pixels' centres, which no seam changes."""
    outline = polygons_from_crop(crop, (0, 0), tolerance_px=tolerance)
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]] + np.array([0.5003, 0.5007]).reshape(2, 1, 1)

    def filled(rings: list[Any]) -> Any:
        crossings = np.zeros(crop.shape, np.int64)
        for ring in rings:
            for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if y1 != y2:
                    at = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
                    crossings += ((y1 > y) != (y2 > y)) & (at > x)
        return crossings % 2 == 1

    every = [one for ring, holes in outline.parts for one in (ring, *holes)]
    assert np.array_equal(filled([outline.bridged()]), filled(every))
    assert np.array_equal(filled(outline.bridged_parts()), filled(every))
    if tolerance == 0.0:
        assert np.array_equal(filled(every), crop)
    # All corners are there, each as often as before or more.
    corners = {tuple(one) for ring in every for one in ring.tolist()}
    assert corners <= {tuple(one) for one in outline.bridged().tolist()}


def test_seams_into_holes_stay_in_the_mask() -> None:
    crop = np.ones((40, 60), np.bool_)
    crop[4:10, 5:9] = crop[20:30, 10:50] = crop[5:9, 30:33] = False
    (ring,) = polygons_from_crop(crop, (0, 0), tolerance_px=0).bridged_parts()
    edges = zip(ring, np.roll(ring, -1, axis=0), strict=True)
    for one, two in edges:
        for share in np.linspace(0, 1, 50):
            x, y = one + share * (two - one)
            near = crop[max(0, int(np.ceil(y)) - 1) : int(y) + 1, :]
            assert near[:, max(0, int(np.ceil(x)) - 1) : int(x) + 1].any()


@pytest.mark.parametrize("kind", ["holes", "parts"])
def test_time_grows_with_the_rings_and_not_with_their_square(kind: str) -> None:
    def seconds(side: int) -> float:
        crop = np.ones((side, side), np.bool_)
        crop[1:-1:2, 1:-1:2] = False
        crop = crop if kind == "holes" else ~crop
        start = time.process_time()
        outline = polygons_from_crop(crop, (0, 0), tolerance_px=0)
        rings = sum(1 + len(holes) for _, holes in outline.parts)
        assert rings >= (side // 2 - 1) ** 2
        assert abs(area(outline.bridged())) == pytest.approx(crop.sum())
        return time.process_time() - start

    seconds(21)
    # 16 times the rings, the square of which is 256; the least of three, for a busy machine.
    few, many = (min(seconds(side) for _ in range(3)) for side in (31, 121))
    assert many < 64 * max(few, 0.005)


def area(ring: Any) -> float:
    x, y = np.asarray(ring).reshape(-1, 2).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def iou(one: npt.NDArray[np.bool_], two: npt.NDArray[np.bool_]) -> float:
    return float((one & two).sum() / (one | two).sum())
