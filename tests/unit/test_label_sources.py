"""Sources: what each holds, by which names, and the bytes of every item."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.core.errors import MissingExtra, OutputError
from samforge.formats import LABEL_FORMATS, MOST_ID, MOST_OBJECTS
from samforge.formats._growing_folder import GrowingFolder
from samforge.labelling import LabelSettings, Ontology, SourceError, label
from samforge.labelling.items import (
    FRAME_STEP,
    MOST_FRAMES,
    Item,
    WholeFile,
    require_numbers,
    shared_names,
)
from samforge.labelling.reader import ItemReader
from samforge.labelling.sources import listed
from samforge.media import VideoWriter


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders with one file name, a picture between them, and what is left out."""
    root = tmp_path / "photos"
    write(root / "b/1.png", png(3))
    write(root / "a/1.png", png(1))
    write(root / "a/sub/2.PNG", png(2))
    write(root / "notes.doc", b"no picture")
    write(root / ".hidden/9.png", png(9))
    return root


def only(*sources: str | Path, **more: Path) -> list[Item]:
    return [item for listing in listed(sources, **more) for item in listing.items]


def contents(items: list[Item]) -> dict[str, bytes]:
    with ItemReader() as reader:  # as another process would: items are plain values
        return {item.name: reader.read(pickle.loads(pickle.dumps(item))) for item in items}


PHOTOS = {"a/1.png": png(1), "a/sub/2.PNG": png(2), "b/1.png": png(3)}


def test_a_folder_with_its_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (listing,) = listed([folder])
    assert contents(list(listing.items)) == PHOTOS
    assert [item.name for item in listing.items] == list(PHOTOS)
    assert listing.notes == (f"{folder}: 1 files are no pictures by name (notes.doc).",)
    monkeypatch.chdir(folder.parent)
    assert only("photos") == list(listing.items)  # stamps and places do not depend on the way
    monkeypatch.chdir(folder)
    assert only("b/1.png") == only(folder / "b/1.png")


def test_several_sources_keep_names_apart(folder: Path) -> None:
    names = [item.name for item in only(folder / "a", folder / "b", folder / "b/1.png")]
    assert names == ["a/1.png", "a/sub/2.PNG", "b/1.png", "1/1.png"]
    twice = [item.name for item in only(folder / "b", folder / "b")]
    assert twice == ["b/1.png", "b-2/1.png"]


def test_globs(folder: Path) -> None:
    assert contents(only(f"{folder}/**/*.png")) == {
        name: content for name, content in PHOTOS.items() if name.endswith(".png")
    }
    assert [item.name for item in only(f"{folder}/a/*.png")] == ["1.png"]
    with pytest.raises(SourceError, match="holds no picture"):
        listed([f"{folder}/*.jpg"])


def test_lists_of_paths(folder: Path) -> None:
    file = write(
        folder.parent / "list.txt",
        f"# mine\n{folder}/b/1.png\nphotos/a/1.png\n\n{folder}/b/1.png\n".encode(),
    )
    items = only(file)
    assert [item.name for item in items] == ["b/1.png", "a/1.png"]  # in its order, each once
    assert contents(items) == {"b/1.png": png(3), "a/1.png": png(1)}
    with pytest.raises(SourceError, match="is no list of paths"):
        listed([write(folder.parent / "bad.txt", b"\xff\xfe\x00")])


def test_a_list_that_names_what_is_not_there(folder: Path) -> None:
    items = only(write(folder.parent / "list.txt", b"photos/a/1.png\nphotos/gone.png\n"))
    with ItemReader() as reader, pytest.raises(SourceError, match=r"gone\.png does not exist"):
        reader.read(items[1])


