"""``samforge video``: the written video, COCO file and figures, Ctrl-C, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import samforge
from samforge.apps import cli
from samforge.backends.onnxruntime import OnnxRuntimeSession
from samforge.core.detections import Detections
from samforge.core.session import Array, Tensors
from samforge.core.timing import Timings
from samforge.draw import overlay
from samforge.draw.readout import draw_readout
from samforge.formats import CocoStream
from samforge.measure.accuracy import match_masks
from samforge.media.video import VideoFrame, VideoReader, VideoWriter
from samforge.models.tiny.moving import draw_clip
from samforge.workflows.interrupts import interrupts_held
from samforge.workflows.video import Pace

Capture = pytest.CaptureFixture[str]
Make = Callable[..., samforge.Bundle]
TIMES = tuple(Fraction(t, 30) for t in (0, 1, 2, 5, 6, 7, 9, 12))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Eight drawn pictures at a variable rate."""
    return _write(tmp_path / "clip.mp4", 112)


def _write(path: Path, size: int, *, times: tuple[Fraction, ...] = TIMES) -> Path:
    with VideoWriter(path, (size, size)) as writer:
        scenes = draw_clip(0, frames=len(times), size=size)
        for scene, seconds in zip(scenes, times, strict=True):
            writer.write(scene.image, seconds)
    return path


def _read(path: Path) -> list[VideoFrame]:
    with VideoReader(path) as reader:
        frames = list(reader.frames())
        assert reader.problem is None
        return frames


