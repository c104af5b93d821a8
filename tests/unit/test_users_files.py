"""Files of users: nothing of theirs is removed, written over, or written into through a link."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import samforge
from samforge.apps import cli
from samforge.core import placing as placing_module
from samforge.core import publish as publish_module
from samforge.core.errors import OutputError, SamforgeWarning
from samforge.core.manifest import Manifest
from samforge.core.outputs import is_own
from samforge.core.own_folder import MARK, MARK_NAME, is_marked, looks_like_bundle
from samforge.core.staging import Staging
from samforge.media import write_png
from samforge.models.tiny import draw_scene

Make = Callable[..., samforge.Bundle]
Snapshot = Callable[[Path], dict[str, bytes]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def publish(manifest: Manifest, bundle_files: dict[str, bytes]) -> Callable[[Path], Path]:
    """Builds and publishes a small bundle, over an older one if there is one."""

    def run(out: Path) -> Path:
        with Staging.open(out) as staging:
            for path, content in bundle_files.items():
                staging.path(path).write_bytes(content)
            return staging.publish(manifest, ["parts", "tokenizer"])

    return run


Publish = Callable[[Path], Path]


def _notes(root: Path) -> Path:
    (root / "notes.txt").write_text("years of work")
    return root / "notes.txt"


def _notes_beside_a_part(root: Path) -> Path:
    (root / "parts/vision/why.md").write_text("years of work")
    return root / "parts/vision/why.md"


def _a_folder_of_notes(root: Path) -> Path:
    (root / "mine").mkdir()
    return _notes(root / "mine")


def _an_empty_folder(root: Path) -> Path:
    (root / "mine").mkdir()
    return root / "mine"


def _a_link(root: Path) -> Path:
    (root / "mine").symlink_to("/etc/hostname")
    return root / "mine"


def _a_link_to_a_folder(root: Path) -> Path:
    (root / "mine").symlink_to("/etc")
    return root / "mine"


def _a_dangling_link(root: Path) -> Path:
    (root / "mine").symlink_to("nowhere")
    return root / "mine"


def _a_hidden_file(root: Path) -> Path:
    (root / ".env").write_text("key")
    return root / ".env"


def _another_bundle(root: Path) -> Path:
    shutil.copytree(root, root.parent / "copy")
    shutil.move(root.parent / "copy", root / "inner")
    return root / "inner"


def _a_git_clone(root: Path) -> Path:
    (root / ".git").mkdir()
    return _notes(root / ".git")


def _harmless(root: Path) -> Path:
    (root / "README.md").write_text("mine")
    return root / "README.md"


MINE = [
    *(_notes, _notes_beside_a_part, _a_folder_of_notes, _an_empty_folder, _a_link),
    *(_a_link_to_a_folder, _a_dangling_link, _a_hidden_file, _another_bundle, _a_git_clone),
    _harmless,
]


@pytest.mark.parametrize("put", MINE, ids=lambda put: put.__name__.strip("_"))
@pytest.mark.parametrize("moment", ["before", "meanwhile", "at the last moment"])
def test_what_lies_in_an_old_bundle_is_kept(
    tmp_path: Path,
    publish: Publish,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    put: Callable[[Path], Path],
    moment: str,
) -> None:
    out = publish(tmp_path / "out")
    before: dict[str, bytes] = {}
    real = placing_module.exchange

    def late(one: Path, other: Path) -> bool:
        if not before:
            before.update({"put": put(out).name.encode()} | snapshot(out))
        return real(one, other)

    if moment == "at the last moment":
        monkeypatch.setattr(placing_module, "exchange", late)
    elif moment == "before":
        put(out)
    else:
        check, calls = publish_module.check_replaceable, []

        def second(place: Path) -> None:
            calls.append(place)
            if len(calls) == 1:
                put(out)
            check(place)

        monkeypatch.setattr("samforge.core.staging.check_replaceable", second)
    files = snapshot(out)
    with pytest.raises(OutputError, match=r"holds files that are not its own: .* would be lost"):
        publish(out)
    left = snapshot(out)
    assert {k: v for k, v in before.items() if k != "put"} in ({}, left)
    assert files.items() <= left.items()
    assert os.path.lexists(out / ("inner" if put is _another_bundle else ".")), "it is all there"


def test_a_listed_file_is_replaced_even_if_it_was_changed(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out")
    (out / "parts/vision/vision.onnx").write_bytes(b"changed")
    (out / "tokenizer/tokenizer.json").unlink()
    publish(out)
    assert samforge.open_bundle(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


REST: dict[str, object] = {"samforge": {}, "recipe": {}, "parts": {}, "steps": {}}
NOT_OURS: dict[str, object] = {
    "two keys of ours": {"schema_version": 1, "samforge": "0.1.0"},
    "all keys of ours": {**REST, "schema_version": {}, "files": {}},
    "a list of files of another kind": {
        **REST,
        "schema_version": 2,
        "files": {"thesis.tex": {"size": 3}},
    },
    "files that lead out": {
        **REST,
        "schema_version": 2,
        "files": {"../thesis.tex": {"sha256": "0" * 64, "bytes": 3}},
    },
    "no digest": {
        **REST,
        "schema_version": 3,
        "files": {"thesis.tex": {"sha256": "0" * 64, "bytes": 3}},
    },
    "a list": ["schema_version", "samforge"],
    "a web app": {"name": "app", "icons": []},
}


@pytest.mark.parametrize("table", NOT_OURS.values(), ids=NOT_OURS)
def test_a_folder_with_a_manifest_of_its_own_is_not_ours(
    tmp_path: Path, publish: Publish, snapshot: Snapshot, table: object
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps(table))
    (out / "thesis.tex").write_text("years")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="is not a samforge bundle, so it is left alone"):
        publish(out)
    assert snapshot(tmp_path) == before


def test_a_damaged_manifest_is_not_taken_as_a_list(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out")
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"tiny"', '"tinx"', 1))
    with pytest.raises(OutputError, match="left alone"):
        publish(out)
    assert (out / "parts/vision/vision.onnx").exists()


def test_a_bundle_of_an_earlier_schema_is_replaced(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out")
    table = json.loads((out / "manifest.json").read_text())
    del table["digest"]
    table["schema_version"] = 2
    (out / "manifest.json").write_text(json.dumps(table))
    _notes(out)
    with pytest.raises(OutputError, match=r"not its own: notes\.txt"):
        publish(out)
    (out / "notes.txt").unlink()
    publish(out)
    assert samforge.open_bundle(out)


def _building_with_files(tmp_path: Path) -> Path:
    (tmp_path / ".out.building").mkdir()
    return _notes(tmp_path / ".out.building")


def _building_with_an_empty_mark(tmp_path: Path) -> Path:
    (tmp_path / ".out.building").mkdir()
    (tmp_path / ".out.building" / MARK_NAME).touch()
    return _notes(tmp_path / ".out.building")


def _building_with_another_mark(tmp_path: Path) -> Path:
    (tmp_path / ".out.building").mkdir()
    (tmp_path / ".out.building" / MARK_NAME).write_text("x" * len(MARK))
    return _notes(tmp_path / ".out.building")


def _building_with_a_linked_mark(tmp_path: Path) -> Path:
    (tmp_path / ".out.building").mkdir()
    (tmp_path / "mark").write_text(MARK)
    (tmp_path / ".out.building" / MARK_NAME).symlink_to(tmp_path / "mark")
    return _notes(tmp_path / ".out.building")


def _building_is_a_link(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / ".out.building").symlink_to(tmp_path / "home")
    return _notes(tmp_path / "home")


def _building_is_a_link_to_an_empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / ".out.building").symlink_to(tmp_path / "home")
    return tmp_path / "home"


def _building_is_a_file(tmp_path: Path) -> Path:
    (tmp_path / ".out.building").write_text("years of work")
    return tmp_path / ".out.building"


def _building_is_a_dangling_link(tmp_path: Path) -> Path:
    (tmp_path / ".out.building").symlink_to("nowhere")
    return tmp_path


BUILDING = [
    *(_building_with_files, _building_with_an_empty_mark, _building_with_another_mark),
    *(_building_with_a_linked_mark, _building_is_a_link, _building_is_a_link_to_an_empty_folder),
    *(_building_is_a_file, _building_is_a_dangling_link),
]


@pytest.mark.parametrize("put", BUILDING, ids=lambda put: put.__name__.strip("_"))
def test_a_work_folder_without_our_mark_is_left_alone(
    tmp_path: Path, publish: Publish, snapshot: Snapshot, put: Callable[[Path], Path]
) -> None:
    put(tmp_path)
    before, names = snapshot(tmp_path), sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"samforge did not make it: it has no \.samforge-build"):
        publish(tmp_path / "out")
    assert (snapshot(tmp_path), sorted(tmp_path.rglob("*"))) == (before, names)


def test_a_work_folder_that_was_killed_before_its_mark_is_taken(
    tmp_path: Path, publish: Publish
) -> None:
    (tmp_path / ".out.building").mkdir()
    assert samforge.open_bundle(publish(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_folder_called_replaced_is_left_alone(
    tmp_path: Path, publish: Publish, snapshot: Snapshot
) -> None:
    (tmp_path / ".out.replaced").mkdir()
    _notes(tmp_path / ".out.replaced")
    before = snapshot(tmp_path / ".out.replaced")
    for _ in range(2):
        publish(tmp_path / "out")
    assert snapshot(tmp_path / ".out.replaced") == before


def test_notes_in_a_work_folder_are_kept(tmp_path: Path, publish: Publish) -> None:
    Staging.open(tmp_path / "out").close()
    notes = _notes(tmp_path / ".out.building")
    with pytest.warns(SamforgeWarning, match=r"files that the build did not make: notes\.txt"):
        publish(tmp_path / "out")
    assert notes.read_text() == "years of work"
    assert is_marked(notes.parent), "it can be used again"


LOCKS: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda lock, mine: lock.symlink_to(mine),
    "a relative link": lambda lock, mine: lock.symlink_to(os.path.relpath(mine, lock.parent)),
    "a hard link": lambda lock, mine: lock.hardlink_to(mine),
    "a link to a link": lambda lock, mine: (
        (lock.parent / "one").symlink_to(mine),
        lock.symlink_to("one"),
    ),
    "a dangling link": lambda lock, mine: lock.symlink_to(mine.with_name("new")),
    "a file of the user's": lambda lock, mine: shutil.copy(mine, lock),
    "a folder": lambda lock, mine: lock.mkdir(),
    "a pipe": lambda lock, mine: os.mkfifo(lock),
}


@pytest.mark.parametrize("make", LOCKS.values(), ids=LOCKS)
def test_a_lock_that_is_none_of_ours(
    tmp_path: Path, publish: Publish, make: Callable[[Path, Path], object]
) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    Staging.open(tmp_path / "out").close()
    lock = tmp_path / ".out.building" / "lock"
    lock.unlink()
    make(lock, mine)
    with pytest.raises(OutputError, match=r"lock (is no lock of samforge|cannot be written)"):
        publish(tmp_path / "out")
    assert mine.read_text() == "years of work"
    assert not (tmp_path / "new").exists()
    assert os.path.lexists(lock)


@pytest.mark.parametrize("name", ["parts", "parts/vision", "parts/vision/vision.onnx", "bundle"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_links_in_a_work_folder_are_not_written_through(
    tmp_path: Path, publish: Publish, snapshot: Snapshot, name: str, kind: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "vision").mkdir()
    (home / "vision" / "vision.onnx").write_text("years of work")
    (home / "vision.onnx").write_text("years of work")
    Staging.open(tmp_path / "out").close()
    link = tmp_path / ".out.building" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(home if kind == "folder" else home / "vision.onnx")
    before = snapshot(home)
    with pytest.raises(OutputError):
        publish(tmp_path / "out")
    assert snapshot(home) == before


def test_a_bundle_is_not_built_into_another(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out")
    for inner in (out / "inner", out / "parts/vision/inner"):
        with pytest.raises(OutputError, match=r"lies in the bundle .*out"):
            publish(inner)
    assert samforge.open_bundle(out)


def test_what_looks_like_a_bundle(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out")
    assert looks_like_bundle(out)
    content = bytearray((out / "manifest.json").read_bytes())
    content[-5] ^= 1
    (out / "manifest.json").write_bytes(content)
    assert looks_like_bundle(out), "damaged, and still nothing may be written there"
    (out / "manifest.json").write_text('{"samforge": 1}')
    assert not looks_like_bundle(out)
    assert not looks_like_bundle(tmp_path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_png(tmp_path / "scene.png", draw_scene(0).image)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    from fractions import Fraction

    from samforge.media import VideoWriter

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, (32, 32), frame_rate=Fraction(10)) as video:
        for number in range(3):
            video.write(np.full((32, 32, 3), 40 * number, np.uint8), number / 10)
    return path


def _into(where: Path, picture: Path, clip: Path, bundle: Path) -> list[list[str]]:
    words = ["--text", "star"]
    return [
        ["predict", str(bundle), str(picture), *words, "--out", str(where)],
        ["video", str(bundle), str(clip), *words, "--out", str(where / "a.mp4")],
        [
            *("video", str(bundle), str(clip), *words, "--out", str(where.parents[3] / "a.mp4")),
            *("--coco", str(where / "a.json")),
        ],
        ["features", str(bundle), str(picture), "--out", str(where / "a.png")],
        ["demo", "--out", str(where)],
    ]


@pytest.mark.parametrize("number", range(5), ids=["predict", "video", "coco", "features", "demo"])
@pytest.mark.parametrize("place", [".", "new", "parts/vision", "a link"])
def test_commands_do_not_write_into_a_bundle(  # noqa: PLR0917  fixtures
    fake_bundle: Make,
    tmp_path: Path,
    picture: Path,
    clip: Path,
    snapshot: Snapshot,
    capsys: Capture,
    number: int,
    place: str,
) -> None:
    bundle, other = fake_bundle().root, fake_bundle("other").root
    for target in (bundle, other):
        where = target / place
        if place == "a link":
            where = tmp_path / f"link-{target.name}" / "a" / "b" / "c"
            where.parent.mkdir(parents=True)
            where.symlink_to(target)
        before = snapshot(target)
        assert cli.main(_into(where, picture, clip, bundle)[number]) == 6
        assert "lies in the bundle" in " ".join(capsys.readouterr().err.split())
        assert snapshot(target) == before
        assert samforge.open_bundle(target)
    assert not list(tmp_path.rglob("*.part"))


def test_results_do_not_go_where_a_build_works(
    fake_bundle: Make, tmp_path: Path, picture: Path, capsys: Capture
) -> None:
    Staging.open(tmp_path / "out").close()
    words = ["predict", str(fake_bundle().root), str(picture), "--text", "star", "--out"]
    assert cli.main([*words, str(tmp_path / ".out.building" / "x")]) == 6
    assert "where a build works" in capsys.readouterr().err


def _mine(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a link":
        (path.parent / "elsewhere").write_bytes(b"years of work")
        path.symlink_to("elsewhere")
    elif kind == "a picture":
        from PIL import Image

        Image.new("RGB", (4, 4)).save(path, format="PNG")
    elif kind == "JSON":
        path.write_text('{"info": {"description": "my labels"}, "images": []}')
    elif kind == "nothing":
        path.touch()
    else:
        path.write_bytes(b"years of work")


@pytest.mark.parametrize("kind", ["a text", "a picture", "JSON", "a link", "nothing"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("predict", "scene.overlay.png"),
        ("predict", "scene.coco.json"),
        ("features", "pca.png"),
        ("video", "film.mp4"),
        ("coco", "film.json"),
    ],
)
def test_a_users_file_is_not_written_over(  # noqa: PLR0917  fixtures
    fake_bundle: Make,
    tmp_path: Path,
    picture: Path,
    clip: Path,
    capsys: Capture,
    command: str,
    name: str,
    kind: str,
) -> None:
    bundle, out = str(fake_bundle().root), tmp_path / "out"
    words = {
        "predict": ["predict", bundle, str(picture), "--text", "star", "--out", str(out)],
        "features": ["features", bundle, str(picture), "--out", str(out / name)],
        "video": ["video", bundle, str(clip), "--text", "star", "--out", str(out / name)],
        "coco": [
            *("video", bundle, str(clip), "--text", "star", "--out", str(out / "a.mp4")),
            *("--coco", str(out / name)),
        ],
    }[command]
    _mine(out / name, kind)
    before = (out / name).read_bytes()
    assert cli.main(words) == 6
    printed = " ".join(capsys.readouterr().err.split())
    assert "is there already, and samforge did not write it." in printed
    assert "--overwrite" in printed
    assert (out / name).read_bytes() == before
    if kind == "a text":
        assert cli.main([*words, "--overwrite"]) == 0
        assert is_own(out / name)
        assert cli.main(words) == 0, "its own files it writes over"
    if kind == "a link":
        assert (out / "elsewhere").read_bytes() == b"years of work"


def test_demo_and_meshes_do_not_write_over_pictures(tmp_path: Path, capsys: Capture) -> None:
    for name in ("demo.png", "overlays/scene-1-prompt-1.png"):
        _mine(tmp_path / name, "a text")
        assert cli.main(["demo", "--out", str(tmp_path)]) == 6
        assert "samforge did not write it" in " ".join(capsys.readouterr().err.split())
        assert (tmp_path / name).read_bytes() == b"years of work"
        (tmp_path / name).unlink()
    assert not (tmp_path / "bundle").exists()
    _mine(tmp_path / "turn.gif", "a text")
    words = ["mesh-compare", "a.npz", "b.npz", "--out", str(tmp_path)]
    assert cli.main(words) == 6
    assert "samforge did not write it" in " ".join(capsys.readouterr().err.split())


def test_what_samforge_wrote_says_so(tmp_path: Path, clip: Path, picture: Path) -> None:
    from samforge.draw import write_gif

    frames = [np.full((8, 8, 3), 99 * number, np.uint8) for number in range(3)]
    assert is_own(write_gif(tmp_path / "turn.gif", frames))
    assert is_own(picture)
    assert is_own(clip)
    for name, content in {
        "a.mp4": clip.read_bytes().replace(b"samforge", b"somebody"),
        "b.mp4": clip.read_bytes()[:60],
        "a.png": picture.read_bytes().replace(b"samforge", b"somebody"),
        "a.gif": b"GIF89a" + bytes(20) + b"samforge",
        "a.json": b'{"info": {"description": "samforges"}}',
        "b.json": b'{"a": 1, "info": {"description": "samforge predict"}}',
        "empty": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert not is_own(tmp_path / name), name
