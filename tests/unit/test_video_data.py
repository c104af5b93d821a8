"""Labelled videos as files: YouTube-VIS, SA-Co/VEval and COCO-VID, and what is broken in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samforge.core.errors import ImageError, SettingError
from samforge.core.rle import segmentation_from_mask
from samforge.formats import VideoData, video_data_from_file
from samforge.media import write_png

SIZE_HW = (8, 12)
Table = dict[str, Any]


def bar(left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[:, left:right] = True
    return mask


def rle(left: int, right: int) -> dict[str, Any]:
    return segmentation_from_mask(bar(left, right))


def youtube_vis() -> Table:
    """Two videos of three frames: a cat that leaves, and a dog in the second."""
    return {
        "videos": [
            {
                "id": number,
                "width": 12,
                "height": 8,
                "length": 3,
                "file_names": [f"{name}/{frame}.png" for frame in range(3)],
            }
            for number, name in ((1, "one"), (2, "two"))
        ],
        "categories": [{"id": 7, "name": "tabby_cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {
                "id": 1,
                "video_id": 1,
                "category_id": 7,
                "segmentations": [rle(0, 3), rle(1, 4), None],
            },
            {
                "id": 2,
                "video_id": 2,
                "category_id": 8,
                "segmentations": [None, [[0, 0, 4, 0, 4, 8, 0, 8]], rle(2, 9)],
            },
        ],
    }


def coco_vid() -> Table:
    """The first video of the same, a frame an image; the images stand in another order."""
    return {
        "videos": [{"id": 1, "name": "one"}],
        "categories": youtube_vis()["categories"],
        "images": [
            {"id": 10 + frame, "video_id": 1, "frame_id": frame, "file_name": f"one/{frame}.png"}
            for frame in (2, 0, 1)
        ],
        "annotations": [
            {
                "id": frame,
                "image_id": 10 + frame,
                "category_id": 7,
                "instance_id": 4,
                "segmentation": rle(frame, frame + 3),
            }
            for frame in (0, 1)
        ],
    }


Read = Callable[..., VideoData]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a file and its frames, and read it."""
    for video in ("one", "two"):
        (tmp_path / video).mkdir()
        for frame in range(3):
            write_png(
                tmp_path / video / f"{frame}.png", np.full((*SIZE_HW, 3), 40 * frame, np.uint8)
            )

    def reading(table: Any, **options: Any) -> VideoData:
        path = tmp_path / "val.json"
        path.write_text(json.dumps(table))
        return video_data_from_file(path, **options)

    return reading


def asked(data: VideoData, **options: Any) -> list[dict[str, list[list[tuple[int, int]]]]]:
    """By video and phrase: id and pixels of each object of each frame."""
    return [
        {
            question.text: [
                list(zip(one.ids.tolist(), one.areas.tolist(), strict=True))
                for one in question.tracks
            ]
            for question in video.questions
        }
        for video in data.videos(**options)
    ]


def test_youtube_vis_asks_what_is_there_and_as_much_that_is_not(read: Read) -> None:
    data = read(youtube_vis())
    assert data.frames == 6
    assert data.phrases == {"tabby cat", "dog"}
    assert asked(data) == [
        {"tabby cat": [[(0, 24)], [(0, 24)], []], "dog": [[], [], []]},
        {"dog": [[], [(0, 32)], [(0, 56)]], "tabby cat": [[], [], []]},
    ]
    first, second = data.videos()
    assert (first.name, first.length, first.shown, second.shown) == ("one", 3, (0,), ())
    assert [int(frame[0, 0, 0]) for frame in first.frames()] == [0, 40, 80]
    assert np.array_equal(first.questions[0].tracks[1].masks[0], bar(1, 4))


def test_veval_asks_the_pairs_that_it_names(read: Read) -> None:
    pairs = [
        {"id": 0, "video_id": 1, "category_id": 7, "noun_phrase": "the cat", "num_masklets": 1},
        {"id": 1, "video_id": 1, "category_id": 9, "noun_phrase": "a horse", "num_masklets": 0},
    ]
    data = read(youtube_vis() | {"video_np_pairs": pairs})
    # Of the second video nothing is asked.
    assert asked(data) == [{"the cat": [[(0, 24)], [(0, 24)], []], "a horse": [[], [], []]}]


def test_coco_vid_joins_masks_to_tracks(read: Read) -> None:
    data = read(coco_vid())
    assert asked(data) == [{"tabby cat": [[(0, 24)], [(0, 24)], []]}]
    (video,) = data.videos()
    assert [int(frame[0, 0, 0]) for frame in video.frames()] == [0, 40, 80]
    table = coco_vid()
    for one in table["annotations"]:
        one["track_id"] = one.pop("instance_id")
    for one in table["images"]:
        one["frame_index"] = one.pop("frame_id")
    assert asked(read(table)) == asked(data)


def test_crowds_and_partly_labelled_categories_are_neither_there_nor_absent(read: Read) -> None:
    table = youtube_vis()
    table["annotations"][0]["iscrowd"] = 1
    table["videos"][1]["not_exhaustive_category_ids"] = [8]
    assert asked(read(table)) == [{"dog": [[], [], []]}, {"tabby cat": [[], [], []]}]
    table["videos"][0]["neg_category_ids"] = []
    table["videos"][1]["neg_category_ids"] = [7]
    assert asked(read(table)) == [{"tabby cat": [[], [], []]}]


