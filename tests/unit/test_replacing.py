"""Publishing leaves no gap: a kill at any moment, and readers all the while."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import samforge
from samforge.core import exchange as exchange_module
from samforge.core import placing as placing_module
from samforge.core import replacing
from samforge.core.errors import DamagedBundle, ForeignBundle, OutputError
from samforge.core.exchange import exchange
from samforge.core.manifest import Manifest
from samforge.core.own_folder import MARK_NAME, REPLACED, work_folder
from samforge.core.staging import Staging

ROUNDS = 15
Make = Callable[..., samforge.Bundle]


@pytest.fixture
def publish(manifest: Manifest, bundle_files: dict[str, bytes]) -> Callable[[Path, str], Path]:
    """Publishes a small bundle of a model's name, all of whose files hold that name."""

    def run(out: Path, model: str) -> Path:
        with Staging.open(out) as staging:
            for path in bundle_files:
                staging.path(path).write_bytes(model.encode() * 1000)
            return staging.publish(replace(manifest, model=model), ["parts", "tokenizer"])

    return run


Publish = Callable[[Path, str], Path]


def _cannot_exchange(one: Path, other: Path) -> bool:
    return False


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to publish, whatever this system can."""
    if request.param == "renamed twice":
        monkeypatch.setattr(placing_module, "exchange", _cannot_exchange)
    elif not _can_exchange():
        pytest.skip("this system cannot exchange folders")
    name: str = request.param
    return name


def _can_exchange() -> bool:
    return exchange_module._exchanging_call() is not None


@pytest.mark.usefixtures("way")
def test_readers_never_meet_a_gap_or_a_mixture(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out", "m0")
    problems: list[str] = []
    models: list[str] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                opened = samforge.open_bundle(out)
                models.append(opened.manifest.model)
            except Exception as error:  # noqa: BLE001  # any is one too many
                problems.append(f"{type(error).__name__}: {error}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, ROUNDS):
            publish(out, f"m{number}")
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert problems == []
    assert len(models) > 10
    assert len(set(models)) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.usefixtures("way")
def test_loads_during_rebuilds_are_all_of_one(
    fake_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = fake_bundle("one"), fake_bundle("other", precision="fp16")
    sources = [samforge.open_bundle(shutil.copytree(one.root, one.root.with_name("copy"))), other]
    over, problems = threading.Event(), []

    def rebuild() -> None:
        number = 0
        while not over.is_set():
            number += 1
            source = sources[number % 2]
            try:
                with Staging.open(one.root) as staging:
                    for name in ("parts", "tokenizer"):
                        shutil.copytree(source.root / name, staging.root / name, dirs_exist_ok=True)
                    staging.publish(source.manifest, ["parts", "tokenizer"])
                time.sleep(
                    0.03
                )  # no build is quicker; on a busy machine nothing would load between two
            except Exception as error:  # noqa: BLE001  # any is one too many
                problems.append(error)
                return

    builder = threading.Thread(target=rebuild)
    builder.start()
    try:
        for _ in range(8):
            assert samforge.load(one.root)
    finally:
        over.set()
        builder.join()
    assert problems == []


_PUBLISH = """
import os, signal, sys
from pathlib import Path
from samforge.core import placing
from samforge.core.bundle import open_bundle
from samforge.core.staging import Staging

out, source, old, way = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
real = placing.exchange

def built(out, source):
    bundle = open_bundle(source)
    staging = Staging.open(out)
    for path in bundle.manifest.files:
        staging.path(path).write_bytes(bundle.read(path))
    return staging, bundle.manifest

def publish_and_die(moment):
    count = 0

    def hook(event, arguments):
        # Every change of the file system from publishing on is a moment to be killed at.
        nonlocal count
        if event in ("os.rename", "os.remove", "os.rmdir", "os.link", "os.mkdir"):
            count += 1
            if count > moment:
                os.kill(os.getpid(), signal.SIGKILL)

    def exchange(one, other):
        hook("os.rename", ())
        done = way == "exchanged" and real(one, other)
        hook("os.rename", ())
        return done

    placing.exchange = exchange
    staging, manifest = built(out, source)
    sys.addaudithook(hook)
    staging.publish(manifest, ["parts", "tokenizer"])

for moment in range(100):
    if not out.exists() or open_bundle(out).manifest.model != "old":
        staging, manifest = built(out, old)
        staging.publish(manifest, ["parts", "tokenizer"])
    child = os.fork()
    if child == 0:
        publish_and_die(moment)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(open_bundle(out).manifest.model)  # recovers where it has to
    if os.WIFEXITED(status):
        print(f"whole {os.WEXITSTATUS(status)}")
        break
