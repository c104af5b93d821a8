"""Clicks on pictures and objects in videos, through a bundle: from Python and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks._eager import eager_segmenter
from PIL import Image
from scipy.ndimage import binary_fill_holes
from tests.unit.conftest import FAKE_PARTS

import samforge
from samforge.apps import cli
from samforge.core.capabilities import TRACKER_PARTS
from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SettingError
from samforge.core.reference import META, TRANSFORMERS
from samforge.core.session import PartSpec, TensorSpec
from samforge.measure.clicking import first_click
from samforge.media import VideoWriter
from samforge.models import tiny
from samforge.runtime import (
    ObjectPrompt,
    PromptAt,
    Segmenter,
)
from samforge.runtime.clicks import hole_area_of
from samforge.runtime.tracking.parts import TrackerFacts
from samforge.workflows.predict import corrected

Capture = pytest.CaptureFixture[str]
SCENE = tiny.draw_scene(1, split="demo")
"""Seven orange circles."""
CLIP = tuple(tiny.draw_crossing(1, frames=6, split="demo"))


@pytest.fixture(scope="module")
def segmenter(one_thread: None) -> Segmenter:
    """The tiny model with its tracker, its parts as they stand."""
    return eager_segmenter()


@pytest.fixture
def bundle(
    fake_bundle: Callable[..., samforge.Bundle],
    segmenter: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
) -> samforge.Bundle:
    """A bundle that says it has a tracker; what it is loaded as is the segmenter above."""
    score = TensorSpec(name="score", dtype="float32", shape=("objects", 1))
    more = [PartSpec(name=name, inputs=(score,), outputs=(score,)) for name in TRACKER_PARTS]
    monkeypatch.setattr(samforge, "load", lambda *_, **__: segmenter)
    return fake_bundle("tracked", parts=(*FAKE_PARTS, *more))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The scene as a file."""
    path = tmp_path / "images" / "scene.png"
    path.parent.mkdir()
    Image.fromarray(SCENE.image).save(path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six pictures of shapes that cross."""
    path = tmp_path / "clip.mp4"
    size = CLIP[0].image.shape[0]
    with VideoWriter(path, (size, size)) as writer:
        for number, scene in enumerate(CLIP):
            writer.write(scene.image, Fraction(number, 10))
    return path


def truth(number: int) -> np.ndarray:
    mask: np.ndarray = SCENE.instances == number
    return mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.slow
def test_what_was_proven(tracked_bundle: samforge.Bundle) -> None:
    """Builds with a tracker hold clicks and tracks to those of the exported programs."""
    steps = {step.name: step for step in tracked_bundle.manifest.steps if step.part is None}
    follow = steps["follow"]
    assert set(follow.gates) == {"click_iou", "track_iou"}
    clicks, tracks = follow.fidelity
    assert clicks["clicks"] >= 16
    assert min(clicks["click_iou"], tracks["track_iou"]) > 0.999
    assert tracks["tracks"] == tracks["measured_tracks"] >= 8
    with samforge.load(tracked_bundle) as loaded:
        click = ObjectPrompt(points=[first_click(truth(2))])
        assert iou(loaded.predict_objects(SCENE.image, click).masks[0], truth(2)) > 0.85


def test_clicks_show_one_object_each(segmenter: Segmenter) -> None:
    encoded = segmenter.encode(SCENE.image)
    numbers = range(1, int(SCENE.instances.max()) + 1)
    prompts = [ObjectPrompt(points=[first_click(truth(number))]) for number in numbers]
    found = segmenter.predict_objects(encoded, prompts)
    assert found.labels == tuple(f"object {number}" for number in numbers)
    ious = [iou(mask, truth(number)) for mask, number in zip(found.masks, numbers, strict=True)]
    assert min(ious) > 0.8
    assert np.mean(ious) > 0.9
    assert found.logits is not None
    assert found.logits.shape[1:] == (64, 64)
    (alone,) = segmenter.predict_objects(SCENE.image, prompts[2]).masks
    assert iou(alone, found.masks[2]) > 0.999


def test_three_candidates_are_in_order(segmenter: Segmenter) -> None:
    prompts = [ObjectPrompt(points=[first_click(truth(number))]) for number in (1, 2)]
    found = segmenter.predict_objects(SCENE.image, prompts, candidates=True)
    assert found.labels == ("object 1",) * 3 + ("object 2",) * 3
    for row in (0, 3):
        assert all(one >= other for one, other in pairwise(found.scores[row : row + 3]))
    best = segmenter.predict_objects(SCENE.image, prompts)
    assert np.array_equal(best.masks.dense(), found[[0, 3]].masks.dense())


def test_holes_are_filled_up_to_an_area(segmenter: Segmenter) -> None:
    """Meta's 256 cells are of 288 x 288; of 64 x 64 they would fill the hole of a ring."""
    scene = next(
        scene
        for scene in (tiny.draw_scene(number, split="demo") for number in range(64))
        if "ring" in scene.shapes
    )
    true = scene.masks[scene.shapes.index("ring")]
    hole = binary_fill_holes(true) & ~true
    prompt = ObjectPrompt(points=[first_click(true)])
    kept, default, filled, small = (
        segmenter.predict_objects(scene.image, prompt, hole_area=area).masks.dense()[0]
        for area in (0, None, 256, 3)
    )
    assert iou(kept, true) > 0.8
    assert kept[hole].mean() < 0.3
    assert default[hole].mean() < 0.3
    assert filled[hole].all()
    assert small[hole].mean() < 0.3, "the hole has more cells than that"
    assert not (kept & ~small).any()


@pytest.mark.parametrize(
    ("reference", "side", "area"),
    [(META, 288, 256), (META, 64, 13), (META, 256, 202), (TRANSFORMERS, 288, 0)],
)
def test_the_same_share_of_masks_of_any_size(reference: str, side: int, area: int) -> None:
    facts = TrackerFacts(
        image_size=1008,
        mask_side=side,
        prompt_side=4 * side,
        memory_side=4 * side,
        digest="",
        reference=reference,
    )
    assert hole_area_of(facts) == area


@pytest.mark.parametrize("area", [-1, 2.5, True, "12", 2**31, 10**30])
def test_no_such_hole(segmenter: Segmenter, area: Any) -> None:
    with pytest.raises(SettingError, match="0 fills none"):
        segmenter.predict_objects(SCENE.image, ObjectPrompt(points=[(5.0, 5.0)]), hole_area=area)


def test_boxes_and_refinement(segmenter: Segmenter) -> None:
    encoded = segmenter.encode(SCENE.image)
    mask = truth(3)
    rows, columns = np.nonzero(mask)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    by_box = segmenter.predict_objects(encoded, ObjectPrompt(box_xyxy=box))
    assert iou(by_box.masks[0], mask) > 0.85
    first = segmenter.predict_objects(encoded, ObjectPrompt(points=[first_click(mask)]))
    again = segmenter.predict_objects(
        encoded, ObjectPrompt(points=[first_click(mask)]), earlier=first
    )
    assert iou(again.masks[0], mask) > 0.8


def test_a_phrase_then_a_click(segmenter: Segmenter) -> None:
    """A mask that joins two circles is taken apart by a click beside the one that is meant."""
    encoded = segmenter.encode(SCENE.image)
    found = segmenter.predict(encoded, text="orange circle")
    both = truth(1) | truth(2)
    joined = replace(
        found[[0]],
        masks=both[None],  # type: ignore[arg-type]  # packed by the constructor
        boxes_xyxy=np.float32([[0, 0, 224, 224]]),
    )
    prompt = ObjectPrompt(points=[first_click(truth(1)), first_click(truth(2))], labels=[1, 0])
    one = corrected(segmenter, encoded, joined, prompt)
    assert one.labels == joined.labels
    assert iou(one.masks[0], truth(1)) > 0.85
    assert iou(both, truth(1)) < 0.8
    untouched = corrected(segmenter, encoded, found, ObjectPrompt(points=[first_click(truth(4))]))
    changed = [
        row
        for row in range(len(found))
        if not np.array_equal(untouched.masks[row], found.masks[row])
    ]
    assert changed in ([], [int(np.argmax([iou(mask, truth(4)) for mask in found.masks]))])


@pytest.mark.parametrize(
    ("prompts", "more", "message"),
    [
        ([], {}, "There is nothing to ask"),
        ([ObjectPrompt(points=[[300, 10]])], {}, r"point \(300, 10\) is not on the frame"),
        ([ObjectPrompt(points=[[np.nan, 10]])], {}, "is not on the frame"),
        ([ObjectPrompt(points=[[1, 1]] * 17)], {}, "takes 16 points"),
        ([ObjectPrompt(points=[[1, 1]], labels=[2])], {}, "Give 1 or 0"),
        ([ObjectPrompt(box_xyxy=[9, 9, 9, 20])], {}, "has no area"),
    ],
)
def test_prompts_that_are_refused(
    segmenter: Segmenter, prompts: list[ObjectPrompt], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        segmenter.predict_objects(SCENE.image, prompts, **more)


def test_earlier_answers_of_others(segmenter: Segmenter) -> None:
    click = ObjectPrompt(points=[[50, 50]])
    found = segmenter.predict_objects(SCENE.image, [click, click])
    with pytest.raises(PromptError, match="1 prompts and 2 earlier answers"):
        segmenter.predict_objects(SCENE.image, click, earlier=found)
    with pytest.raises(PromptError, match=r"earlier answers are of an image of \(224, 224\)"):
        segmenter.predict_objects(SCENE.image[:100], click, earlier=found[[0]])


def test_a_bundle_without_a_tracker_says_so(fake_bundle: Callable[..., samforge.Bundle]) -> None:
    with samforge.load(fake_bundle()) as plain:
        with pytest.raises(SettingError, match=r"need the parts point_decoder.*--tracker"):
            plain.predict_objects(SCENE.image, ObjectPrompt(points=[[5, 5]]))
        with pytest.raises(SettingError, match=r"memory_attention.*--tracker"):
            plain.track(text="circle")


def test_objects_keep_their_ids(segmenter: Segmenter) -> None:
    frames = [scene.image for scene in CLIP]
    first = CLIP[0]
    seen = [n for n in range(1, int(first.instances.max()) + 1) if (first.instances == n).any()][:2]
    prompts = [
        PromptAt(frame=0, prompt=ObjectPrompt(points=[first_click(first.instances == number)]))
        for number in seen
    ]
    shown = list(segmenter.track_video(frames, prompts=prompts))
    assert [frame.index for frame in shown] == list(range(len(CLIP)))
    for frame, scene in zip(shown, CLIP, strict=True):
        found = frame.detections
        assert found.ids is not None
        for number, mask in zip(found.ids.tolist(), found.masks, strict=True):
            assert iou(mask, scene.instances == seen[number]) > 0.6
    by_text = list(segmenter.track_video(frames, text=f"{first.colours[0]} {first.shapes[0]}"))
    assert len(by_text) == len(CLIP)
    assert all(frame.detected for frame in by_text)


def predict(bundle: samforge.Bundle, *words: object) -> int:
    return cli.main(["predict", str(bundle.root), *map(str, words)])


def test_clicks_on_the_command_line(
    bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    x, y = first_click(truth(2))
    out = tmp_path / "out"
    assert predict(bundle, image, "--point", f"{x},{y}", "--out", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    ((one,),) = [one["detections"] for one in report["images"]]
    assert one["label"] == "object 1"
    assert one["area"] == pytest.approx(truth(2).sum(), rel=0.1)
    with Image.open(report["images"][0]["overlay"]) as picture:
        scale = picture.width / 224
        dot = picture.convert("RGB").getpixel((int(x * scale), int(y * scale)))
    assert dot == (0, 158, 60)  # the click is drawn
    assert (
        predict(
            bundle,
            image,
            "--point",
            f"{x},{y}",
            "--candidates",
            "--out",
            out,
            "--overwrite",
        )
        == 0
    )
    assert capsys.readouterr().out.count("object 1") == 3
    words = ("--text", "orange circle", "--point", f"{x},{y}", "--out", out, "--overwrite")
    assert predict(bundle, image, *words, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["images"]
    assert found["count"] >= 7
    assert {one["label"] for one in found["detections"]} == {"orange circle"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--point", "1,2,3"), "A point is two numbers"),
        (("--negative-point", "5,5"), "All points say what is not the object"),
        (("--point", "5,5", "--object-box", "1,1,9,9", "--object-box", "2,2,9,9"), "Points belong"),
        (("--text", "star", "--candidates", "--point", "5,5"), "Leave one of them out"),
        (("--text", "star", "--hole-area", "5"), "of masks that clicks show"),
        (("--text", "green ring", "--threshold", "0.999", "--point", "5,5"), "Nothing was found"),
    ],
)
def test_clicks_that_are_refused(
    bundle: samforge.Bundle,
    image: Path,
    tmp_path: Path,
    capsys: Capture,
    words: tuple[str, ...],
    message: str,
) -> None:
    assert predict(bundle, image, *words, "--out", tmp_path / "out") != 0
    assert message in " ".join(capsys.readouterr().err.split())


def follow(bundle: samforge.Bundle, *words: object) -> int:
    return cli.main(["video", str(bundle.root), *map(str, words)])


def test_tracks_of_a_video(
    bundle: samforge.Bundle, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    first = CLIP[0]
    phrases = dict.fromkeys(
        f"{colour} {shape}" for colour, shape in zip(first.colours, first.shapes, strict=True)
    )
    text = [word for phrase in phrases for word in ("--text", phrase)]
    files = {suffix: tmp_path / f"tracks{suffix}" for suffix in (".jsonl", ".txt", ".json")}
    tracks = [word for path in files.values() for word in ("--tracks", path)]
    out = tmp_path / "out.mp4"
    assert follow(bundle, clip, "--out", out, *text, *tracks, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["follows"] is True
    assert report["frames"] == len(CLIP)
    assert [stage["stage"] for stage in report["stages"]][:3] == ["decode", "vision", "detector"]
    assert report["detections"]["objects"] >= 1
    lines = [json.loads(line) for line in files[".jsonl"].read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(len(CLIP)))
    rows = [(line["frame"], one["id"]) for line in lines for one in line["objects"]]
    assert report["detections"]["count"] == len(rows)
    mot = [line.split(",") for line in files[".txt"].read_text().splitlines()]
    assert [(int(one[0]) - 1, int(one[1]) - 1) for one in mot] == rows
    assert all(len(one) == 10 and one[-3:] == ["-1"] * 3 for one in mot)
    vis = json.loads(files[".json"].read_text())
    assert vis["videos"][0]["length"] == len(CLIP)
    assert {one["name"] for one in vis["categories"]} == set(phrases)
    masks = [
        (place, one["id"] - 1)
        for one in vis["annotations"]
        for place, mask in enumerate(one["segmentations"])
        if mask is not None
    ]
    assert sorted(masks) == sorted(rows)
    area = Detections.from_coco(
        [{"segmentation": vis["annotations"][0]["segmentations"][0], "category_id": 1}], (224, 224)
    ).areas[0]
    assert area == vis["annotations"][0]["areas"][0]


def test_an_object_of_a_video_by_a_click(
    bundle: samforge.Bundle, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    x, y = first_click(CLIP[2].instances == 1)
    out, lines = tmp_path / "out.mp4", tmp_path / "lines.jsonl"
    coco = tmp_path / "coco.json"
    words = ("--point", f"{x},{y}", "--at", 2, "--tracks", lines, "--coco", coco)
    assert follow(bundle, clip, "--out", out, *words) == 0
    assert "1 object was followed" in capsys.readouterr().out
    frames = [json.loads(line)["objects"] for line in lines.read_text().splitlines()]
    assert [len(objects) for objects in frames] == [0, 0, 1, 1, 1, 1]
    assert {one["id"] for objects in frames for one in objects} == {0}
    written = json.loads(coco.read_text())
    assert [one["name"] for one in written["categories"]] == ["object 1"]
    assert [(one["image_id"], one["track_id"]) for one in written["annotations"]] == [
        (number, 0) for number in (3, 4, 5, 6)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", "star", "--no-track", "--tracks", "t.jsonl"), "Leave --no-track out"),
        (("--text", "star", "--tracks", "t.csv"), "ends in .jsonl, .txt, .json"),
        (("--negative-point", "5,5"), "All points say what is not the object"),
        ((), "There is nothing to find"),
        (("--point", "5,5", "--at", "9"), "Clicks are on frame 9, and clip.mp4 has 6 frames"),
    ],
)
def test_videos_that_are_refused(
    bundle: samforge.Bundle,
    clip: Path,
    tmp_path: Path,
    capsys: Capture,
    words: tuple[str, ...],
    message: str,
) -> None:
    words = tuple(str(tmp_path / word) if word.startswith("t.") else word for word in words)
    assert follow(bundle, clip, "--out", tmp_path / "out.mp4", *words) != 0
    assert message in " ".join(capsys.readouterr().err.split())


def test_tracks_need_a_tracker(
    fake_bundle: Callable[..., samforge.Bundle], clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("--text", "star", "--tracks", tmp_path / "t.jsonl", "--out", tmp_path / "o.mp4")
    assert follow(fake_bundle(), clip, *words) != 0
    assert "--tracks needs a bundle with a tracker" in " ".join(capsys.readouterr().err.split())