def test_coco_files(folder: Path) -> None:
    images = [{"id": 70, "file_name": "b/1.png"}, {"id": 3, "file_name": "a/1.png"}]
    file = write(folder / "coco.json", json.dumps({"images": images}).encode())
    items = only(file)
    assert [(item.name, item.given_id) for item in items] == [("b/1.png", 70), ("a/1.png", 3)]
    elsewhere = write(folder.parent / "coco.json", file.read_bytes())
    assert contents(only(elsewhere, pictures=folder)) == contents(items)
    for content, message in (
        (b"[1]", "no list of images"),
        (b"{", "is no COCO file"),
        (b'{"images": [{"id": 1}]}', "image 0 has no file_name"),
        (b'{"images": [{"file_name": "../x.png"}]}', "no relative path inside a folder"),
        (b'{"images": [{"file_name": "/etc/x.png"}]}', "no relative path inside a folder"),
        (b'{"images": []}', "holds no picture"),
    ):
        with pytest.raises(SourceError, match=message):
            listed([write(folder / "bad.json", content)])


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tars_are_read_where_their_members_lie(tmp_path: Path) -> None:
    shard = make_tar(
        tmp_path / "shard-000.tar",
        {"x/0.png": png(1), "x/0.json": b"{}", "x/1.png": png(2), "x/0.jpg": png(3)},
    )
    items = only(shard)
    expected = {"x/0.png": png(1), "x/1.png": png(2), "x/0.jpg": png(3)}
    assert contents(items) == expected
    assert list(contents(items[::-1])) == list(expected)[::-1]  # in any order
    other = make_tar(tmp_path / "shard-001.tar", {"x/0.png": png(9)})
    assert [item.name for item in only(shard, other)] == [
        "shard-000/x/0.png", "shard-000/x/1.png", "shard-000/x/0.jpg", "shard-001/x/0.png",
    ]  # fmt: skip
    with pytest.raises(SourceError, match="no relative path"):
        listed([make_tar(tmp_path / "evil.tar", {"../up.png": png(1)})])
    with pytest.raises(SourceError, match="is no tar"):
        listed([write(tmp_path / "cut.tar", shard.read_bytes()[:700])])
    with pytest.raises(SourceError, match="is compressed"):
        listed([write(tmp_path / "shard.tar.gz", b"")])


def test_a_tar_that_is_cut_off_meanwhile(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "shard.tar", {"0.png": png(1), "1.png": png(2)})
    items = only(shard)
    shard.write_bytes(shard.read_bytes()[: 512 + 20])
    with ItemReader() as reader, pytest.raises(SourceError, match="ends after 20 of"):
        reader.read(items[0])


