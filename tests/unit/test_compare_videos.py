"""``samforge compare`` on videos: figures, fidelity, decisions and gates, on a scripted tracker."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from tests.helpers.scripted_tracker import SIZE_HW, ScriptedParts, Thing, picture

import samforge
from samforge.apps import cli
from samforge.core.capabilities import TRACK
from samforge.core.detections import Detections
from samforge.core.errors import FidelityError, ImageError, SettingError
from samforge.core.labelled import LabelledVideo, VideoQuestion
from samforge.core.masks import Masks
from samforge.core.recipe import Gates
from samforge.core.rle import segmentation_from_mask
from samforge.measure.decisions import DecisionAgreement, compare_decisions, summed_decisions
from samforge.measure.video_accuracy import (
    LEAST,
    accuracy_from_counts,
    check_video_verdict,
    verdict_from_counts,
)
from samforge.measure.videos import NewestFrame, VideoCount, ask_video, count_video
from samforge.media import write_png
from samforge.models.tiny.crossing import draw_crossing
from samforge.models.tiny.held_out_clips import labelled_clips, labelled_videos
from samforge.runtime.tracking import VideoFrame
from samforge.workflows import compare_videos as workflow
from samforge.workflows.labelled_data import (
    DataOptions,
    LabelledVideos,
    data_from_text,
    videos_from_text,
)

Capture = pytest.CaptureFixture[str]
CAT = Thing((1, 1, 5, 5), phrase="star")
OTHER = Thing((9, 8, 13, 13), phrase="star", score=0.8)
LENGTH = 6


def truth(things: list[Thing], phrase: str, first_id: int = 0) -> VideoQuestion:
    """What things of a script look like at the frame's size."""

    def frame(number: int) -> Detections:
        cells = [one.mask(number) > 0 for one in things]
        masks = Masks.concatenate(
            [
                Masks.empty(SIZE_HW),
                *(Masks.from_dense(np.kron(one, np.ones((2, 3), np.bool_))[None]) for one in cells),
            ]
        )
        return Detections(
            masks=masks,
            boxes_xyxy=masks.boxes.astype(np.float32),
            scores=np.ones(len(things), np.float32),
            labels=(phrase,) * len(things),
            size_hw=SIZE_HW,
            ids=np.arange(first_id, first_id + len(things)),
        )

    return VideoQuestion(text=phrase, tracks=tuple(frame(number) for number in range(LENGTH)))


def video(name: str = "one") -> LabelledVideo:
    """Two stars that stay, and no circle."""
    return LabelledVideo(
        name=name,
        length=LENGTH,
        frames=lambda: (picture(number) for number in range(LENGTH)),
        questions=(truth([CAT, OTHER], "star"), truth([], "circle", 2)),
        shown=(0, 1),
    )


def counted(things: list[Thing], reference: list[Thing] | None = None) -> VideoCount:
    answers = [ask_video(ScriptedParts(own), video()) for own in (things, reference or things)]
    return count_video(video(), answers[0], None if reference is None else answers[1])


# One video


def test_phrases_and_clicks_are_followed_and_judged() -> None:
    one = counted([CAT, OTHER])
    assert one.text is not None
    assert one.clicks is not None
    assert [score.found for score in one.text.objects] == [0, 1]
    assert all(score.j > 0.95 for score in (*one.text.objects, *one.clicks.objects))
    assert (one.text.identities.idf1, one.text.identities.switches) == (1, 0)
    # Stars are there and found, circles are neither.
    assert [(found.predicted, found.true) for found in one.outcomes] == [(2, 2), (0, 0)]
    assert one.outcomes[0].true_positives[:-1] == (2,) * 9
    assert (one.comparisons, one.decisions) == ((), ())
    figures = accuracy_from_counts([one], None)
    assert (figures.videos, figures.frames, figures.fidelity) == (1, LENGTH, None)
    assert figures.cgf1 is not None
    assert (figures.cgf1.il_mcc, figures.cgf1.found_present) == (1, 1)


