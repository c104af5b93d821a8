"""What the system says, in words of ours: paths that are none, full disks, marks before JSON."""

from __future__ import annotations

import codecs
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samforge
from samforge.core.errors import (
    DamagedBundle,
    FidelityError,
    OutputError,
    SamforgeError,
    SettingError,
)
from samforge.core.files import system_errors, writable_folder
from samforge.core.paths import checked_path, is_file, is_folder
from samforge.core.session import checked_threads
from samforge.core.staging import Staging
from samforge.formats import coco_data_from_file
from samforge.media import list_images, read_image, write_png
from samforge.media.video import VideoReader
from samforge.models.folders import table_from_json
from samforge.models.loading import model_from_name
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.tiny import TOKENIZER_PATH
from samforge.runtime import PhraseTokenizer

PIXELS = np.zeros((2, 2, 3), np.uint8)
WAYS: dict[str, Callable[[str], Any]] = {
    "build": lambda path: samforge.build("tiny", out=path),
    "staging": lambda path: Staging.open(checked_path(path, OutputError)),
    "model": model_from_name,
    "tokenizer of a model": lambda path: model_from_name("tiny", tokenizer=Path(path)),
    "recipe": samforge.Recipe.from_toml,
    "open": samforge.open_bundle,
    "load": samforge.load,
    "read": read_image,
    "list": list_images,
    "data": lambda path: coco_data_from_file(Path(path)),
    "video": lambda path: VideoReader(Path(path)),
    "write": lambda path: write_png(path, PIXELS),
    "folder": lambda path: writable_folder(Path(path)),
    "tokenizer": lambda path: PhraseTokenizer(path, 8, 0),
}
PATHS = {
    "a long name": "a" * 300,
    "a long path": "a/" * 3000 + "b",
    "a loop": "loop",
    "below a loop": "loop/x",
    "a null character": "a\0b",
    "half a character": "a\ud800b",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PATHS)
def test_paths_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(SamforgeError):
        WAYS[way](PATHS[name])
    assert not is_file(Path(PATHS[name]))
    assert not is_folder(Path(PATHS[name]))


def test_a_picture_named_beyond_measure(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(
        '{"images": [{"id": 1, "file_name": "%s.png"}], "categories": [{"id": 1, "name": "x"}],'
        '"annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[0,0,4,0,4,4]]}]}'
        % ("a" * 300)
    )
    with pytest.raises(SamforgeError, match="1 of the 1 pictures"):
        coco_data_from_file(path)


def test_a_name_that_only_the_staging_folder_makes_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        Staging.open(tmp_path / ("a" * 250))


def _raised(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


def test_a_full_disk_is_said_however_deep_it_is_wrapped(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space is left to write"), system_errors(tmp_path):
        raise _raised(errno.ENOSPC)
    wrapped = RuntimeError("enforce fail at inline_container.cc")
    wrapped.__context__ = _raised(errno.EDQUOT)
    with pytest.raises(OutputError, match="No space is left"), system_errors(tmp_path):
        raise wrapped


def test_a_library_that_fails_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samforge.core.files.free_bytes", lambda _: 4096)
    with pytest.raises(OutputError, match=r"No space is left.*4\.0 KiB"), system_errors(tmp_path):
        raise RuntimeError("unexpected pos 64 vs 0")


def test_other_errors_of_the_system_name_the_file(tmp_path: Path) -> None:
    said = r"/x cannot be read or written: Input/output error"
    with pytest.raises(OutputError, match=said), system_errors(tmp_path):
        raise _raised(errno.EIO, "/x")
    for error in (FidelityError("ours"), ZeroDivisionError("a bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)), system_errors(tmp_path):
            raise error


def test_a_build_says_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise _raised(errno.ENOSPC)

    monkeypatch.setattr("samforge.pipeline.Run.all", full)
    with pytest.raises(OutputError, match=r"No space is left to write .*tiny"):
        samforge.build("tiny", out=tmp_path / "tiny")


def test_marks_before_toml_and_json(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_bytes(codecs.BOM_UTF8 + b'model = "tiny"\nprecision = "int8"\n')
    assert samforge.Recipe.from_toml(recipe).precision == "int8"
    config = tmp_path / "config.json"
    config.write_bytes(codecs.BOM_UTF8 + b'{"model_type": "sam3"}')
    assert table_from_json(config) == {"model_type": "sam3"}
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(codecs.BOM_UTF8 + TOKENIZER_PATH.read_bytes())
    assert PhraseTokenizer(tokenizer, 8, 0).encode(["red circle"]).shape == (1, 8)
    assert checkpoint_from_name("tiny", tokenizer=tokenizer).eos_id == 2
    labels = tmp_path / "labels.json"
    labels.write_bytes(codecs.BOM_UTF8 + b'{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(SettingError, match="asks nothing"):
        coco_data_from_file(labels)


def test_a_mark_before_a_manifest(fake_bundle: Callable[..., samforge.Bundle]) -> None:
    bundle = fake_bundle()
    manifest = bundle.root / "manifest.json"
    manifest.write_bytes(codecs.BOM_UTF8 + manifest.read_bytes())
    # An editor that wrote a mark before the text has changed what is sealed.
    with pytest.raises(DamagedBundle, match="Unexpected UTF-8 BOM"):
        samforge.open_bundle(bundle.root)


@pytest.mark.parametrize("threads", [-1, 0, 10**9, True, 1.5, "2", float("nan")])
def test_threads_are_a_number_of_threads(
    fake_bundle: Callable[..., samforge.Bundle], threads: Any
) -> None:
    bundle = fake_bundle()
    with pytest.raises(SettingError, match=r"threads is .* Give a whole number from 1 to 1024"):
        samforge.load(bundle, threads=threads)
    with pytest.raises(SettingError, match="threads is"):
        checked_threads(threads)
    assert samforge.load(bundle, threads=2) is not None


@pytest.mark.parametrize("jobs", [0, -1, True, 1.5, "2"])
def test_jobs_are_a_number(jobs: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="jobs wants a whole number"):
        samforge.build("tiny", out=tmp_path / "x", jobs=jobs)