def test_parquet_of_hugging_face_and_of_bytes(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    cells = [{"bytes": png(i), "path": f"cat/{i % 3}.png"} for i in range(5)]
    table = pa.table({"image": cells, "label": list(range(5))})
    parquet.write_table(table, tmp_path / "hf.parquet", row_group_size=2)
    items = only(tmp_path / "hf.parquet")
    names = ["cat/0.png", "cat/1.png", "cat/2.png", "cat/0-2.png", "cat/1-2.png"]
    assert contents(items) == {name: png(i) for i, name in enumerate(names)}
    plain = pa.table({"id": [1, 2], "content": [png(7), png(8)]})
    parquet.write_table(plain, tmp_path / "plain.parquet")
    assert contents(only(tmp_path / "plain.parquet")) == {
        "plain/000000000": png(7),
        "plain/000000001": png(8),
    }
    parquet.write_table(pa.table({"id": [1]}), tmp_path / "none.parquet")
    with pytest.raises(SourceError, match=r"no column that is known to hold pictures.*id"):
        listed([tmp_path / "none.parquet"])
    with pytest.raises(SourceError, match="is no Parquet file"):
        listed([write(tmp_path / "bad.parquet", b"junk")])
    parquet.write_table(pa.table({"image": [png(1), None]}), tmp_path / "gap.parquet")
    with ItemReader() as reader, pytest.raises(SourceError, match="has no bytes in row 1"):
        reader.read(only(tmp_path / "gap.parquet")[1])


def test_urls(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    shard = make_tar(tmp_path / "s.tar", {"0.png": png(5)}).read_bytes()
    for name, content in {
        "/label-set/a/1.png": png(1),
        "/label-set/b/1.png": png(2),
        "/label-set/.cache/2.png": png(9),
        "/label-set/s.tar": shard,
        "/label-set/coco.json": b'{"images": [{"id": 4, "file_name": "b/1.png"}]}',
        "/label-set/list.txt": b"memory://label-set/a/1.png\n",
    }.items():
        store.pipe(name, content)
    assert contents(only("memory://label-set")) == {"a/1.png": png(1), "b/1.png": png(2)}
    assert contents(only("memory://label-set/b/*.png")) == {"1.png": png(2)}
    assert contents(only("memory://label-set/s.tar")) == {"0.png": png(5)}
    (one,) = only("memory://label-set/coco.json")
    assert (one.name, one.given_id) == ("b/1.png", 4)
    assert contents([one]) == {"b/1.png": png(2)}
    assert contents(only("memory://label-set/list.txt")) == {"1.png": png(1)}
    before = only("memory://label-set/a/1.png")[0].stamp
    store.pipe("/label-set/a/1.png", png(1) + b"more")
    assert only("memory://label-set/a/1.png")[0].stamp != before
    with pytest.raises(SourceError, match="does not exist"):
        listed(["memory://label-set/gone.png"])
    with pytest.raises(SourceError, match="Protocol not known"):
        listed(["nosuchstore://bucket"])


@pytest.mark.parametrize("pattern", ["*.png", "**/*.png", "a/*", "?/1.png", "[!a]/*.png", "a/**"])
def test_a_pattern_means_the_same_of_urls_and_of_folders(folder: Path, pattern: str) -> None:
    import fsspec

    write(folder / "0.png", png(7))
    store = fsspec.filesystem("memory")
    for path in (one for one in folder.rglob("*") if one.is_file()):
        store.pipe(f"/globbed/{path.relative_to(folder).as_posix()}", path.read_bytes())
    here = {item.name for item in only(f"{folder}/{pattern}")}
    assert {item.name for item in only(f"memory://globbed/{pattern}")} == here != set()


def test_a_url_gives_no_more_than_a_picture_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/large/1.png", png(1) + bytes(10_000))
    monkeypatch.setattr("samforge.labelling.places.MOST_BYTES", 10_000)
    with pytest.raises(SourceError, match=r"memory://.*/1\.png is larger than the 10000 bytes"):
        contents(only("memory://large"))


def test_a_member_of_a_tar_is_no_larger_than_a_picture_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = make_tar(tmp_path / "shard.tar", {"0.png": png(1) + bytes(10_000)})
    monkeypatch.setattr("samforge.labelling.places.MOST_BYTES", 10_000)
    with pytest.raises(SourceError, match=r"A member of .*shard\.tar is larger than the 10000"):
        contents(only(shard))


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "a/b\0.png"])
def test_no_source_names_what_is_outside_of_its_folder(
    name: str, folder: Path, tmp_path: Path
) -> None:
    table = write(folder / "c.json", json.dumps({"images": [{"file_name": name}]}).encode())
    for sources in ([table], [folder, table]):  # alone, and behind a name of its own
        with pytest.raises(SourceError, match="no relative path inside a folder"):
            listed(sources)