def _coarse(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Means of 8 x 8 pixels: what codecs keep of a noisy picture."""
    height, width = rgb.shape[:2]
    blocks = rgb.reshape(height // 8, 8, width // 8, 8, 3)
    means: npt.NDArray[np.float64] = blocks.mean((1, 3))
    return means


def _video(bundle: samforge.Bundle, *words: object) -> int:
    return cli.main(["video", str(bundle.root), *map(str, words)])


# pycocotools 2.0.11 decodes through an array class older than numpy 2's protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_what_is_found_is_drawn_and_written(
    fake_bundle: Make, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, coco_path = tmp_path / "out.mp4", tmp_path / "out.json"
    words = ("--text", "star", "--text", "circle", "--threshold", "0.2", "--coco", coco_path)
    bundle = fake_bundle(precision="int8")
    assert _video(bundle, clip, "--out", out, *words, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert (report["command"], report["ok"], report["complete"]) == ("video", True, True)
    assert (report["frames"], report["size_hw"], report["notes"]) == (8, [112, 112], [])
    assert report["fps"] == pytest.approx(8 / report["seconds"], rel=0.01)

    source, written = _read(clip), _read(out)
    assert [frame.seconds for frame in written] == [frame.seconds for frame in source]
    segmenter = samforge.load(bundle)
    coco = COCO(str(coco_path))
    count = 0
    for number, (before, after) in enumerate(zip(source, written, strict=True), 1):
        found = segmenter.predict(before.image_rgb, text=["star", "circle"], threshold=0.2)
        count += len(found)
        # Below the readout, whose figures are those of the run.
        expected = overlay(before.image_rgb, found, color_by_phrase=True)[56:]
        assert np.abs(_coarse(after.image_rgb[56:]) - _coarse(expected)).mean() < 3
        assert np.abs(_coarse(before.image_rgb[56:]) - _coarse(expected)).mean() > 15
        image = coco.loadImgs(number)[0]
        place = (image["video_id"], image["frame_index"], image["file_name"])
        assert place == (1, number - 1, f"clip/{number - 1:06d}.png")
        assert image["seconds"] == float(before.seconds)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        masks = [coco_mask.decode(one["segmentation"]).astype(bool) for one in annotations]
        assert [mask.tolist() for mask in masks] == [mask.tolist() for mask in found.masks]
    assert count > 0
    assert [one["name"] for one in coco.loadCats([1, 2])] == ["star", "circle"]
    detections = report["detections"]
    assert detections["count"] == count == len(coco.getAnnIds())
    assert detections["mean_per_frame"] == count / 8
    assert sum(one["detections"] for one in detections["phrases"].values()) == count


def test_the_readout_is_in_the_corner(
    fake_bundle: Make, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other figures are other pictures, and the encoder spends its bits on them elsewhere.
    words = ("12.3 ms", "45.6 frames/s")
    monkeypatch.setattr(Pace, "words", lambda *_: words)
    out = tmp_path / "out.mp4"
    asked = ("--out", out, "--text", "star", "--threshold", "1")
    assert _video(fake_bundle(precision="int8"), clip, *asked) == 0
    for before, after in zip(_read(clip), _read(out), strict=True):
        expected = draw_readout(before.image_rgb, ("onnxruntime int8", *words))
        difference = np.abs(after.image_rgb.astype(int) - expected)
        assert difference[:14, :40].mean() < 8
        assert difference[:60].mean() < 8
        assert difference[60:].mean() < 4


def test_the_figures_are_stable(
    fake_bundle: Make, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("--out", tmp_path / "out.mp4", "--text", "star", "--json")
    assert _video(fake_bundle(), clip, *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {
        *("schema", "command", "ok", "bundle", "video", "out", "coco", "frames", "size_hw"),
        *("tracks", "follows", "detect_every"),
        *("frame_rate", "complete", "seconds", "fps", "stages", "detections", "failures", "notes"),
    }
    stages = [one["stage"] for one in report["stages"]]
    model = ["preprocess", "vision", "text", "detector", "post-process"]
    assert stages == ["decode", *model, "draw", "encode"]
    for one in report["stages"]:
        latency = one["latency"]
        assert latency["samples"] == 8
        assert 0 <= latency["median_ms"] <= latency["p95_ms"] <= latency["max_ms"]
        assert latency["mean_ms"] > 0
    text = next(one["latency"] for one in report["stages"] if one["stage"] == "text")
    assert text["median_ms"] == 0, "the phrase is encoded once"


def test_people_get_tables(fake_bundle: Make, clip: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.mp4"
    assert _video(fake_bundle(), clip, "--out", out, "--text", "star") == 0
    captured = capsys.readouterr()
    for words in ("clip.mp4: 8 frames", "star", "best score", "vision", "encode", "p95 ms"):
        assert words in captured.out
    assert "frames a second." in captured.out
    assert f"Written to {out}" in captured.out
    assert captured.err == ""


def test_every_nth_frame_up_to_a_number(
    fake_bundle: Make, clip: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.mp4"
    words = ("--text", "star", "--every", 2, "--max-frames", 3, "--json")
    assert _video(fake_bundle(), clip, "--out", out, *words) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 3
    assert [frame.seconds for frame in _read(out)] == [TIMES[0], TIMES[2], TIMES[4]]


def test_odd_sizes_are_padded_and_told_once(
    fake_bundle: Make, tmp_path: Path, capsys: Capture
) -> None:
    # Matroska holds odd sizes; the writer pads those of MP4.
    import av

    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 113, 111, "yuv444p"
        for scene in draw_clip(0, frames=3, size=113):
            picture = av.VideoFrame.from_ndarray(scene.image[:111].copy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    out = tmp_path / "out.mp4"
    assert _video(fake_bundle(), path, "--out", out, "--text", "star") == 0
    note = "H.264 for browsers has even sides: 113 x 111 became 114 x 112"
    assert capsys.readouterr().err.count(note) == 1
    assert _read(out)[0].image_rgb.shape == (112, 114, 3)


def test_rotation_is_honoured(fake_bundle: Make, tmp_path: Path) -> None:
    import av

    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 112, 64, "yuv420p"
        stream.set_display_rotation(90)
        for scene in draw_clip(0, frames=3, size=112):
            picture = av.VideoFrame.from_ndarray(scene.image[:64].copy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    out = tmp_path / "out.mp4"
    words = ("--out", out, "--text", "star", "--threshold", "1")
    assert _video(fake_bundle(), path, *words) == 0
    upright = np.rot90(next(draw_clip(0, frames=1, size=112)).image[:64])
    shown = _read(out)[0].image_rgb
    assert shown.shape == upright.shape == (112, 64, 3)
    assert np.abs(_coarse(shown[56:]) - _coarse(upright[56:])).mean() < 3
    assert np.abs(_coarse(shown[56:]) - _coarse(upright[:56][::-1, ::-1])).mean() > 10


def test_a_truncated_video_is_done_as_far_as_it_goes(
    fake_bundle: Make, tmp_path: Path, capsys: Capture
) -> None:
    path = _write(tmp_path / "clip.mp4", 112, times=tuple(Fraction(i, 30) for i in range(40)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    out = tmp_path / "out.mp4"
    assert _video(fake_bundle(), path, "--out", out, "--text", "star") == 2
    captured = capsys.readouterr()
    count = len(_read(out))
    assert 5 < count < 40
    assert f"VideoError: {path} ends after {count} frames" in captured.err
    assert "was not transferred whole. What could be read is done." in captured.err
    assert _video(fake_bundle("b"), path, "--out", out, "--text", "star", "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["complete"]) == (False, False)
    assert (report["error"]["kind"], report["error"]["exit_code"]) == ("VideoError", 2)


SLOW = """
import sys, time
from samforge.backends.onnxruntime import OnnxRuntimeSession
run = OnnxRuntimeSession.run
def slow(self, tensors):
    time.sleep(0.05)
    return run(self, tensors)
OnnxRuntimeSession.run = slow
from samforge.apps import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def test_ctrl_c_leaves_a_playable_file(fake_bundle: Make, tmp_path: Path) -> None:
    times = tuple(Fraction(i, 30) for i in range(300))
    path = _write(tmp_path / "clip.mp4", 64, times=times)
    out = tmp_path / "out" / "out.mp4"
    coco = out.with_suffix(".json")
    command = [sys.executable, "-c", SLOW, "video", str(fake_bundle().root), str(path)]
    words = ["--out", str(out), "--text", "star", "--coco", str(coco)]
    run = subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (out.parent.is_dir() and any(out.parent.glob(".out.*.part.mp4"))):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)  # some frames
    run.send_signal(signal.SIGINT)
    printed, problems = run.communicate(timeout=30)
    assert run.returncode == 130
    frames = _read(out)
    assert 1 <= len(frames) < 300
    assert [frame.seconds for frame in frames] == list(times[: len(frames)])
    assert len(json.loads(coco.read_text())["images"]) == len(frames)
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["out.json", "out.mp4"]
    message = f"Stopped after {len(frames)} frames. {out} holds them and plays."
    assert problems.splitlines()[-1] == f"Interrupted: {message}"
    assert f"clip.mp4: {len(frames)} frames" in printed


