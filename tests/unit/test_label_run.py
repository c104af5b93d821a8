"""Runs of ``samforge.label``: stopped, killed, resumed, refused; what is broken stops nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hand_made import ScriptedSegmenter, box, detections
from PIL import Image

import samforge
from samforge.core.detections import Detections
from samforge.core.errors import FidelityError, OutputError, PromptError, SettingError
from samforge.labelling import (
    LabelSettings,
    Ontology,
    OtherRun,
    SourceError,
    export,
    label,
    plan_labels,
)
from samforge.labelling.engine import chunks_from_items
from samforge.labelling.items import Item, WholeFile
from samforge.labelling.labeller import Labeller, Loaded
from samforge.labelling.ledger import NAME, Ledger
from samforge.labelling.outcome import Outcome, picture_from_body

ONTOLOGY = Ontology.from_texts(["circle=red circle,circle", "star"], threshold=0.2)
FORMATS = LabelSettings(formats=("coco", "masks"))


def draw(folder: Path, count: int, *, side: int = 30) -> Path:
    """Pictures of noise in two folders with the same file names."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (side, side + 8, 3), np.uint8)
        place = folder / "ab"[number % 2] / f"{number // 2:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(place)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "pictures", 10)


@pytest.fixture
def bundle(fake_bundle: Callable[..., samforge.Bundle]) -> samforge.Bundle:
    return fake_bundle("small")


@pytest.fixture
def data_set(snapshot: Callable[[Path], dict[str, bytes]]) -> Callable[[Path], dict[str, bytes]]:
    """Everything in an output folder but the ledger."""

    def read(out: Path) -> dict[str, bytes]:
        return {name: content for name, content in snapshot(out).items() if "ledger" not in name}

    return read


def coco(out: Path) -> Any:
    return json.loads((out / "coco.json").read_text())


def objects_of(bundle: samforge.Bundle, source: Path, out: Path) -> list[dict[str, Any]]:
    """Pictures with their annotations, in order."""
    label(bundle, source, ONTOLOGY, out)
    table = coco(out)
    return [
        image | {"objects": [one for one in table["annotations"] if one["image_id"] == image["id"]]}
        for image in table["images"]
    ]