def test_a_folder_of_a_data_set_takes_no_name_that_leads_out_of_it(tmp_path: Path) -> None:
    growing = GrowingFolder(tmp_path / "out")
    for name in ("../x", "a/../../x", "/etc/x"):
        with pytest.raises(OutputError, match="leads out of"):
            growing.write(name, b"")
    growing.write("a/x", b"1")
    assert (growing.finish() / "a/x").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_that_are_no_utf_8_are_labelled_as_others_are(
    fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path
) -> None:
    folder, joined = tmp_path / "photos", "\u0645\u06cc\u200c\u062e.png"  # a Persian joiner
    write(folder / os.fsdecode(b"caf\xe9.png"), png(1))
    write(folder / os.fsdecode(b"bad\xff/1.png"), b"junk")
    write(folder / joined, png(2))
    out, ontology = tmp_path / "out", Ontology.from_texts(["circle", "star"], threshold=0.2)
    bundle, settings = fake_bundle("small"), LabelSettings(formats=tuple(LABEL_FORMATS))
    result = label(bundle, folder, ontology, out, settings=settings)
    assert (result.pictures, len(result.failures)) == (2, 1)
    failure = json.loads((out / "failures.jsonl").read_text(encoding="utf-8"))
    assert (failure["name"], failure["kind"]) == ("bad\\xff/1.png", "ImageError")
    assert "/photos/bad\\xff/1.png: " in failure["message"]
    images = json.loads((out / "coco.json").read_text(encoding="utf-8"))["images"]
    assert [one["file_name"] for one in images] == ["caf\\xe9.png", joined]
    from pyarrow import parquet

    rows = parquet.read_table(out / "parquet/pictures.parquet").to_pylist()
    assert [one["name"] for one in rows] == ["caf\\xe9.png", joined]
    assert rows[0]["uri"] == f"{folder}/caf\\xe9.png"
    linked = out / "yolo/images/caf\\xe9.png"
    assert linked.read_bytes() == png(1)
    again = label(bundle, folder, ontology, out, settings=settings)
    assert (again.labelled, again.resumed, len(again.failures)) == (0, 2, 1)


def test_half_a_character_in_a_coco_file_is_one_failure(
    fake_bundle: Callable[..., samforge.Bundle], folder: Path, tmp_path: Path
) -> None:
    file = write(folder / "c.json", b'{"images": [{"file_name": "\\ud800.png"}]}')
    result = label(fake_bundle("small"), file, Ontology.from_texts(["star"]), tmp_path / "out")
    assert [(one.name, one.kind) for one in result.failures] == [("\\ud800.png", "SourceError")]


def test_without_fsspec_urls_are_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"samforge\[label\]"):
        listed(["memory://x"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", "The source gone does not exist"),
        ("empty", "holds no picture and no video"),
        ("file.xyz", "is of no kind that is read"),
    ],
)
def test_what_is_no_source(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "file.xyz", b"")
    with pytest.raises(SourceError, match=message):
        listed([source])
    with pytest.raises(SourceError, match="There is no source"):
        listed([])


def test_names_share_no_folder() -> None:
    assert shared_names(["/a/b/c.png", "/a/d.png"]) == ["b/c.png", "d.png"]
    assert shared_names(["/a/c.png"]) == ["c.png"]
    assert shared_names(["s3://x/1.png", "/a/1.png"]) == ["s3/x/1.png", "/a/1.png"]


def test_every_kind_becomes_one_data_set(
    fake_bundle: Callable[..., samforge.Bundle], folder: Path, tmp_path: Path
) -> None:
    """A folder with a video, and a shard: pictures and frames, linked or written out."""
    with VideoWriter(folder / "clip.mp4", (64, 64), frame_rate=Fraction(5)) as writer:
        for index, level in enumerate((10, 90, 200)):
            writer.write(np.full((64, 64, 3), level, np.uint8), Fraction(index, 5))
    shard = make_tar(tmp_path / "shard.tar", {"0": png(1), "0.png": png(2)})
    settings = LabelSettings(formats=("coco", "yolo", "labelme"))
    ontology = Ontology.from_texts(["circle", "star"], threshold=0.2)
    bundle = fake_bundle("small")
    result = label(bundle, [folder, shard], ontology, tmp_path / "out", settings=settings)
    assert (result.pictures, result.failures) == (7, ())
    images = json.loads((tmp_path / "out/coco.json").read_text())["images"]
    names = ["photos/" + name for name in ("a/1.png", "a/sub/2.PNG", "b/1.png")]
    frames = [f"photos/clip.mp4/00000{i}.png" for i in range(3)]
    assert [image["file_name"] for image in images] == [*names, *frames, "shard/0.png"]
    assert [image["id"] for image in images] == [1, 2, 3, 4, 1_000_004, 2_000_004, 5]
    shown = [(image.get("video_id"), image.get("frame_index")) for image in images]
    assert shown == [*[(None, None)] * 3, (4, 0), (4, 1), (4, 2), (None, None)]
    stored = tmp_path / "out/yolo/images"
    assert (stored / "photos_a_1.png").is_symlink()
    assert (stored / "shard_0.png").read_bytes() == png(2)
    frame = np.asarray(Image.open(stored / "photos_clip.mp4_000001.png"))
    assert abs(int(frame.mean()) - 90) < 4
    again = label(bundle, [folder, shard], ontology, tmp_path / "out", settings=settings)
    assert (again.labelled, again.resumed) == (0, 5)