@pytest.mark.parametrize("frame", [0, 5])
def test_ctrl_c_is_one_object_for_machines(
    frame: int,
    fake_bundle: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    path = _write(tmp_path / "clip.mp4", 64, times=tuple(Fraction(i, 30) for i in range(60)))
    out, calls = tmp_path / "out.mp4", []
    run = OnnxRuntimeSession.run

    def interrupted(self: OnnxRuntimeSession, tensors: Tensors) -> dict[str, Array]:
        calls.append(self.spec.name)
        if calls.count("vision") == frame + 1 and self.spec.name == "vision":
            signal.raise_signal(signal.SIGINT)  # the main thread gets it
            time.sleep(0.2)
        return run(self, tensors)

    monkeypatch.setattr(OnnxRuntimeSession, "run", interrupted)
    assert _video(fake_bundle(), path, "--out", out, "--text", "star", "--json") == 130
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["error"]["kind"]) == (False, "Interrupted")
    if frame:
        count = len(_read(out))
        assert 1 <= count <= frame
        assert report["error"]["message"].startswith(f"Stopped after {count} frames. ")
    else:
        assert not out.exists()
        assert "part" not in " ".join(entry.name for entry in tmp_path.iterdir())


def test_ctrl_c_waits_for_what_must_be_whole() -> None:
    done = []

    def work() -> None:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")
        done.append("not reached")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            "PromptError: There is nothing to find. Give --text 'red circle', or --point 'x,y'.",
        ),
        (("--text", " "), "PromptError: A phrase is empty. Give words, such as --text"),
        (("--text", "a", "--threshold", "1.5"), "SettingError: threshold is 1.5. Give a number"),
        (("--text", "a", "--every", "0"), "UsageError: Invalid value for '--every'"),
        (
            ("--point", "2,2", "--at", "100"),
            "PromptError: Clicks are on frame 100, and clip.mp4 has",
        ),
    ],
)
def test_settings_refused(
    words: tuple[str, ...],
    message: str,
    fake_bundle: Make,
    clip: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    out = tmp_path / "out.mp4"
    assert _video(fake_bundle(), clip, "--out", out, *words) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "clip.mp4"), "--out clip.mp4 is the video that is read. Give another name."),
        (("--out", "./x/../clip.mp4"), "is the video that is read. Give another name."),
        (("--out", "link.mp4"), "--out link.mp4 is the video that is read. Give another name."),
        (("--out", "a.mp4", "--coco", "clip.mp4"), "--coco clip.mp4 is the video that is read."),
        (("--out", "a.mp4", "--coco", "a.mp4"), "--coco a.mp4 is what --out writes. Give another"),
        (("--out", "a.avi"), "--out is a video file that ends in .mp4, .m4v, .mov, got a.avi."),
        (("--out", "folder.mp4"), "--out folder.mp4 is a folder. Give a file in it."),
    ],
)
def test_files_that_are_in_each_others_way(  # noqa: PLR0917
    words: tuple[str, ...],
    message: str,
    fake_bundle: Make,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.mp4").symlink_to(clip)
    (tmp_path / "folder.mp4").mkdir()
    content = clip.read_bytes()
    assert _video(fake_bundle(), clip, "--text", "star", *words) == 2
    assert f"SettingError: {message}" in capsys.readouterr().err.replace("--out x/../clip.mp4 ", "")
    assert clip.read_bytes() == content
    assert not (tmp_path / "a.mp4").exists()


def test_bad_files_are_told_before_a_model_is_loaded(
    fake_bundle: Make,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(samforge, "load", None, raising=False)
    bundle = fake_bundle()
    bad = tmp_path / "bad.mp4"
    bad.write_text("hello")
    assert _video(bundle, bad, "--out", tmp_path / "o.mp4", "--text", "star") == 2
    assert f"VideoError: {bad} is not a video that samforge reads" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out.mp4"
    assert _video(bundle, clip, "--out", out, "--text", "star") == 6
    error = f"OutputError: {tmp_path / 'file'} cannot be written: "
    assert error in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(fake_bundle: Make, clip: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o555)
    assert _video(fake_bundle(), clip, "--out", folder / "o.mp4", "--text", "star") == 6
    assert f"{folder} cannot be written: Permission denied" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(fake_bundle: Make, clip: Path, tmp_path: Path) -> None:
    import resource

    out = tmp_path / "out"
    command = [sys.executable, "-m", "samforge.apps.cli", "video", str(fake_bundle().root)]
    words = [str(clip), "--out", str(out / "o.mp4"), "--coco", str(out / "o.json")]
    run = subprocess.run(
        [*command, *words, "--text", "star", "--threshold", "0.99"],  # the video is full first
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000)),
    )
    assert run.returncode == 6
    assert f"OutputError: Cannot write {out / 'o.mp4'}" in run.stderr
    assert "File too large" in run.stderr
    assert list(out.iterdir()) == []