def test_a_frame_is_encoded_once_for_all_questions() -> None:
    seen = []

    class Counting(ScriptedParts):
        def encode(self, image: Any) -> Any:
            seen.append(int(image[0, 0, 1]))
            return super().encode(image)

    done: list[None] = []
    ask_video(Counting([CAT]), video(), lambda: done.append(None))
    assert seen == list(range(LENGTH))
    assert len(done) == LENGTH
    assert NewestFrame(ScriptedParts([])).facts.digest == ScriptedParts([]).digest


def test_what_is_kept_of_an_answer_says_the_same() -> None:
    answer = ask_video(ScriptedParts([CAT, OTHER]), video())
    again = count_video(video(), answer, answer.compact())
    assert [one.mean for one in again.comparisons] == [1, 1, 1]


def test_a_lost_object_shows_in_every_figure() -> None:
    one = counted([CAT], reference=[CAT, OTHER])
    text, absent, clicks = one.comparisons
    assert (text.temporal_iou[0], text.temporal_iou[1]) == (1, 0)
    assert (text.lost, absent.tracks, clicks.worst) == ((1,), 0, 0)
    assert one.decisions[0]["born"] == DecisionAgreement(reference=2, measured=1, alike=1)
    matched = one.decisions[0]["matched"]
    assert (matched.reference, matched.measured, matched.alike) == (10, 5, 5)
    assert matched.share == 10 / 15
    reference = counted([CAT, OTHER])
    accuracy = accuracy_from_counts([one], ([reference], [one]))
    fidelity = accuracy.fidelity
    assert fidelity is not None
    assert (fidelity.tracks.tracks, fidelity.tracks.track_iou) == (4, 0)
    assert fidelity.j_and_f_drop["text"] == pytest.approx(
        sum(score.j_and_f for score in reference.text.objects) / 2  # type: ignore[union-attr]
        - sum(score.j_and_f for score in one.text.objects) / 2  # type: ignore[union-attr]
    )
    assert fidelity.j_and_f_drop["text"] > 0.4


def test_videos_of_two_frames_are_not_clicked_on() -> None:
    short = replace(
        video(),
        length=2,
        frames=lambda: (picture(number) for number in range(2)),
        questions=tuple(replace(one, tracks=one.tracks[:2]) for one in video().questions),
    )
    answer = ask_video(ScriptedParts([CAT, OTHER]), short)
    assert answer.by_click is None
    assert count_video(short, answer, None).clicks is None


# Decisions


def frame(index: int, shown: tuple[int, ...] = (), **ids: tuple[int, ...]) -> VideoFrame:
    masks = Masks.from_dense(np.ones((len(shown), 2, 2), np.bool_))
    detections = Detections(
        masks=masks,
        boxes_xyxy=masks.boxes.astype(np.float32),
        scores=np.ones(len(shown), np.float32),
        labels=("star",) * len(shown),
        size_hw=(2, 2),
        ids=np.array(shown, np.int64),
    )
    return VideoFrame(index=index, detections=detections, detected=True, **ids)


def test_decisions_are_of_the_same_object_on_the_same_frame() -> None:
    ours = [frame(0, born=(0, 1)), frame(1, matched=(0, 1)), frame(2, removed=(1,))]
    theirs = [frame(0, born=(5,)), frame(1, born=(6,), matched=(5,)), frame(2, removed=(6,))]
    # 1 and 6 are removed before anybody sees them: they have no partner and are alike in that.
    found = compare_decisions(ours, theirs, {0: 5})
    assert found["born"] == DecisionAgreement(reference=2, measured=2, alike=1)
    assert found["matched"] == DecisionAgreement(reference=2, measured=1, alike=1)
    assert found["removed"] == DecisionAgreement(reference=1, measured=1, alike=1)
    # A track that was lost and one that was made up are not one object, whatever happens to both.
    lost = [frame(0, shown=(0, 1), born=(0, 1)), frame(1, shown=(0, 1), matched=(0, 1))]
    made_up = [frame(0, shown=(5, 6), born=(5, 6)), frame(1, shown=(5, 6), matched=(5, 6))]
    apart = compare_decisions(lost, made_up, {0: 5})
    assert apart["born"] == DecisionAgreement(reference=2, measured=2, alike=1)
    assert apart["matched"] == DecisionAgreement(reference=2, measured=2, alike=1)
    assert summed_decisions([found, found])["born"].alike == 2
    assert DecisionAgreement(reference=0, measured=0, alike=0).share == 1


