"""One bad item does not end the others: it is named, they are done, the status says so."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.apps import cli
from samforge.assembly import session_from_bundle
from samforge.core.errors import DamagedBundle, ImageError, MissingExtra, SamforgeError
from samforge.core.native import error_of_item
from samforge.core.recipe import Gates
from samforge.core.words import relative_names
from samforge.formats import coco_data_from_file
from samforge.measure.proof import proven_tensors, write_proof
from samforge.media import list_images, read_image
from samforge.runtime import Segmenter
from samforge.runtime.stream import segment_video
from samforge.workflows.inputs import images_from_paths, left_out, stems_for
from samforge.workflows.verify import _checked

Capture = pytest.CaptureFixture[str]
SIZE = (24, 32)


def paint(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path, **options)
    return path


@pytest.fixture
def bundle(fake_bundle: Callable[..., samforge.Bundle]) -> Path:
    return fake_bundle().root


def predict(bundle: Path, *words: object) -> int:
    return cli.main(["predict", str(bundle), *map(str, words), "--text", "star", "--json"])


def _raise(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def _broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "bad.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return path


def _bomb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("samforge.media._pillow.MAX_PIXELS", 1000)
    path = folder / "bad.png"
    Image.new("L", (60, 60)).save(path)
    for name in ("a.png", "z.png"):
        Image.new("RGB", (20, 20)).save(folder / name)
    return path


def _large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = paint(folder / "bad.png")
    segment = Segmenter.predict

    def predict(self: Segmenter, image: Any, **options: Any) -> Any:
        if image.shape[0] == 11:
            raise MemoryError("Unable to allocate 17.2 GiB")
        return segment(self, image, **options)

    Image.new("RGB", (11, 11)).save(path)
    monkeypatch.setattr(Segmenter, "predict", predict)
    return path


def _bug(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = _large(folder, monkeypatch)
    inner = Segmenter.predict

    def predict(self: Segmenter, image: Any, **options: Any) -> Any:
        try:
            return inner(self, image, **options)
        except MemoryError:
            raise ZeroDivisionError("a bug") from None

    monkeypatch.setattr(Segmenter, "predict", predict)
    return path


def _not_utf8(folder: Path, _: pytest.MonkeyPatch) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff\xfe.png"))
    path.write_bytes(b"no picture")
    return path


def _dangling(folder: Path, _: pytest.MonkeyPatch) -> Path:
    (folder / "bad.png").symlink_to("nowhere.png")
    return folder / "bad.png"


def _looping(folder: Path, _: pytest.MonkeyPatch) -> Path:
    (folder / "bad.png").symlink_to("bad.png")
    return folder / "bad.png"


BAD: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], Path], str]] = {
    "a broken picture": (_broken, "ImageError"),
    "too many pixels": (_bomb, "ImageError"),
    "no memory for its masks": (_large, "OutOfMemory"),
    "a bug of ours": (_bug, "ItemError"),
    "a name that is not UTF-8": (_not_utf8, "ImageError"),
    "a link to nowhere": (_dangling, "ImageError"),
    "a link to itself": (_looping, "ImageError"),
}


@pytest.mark.parametrize("by_folder", [True, False])
@pytest.mark.parametrize("name", BAD)
def test_predict_does_the_others(
    bundle: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    by_folder: bool,
) -> None:
    folder = tmp_path / "in"
    paint(folder / "a.png")
    paint(folder / "z.png", 1)
    make, kind = BAD[name]
    bad = make(folder, monkeypatch)
    paths = [folder] if by_folder else [folder / "a.png", bad, folder / "z.png"]
    status = predict(bundle, *paths, "--out", tmp_path / "out")
    report = json.loads(capsys.readouterr().out)
    assert [Path(one["image"]).name for one in report["images"]] == ["a.png", "z.png"]
    assert [(Path(one["image"]), one["kind"]) for one in report["failures"]] == [(bad, kind)]
    assert (status, report["ok"]) == (report["error"]["exit_code"], False)
    assert status != 0
    assert len(list((tmp_path / "out").glob("*.coco.json"))) == 2


def test_names_that_are_not_utf8_have_results(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in\xff/caf\xe9.png"))
    paint(path)
    assert predict(bundle, path, "--out", tmp_path / "out") == 0
    (found,) = json.loads(capsys.readouterr().out)["images"]
    assert os.fsencode(found["image"]) == os.fsencode(path)
    coco = json.loads(Path(found["coco"]).read_text("utf-8"))
    assert os.fsencode(coco["images"][0]["file_name"]) == b"caf\xe9.png"
    assert (
        cli.main(["predict", str(bundle), str(path), "--text", "x", "--out", found["image"]]) != 0
    )
    capsys.readouterr()
    people = ["predict", str(bundle), str(path), "--text", "star", "--out", str(tmp_path / "out")]
    assert cli.main(people) == 0
    assert "in\\xff/caf\\xe9.png (32 x 24)" in capsys.readouterr().out


def test_equal_names_are_told_apart(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    for folder in ("cats", "dogs/old"):
        paint(tmp_path / "in" / folder / "x.png")
    out = tmp_path / "out"
    assert predict(bundle, tmp_path / "in", "--recursive", "--out", out) == 0
    report = json.loads(capsys.readouterr().out)
    assert len({one["overlay"] for one in report["images"]}) == 2
    names = [
        json.loads(Path(one["coco"]).read_text())["images"][0]["file_name"]
        for one in report["images"]
    ]
    assert names == ["cats/x.png", "dogs/old/x.png"]


def test_names_are_relative_to_what_is_shared() -> None:
    assert relative_names([]) == []
    assert relative_names([Path("/a/x.png")]) == ["x.png"]
    assert relative_names([Path("/a/x.png"), Path("/a/y.png")]) == ["x.png", "y.png"]
    assert relative_names([Path("/a/x.png"), Path("/a/b/x.png")]) == ["x.png", "b/x.png"]
    assert relative_names([Path("/a/x.png"), Path("/b/x.png")]) == ["a/x.png", "b/x.png"]


def test_many_equal_names_take_little_time(tmp_path: Path) -> None:
    images = [tmp_path / str(number) / "x.png" for number in range(20_000)]
    start = time.process_time()
    stems = stems_for(images, tmp_path)
    assert stems[:3] == ["x", "x-2", "x-3"]
    assert len(set(stems)) == 20_000
    assert time.process_time() - start < 5  # it was hours


def test_two_links_to_one_picture_are_two_images(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "in"
    paint(tmp_path / "real.png")
    folder.mkdir()
    (folder / "one.png").symlink_to("../real.png")
    (folder / "two.png").symlink_to("../real.png")
    os.link(tmp_path / "real.png", folder / "three.png")
    assert predict(bundle, folder, folder / "one.png", "--out", tmp_path / "out") == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(one["image"]).name for one in report["images"]] == [
        "one.png",
        "three.png",
        "two.png",
    ]
    assert len(list((tmp_path / "out").glob("*.overlay.png"))) == 3


def test_what_is_left_out_is_said(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "in"
    paint(folder / "a.png")
    paint(folder / "inner" / "b.png")
    (folder / "labels.txt").touch()
    words = [str(bundle), str(folder), "--text", "star", "--out", str(tmp_path / "out")]
    assert cli.main(["predict", *words]) == 0
    err = capsys.readouterr().err
    assert "1 folder in it was not looked into (inner). --recursive does." in err
    assert "1 file in it was no image by name and left out (labels.txt)." in err
    assert cli.main(["predict", *words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 2
    assert cli.main(["predict", *words, "--recursive", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["images"]) == 2
    assert len(report["notes"]) == 1


def test_folders_in_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a.png", "b/c/3.png", ".hidden/4.png", "b/.5.png"):
        paint(tmp_path / "in" / name)
    (tmp_path / "in" / "b" / "loop").symlink_to("..")
    found = list_images(tmp_path / "in", recursive=True)
    assert [path.relative_to(tmp_path / "in").as_posix() for path in found] == [
        *("a.png", "b/1.png", "b/2.png", "b/c/3.png"),
    ]
    assert left_out([tmp_path / "in"], tmp_path, recursive=True)[0].endswith("cannot be listed.")
    with pytest.raises(ImageError, match=r"0 files and 1 folders and no image.*--recursive"):
        list_images(paint(tmp_path / "outer" / "x" / "1.png").parent.parent)
    assert len(images_from_paths([tmp_path / "in"], tmp_path, recursive=True)[0]) == 4


HEIC = bytes.fromhex("0000001c667479706865696300000000" + "6d6966316865696d69616600")


def test_heic_without_its_extra_says_what_to_install(
    bundle: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    folder = tmp_path / "in"
    paint(folder / "a.png")
    (folder / "IMG_1.HEIC").write_bytes(HEIC)
    assert predict(bundle, folder, "--out", tmp_path / "out") == 3
    report = json.loads(capsys.readouterr().out)
    assert len(report["images"]) == 1
    assert "IMG_1.HEIC is a HEIC picture" in report["error"]["message"]
    assert "pip install 'samforge[heic]'" in report["error"]["message"]


def test_heic_is_read_with_its_extra(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    ramp = np.zeros((48, 64, 3), np.uint8)
    ramp[:, 32:] = (200, 40, 40)
    heif.from_pillow(Image.fromarray(ramp)).save(tmp_path / "x.heic", quality=95)
    rgb = read_image(tmp_path / "x.heic")
    assert rgb.shape == (48, 64, 3)
    assert np.abs(rgb[:, 40:].astype(int).mean((0, 1)) - (200, 40, 40)).max() < 12
    data = (tmp_path / "x.heic").read_bytes()
    with pytest.raises(ImageError, match=r"HEIC but cannot be opened|cannot be decoded"):
        read_image(data[: len(data) // 2])


# --- labelled data ---------------------------------------------------------------------------

LEFT = [0, 0, 8, 0, 8, 24, 0, 24]


@pytest.fixture
def labels(tmp_path: Path) -> dict[str, Any]:
    for number in range(3):
        paint(tmp_path / f"{number}.png", number)
    size = {"height": SIZE[0], "width": SIZE[1]}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", **size} for i in range(3)],
        "categories": [{"id": 1, "name": "red circle"}, {"id": 2, "name": "star"}],
        "annotations": [
            {"image_id": i, "category_id": category, "segmentation": [LEFT]}
            for i in range(3)
            for category in (1, 2)
        ],
    }


def _changed(kind: str, index: int, **values: Any) -> Callable[[dict[str, Any], Path], None]:
    return lambda table, _: table[kind][index].update(values)


def _without(kind: str, index: int, key: str) -> Callable[[dict[str, Any], Path], None]:
    def change(table: dict[str, Any], _: Path) -> None:
        del table[kind][index][key]

    return change


def _turned(table: dict[str, Any], folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    paint(folder / "1.png", 1, exif=exif)


def _unreadable(table: dict[str, Any], folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no picture")


def _missing(table: dict[str, Any], folder: Path) -> None:
    (folder / "1.png").unlink()


LABELS: dict[str, tuple[Callable[[dict[str, Any], Path], None], int, str]] = {
    "a polygon of two points": (
        _changed("annotations", 2, segmentation=[[0, 0, 4, 4]]),
        3,
        "annotations[2]",
    ),
    "a polygon far away": (
        _changed("annotations", 2, segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
        3,
        "annotations[2]",
    ),
    "run lengths that wrap around": (
        _changed(
            "annotations", 2, segmentation={"size": list(SIZE), "counts": [2**62] * 4 + [768]}
        ),
        3,
        "annotations[2]",
    ),
    "no mask": (_without("annotations", 2, "segmentation"), 3, "annotations[2]"),
    "no category": (_without("annotations", 2, "category_id"), 3, "annotations[2]"),
    "an unknown category": (_changed("annotations", 2, category_id=9), 3, "annotations[2]"),
    "an unknown image": (_changed("annotations", 2, image_id=9), 3, "annotations[2]"),
    "a record that is none": (
        lambda table, _: table["annotations"].insert(2, 7),
        3,
        "annotations[2]",
    ),
    "an image without a name": (_without("images", 1, "file_name"), 2, "images[1]"),
    "an image of no size": (_changed("images", 1, height=0), 2, "images[1]"),
    "a way out": (_changed("images", 1, file_name="../1.png"), 2, "../1.png"),
    "a name beyond measure": (_changed("images", 1, file_name="a" * 300), 2, "aaaa"),
    "a name with a null": (_changed("images", 1, file_name="a\0b"), 2, "a\0b"),
    "a picture turned by EXIF": (_turned, 2, "1.png"),
    "a picture that is none": (_unreadable, 2, "1.png"),
    "a picture that is not there": (_missing, 2, "1.png"),
    "a category without a name": (_without("categories", 1, "name"), 3, "categories[1]"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labelled_data_goes_on(tmp_path: Path, labels: dict[str, Any], name: str) -> None:
    change, count, place = LABELS[name]
    change(labels, tmp_path)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    told: list[str] = []

    def report(item: str, error: Exception) -> None:
        assert isinstance(error, SamforgeError)
        told.append(item)

    images = list(coco_data_from_file(path, report=report).images(report=report))
    assert len(images) == count
    assert place in told[0]
    assert all(question.masks.any() for image in images for question in image.questions[:1])
    with pytest.raises(SamforgeError):  # without a report the first one ends it
        list(coco_data_from_file(path).images())


def test_a_phrase_without_its_mask_is_neither_there_nor_absent(
    tmp_path: Path, labels: dict[str, Any]
) -> None:
    labels["annotations"][2]["segmentation"] = [[0, 0, 4, 4]]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    data = coco_data_from_file(path, report=lambda *_: None)
    asked = {i.name: {q.text for q in i.questions} - {None} for i in data.images()}
    both = {"red circle", "star"}
    assert asked == {"0.png": both, "1.png": {"star"}, "2.png": both}


@pytest.mark.parametrize("place", ["train2017", ""])
def test_lvis_v1_names_pictures_by_url(tmp_path: Path, labels: dict[str, Any], place: str) -> None:
    for number, image in enumerate(labels["images"]):
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{number}.jpg"
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        paint(tmp_path / place / f"{number}.jpg", number)
    path = tmp_path / "lvis_v1_val.json"
    path.write_text(json.dumps(labels))
    images = list(coco_data_from_file(path).images())
    assert [image.name for image in images] == [f"{place}/{i}.jpg".lstrip("/") for i in range(3)]


@pytest.mark.parametrize("name", ["a polygon of two points", "a picture turned by EXIF"])
def test_compare_measures_the_others(
    fake_bundle: Callable[..., samforge.Bundle],
    tmp_path: Path,
    labels: dict[str, Any],
    capsys: Capture,
    name: str,
) -> None:
    change, count, place = LABELS[name]
    change(labels, tmp_path)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    bundles = [str(fake_bundle(one).root) for one in ("first", "second")]
    words = ["compare", *bundles, "--data", f"coco:{path}"]
    status = cli.main([*words, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [row["accuracy"]["images"] for row in report["bundles"]] == [count, count]
    (failure,) = report["failures"]
    assert place in failure["item"]
    assert (report["ok"], status) == (False, failure["exit_code"])
    assert cli.main(words) == status
    printed = capsys.readouterr()
    assert "1 left out; the figures are of the others." in printed.err
    assert "Accuracy on" in printed.out


def test_compare_goes_on_when_the_model_fails_on_one(
    fake_bundle: Callable[..., samforge.Bundle],
    tmp_path: Path,
    labels: dict[str, Any],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    encode = Segmenter.encode
    second = read_image(tmp_path / "1.png")

    def failing(self: Segmenter, image: Any, **options: Any) -> Any:
        if np.array_equal(image, second):
            raise MemoryError
        return encode(self, image, **options)

    monkeypatch.setattr(Segmenter, "encode", failing)
    root = str(fake_bundle().root)
    assert cli.main(["compare", root, "--data", f"coco:{path}", "--json"]) == 8
    report = json.loads(capsys.readouterr().out)
    assert report["bundles"][0]["accuracy"]["images"] == 2
    assert (report["failures"][0]["item"], report["failures"][0]["kind"]) == (
        "1.png",
        "OutOfMemory",
    )


# --- calibration and streams -------------------------------------------------------------------


def test_calibration_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    from samforge.core.errors import SamforgeWarning
    from samforge.steps.images import _readable

    files = [paint(tmp_path / f"{i}.png", i) for i in range(4)]
    files[2].write_bytes(b"no picture")
    with pytest.warns(SamforgeWarning, match=r"1 of 4 images of .* left out: .*2\.png"):
        assert [name for name, _ in _readable(tmp_path, files)] == ["0.png", "1.png", "3.png"]
    with pytest.raises(ImageError, match=r"None of the 1 images .*/2\.png"):
        list(_readable(tmp_path, [files[2]]))


def test_a_stream_goes_on(
    fake_bundle: Callable[..., samforge.Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = samforge.load(fake_bundle())
    take = Segmenter.take

    def failing(self: Segmenter, image: Any, **options: Any) -> Any:
        if image[0, 0, 0] == 2:
            raise MemoryError
        return take(self, image, **options)

    monkeypatch.setattr(Segmenter, "take", failing)

    def frames() -> Iterator[Any]:
        for number in range(5):
            yield np.full((*SIZE, 3), number, np.uint8)

    shots = list(segment_video(segmenter, frames(), text="star", isolate=True))
    assert [type(shot.problem).__name__ for shot in shots] == [
        *("NoneType", "NoneType", "OutOfMemory", "NoneType", "NoneType"),
    ]
    assert len(shots[2].detections) == 0
    with pytest.raises(MemoryError):
        list(segment_video(segmenter, frames(), text="star"))


def test_every_error_of_an_item_is_one_of_ours() -> None:
    kinds = {
        ImageError("x"): "ImageError",
        MemoryError(): "OutOfMemory",
        OSError(28, "No space left on device", "/x"): "PathError",
        KeyError("x"): "ItemError",
        RuntimeError("std::bad_alloc"): "ItemError",
    }
    for error, kind in kinds.items():
        told = error_of_item(error)
        assert type(told).__name__ == kind
        assert told.exit_code != 0
        assert str(told)


# --- verify --------------------------------------------------------------------------------------


def _with_proof(bundle: samforge.Bundle, path: Path) -> dict[str, Any]:
    sessions = {part: session_from_bundle(bundle, part) for part in bundle.manifest.parts}
    rng = np.random.default_rng(0)
    inputs = {
        "images": rng.standard_normal((1, 3, 28, 28)).astype(np.float32),
        "input_ids": np.zeros((1, 32), np.int64),
    }
    write_proof(path, sessions, inputs)
    return sessions


def test_verify_runs_the_parts_that_run(
    fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path
) -> None:
    bundle = fake_bundle()
    path = tmp_path / "proof.npz"
    sessions = _with_proof(bundle, path)
    sessions["text"].close()
    failed: dict[str, Exception] = {}
    tensors = proven_tensors(path, sessions, failed=failed)
    assert {one.part for one in tensors} == {"vision"}
    assert list(failed) == ["text", "detector"]
    assert "text_features" in str(failed["detector"])
    with pytest.raises(SamforgeError):
        proven_tensors(path, sessions)


def test_verify_names_every_part_that_fails(
    fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path
) -> None:
    bundle = fake_bundle()
    path = tmp_path / "proof.npz"
    sessions = _with_proof(bundle, path)
    tensors = proven_tensors(path, {"vision": sessions["vision"]})
    failed = {"text": DamagedBundle("cannot load"), "detector": RuntimeError("std::bad_alloc")}
    said = (
        r"(?s)text could not be verified: cannot load.detector .*bad_alloc.*holds its gate: vision"
    )
    with pytest.raises(DamagedBundle, match=said):
        _checked(tensors, failed, "fp32", Gates())
    with pytest.raises(MissingExtra):
        _checked(tensors, {"text": MissingExtra("OpenVINO", "openvino")}, "fp32", Gates())
    assert _checked(tensors, {}, "fp32", Gates()) > 0.9
