"""What is hashed is what is used: between the two a file may change, and never unseen."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import reseal

import samforge
from samforge.assembly import session_from_bundle, tokenizer_from_bundle
from samforge.backends.onnxruntime import BACKEND
from samforge.core import bundle as bundle_module
from samforge.core.bundle import open_bundle
from samforge.core.errors import BuildError, BundleError, DamagedBundle, OutputError
from samforge.core.file_state import hashed, state_of
from samforge.core.manifest import Manifest, StepResult
from samforge.core.staging import Staging

Make = Callable[..., samforge.Bundle]
PART = "parts/vision/vision.onnx"
RESULT = StepResult(name="export", part=None, seconds=2.0, bytes=4, peak_gib=0.5, resumed=False)


def _one_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"y")


def _with_its_old_times(path: Path) -> None:
    before = path.stat()
    _one_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _by_rename(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    _one_byte(other)
    other.replace(path)


def _by_link(path: Path) -> None:
    other = path.parents[3] / "elsewhere.onnx"
    shutil.move(path, other)
    _one_byte(other)
    path.symlink_to(other)


def _shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _gone(path: Path) -> None:
    path.unlink()


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = {
    "one byte": _one_byte,
    "one byte, times set back": _with_its_old_times,
    "another file renamed over it": _by_rename,
    "a link in its place": _by_link,
    "shortened": _shortened,
    "gone": _gone,
    "a folder in its place": _a_folder,
    "a pipe in its place": _a_pipe,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_part_that_changed_after_opening(
    fake_bundle: Make, change: Callable[[Path], None]
) -> None:
    bundle = fake_bundle()
    assert samforge.load(bundle)
    change(bundle.root / PART)
    with pytest.raises(DamagedBundle, match=r"vision\.onnx .*(differs|missing|bytes)"):
        samforge.load(bundle)
    with pytest.raises(DamagedBundle):
        session_from_bundle(bundle, "vision")


def test_a_tokenizer_that_changed_after_opening(fake_bundle: Make) -> None:
    bundle = fake_bundle()
    _one_byte(bundle.root / "tokenizer/tokenizer.json")
    with pytest.raises(DamagedBundle, match=r"tokenizer\.json in .* hash differs"):
        tokenizer_from_bundle(bundle)
    with pytest.raises(DamagedBundle):
        samforge.load(bundle)


def test_the_same_bytes_written_again_are_fine(fake_bundle: Make) -> None:
    bundle = fake_bundle()
    file = bundle.root / PART
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    os.utime(bundle.root / "tokenizer/tokenizer.json")
    assert samforge.load(bundle)


def _once_before_loading(
    monkeypatch: pytest.MonkeyPatch, part: str, act: Callable[[Path], object]
) -> None:
    """Do something in the moment between the hash and the runtime."""
    real, done = type(BACKEND).session_from_artifact, []

    def session(self: Any, path: Path, spec: Any, **options: Any) -> Any:
        if spec.name == part and not done:
            done.append(part)
            act(path)
        return real(self, path, spec, **options)

    monkeypatch.setattr(type(BACKEND), "session_from_artifact", session)


@pytest.mark.parametrize("change", [_one_byte, _with_its_old_times, _by_rename], ids=range(3))
def test_a_part_that_changes_while_it_is_loaded(
    fake_bundle: Make, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    bundle = fake_bundle()
    _once_before_loading(monkeypatch, "detector", change)
    with pytest.raises(DamagedBundle, match=r"detector\.onnx in .* hash differs"):
        samforge.load(bundle.root)


def test_a_part_that_was_another_only_while_it_was_loaded(
    fake_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = fake_bundle()
    loads = []
    real = type(BACKEND).session_from_artifact

    def session(self: Any, path: Path, spec: Any, **options: Any) -> Any:
        loads.append(spec.name)
        if loads != ["vision"]:
            return real(self, path, spec, **options)
        content = path.read_bytes()
        _one_byte(path)
        made = real(self, path, spec, **options)
        path.write_bytes(content)
        return made

    monkeypatch.setattr(type(BACKEND), "session_from_artifact", session)
    assert samforge.load(bundle.root)
    assert loads == ["vision", "vision", "text", "detector"], "the wrong one is loaded again"


def test_a_file_that_never_rests(fake_bundle: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fake_bundle()
    real = type(BACKEND).session_from_artifact

    def session(self: Any, path: Path, spec: Any, **options: Any) -> Any:
        os.utime(path)
        return real(self, path, spec, **options)

    monkeypatch.setattr(type(BACKEND), "session_from_artifact", session)
    monkeypatch.setattr("samforge.assembly._MOST_TRIES", 3)
    with pytest.raises(DamagedBundle, match="changed while it was loaded, again and again"):
        samforge.load(bundle)


def test_nothing_is_hashed_twice(fake_bundle: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_bundle().root
    seen: list[str] = []

    def counted(path: Path) -> Any:
        seen.append(path.name)
        return hashed(path)

    monkeypatch.setattr(bundle_module, "hashed", counted)
    bundle = open_bundle(root)
    assert sorted(seen) == sorted(Path(path).name for path in bundle.manifest.files)
    samforge.load(bundle)
    samforge.load(bundle)
    assert len(seen) == len(bundle.manifest.files)


def _published(staging: Staging, files: dict[str, bytes], manifest: Manifest) -> Path:
    for path, content in files.items():
        staging.path(path).write_bytes(content)
    return staging.publish(manifest, ["parts", "tokenizer"])


def _replace(root: Path, like: samforge.Bundle, precision: str) -> None:
    """Publish another bundle at a place, as a rebuild does."""
    staging = Staging.open(root)
    work = staging.root
    shutil.copytree(like.root / "parts", work / "parts", dirs_exist_ok=True)
    shutil.copytree(like.root / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    staging.publish(like.manifest, ["parts", "tokenizer"])
    assert samforge.open_bundle(root).manifest.recipe["precision"] == precision


def test_a_bundle_replaced_while_it_is_loaded_is_all_new(
    fake_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = fake_bundle("old"), fake_bundle("new", precision="fp16")
    _once_before_loading(monkeypatch, "text", lambda _: _replace(old.root, new, "fp16"))
    loaded = []
    real = bundle_module.Bundle.confirm

    def confirm(self: Any, files: Any) -> None:
        real(self, files)
        loaded.append(self.digest)

    monkeypatch.setattr(bundle_module.Bundle, "confirm", confirm)
    assert samforge.load(old.root)
    assert set(loaded) == {old.digest, samforge.open_bundle(old.root).digest}
    after = loaded[loaded.index(samforge.open_bundle(old.root).digest) :]
    assert set(after) == {samforge.open_bundle(old.root).digest}
    assert len(after) > 4, "vision is loaded again, too"


def test_a_bundle_replaced_after_opening_is_a_clear_error(fake_bundle: Make) -> None:
    old, new = fake_bundle("old"), fake_bundle("new", precision="fp16")
    _replace(old.root, new, "fp16")
    assert not old.is_current()
    with pytest.raises(DamagedBundle, match=r"in .*old is not the file that was built"):
        samforge.load(old)


@pytest.mark.parametrize("moment", range(4), ids="before file {}".format)
def test_a_bundle_replaced_while_it_is_opened_is_one_of_the_two(
    fake_bundle: Make, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    old, new = fake_bundle("old"), fake_bundle("new", precision="fp16")
    seen: list[Path] = []

    def counted(path: Path) -> Any:
        seen.append(path)
        if len(seen) == moment + 1:
            _replace(old.root, new, "fp16")
        return hashed(path)

    monkeypatch.setattr(bundle_module, "hashed", counted)
    opened = samforge.open_bundle(old.root)
    assert opened.manifest.recipe["precision"] == "fp16"
    assert opened.is_current()


def test_a_file_read_through_the_bundle_is_the_hashed_one(fake_bundle: Make) -> None:
    bundle = fake_bundle()
    relative = "tokenizer/tokenizer.json"
    assert bundle.read(relative) == (bundle.root / relative).read_bytes()
    _one_byte(bundle.root / relative)
    with pytest.raises(DamagedBundle, match="hash differs"):
        bundle.read(relative)


def test_a_state_changes_with_every_write(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"a" * 100)
    for change in (_one_byte, _with_its_old_times, _by_rename):
        digest, state = hashed(file)  # waits until another write would have another time
        assert state_of(file) == state
        change(file)
        assert state_of(file) != state
        file.write_bytes(b"a" * 100)
        assert hashed(file)[0] == digest


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"no ordinary file|directory"):
            hashed(path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("pipe", ["manifest.json", "tokenizer/tokenizer.json"])
def test_a_pipe_in_a_bundle(fake_bundle: Make, pipe: str) -> None:
    root = fake_bundle().root
    (root / pipe).unlink()
    os.mkfifo(root / pipe)
    with pytest.raises(BundleError):
        samforge.open_bundle(root)


STEPS = {
    "one byte": _one_byte,
    "times set back": _with_its_old_times,
    "renamed over": _by_rename,
    "shortened": _shortened,
    "gone": _gone,
}


@pytest.mark.parametrize("change", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("file", ["parts/vision/vision.onnx.data", "work/vision/fused.pt2"])
def test_a_step_whose_file_changed_is_not_published(
    tmp_path: Path,
    manifest: Manifest,
    bundle_files: dict[str, bytes],
    change: Callable[[Path], None],
    file: str,
) -> None:
    with Staging.open(tmp_path / "out") as staging:
        for path, content in {**bundle_files, "work/vision/fused.pt2": b"f" * 500}.items():
            staging.path(path).write_bytes(content)
        staging.record("export", "key", [file], RESULT)
        change(staging.root / file)
        with pytest.raises((BuildError, OutputError), match=r"changed after its step|missing"):
            staging.publish(manifest, ["parts", "tokenizer"])
        assert not (tmp_path / "out").exists()
        assert staging.step("export", "key") is None, "a rerun repeats it"


def test_a_resumed_step_whose_file_changed_is_not_published(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    with Staging.open(tmp_path / "out") as staging:
        for path, content in bundle_files.items():
            staging.path(path).write_bytes(content)
        staging.record("export", "key", list(bundle_files), RESULT)
    with Staging.open(tmp_path / "out") as staging:
        assert staging.step("export", "key") is not None
        _one_byte(staging.root / "parts/vision/vision.onnx.data")
        with pytest.raises(BuildError, match="changed after its step was over"):
            staging.publish(manifest, ["parts", "tokenizer"])


def test_a_step_of_another_build_does_not_matter(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    with Staging.open(tmp_path / "out") as staging:
        staging.path("parts/vision/vision.onnx").write_bytes(b"earlier")
        staging.record("onnx", "earlier", ["parts/vision/vision.onnx"], RESULT)
    with Staging.open(tmp_path / "out") as staging:
        assert staging.step("onnx", "now") is None
        assert open_bundle(_published(staging, bundle_files, manifest))


def test_a_record_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    with Staging.open(tmp_path / "out") as staging:
        staging.path("a").write_bytes(b"s")
        staging.record("export", "key", ["a"], RESULT)
        text = (staging.root / "steps.json").read_text()
        (staging.root / "steps.json").write_text(text.replace('"a"', '"../secret"'))
    with Staging.open(tmp_path / "out") as staging:
        assert staging.step("export", "key") is None


def test_verify_refuses_a_bundle_that_was_replaced(fake_bundle: Make) -> None:
    from samforge.workflows.verify import _recorded

    bundle = fake_bundle()
    reseal(bundle.root, replace(bundle.manifest, model="another"))
    with pytest.raises(DamagedBundle, match="was replaced while it was verified"):
        _recorded(bundle, (), "CPU", 1.0, {"feature_cosine": 0.9})
    assert samforge.open_bundle(bundle.root).manifest.model == "another"