# Gates


def verdict(things: list[Thing], videos: int = 8, gates: Gates | None = None) -> Any:
    reference = counted([CAT, OTHER])
    one = counted(things, reference=[CAT, OTHER])
    return verdict_from_counts([reference] * videos, [one] * videos, "int8", gates or Gates())


def test_gates_on_tracks() -> None:
    good = verdict([CAT, OTHER])
    assert [(one.gate, one.where, one.held) for one in good.judged] == [
        ("track_iou", "", True),
        ("j_and_f_drop", "text", True),
        ("j_and_f_drop", "clicks", True),
        ("switch_rise", "", True),
    ]
    assert (good.videos, good.tracks) == (8, 32)
    assert check_video_verdict(good, "int8", Gates()) == ()
    bad = verdict([CAT])
    with pytest.raises(FidelityError, match=r"track_iou: smallest temporal IoU .* is 0\.0000"):
        check_video_verdict(bad, "int8", Gates())
    with pytest.raises(FidelityError, match=r"j_and_f_drop: loss of J&F .* \(text\)"):
        check_video_verdict(bad, "int8", Gates())


def test_a_wider_gate_lets_it_through() -> None:
    wide = Gates(track_iou=0, j_and_f_drop=1)
    assert check_video_verdict(verdict([CAT], gates=wide), "int8", wide) == ()


def test_switches_beyond_the_references_are_counted() -> None:
    reference = counted([CAT, OTHER])
    assert reference.text is not None
    identities = replace(reference.text.identities, switches=3)
    worse = replace(
        counted([CAT, OTHER], reference=[CAT, OTHER]),
        text=replace(reference.text, identities=identities),
    )
    found = verdict_from_counts([reference] * 8, [worse] * 8, "fp32", Gates())
    (rise,) = [one for one in found.judged if one.gate == "switch_rise"]
    assert (rise.interval.value, rise.held) == (24, False)


def test_few_videos_prove_nothing_and_a_recipe_may_say_that_they_are_enough() -> None:
    few = verdict([CAT, OTHER], videos=2)
    assert few.lacking == (
        f"2 videos, at least {LEAST['videos']} are needed",
        f"8 tracks, at least {LEAST['tracks']} are needed",
    )
    with pytest.raises(FidelityError, match="too little to tell"):
        check_video_verdict(few, "int8", Gates())
    (note,) = check_video_verdict(few, "int8", Gates(weak_evidence=True))
    assert note.startswith("Weak evidence (2 videos, 8 tracks of the reference)")


# Drawn clips


def test_clips_are_those_of_the_model_card_and_one_phrase_is_absent() -> None:
    (clip,) = labelled_clips(1, first=3, frames=4)
    (one,) = labelled_videos(1, first=3, frames=4)
    assert (one.name, one.length, one.shown) == (clip.name, 4, clip.shown)
    assert all(np.array_equal(a, b) for a, b in zip(one.frames(), clip.images_rgb, strict=True))
    present, absent = one.questions
    for detections, masks in zip(present.tracks, clip.masks, strict=True):
        assert detections.ids is not None
        assert detections.ids.tolist() == list(masks)
        assert np.array_equal(detections.masks.dense(), np.stack(list(masks.values())))
    assert [len(frame) for frame in absent.tracks] == [0] * 4
    (scene,) = draw_crossing(3, frames=1)
    assert len(absent.text.split()) == 2
    assert tuple(absent.text.split()) not in scene.concepts