"""


@pytest.mark.parametrize("way", ["exchanged", "renamed"])
def test_a_kill_at_any_moment_leaves_a_bundle_at_its_place(
    tmp_path: Path, publish: Publish, way: str
) -> None:
    sources = [str(publish(tmp_path / name, name)) for name in ("new", "old")]
    environment = {**os.environ, "PYTHONPATH": str(Path(samforge.__file__).parents[1])}
    out = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, "-c", _PUBLISH, str(out), *sources, way],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == ""
    *found, last = run.stdout.split("\n")[:-1]
    assert last == "whole 0"
    assert len(found) > 15
    assert set(found) == {"old", "new"}
    assert found == sorted(found, reverse=True), "first the old one, then the new one"
    publish(out, "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "out"]


def _killed_between_its_renames(out: Path) -> Path:
    Staging.open(out).close()
    aside = work_folder(out) / REPLACED
    out.rename(aside)
    return aside


@pytest.mark.parametrize("reader", ["open_bundle", "Staging"])
def test_a_replacement_that_was_killed_is_undone(
    tmp_path: Path, publish: Publish, reader: str
) -> None:
    out = publish(tmp_path / "out", "old")
    _killed_between_its_renames(out)
    if reader == "Staging":
        Staging.open(out).close()
    assert samforge.open_bundle(out).manifest.model == "old"


def test_without_a_mark_nothing_is_put_back(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out", "old")
    aside = _killed_between_its_renames(out)
    (work_folder(out) / MARK_NAME).unlink()
    with pytest.raises(ForeignBundle, match="there is no such folder"):
        samforge.open_bundle(out)
    assert aside.is_dir()


def test_what_is_aside_and_no_bundle_is_not_put_back(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out", "old")
    aside = _killed_between_its_renames(out)
    (aside / "manifest.json").write_text('{"schema_version": 1, "samforge": "x"}')
    with pytest.raises(ForeignBundle, match="there is no such folder"):
        samforge.open_bundle(out)


def test_a_replacement_that_was_killed_later_is_finished(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out", "old")
    aside = _killed_between_its_renames(out)
    shutil.copytree(aside, out)
    (aside / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"samforge did not put there: notes\.txt"):
        Staging.open(out)
    assert (aside / "notes.txt").read_text() == "mine"
    (aside / "notes.txt").rename(tmp_path / "notes.txt")
    Staging.open(out).close()
    assert not aside.exists()


def test_a_reader_waits_for_a_living_publisher(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = publish(tmp_path / "out", "old")
    with Staging.open(out) as staging:
        aside = staging.root / REPLACED
        out.rename(aside)
        second = threading.Timer(0.3, lambda: aside.rename(out))
        second.start()
        assert samforge.open_bundle(out).manifest.model == "old"
        second.join()
        out.rename(aside)
        monkeypatch.setattr(replacing, "GAP_SECONDS", 0.05)
        monkeypatch.setattr("samforge.core.bundle._MOST_TRIES", 3)
        with pytest.raises((ForeignBundle, DamagedBundle)):
            samforge.open_bundle(out)
        aside.rename(out)
    assert samforge.open_bundle(out)


def test_what_an_earlier_version_left_is_put_back(tmp_path: Path, publish: Publish) -> None:
    out = publish(tmp_path / "out", "old")
    out.rename(tmp_path / ".out.replaced")
    assert samforge.open_bundle(out).manifest.model == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_folders_change_places(tmp_path: Path) -> None:
    if not _can_exchange():
        pytest.skip("this system cannot exchange folders")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_where_the_file_system_cannot(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    out = publish(tmp_path / "out", "old")
    monkeypatch.setattr(exchange_module, "_exchanging_call", lambda: refuse)
    assert samforge.open_bundle(publish(out, "new")).manifest.model == "new"
    monkeypatch.setattr(exchange_module, "_exchanging_call", lambda: None)
    assert samforge.open_bundle(publish(out, "newer")).manifest.model == "newer"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBUSY, errno.EACCES])
def test_an_exchange_that_is_refused_leaves_the_old_bundle(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    out = publish(tmp_path / "out", "old")
    with monkeypatch.context() as patched:
        patched.setattr(exchange_module, "_exchanging_call", lambda: refuse)
        with pytest.raises(OutputError, match="out cannot be written"):
            publish(out, "new")
    assert samforge.open_bundle(out).manifest.model == "old"
    assert samforge.open_bundle(publish(out, "new")).manifest.model == "new"


class _Call:
    """A function of a C library: moves folders as the manual says, or refuses as it says."""

    def __init__(self, number: int = 0) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.number = number
        self.argtypes: tuple[object, ...] = ()

    def __call__(self, *words: object) -> int:
        assert len(words) == len(self.argtypes)
        self.asked.append(words)
        if self.number:
            ctypes.set_errno(self.number)
            return -1
        one, other = (Path(os.fsdecode(word)) for word in words if isinstance(word, bytes))
        one.rename(one.with_suffix(".aside"))
        other.rename(one)
        one.with_suffix(".aside").rename(other)
        return 0


@pytest.mark.parametrize(
    ("platform", "function", "before", "between", "after"),
    [
        ("linux", "renameat2", (-100,), (-100,), (2,)),
        ("darwin", "renamex_np", (), (), (2,)),  # sys/stdio.h: RENAME_SWAP is 2
    ],
)
def test_each_system_has_its_call(  # noqa: PLR0917  parameters and fixtures
    platform: str,
    function: str,
    before: tuple[int, ...],
    between: tuple[int, ...],
    after: tuple[int, ...],
    tmp_path: Path,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = SimpleNamespace(**{function: _Call()})
    call = exchange_module._call_of(library, platform)
    monkeypatch.setattr(exchange_module, "_exchanging_call", lambda: call)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    assert exchange(one, other)
    assert [path.name for folder in (one, other) for path in folder.iterdir()] == ["other", "one"]
    words = (*before, os.fsencode(one), *between, os.fsencode(other), *after)
    assert library.__dict__[function].asked == [words]
    # A file system that cannot, and one that will not.
    library.__dict__[function].number = errno.ENOTSUP
    assert exchange(one, other) is False
    library.__dict__[function].number = errno.EPERM
    with pytest.raises(PermissionError):
        exchange(one, other)
    out = tmp_path / "out"
    library.__dict__[function].number = 0
    for model in ("old", "new"):
        assert samforge.open_bundle(publish(out, model)).manifest.model == model


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "freebsd14"])
def test_a_system_without_the_call_is_told_apart(platform: str) -> None:
    assert exchange_module._call_of(SimpleNamespace(), platform) is None