def test_it_labels_what_the_segmenter_finds(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    result = label(
        bundle, pictures, ONTOLOGY, tmp_path / "out", watch=lambda *now: told.append(now)
    )
    assert told == [(done, 10) for done in range(11)]
    assert (result.pictures, result.labelled, result.resumed) == (10, 10, 0)
    table = coco(tmp_path / "out")
    names = [image["file_name"] for image in table["images"]]
    assert names == [f"{folder}/{i:03d}.png" for folder in "ab" for i in range(5)]
    info = table["info"]
    assert (info["bundle"], info["samforge"]) == (bundle.digest, samforge.__version__)
    assert info["ontology"]["classes"][0]["phrases"] == ["red circle", "circle"]
    # The same call by hand, without what the ontology resolves.
    from samforge.labelling.resolve import resolve

    with samforge.load(bundle) as segmenter:
        (found,) = segmenter.predict(
            [pictures / "b/002.png"], text=list(ONTOLOGY.phrases), threshold=0.2
        )
    expected = resolve(found, ONTOLOGY)
    image_id = names.index("b/002.png") + 1
    own = [one for one in table["annotations"] if one["image_id"] == image_id]
    assert len(own) == len(expected.found) > 0
    assert [one["category_id"] - 1 for one in own] == expected.classes.tolist()
    assert [one["segmentation"] for one in own] == [
        expected.found.masks.rle(i) for i in range(len(own))
    ]
    counts = dict.fromkeys(ONTOLOGY.names, 0)
    for one in table["annotations"]:
        counts[ONTOLOGY.names[one["category_id"] - 1]] += 1
    assert result.objects == counts


def test_broken_pictures_are_listed_and_stop_nothing(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "a/002.png").write_bytes(b"junk")
    (pictures / "b/003.png").write_bytes((pictures / "b/001.png").read_bytes()[:600])
    out = tmp_path / "out"
    result = label(bundle, pictures, ONTOLOGY, out)
    assert [(one.name, one.kind) for one in result.failures] == [
        ("a/002.png", "ImageError"),
        ("b/003.png", "ImageError"),
    ]
    assert str(pictures / "a/002.png") in result.failures[0].message
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["a/002.png", "b/003.png"]
    assert result.pictures == 8
    # Numbers are places in the source: mending a picture moves no other.
    assert [one["id"] for one in coco(out)["images"]] == [1, 2, 4, 5, 6, 7, 8, 10]
    draw(pictures, 10)
    mended = label(bundle, pictures, ONTOLOGY, out)
    assert (mended.labelled, mended.failures) == (10, ())  # every file was written anew
    assert not (out / "failures.jsonl").exists()


def test_resumed_it_is_the_same_to_the_byte(
    bundle: samforge.Bundle,
    pictures: Path,
    tmp_path: Path,
    data_set: Callable[[Path], dict[str, bytes]],
) -> None:
    label(bundle, pictures, ONTOLOGY, tmp_path / "whole", settings=FORMATS)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stop

    out = tmp_path / "resumed"
    with pytest.raises(Stop):
        label(bundle, pictures, ONTOLOGY, out, settings=FORMATS, watch=stop)
    assert data_set(out) == {}  # nothing half
    result = label(bundle, pictures, ONTOLOGY, out, settings=FORMATS)
    assert (result.labelled, result.resumed) == (6, 4)
    assert data_set(out) == data_set(tmp_path / "whole")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    again = label(bundle, pictures, ONTOLOGY, out, settings=FORMATS)
    assert (again.labelled, again.resumed, again.processor) == (0, 10, "")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before


def test_a_data_set_depends_on_the_command_and_not_on_what_was_before(
    bundle: samforge.Bundle,
    pictures: Path,
    tmp_path: Path,
    data_set: Callable[[Path], dict[str, bytes]],
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    some = LabelSettings(limit=4, shuffle=7)
    first = label(bundle, pictures, ONTOLOGY, out, settings=some)
    chosen = [one["file_name"] for one in coco(out)["images"]]
    assert first.pictures == 4
    assert chosen == sorted(chosen) != [f"a/{i:03d}.png" for i in range(4)]
    part = data_set(out)
    assert label(bundle, pictures, ONTOLOGY, out).resumed == 4
    label(bundle, pictures, ONTOLOGY, whole)
    assert data_set(out) == data_set(whole)
    label(bundle, pictures, ONTOLOGY, out, settings=some)
    assert data_set(out) == part


def test_an_export_that_breaks_off_is_done_again(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, some = tmp_path / "out", LabelSettings(limit=3, formats=("coco", "masks"))
    label(bundle, pictures, ONTOLOGY, out, settings=some)
    before, made = coco(out), export.label_writer

    def full() -> Path:
        raise OutputError("The disk is full.")

    def second_is_full(name: str, *args: Any) -> Any:
        writer = made(name, *args)
        if name == "masks":
            writer = Mock(wraps=writer, finish=full)
        return writer

    with monkeypatch.context() as broken:
        broken.setattr(export, "label_writer", second_is_full)
        with pytest.raises(OutputError, match="full"):
            label(bundle, pictures, ONTOLOGY, out, settings=FORMATS)
    assert len(coco(out)["images"]) == 10  # the first format is new, the second is not
    label(bundle, pictures, ONTOLOGY, out, settings=some)
    assert coco(out) == before


def test_no_format_falls_behind(bundle: samforge.Bundle, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(bundle, pictures, ONTOLOGY, out, settings=LabelSettings(limit=3, formats=("coco",)))
    result = label(bundle, pictures, ONTOLOGY, out, settings=LabelSettings(formats=("sa1b",)))
    assert [file.name for file in result.files] == ["sa1b", "coco.json"]
    assert len(coco(out)["images"]) == 10
    (out / "coco.json").unlink()  # the user does not want it
    label(bundle, pictures, ONTOLOGY, out, settings=LabelSettings(formats=("sa1b",)))
    assert not (out / "coco.json").exists()


def test_several_processes_come_to_the_same(
    bundle: samforge.Bundle,
    pictures: Path,
    tmp_path: Path,
    data_set: Callable[[Path], dict[str, bytes]],
) -> None:
    (pictures / "a/001.png").write_bytes(b"junk")
    label(bundle, pictures, ONTOLOGY, tmp_path / "one", settings=FORMATS)
    result = label(
        bundle,
        pictures,
        ONTOLOGY,
        tmp_path / "two",
        settings=LabelSettings(formats=FORMATS.formats, jobs=2, shuffle=1),
    )
    assert result.labelled == 9
    assert data_set(tmp_path / "two") == data_set(tmp_path / "one")


def test_a_process_that_cannot_load_says_why(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="device is cuda"):
        label(
            bundle,
            pictures,
            ONTOLOGY,
            tmp_path / "out",
            settings=LabelSettings(jobs=2, device="cuda"),
        )
    with pytest.raises(SettingError, match="cuda:1 is one"):
        label(
            bundle,
            pictures,
            ONTOLOGY,
            tmp_path / "out",
            settings=LabelSettings(jobs=2, device="cuda:1"),
        )


def test_a_picture_that_kills_its_process_is_a_failure(
    bundle: samforge.Bundle, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samforge.labelling.opening import openings
    from samforge.labelling.workers import Workers

    items = [
        Item(name=f"{i}", place=WholeFile(file=str(path)), stamp="")
        for i, path in enumerate(sorted(pictures.rglob("*.png"))[:6])
    ]
    # A fifo that nobody writes to is refused by the reader; so the process is killed from here.
    opened = openings(str(bundle.root), bundle.digest, device="cpu", threads=1, jobs=2)
    with Workers(opened, ONTOLOGY) as workers:
        for worker in workers._workers:
            feed = worker.feed

            def killing(left: Any, worker: Any = worker, feed: Any = feed) -> None:
                feed(left)
                if worker.asked and worker.asked[0][0][0] == 3:
                    os.kill(worker._process.pid, signal.SIGKILL)

            monkeypatch.setattr(worker, "feed", killing)
        outcomes = [one for several in workers([((i, item),) for i, item in enumerate(items)])
                    for one in several]  # fmt: skip
    told = {one.number: one.failure for one in outcomes}
    assert sorted(told) == list(range(6))
    assert [number for number, failure in told.items() if failure is not None] == [3]
    assert told[3] is not None
    assert "ended twice (signal 9)" in told[3].message


KILLED = """
import sys
from samforge.apps.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def command(bundle: samforge.Bundle, source: Path, out: Path, *more: str) -> list[str]:
    words = ["label", str(bundle.root), str(source), "--class", "circle=red circle,circle"]
    words += ["--class", "star", "--threshold", "0.2", "--out", str(out)]
    words += ["--format", "coco", "--format", "masks", "--format", "yolo", *more]
    return [sys.executable, "-c", KILLED, *words]


def work_time(words: list[str], ledger: Path) -> float:
    """Run a command to its end: seconds from the first picture on."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not ledger.exists() and process.poll() is None:
            time.sleep(0.005)
        start = time.monotonic()
        assert process.wait() == 0
    return time.monotonic() - start


def kill_at_work(words: list[str], ledger: Path, after: float) -> bool:
    """Kill a command, with all that it started, so long after it opened its ledger."""
    opened = ledger.stat().st_mtime_ns if ledger.exists() else None
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None:
            if ledger.exists() and (opened is None or ledger.with_name(NAME + "-wal").exists()):
                break
            time.sleep(0.005)
        time.sleep(after)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
    assert alive or process.returncode == 0
    return alive


def killed_and_resumed(
    words: list[str], out: Path, kills: int, longest: float, seed: int
) -> Iterator[int]:
    """Kill runs so often at random moments; each time one has ended, say after how many kills."""
    generator, killed, own = random.Random(seed), 0, 0
    while killed < kills:
        if kill_at_work(words, out / NAME, generator.uniform(0, longest)):
            killed, own = killed + 1, own + 1
        else:
            yield own
            shutil.rmtree(out)
            own = 0
    if own:
        subprocess.run(words, check=True, capture_output=True)
        yield own


@pytest.mark.parametrize(
    ("kills", "jobs", "count"),
    [(2, 1, 120), pytest.param(20, 2, 200, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    kills: int,
    jobs: int,
    count: int,
    bundle: samforge.Bundle,
    tmp_path: Path,
    data_set: Callable[[Path], dict[str, bytes]],
) -> None:
    source, out, whole = draw(tmp_path / "many", count), tmp_path / "killed", tmp_path / "whole"
    longest = work_time(command(bundle, source, whole), whole / NAME)
    unbroken = data_set(whole)
    words = command(bundle, source, out, "--jobs", str(jobs))
    ended = 0
    for own in killed_and_resumed(words, out, kills, longest, seed=jobs):
        ended += own
        # The data set of every run, not of the last alone.
        assert data_set(out) == unbroken
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert ended == kills


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(bundle: samforge.Bundle, tmp_path: Path) -> None:
    source = draw(tmp_path / "many", 3000)
    resident: list[float] = []

    def watch(done: int, total: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    label(bundle, source, ONTOLOGY, tmp_path / "out", watch=watch)
    assert resident[-1] - resident[300] < 16


def test_what_was_labelled_otherwise_is_not_mixed(
    fake_bundle: Callable[..., samforge.Bundle],
    bundle: samforge.Bundle,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    label(bundle, pictures, ONTOLOGY, out)
    before = (out / "coco.json").read_bytes()
    other = fake_bundle("other", precision="int8")
    with pytest.raises(OtherRun, match=rf"bundle \({bundle.digest[:16]}.* then, .* now\)"):
        label(other, pictures, ONTOLOGY, out)
    with pytest.raises(OtherRun, match=r"ontology \(threshold 0\.2 then, 0\.3 now\)"):
        label(bundle, pictures, ONTOLOGY.with_settings(threshold=0.3), out)
    more = Ontology.from_texts(["circle=circle", "star"], threshold=0.2)
    with pytest.raises(OtherRun, match=r"what it says of circle.*--restart"):
        plan_labels(bundle, pictures, more, out)
    with pytest.raises(OtherRun, match="source"):
        label(bundle, pictures / "a", ONTOLOGY, out)
    monkeypatch.setattr("samforge.labelling.job.__version__", "0.2.0")
    with pytest.raises(OtherRun, match=r"samforge \(0\.1\.0 then, 0\.2\.0 now\)"):
        label(bundle, pictures, ONTOLOGY, out)
    assert (out / "coco.json").read_bytes() == before
    again = label(bundle, pictures, ONTOLOGY, out, settings=LabelSettings(restart=True))
    assert (again.labelled, again.resumed) == (10, 0)


def test_a_second_run_waits_for_no_one(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    label(bundle, pictures, ONTOLOGY, out)
    script = (
        "import sys, time; from pathlib import Path; from samforge.labelling.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1])); ledger.note('a', 'b'); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(out / NAME)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="Another run is labelling into"):
            label(bundle, pictures, ONTOLOGY, out)
        other.kill()
    assert label(bundle, pictures, ONTOLOGY, out).resumed == 10


def test_a_second_run_takes_nothing_from_one_at_work(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    begun = out / ".coco.json.12345678.part"
    refused: list[str] = []

    def intrude(done: int, total: int) -> None:
        if done != 4:
            return
        begun.write_text("what the first run has begun to write")
        for restart in (False, True):
            with pytest.raises(OutputError, match="Another run is labelling into") as caught:
                label(bundle, pictures, ONTOLOGY, out, settings=LabelSettings(restart=restart))
            refused.append(str(caught.value))
        assert begun.exists()

    result = label(bundle, pictures, ONTOLOGY, out, watch=intrude)
    assert len(refused) == 2
    assert (result.labelled, result.pictures) == (10, 10)
    # The ledger is the one that the first run wrote, with all of it.
    assert label(bundle, pictures, ONTOLOGY, out).resumed == 10


def test_a_restart_forgets_labels_and_removes_what_a_kill_left(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    label(bundle, pictures, ONTOLOGY, out)
    (out / ".coco.json.12345678.part").write_text("half")
    (out / ".yolo.12345678.part").mkdir()
    (out / ".yolo.12345678.part" / "data.yaml").write_text("half")
    others = {".dataset.zip.part", ".coco.json.part", ".notes.12345678.part"}
    for name in others:
        (out / name).write_text("of a download, or of another program")
    again = label(bundle, pictures / "a", ONTOLOGY, out, settings=LabelSettings(restart=True))
    assert (again.labelled, again.resumed, again.pictures) == (5, 0, 5)
    with Ledger(out / NAME) as ledger:
        assert list(ledger.bodies("b/001.png")) == []
    assert sorted(one.name for one in out.iterdir()) == sorted([*others, "coco.json", NAME])


def test_a_picture_with_more_objects_than_can_be_numbered_is_a_failure_of_its_own(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [len(one["objects"]) for one in objects_of(bundle, pictures, tmp_path / "all")]
    monkeypatch.setattr("samforge.labelling.outcome.MOST_OBJECTS", max(counts) - 1)
    result = label(bundle, pictures, ONTOLOGY, tmp_path / "out")
    crowded = sum(count == max(counts) for count in counts)
    assert 0 < crowded < len(counts)
    assert len(result.failures) == crowded
    assert {one.kind for one in result.failures} == {"ItemError"}
    assert "can be numbered" in result.failures[0].message
    assert result.pictures == len(counts) - crowded


def test_a_plan_writes_nothing(bundle: samforge.Bundle, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_labels(bundle, pictures, ONTOLOGY, out, settings=LabelSettings(limit=3))
    assert (plan.items, plan.chosen, plan.done) == (10, 3, 0)
    assert plan.phrases == ("red circle", "circle", "star")
    assert not out.exists()
    label(bundle, pictures, ONTOLOGY, out, settings=LabelSettings(limit=3))
    assert plan_labels(bundle, pictures, ONTOLOGY, out).done == 3


def test_folders_that_are_no_output(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="is not empty, and no earlier run"):
        label(bundle, pictures, ONTOLOGY, pictures)
    with pytest.raises(OutputError):
        label(bundle, pictures, ONTOLOGY, bundle.root / "labels")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        label(bundle, pictures, ONTOLOGY, file)
    assert file.read_text() == "mine"
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / NAME).write_text("no ledger at all, but long enough to look like a file of SQLite")
    with pytest.raises(OutputError, match="is no ledger of samforge, or is damaged"):
        label(bundle, pictures, ONTOLOGY, strange)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    items = [Item(name=f"{i}", place=WholeFile(file=f"{i}"), stamp="s") for i in range(400)]
    path = tmp_path / NAME
    body = os.urandom(2000)
    with Ledger(path, most_pages=64) as ledger:

        def fill(numbers: range) -> None:
            for number in numbers:
                ledger.add([Outcome(number=number, bodies=(body,))], items)

        with pytest.raises(OutputError, match=r"No space is left for .*what was done is kept"):
            fill(range(400))
        kept = ledger.done(items)
        assert 20 < len(kept) < 400
    with Ledger(path) as ledger:
        assert ledger.done(items) == kept == set(range(len(kept)))
        assert list(ledger.bodies("0")) == [body]
        for number in range(len(kept), 400):
            ledger.add([Outcome(number=number, bodies=(body,))], items)
        assert ledger.done(items) == set(range(400))


def test_a_full_disk_while_data_sets_are_written(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from samforge.formats._growing_folder import GrowingFolder

    def full(self: GrowingFolder, name: str) -> Path:
        raise OutputError(f"No space is left to write {name}") from OSError(errno.ENOSPC, "full")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(GrowingFolder, "place", full)
        with pytest.raises(OutputError, match="No space is left"):
            label(bundle, pictures, ONTOLOGY, out, settings=FORMATS)
    assert {path.name for path in out.iterdir()} == {NAME}
    result = label(bundle, pictures, ONTOLOGY, out, settings=FORMATS)
    assert (result.resumed, result.pictures) == (10, 10)


def test_a_source_that_vanishes_stops_it_and_keeps_what_is_done(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    out, away = tmp_path / "out", tmp_path / "away"

    def vanish(done: int, total: int) -> None:
        if done == 3:
            pictures.rename(away)

    with pytest.raises(SourceError, match=r"is gone\. What was labelled is kept"):
        label(bundle, pictures, ONTOLOGY, out, watch=vanish)
    away.rename(pictures)
    result = label(bundle, pictures, ONTOLOGY, out)
    assert result.resumed >= 3
    assert (result.pictures, result.failures) == (10, ())


def test_pictures_that_change_are_labelled_anew(
    bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    label(bundle, pictures, ONTOLOGY, out)
    before = {image["file_name"]: image["sha256"] for image in coco(out)["images"]}
    changed = pictures / "a/001.png"
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(changed)
    result = label(bundle, pictures, ONTOLOGY, out)
    assert (result.labelled, result.resumed) == (1, 9)
    after = {image["file_name"]: image["sha256"] for image in coco(out)["images"]}
    assert {name for name in after if after[name] != before[name]} == {"a/001.png"}


def test_a_picture_that_changes_while_it_is_read(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samforge.core import file_state
    from samforge.labelling.places import read_file

    path = pictures / "a/001.png"
    os.utime(path, (1, 1))
    states = iter(range(1000))
    monkeypatch.setattr(file_state, "_state", lambda found: next(states))
    monkeypatch.setattr(file_state, "_settled", lambda file: file_state.FileState(0, 0, 9, 0, 0))
    with pytest.raises(SourceError, match="it changes while it is read"):
        read_file(str(path))


EXEMPLARS = """
[[classes]]
name = "circle"
phrases = ["red circle"]
[[classes.exemplars]]
picture = "{picture}"
boxes_xyxy = [{box}]
"""


@pytest.mark.parametrize(
    ("picture", "shown", "message"),
    [
        ("a/000.png", "[5, 5, 90, 20]", "The exemplars on a/000.png: Box 0 .* leaves the image"),
        ("a/000.png", "[5, 5, 5, 20]", "has no area"),
        ("elsewhere.png", "[5, 5, 9, 20]", "boxes on one picture say nothing about another"),
    ],
)
def test_exemplars_lie_on_pictures_of_the_source(
    picture: str, shown: str, message: str, bundle: samforge.Bundle, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "o.toml"
    file.write_text(EXEMPLARS.format(picture=picture, box=shown))
    with pytest.raises(PromptError, match=message):
        label(bundle, pictures, Ontology.from_toml(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exemplars_need_their_part(bundle: samforge.Bundle, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text(EXEMPLARS.format(picture="a/000.png", box="[5, 5, 9, 20]"))
    with pytest.raises(SettingError, match="has no part detector_boxes"):
        label(bundle, pictures, Ontology.from_toml(file), tmp_path / "out")


def loaded(number: int, name: str = "") -> Loaded:
    item = Item(name=name or f"{number}.png", place=WholeFile(file=f"/p/{number}.png"), stamp="")
    return Loaded(number=number, item=item, rgb=np.full((20, 20, 3), number, np.uint8))


def objects(outcome: Outcome) -> list[tuple[int, str, float]]:
    picture = picture_from_body(outcome.bodies[0])
    return [(one.category, one.phrase, one.score) for one in picture.objects]


def test_all_phrases_go_in_one_call_with_thresholds_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text(
        "threshold = 0.4\n[[classes]]\nname = 'a'\nthreshold = 0.7\nnegatives = ['no']\n"
        "[[classes]]\nname = 'b'\n"
    )
    answer = detections(("a", 0.75, box(0, 0, 5, 5)), ("b", 0.5, box(9, 9, 15, 15)))
    segmenter = ScriptedSegmenter({1: answer, 2: Detections.empty((20, 20), {"a": 0.1})})
    labeller = Labeller(segmenter, Ontology.from_toml(file))  # type: ignore[arg-type]
    outcomes = labeller.pictures([loaded(1), loaded(2)])
    (call,) = segmenter.calls
    assert (call["images"], call["text"]) == (2, ("a", "b", "no"))
    assert call["threshold"] == (0.7, 0.4, 0.7)
    assert segmenter.phrases == ("a", "b", "no")
    assert objects(outcomes[0]) == [(0, "a", 0.75), (1, "b", 0.5)]
    assert objects(outcomes[1]) == []
    assert picture_from_body(outcomes[1].bodies[0]).best_scores == {"a": 0.1}


def test_what_fails_together_is_tried_alone() -> None:
    fine = detections(("a", 0.75, box(0, 0, 5, 5)))
    segmenter = ScriptedSegmenter({1: fine, 2: FidelityError("holds NaN"), 3: fine})
    labeller = Labeller(segmenter, Ontology.from_texts(["a"]))  # type: ignore[arg-type]
    outcomes = labeller.pictures([loaded(1), loaded(2), loaded(3)])
    assert [one.failure is None for one in outcomes] == [True, False, True]
    assert outcomes[1].failure is not None
    assert outcomes[1].failure.message == "/p/2.png: holds NaN"
    assert [call["images"] for call in segmenter.calls] == [3, 1, 1, 1]


def test_exemplars_are_asked_on_their_picture_with_one_encoding(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text(EXEMPLARS.format(picture="1.png", box="[1, 2, 5, 6]"))
    answer = detections(("red circle", 0.75, box(0, 0, 5, 5)))
    segmenter = ScriptedSegmenter({1: answer, 2: answer})
    labeller = Labeller(segmenter, Ontology.from_toml(file))  # type: ignore[arg-type]
    outcomes = labeller.pictures([loaded(1), loaded(2)])
    assert segmenter.encoded == 1
    asked = [(call.get("boxes_xyxy"), call["images"]) for call in segmenter.calls]
    assert asked == [(None, 1), (None, 1), (((1, 2, 5, 6),), 1)]
    # What both calls found is one object.
    assert [objects(one) for one in outcomes] == [[(0, "red circle", 0.75)]] * 2


def test_calls_hold_the_same_pictures_however_often_it_is_stopped() -> None:
    items = [
        Item(name=f"{i}", place=WholeFile(file=""), stamp="", kind=kind)
        for i, kind in enumerate(["picture"] * 3 + ["video"] + ["picture"] * 3)
    ]

    def numbers(done: set[int]) -> list[list[int]]:
        chunks = chunks_from_items(items, range(7), 2, done)
        return [[number for number, _ in chunk] for chunk in chunks]

    assert numbers(set()) == [[0, 1], [2], [3], [4, 5], [6]]
    assert numbers({0, 1, 3}) == [[2], [4, 5], [6]]
    assert numbers({4}) == [[0, 1], [2], [3], [5], [6]]