def test_data_by_name(tmp_path: Path) -> None:
    clips = videos_from_text("clips:3", DataOptions(seed=5, limit=2))
    assert (clips.name, clips.count, clips.frames, clips.taught) == ("clips:2", 2, 64, True)
    with pytest.raises(SettingError, match="Give a number of clips from 1 up: clips:20"):
        data_from_text("clips:none")
    with pytest.raises(SettingError, match="which holds images: call compare"):
        videos_from_text("scenes:1")
    with pytest.raises(SettingError, match="which holds videos: call compare_videos"):
        samforge.compare(["x"], "clips:1")
    with pytest.raises(SettingError, match=r"--videos is .* with --data videos:FILE\.json"):
        data_from_text("clips:1", DataOptions(videos=tmp_path))
    with pytest.raises(SettingError, match="Give a file of labelled videos"):
        data_from_text("videos:")
    with pytest.raises(SettingError, match=r"It labels videos: give it as videos:FILE\.json"):
        data_from_text(str(written(tmp_path)))


# Bundles


class FakeSegmenter:
    """Follows what a script says."""

    def __init__(self, things: list[Thing]) -> None:
        self.things = things

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tracker_parts(self) -> ScriptedParts:
        return ScriptedParts(self.things)


@pytest.fixture
def tracked(
    fake_bundle: Callable[..., samforge.Bundle], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., samforge.Bundle]:
    """Makes a bundle that follows a script."""
    scripts: dict[Path, list[Thing]] = {}

    def load(bundle: samforge.Bundle, *, device: str) -> FakeSegmenter:
        assert device == "auto"
        return FakeSegmenter(scripts[bundle.root])

    monkeypatch.setattr(workflow, "load", load)

    def make(name: str, things: list[Thing], precision: str = "fp32") -> samforge.Bundle:
        bundle = fake_bundle(name, precision=precision)
        scripts[bundle.root] = things
        entry = next(iter(bundle.manifest.parts.values()))
        parts = dict.fromkeys(TRACK.parts, entry)
        return replace(bundle, manifest=replace(bundle.manifest, parts=parts))

    return make


def data(count: int = 8) -> LabelledVideos:
    def videos() -> Iterator[LabelledVideo]:
        return (video(f"video {number}") for number in range(count))

    return LabelledVideos(
        name="made up",
        count=count,
        frames=count * LENGTH,
        words=frozenset({"star", "circle"}),
        taught=False,
        videos=videos,
    )


def test_bundles_are_held_against_the_first(tracked: Callable[..., samforge.Bundle]) -> None:
    bundles = [
        tracked("a", [CAT, OTHER]),
        tracked("b", [CAT, OTHER], "int8"),
        tracked("c", [CAT], "int8"),
    ]
    frames: list[None] = []
    rows = samforge.compare_videos(bundles, data(), gates=True, done=lambda: frames.append(None))
    assert len(frames) == 3 * 8 * LENGTH
    assert [(row.reference, row.precision) for row in rows] == [
        (True, "fp32"),
        (False, "int8"),
        (False, "int8"),
    ]
    first, same, worse = rows
    assert (first.accuracy.fidelity, first.verdict) == (None, None)
    assert same.accuracy.fidelity is not None
    assert worse.accuracy.fidelity is not None
    assert same.accuracy.fidelity.tracks.track_iou == 1
    assert same.accuracy.fidelity.decisions["born"].share == 1
    assert worse.accuracy.fidelity.tracks.track_iou == 0
    check = workflow.check_tracking(bundles, rows)
    assert check.notes == ()
    (failed,) = check.failed
    assert failed.startswith(f"{bundles[2].root}: int8 against the reference does not hold")


def test_a_video_that_cannot_be_read_counts_for_nobody(
    tracked: Callable[..., samforge.Bundle],
) -> None:
    def broken() -> Iterator[Any]:
        yield picture(0)
        raise ImageError("gone")

    whole = data(3)

    def videos() -> Iterator[LabelledVideo]:
        first, second, third = whole.videos()
        yield from (first, replace(second, frames=broken), third)

    bundles = [tracked("a", [CAT, OTHER]), tracked("b", [CAT, OTHER])]
    told: list[str] = []
    rows = samforge.compare_videos(
        bundles, replace(whole, videos=videos), report=lambda item, _: told.append(item)
    )
    assert told == ["video 1"] * 2
    assert [row.accuracy.videos for row in rows] == [2, 2]
    with pytest.raises(ImageError, match="gone"):
        samforge.compare_videos(bundles, replace(whole, videos=videos))
    nothing = replace(whole, videos=lambda: (replace(one, frames=broken) for one in whole.videos()))
    with pytest.raises(SettingError, match="No video could be followed"):
        samforge.compare_videos(bundles, nothing, report=lambda *_: None)