def test_some_videos_only(read: Read) -> None:
    assert [video.name for video in read(youtube_vis(), limit=1).videos()] == ["one"]


def change(path: str, value: Any) -> Callable[[Table], None]:
    """Set what stands at ``annotations/0/iscrowd``."""

    def apply(table: Table) -> None:
        *keys, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        holder: Any = table
        for key in keys:
            holder = holder[key]
        if value is ...:
            del holder[last]
        else:
            holder[last] = value

    return apply


BROKEN = {
    "no frames": (change("videos/0/file_names", []), r"videos\[0\] of .* has no frames"),
    "names": (change("videos/0/file_names", "one"), r"file_names of videos\[0\] .* is a list"),
    "a name": (change("videos/0/file_names/1", 5), r"The name of a frame .* is a text, got 5"),
    "length": (change("videos/0/length", 9), "has 3 file_names and the length 9"),
    "size": (change("videos/0/height", -1), "height and width of videos"),
    "twice": (change("videos/1/id", 1), "has the id 1 of an earlier video"),
    "outside": (change("videos/0/file_names/0", "../0.png"), "leaves the folder"),
    "root": (change("videos/0/file_names/0", "/etc/0.png"), r"with --videos\."),
    "category": (change("annotations/0/category_id", 3), "category 3, which is not in"),
    "video": (change("annotations/0/video_id", 5), "video 5, which is not in videos"),
    "id": (change("annotations/0/video_id", [1]), r"video_id of .* is a number or a text"),
    "masks": (change("annotations/0/segmentations", {}), "a mask or null for each of 3 frames"),
    "fewer": (change("annotations/0/segmentations", [None]), "3 frames, got 1 of them"),
    "mask": (change("annotations/0/segmentations/0", "x"), "frame 0 is an RLE or a list"),
    "phrase": (change("categories/0/name", 1), "is a text that says what to find, got 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_and_the_rest_is_used(name: str, read: Read) -> None:
    apply, words = BROKEN[name]
    table = youtube_vis()
    apply(table)
    with pytest.raises(SettingError, match=words):
        list(read(table).videos())
    told: list[str] = []
    found = asked(read(table, report=lambda _, error: told.append(str(error))))
    assert any("val.json" in one for one in told)
    assert len(found) in (1, 2)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("images/0/frame_id", ..., "has no number of its frame"),
        ("images/0/frame_id", "1", "is a whole number, got '1'"),
        ("annotations/0/image_id", 3, "image 3, which is not in images"),
        ("annotations/1/image_id", 10, "second mask of the track 4"),
        ("annotations/1/category_id", 8, "of the category 8, and its track 4 of 7 before"),
        ("annotations/1/instance_id", ..., "has no instance_id"),
        ("annotations/1/segmentation", [], "has no segmentation"),
    ],
)
def test_broken_coco_vid(path: str, value: Any, words: str, read: Read) -> None:
    table = coco_vid()
    change(path, value)(table)
    with pytest.raises(SettingError, match=words):
        read(table)


def test_a_damaged_mask_takes_its_phrase_with_it(read: Read) -> None:
    table = youtube_vis()
    table["annotations"][0]["segmentations"][1] = {"size": [9, 9], "counts": "zz"}
    data = read(table)
    with pytest.raises(SettingError, match=r"annotations\[0\] of .* is not usable"):
        list(data.videos())
    told: list[tuple[str, Exception]] = []
    found = asked(data, report=lambda *one: told.append(one))
    assert found[0] == {"dog": [[], [], []]}
    assert [item for item, _ in told] == [data.asked[0][1]["tabby cat"][0].place]


def test_frames_that_are_missing_or_of_another_size(read: Read, tmp_path: Path) -> None:
    (tmp_path / "two/1.png").unlink()
    with pytest.raises(ImageError, match=r"Frames of 1 of the 2 videos .* first is two/1\.png"):
        read(youtube_vis())
    told: list[str] = []
    data = read(youtube_vis(), report=lambda item, _: told.append(item))
    assert [video.name for video in data.videos()] == ["one"]
    assert len(told) == 1
    write_png(tmp_path / "one/2.png", np.zeros((4, 4, 3), np.uint8))
    (video,) = data.videos()
    frames = video.frames()
    assert [next(frames).shape, next(frames).shape] == [(8, 12, 3)] * 2
    with pytest.raises(ImageError, match=r"is \(4, 4\) .* says \(8, 12\)"):
        next(frames)
    for place in tmp_path.glob("*/*.png"):
        place.unlink()
    with pytest.raises(ImageError, match="--videos FOLDER"):
        read(youtube_vis(), report=lambda *_: None)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([], "is a list, as COCO result files are"),
        ({"images": []}, "no COCO data set: it holds the keys"),
        (youtube_vis() | {"videos": 5}, "videos of .* is a list in COCO"),
        (youtube_vis() | {"videos": [5]}, "is an object in COCO, got 5"),
        (youtube_vis() | {"annotations": [], "videos": []}, "asks nothing: no video has a phrase"),
    ],
)
def test_files_that_are_none(table: Any, words: str, read: Read) -> None:
    with pytest.raises(SettingError, match=words):
        read(table)


def test_deep_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    for text in ("[" * 100_000, '{"videos": ', "\x00"):
        path.write_text(text)
        with pytest.raises(SettingError, match="is not valid JSON"):
            video_data_from_file(path)
    with pytest.raises(SettingError, match="cannot be read"):
        video_data_from_file(tmp_path / "gone.json")