def numbered(out: Path) -> dict[str, tuple[int, list[int]]]:
    """Of each picture its own number and those of its objects."""
    table = json.loads((out / "coco.json").read_text())
    own: dict[int, list[int]] = {}
    for one in table["annotations"]:
        own.setdefault(one["image_id"], []).append(one["id"])
    ids = [one["id"] for one in table["annotations"]]
    assert len(set(ids)) == len(ids) > 0
    return {one["file_name"]: (one["id"], own.get(one["id"], [])) for one in table["images"]}


def test_numbers_stay_when_a_source_is_extended_or_mended(
    fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    ontology, bundle = Ontology.from_texts(["circle", "star"], threshold=0.2), fake_bundle("small")
    for name in ("b.png", "d.png", "f.png"):
        write(folder / name, png(ord(name[0])))
    with VideoWriter(folder / "c.mp4", (64, 64), frame_rate=Fraction(5)) as writer:
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)
            writer.write(noise, Fraction(index, 5))
    whole = (folder / "c.mp4").read_bytes()
    write(folder / "c.mp4", b"junk")
    write(folder / "b.png", b"junk")
    label(bundle, folder, ontology, out)
    before = numbered(out)
    assert {name: number for name, (number, _) in before.items()} == {"d.png": 3, "f.png": 4}
    # A video that can be read now, a picture that is mended, one that is new and one that is gone.
    write(folder / "c.mp4", whole)
    write(folder / "b.png", png(1))
    write(folder / "a.png", png(2))
    (folder / "f.png").unlink()
    label(bundle, folder, ontology, out)
    after = numbered(out)
    assert after["d.png"] == before["d.png"]
    assert {name: number for name, (number, _) in after.items()} == {
        "a.png": 5,
        "b.png": 1,
        "d.png": 3,
        **{f"c.mp4/{index:06d}.png": 2 + FRAME_STEP * index for index in range(3)},
    }
    # Where it comes back it has its old number.
    write(folder / "f.png", png(ord("f")))
    label(bundle, folder, ontology, out)
    assert numbered(out)["f.png"] == before["f.png"]
    # Names that come in another order.
    table = json.loads((out / "coco.json").read_text())
    assert [one["file_name"] for one in table["images"]][:2] == ["a.png", "b.png"]
    assert table["videos"] == [{"id": 2, "name": "c.mp4"}]
    assert {one.get("video_id") for one in table["annotations"]} == {None, 2}


def test_every_number_is_exact_in_javascript() -> None:
    """It reads each as a double, which is exact below 2^53."""
    last_frame = FRAME_STEP + FRAME_STEP * (MOST_FRAMES - 1)
    assert last_frame <= MOST_ID
    assert MOST_ID * MOST_OBJECTS + MOST_OBJECTS < 2**53
    items = [
        Item(name=name, place=WholeFile(file=name), stamp="", kind=kind)
        for name, kind in (("a.png", "picture"), ("b.mp4", "video"))
    ]
    require_numbers(items, [FRAME_STEP - 1, FRAME_STEP])
    require_numbers(items[:1], [10 * FRAME_STEP])
    with pytest.raises(SourceError, match="an output of their own"):
        require_numbers(items, [1, FRAME_STEP + 1])