def test_bundles_that_cannot_be_compared(
    tracked: Callable[..., samforge.Bundle], fake_bundle: Callable[..., samforge.Bundle]
) -> None:
    with pytest.raises(SettingError, match="compare_videos got no bundle"):
        samforge.compare_videos([])
    with pytest.raises(SettingError, match="was built without the tracker's parts"):
        samforge.compare_videos([fake_bundle("plain")], data(1))
    unknown = replace(data(1), words=frozenset({"zebra"}))
    with pytest.raises(SettingError, match=r"asks for zebra"):
        samforge.compare_videos([tracked("a", [CAT])], unknown)


# The command line


def written(folder: Path) -> Path:
    """The video as a file of SA-Co/VEval, with its frames."""
    (folder / "frames").mkdir()
    for number in range(LENGTH):
        write_png(folder / "frames" / f"{number}.png", picture(number))
    one = video().questions[0]
    segmentations = [
        [segmentation_from_mask(found.masks[row]) for found in one.tracks] for row in range(2)
    ]
    table = {
        "videos": [
            {
                "id": 5,
                "height": SIZE_HW[0],
                "width": SIZE_HW[1],
                "file_names": [f"frames/{number}.png" for number in range(LENGTH)],
            }
        ],
        "categories": [{"id": 1, "name": "star"}, {"id": 2, "name": "circle"}],
        "annotations": [
            {"id": row, "video_id": 5, "category_id": 1, "segmentations": own}
            for row, own in enumerate(segmentations)
        ],
        "video_np_pairs": [
            {"id": 0, "video_id": 5, "category_id": 1, "noun_phrase": "star"},
            {"id": 1, "video_id": 5, "category_id": 2, "noun_phrase": "circle"},
        ],
    }
    path = folder / "veval.json"
    path.write_text(json.dumps(table))
    return path


@pytest.fixture
def two(
    tracked: Callable[..., samforge.Bundle], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """Folders of a bundle and a worse one, which the command line opens."""
    made = {name: tracked(name, own) for name, own in (("a", [CAT, OTHER]), ("b", [CAT]))}
    # Its package gives the function of this name, and not the file.
    command = importlib.import_module("samforge.apps.cli.compare")
    monkeypatch.setattr(
        command, "opened_bundles", lambda paths, _: [made[path.name] for path in paths]
    )
    return str(made["a"].root), str(made["b"].root)


def test_a_labelled_video_from_the_command_line(
    two: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    path = written(tmp_path)
    words = ["compare", *two, "--data", str(path), "--videos", str(tmp_path)]
    assert cli.main([*words, "--gate", "--json"]) == 7
    report = json.loads(capsys.readouterr().out)
    assert report["data"] == f"videos:{path}"
    assert report["error"]["kind"] == "FidelityError"
    first, second = report["bundles"]
    assert first["accuracy"]["cgf1"]["il_mcc"] == 1
    assert first["accuracy"]["text"]["objects"] == 2
    fidelity = second["accuracy"]["fidelity"]
    assert fidelity["tracks"]["track_iou"] == 0
    assert fidelity["decisions"]["born"] == {"reference": 2, "measured": 1, "alike": 1}
    assert second["verdict"]["judged"][0]["gate"] == "track_iou"
    assert "track_iou" in report["failed_gates"][0]


def test_people_get_tables(two: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    path = written(tmp_path)
    assert cli.main(["compare", *two, "--data", f"videos:{path}"]) == 0
    out = capsys.readouterr().out
    for part in ("Tracking on videos:", "IDF1", "IL_MCC", "Decisions of the rules", "matched"):
        assert part in out
    assert max(map(len, out.splitlines())) <= 100


def test_missing_frames_are_named(two: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    path = written(tmp_path)
    (tmp_path / "frames" / "3.png").unlink()
    assert cli.main(["compare", *two, "--data", f"videos:{path}"]) == 2
    assert "--videos FOLDER" in capsys.readouterr().err