def test_zero_frames(fake_bundle: Make, tmp_path: Path, capsys: Capture) -> None:
    import av

    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    out = tmp_path / "out"
    words = ("--out", out / "o.mp4", "--coco", out / "o.json", "--text", "star")
    assert _video(fake_bundle(), path, *words) == 2
    error = f"VideoError: {path} holds no frames. Give another video."
    assert error in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_the_pace_is_a_mean_that_can_be_read() -> None:
    pace = Pace()
    timings = Timings()
    timings.add("decode", 1000.0)
    timings.add("vision", 120.0)
    timings.add("detector", 30.5)
    timings.add("draw", 1000.0)
    assert pace.words(timings) == ("150 ms", "- fps")
    fast = Timings()
    fast.add("vision", 10.0)
    milliseconds, rate = pace.words(fast)
    assert milliseconds == "80.2 ms"
    assert rate.endswith(" fps")
    for _ in range(20):
        milliseconds, _ = pace.words(fast)
    assert milliseconds == "10.0 ms"


def test_an_empty_coco_file_is_one(tmp_path: Path) -> None:
    stream = CocoStream(tmp_path / "o.json", Path("in.mp4"), ("red 'ä'",))
    stream.add(4, Fraction(1, 3), Detections.empty((10, 20)))
    assert list(tmp_path.glob("*.json")) == []
    stream.finish()
    content = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert content["categories"] == [{"id": 1, "name": "red 'ä'"}]
    assert content["annotations"] == []
    assert content["images"][0]["frame_index"] == 4
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_phrase_has_a_threshold_of_its_own(
    tiny_bundle: samforge.Bundle, tmp_path: Path, capsys: Capture
) -> None:
    clip = _write(tmp_path / "clip.mp4", 224, times=tuple(Fraction(i, 30) for i in range(2)))
    other = f"{next(iter(draw_clip(0, frames=1))).colours[0]} object"
    words = ("--out", tmp_path / "o.mp4", "--text", "object", "--text", other)
    assert _video(tiny_bundle, clip, *words, "--threshold-for", "object=1", "--json") == 0
    phrases = json.loads(capsys.readouterr().out)["detections"]["phrases"]
    assert (phrases["object"]["detections"], phrases["object"]["best_score"] > 0.5) == (0, True)
    assert phrases[other]["detections"] > 0
    words = (*words, "--overwrite", "--threshold-for", "star=0.4")
    assert _video(tiny_bundle, clip, *words) == 2
    assert "--threshold-for names 'star', which is not looked for" in capsys.readouterr().err


# pycocotools 2.0.11 decodes through an array class older than numpy 2's protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_tiny_model_finds_moving_shapes(
    tiny_bundle: samforge.Bundle, tmp_path: Path, capsys: Capture
) -> None:
    clip = _write(tmp_path / "clip.mp4", 224, times=tuple(Fraction(i, 30) for i in range(6)))
    scenes = list(draw_clip(0, frames=6))
    phrase = f"{scenes[0].colours[0]} object"
    coco_path = tmp_path / "o.json"
    words = ("--out", tmp_path / "o.mp4", "--coco", coco_path, "--text", phrase, "--json")
    assert _video(tiny_bundle, clip, *words) == 0
    coco = COCO(str(coco_path))
    matched = 0
    for number, scene in enumerate(scenes, 1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        masks = [coco_mask.decode(one["segmentation"]).astype(bool) for one in annotations]
        wanted = scene.masks[scene.matching(phrase)]
        matched += match_masks(np.stack(masks), wanted).true_positives
    assert matched >= 17, "three in each of six frames"