@pytest.mark.parametrize("given", [2**53, MOST_ID + 1, 10**30, 70, 1.5, True, "70", None])
def test_ids_of_a_coco_file_that_cannot_stay_are_told_of(tmp_path: Path, given: object) -> None:
    images = [{"id": 70, "file_name": "1.png"}, {"id": given, "file_name": "2.png"}]
    for one in images:
        write(tmp_path / str(one["file_name"]), png(1))
    write(tmp_path / "set.json", json.dumps({"images": images}).encode())
    (listing,) = listed([tmp_path / "set.json"])
    assert [item.given_id for item in listing.items] == [70, None]
    assert "1 of 2 images" in listing.notes[0]
    assert "numbered anew" in listing.notes[0]


def test_frames_are_read_back_as_a_video(
    fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path
) -> None:
    path = tmp_path / "clips" / "a.mp4"
    path.parent.mkdir()
    with VideoWriter(path, (64, 64), frame_rate=Fraction(5)) as writer:
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)
            writer.write(noise, Fraction(index, 5))
    out = tmp_path / "out"
    settings = LabelSettings(formats=("coco", "parquet", "sa1b"))
    ontology = Ontology.from_texts(["circle", "star"], threshold=0.2)
    label(fake_bundle("small"), path, ontology, out, settings=settings)
    from pyarrow import parquet

    images = json.loads((out / "coco.json").read_text())["images"]
    expected = [(1, index, 1 + FRAME_STEP * index) for index in range(3)]
    keys = ("video_id", "frame_index")
    assert [(*(one[key] for key in keys), one["id"]) for one in images] == expected
    rows = parquet.read_table(out / "parquet/pictures.parquet").to_pylist()
    assert [(*(one[key] for key in keys), one["image_id"]) for one in rows] == expected
    objects = parquet.read_table(out / "parquet/objects.parquet").to_pylist()
    annotations = json.loads((out / "coco.json").read_text())["annotations"]
    assert [one["object_id"] for one in objects] == [one["id"] for one in annotations]
    files = sorted((out / "sa1b").glob("**/0*.json"))
    tables = [json.loads(file.read_text()) for file in files]
    assert [(one["image"]["video_id"], one["image"]["frame_index"]) for one in tables] == [
        (1, index) for index in range(3)
    ]
    ids = [one["id"] for table in tables for one in table["annotations"]]
    assert ids == [one["id"] for one in annotations]


def test_numbers_of_a_coco_file_stay(
    fake_bundle: Callable[..., samforge.Bundle], folder: Path, tmp_path: Path
) -> None:
    images = [{"id": 70, "file_name": "b/1.png"}, {"id": 3, "file_name": "a/1.png"}]
    file = write(folder / "coco.json", json.dumps({"images": images}).encode())
    label(fake_bundle("small"), file, Ontology.from_texts(["star"]), tmp_path / "out")
    written = json.loads((tmp_path / "out/coco.json").read_text())["images"]
    assert [(one["id"], one["file_name"]) for one in written] == [(70, "b/1.png"), (3, "a/1.png")]


def test_what_comes_before_a_video_breaks_off_is_labelled(
    fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path
) -> None:
    path = tmp_path / "clips" / "cut.mp4"
    path.parent.mkdir()
    noise = np.random.default_rng(0)
    with VideoWriter(path, (64, 64), frame_rate=Fraction(5)) as writer:
        for index in range(40):
            frame = noise.integers(0, 256, (64, 64, 3), np.uint8)
            writer.write(frame, Fraction(index, 5))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    ontology = Ontology.from_texts(["star"], threshold=0.2)
    result = label(fake_bundle("small"), path.parent, ontology, tmp_path / "out")
    (failure,) = result.failures
    assert failure.kind == "SourceError"
    assert "cut.mp4" in failure.message
    assert 5 < result.pictures < 40


def test_what_a_run_has_written_is_no_source(folder: Path) -> None:
    before = [item.name for item in listed([folder])[0].items]
    write(folder / "out/masks/a/1.png", png(9))
    (listing,) = listed([folder], out=folder / "out")
    assert [item.name for item in listing.items] == before
    assert "1 pictures in out, where labels go, were left out" in listing.notes[-1]
    with pytest.raises(SourceError, match="holds no picture"):
        listed([folder / "out/masks"], out=folder / "out")
