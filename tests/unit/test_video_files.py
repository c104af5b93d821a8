"""Videos in and out: real files, made and read with PyAV."""

from __future__ import annotations

import gc
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from samforge.core.errors import MissingExtra, OutputError, SettingError, ShapeError, VideoError
from samforge.media.video import VideoFrame, VideoReader, VideoWriter
from samforge.models.tiny.moving import draw_clip

Rgb = npt.NDArray[np.uint8]
CORNERS = ((200, 30, 30), (30, 30, 200), (30, 200, 30), (240, 240, 240))
"""Top left, top right, bottom left, bottom right."""


def corners(height: int = 64, width: int = 96) -> Rgb:
    """Four quarters of different colours: shows every way to turn or mirror a picture."""
    rgb = np.empty((height, width, 3), np.uint8)
    for i, color in enumerate(CORNERS):
        rows, columns = slice(height // 2), slice(width // 2)
        rows = rows if i < 2 else slice(height // 2, None)
        columns = columns if i % 2 == 0 else slice(width // 2, None)
        rgb[rows, columns] = color
    return rgb


def colors_of(rgb: Rgb) -> tuple[tuple[int, ...], ...]:
    """Which of ``CORNERS`` stands in each quarter, whatever the codec made of it."""
    height, width = rgb.shape[:2]
    found = []
    for row, column in ((1, 1), (1, 3), (3, 1), (3, 3)):
        pixel = rgb[height * row // 4, width * column // 4].astype(int)
        distance = [np.abs(pixel - color).max() for color in CORNERS]
        assert min(distance) <= 4
        found.append(CORNERS[int(np.argmin(distance))])
    return tuple(found)


def noise(count: int, height: int = 96, width: int = 128) -> Iterator[Rgb]:
    """Pictures that no codec makes small."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (height, width, 3), np.uint8)


def write_with_pyav(path: Path, frames: Iterator[Rgb] | list[Rgb], **settings: Any) -> Path:
    """Write a file as another program would: 30 frames a second, no faststart."""
    matrix = settings.pop("matrix", None)
    with av.open(str(path), "w", **settings.pop("container", {})) as container:
        stream = container.add_stream(settings.pop("codec", "libx264"), rate=30)
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for i, rgb in enumerate(frames):
            if i == 0:
                stream.height, stream.width, stream.pix_fmt = *rgb.shape[:2], "yuv420p"
                if matrix is not None:
                    stream.set_display_matrix(matrix)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read(path: Path, **settings: Any) -> tuple[list[VideoFrame], VideoReader]:
    with VideoReader(path) as reader:
        return list(reader.frames(**settings)), reader


def test_frames_and_times_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    # Smooth pictures: what a codec loses of noise says nothing about ours.
    pictures = [np.kron(p, np.ones((24, 32, 1))).astype(np.uint8) for p in rng.integers(
        16, 235, (8, 4, 4, 3)
    )]  # fmt: skip
    # A variable rate, with a pause; exact in ticks of 1/90000.
    times = [Fraction(t, 30) for t in (0, 1, 2, 10, 11, 13, 14, 30)]
    path = tmp_path / "out.mp4"
    with VideoWriter(path, (96, 128)) as writer:
        for picture, seconds in zip(pictures, times, strict=True):
            writer.write(picture, seconds)
    frames, reader = read(path)
    assert [frame.seconds for frame in frames] == times
    assert [frame.index for frame in frames] == list(range(8))
    assert reader.problem is None
    for frame, picture in zip(frames, pictures, strict=True):
        difference = np.abs(frame.image_rgb.astype(int) - picture)
        assert difference.mean() < 3


def test_browsers_play_it(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, (64, 96)) as writer:
        for i in range(5):
            writer.write(corners(), Fraction(i, 30))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert (stream.codec_context.name, stream.profile) == ("h264", "High")
        assert (frame.format.name, frame.width, frame.height) == ("yuv420p", 96, 64)
        # Colours are labelled as BT.709, limited range: no player has to guess.
        assert (frame.colorspace, frame.color_range, frame.color_trc) == (1, 1, 1)
    assert _atoms(path.read_bytes())[:2] == ["ftyp", "moov"]
    assert colors_of(read(path)[0][0].image_rgb) == CORNERS


def _atoms(content: bytes) -> list[str]:
    names, place = [], 0
    while place < len(content):
        names.append(content[place + 4 : place + 8].decode())
        place += int.from_bytes(content[place : place + 4], "big")
    return names


# The display matrix is a, b, 0, c, d, 0, x, y, 1: x' = a x + c y, y' = b x + d y.
ONE, UNIT = 1 << 16, 1 << 30
TURNS = {
    "upright": ((ONE, 0, 0, ONE), (0, 1, 2, 3)),
    "quarter clockwise": ((0, ONE, -ONE, 0), (2, 0, 3, 1)),
    "half": ((-ONE, 0, 0, -ONE), (3, 2, 1, 0)),
    "quarter counterclockwise": ((0, -ONE, ONE, 0), (1, 3, 0, 2)),
    "mirrored": ((-ONE, 0, 0, ONE), (1, 0, 3, 2)),
    "upside down": ((ONE, 0, 0, -ONE), (2, 3, 0, 1)),
    "transposed": ((0, ONE, ONE, 0), (0, 2, 1, 3)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_turned_as_a_player_does(turn: str, tmp_path: Path) -> None:
    (a, b, c, d), order = TURNS[turn]
    matrix = (a, b, 0, c, d, 0, 0, 0, UNIT)
    path = write_with_pyav(tmp_path / "in.mp4", [corners()] * 3, matrix=matrix)
    frames, _ = read(path)
    turned = "quarter" in turn or turn == "transposed"
    assert frames[0].image_rgb.shape == ((96, 64, 3) if turned else (64, 96, 3))
    assert colors_of(frames[0].image_rgb) == tuple(CORNERS[i] for i in order)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with VideoWriter(out, (64, 96), pixel_aspect=Fraction(4, 3)) as writer:
        writer.write(corners(), 0)
    assert read(out)[0][0].pixel_aspect == Fraction(4, 3)
    matrix = (0, ONE, 0, -ONE, 0, 0, 0, 0, UNIT)
    sideways = write_with_pyav(
        tmp_path / "in.mp4", [corners()], matrix=matrix, sample_aspect_ratio=Fraction(4, 3)
    )
    assert read(sideways)[0][0].pixel_aspect == Fraction(3, 4)


@pytest.mark.parametrize(("size_hw", "coded"), [((63, 95), (64, 96)), ((64, 95), (64, 96))])
def test_odd_sizes_are_padded(
    size_hw: tuple[int, int], coded: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, size_hw) as writer:
        assert writer.padding_hw == (coded[0] - size_hw[0], coded[1] - size_hw[1])
        assert writer.coded_hw == coded
        for i in range(3):
            writer.write(corners(*size_hw), Fraction(i, 30))
    rgb = read(path)[0][0].image_rgb.astype(int)
    assert rgb.shape == (*coded, 3)
    assert np.abs(rgb[:, -1] - rgb[:, -2]).max() <= 4, "the last column is there twice"


def test_every_nth_frame(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.mp4", [corners()] * 7)
    frames, reader = read(path, every=3)
    assert [frame.index for frame in frames] == [0, 3, 6]
    assert [frame.seconds for frame in frames] == [0, Fraction(1, 10), Fraction(1, 5)]
    assert reader.problem is None


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    _, reader = read(write_with_pyav(tmp_path / "in.mkv", [corners()] * 30))
    info = reader.info
    assert (info.codec, info.frame_rate, info.has_sound) == ("h264", 30, False)
    assert (info.frames, info.seconds) == (30, 1.0)  # from the duration: Matroska counts none


def test_frames_up_to_a_number(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.mp4", [corners()] * 9)
    frames, reader = read(path, every=2, at_most=3)
    assert [frame.index for frame in frames] == [0, 2, 4]
    assert reader.problem is None
    assert len(read(path, at_most=20)[0]) == 9


def test_a_reader_may_be_closed_before_its_frames(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.mp4", [corners()] * 9)
    with VideoReader(path) as reader:
        frames = reader.frames()
        assert next(frames).index == 0
    assert list(frames) == []


def test_the_same_frames_make_the_same_file(tmp_path: Path) -> None:
    """Nothing of what lies in memory beside the pictures gets into the file."""
    scenes = list(draw_clip(0, frames=8, size=112))  # seven blocks of 16: see _WITHOUT_AVX512
    written = set()
    for _ in range(40):
        with VideoWriter(tmp_path / "a.mp4", (112, 112)) as writer:
            for i, scene in enumerate(scenes):
                writer.write(scene.image, Fraction(i, 30))
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


def test_a_stream_without_times(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.h264", [corners()] * 4)
    frames, reader = read(path)
    assert [frame.seconds * reader.info.frame_rate for frame in frames] == [0, 1, 2, 3]
    assert (reader.info.frames, reader.problem) == (None, None)


def test_a_clock_that_starts_late(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.ts", [corners()] * 4)  # MPEG-TS starts after a while
    assert [float(f.seconds) for f in read(path)[0]] == pytest.approx([0, 1 / 30, 2 / 30, 3 / 30])


def test_a_size_that_changes_on_the_way(tmp_path: Path) -> None:
    first = write_with_pyav(tmp_path / "a.ts", [corners()] * 3).read_bytes()
    second = write_with_pyav(tmp_path / "b.ts", [corners(128, 128)] * 3).read_bytes()
    (tmp_path / "in.ts").write_bytes(first + second)
    frames, _ = read(tmp_path / "in.ts")
    assert len(frames) == 6
    assert {frame.image_rgb.shape for frame in frames} == {(64, 96, 3)}
    assert colors_of(frames[-1].image_rgb) == CORNERS


def test_frames_do_not_wait_for_the_garbage_collector(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.mp4", [corners(480, 640)] * 120)
    gc.disable()
    try:
        with VideoReader(path) as reader:
            resident = [_resident_bytes() for _ in reader.frames()]
    finally:
        gc.enable()
    # 70 frames of yuv420p that nobody frees would be 32 MiB.
    assert resident[110] - resident[40] < 8 << 20


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) * 1024


def test_names_are_names(tmp_path: Path) -> None:
    path = tmp_path / "concat:a%03d #1.mp4"
    with VideoWriter(path, (64, 96)) as writer:
        writer.write(corners(), 0)
    assert len(read(path)[0]) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_video_gives_what_is_there(suffix: str, tmp_path: Path) -> None:
    container = {"options": {"movflags": "faststart"}} if suffix == ".mp4" else {}
    whole = write_with_pyav(tmp_path / f"in{suffix}", noise(60), container=container)
    content = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(content[: len(content) // 2])
    frames, reader = read(cut)
    assert 20 <= len(frames) <= 30
    assert reader.problem is not None
    assert reader.problem.startswith(f"{cut} ends after {len(frames)} frames (")
    assert "it should last 2.0 s. It is damaged or was not transferred whole." in reader.problem
    assert read(whole)[1].problem is None


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.mkv", noise(30))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20000] = bytes(20000)
    path.write_bytes(content)
    frames, reader = read(path)
    assert 10 < len(frames) < 30
    assert reader.problem is not None
    assert "is damaged" in reader.problem


def test_half_an_mp4_with_its_index_at_the_end(tmp_path: Path) -> None:
    path = write_with_pyav(tmp_path / "in.mp4", noise(30))
    path.write_bytes(path.read_bytes()[:50_000])
    message = "looks like a video but cannot be opened: it is damaged or was not transferred whole"
    with pytest.raises(VideoError, match=message):
        VideoReader(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"hello " * 100, r"is not a video that samforge reads \(it begins with b'hello"),
        ("a.txt", b"1\n00:00:01,000 --> 00:00:02,000\nHi\n\n" * 9, "is not a video that samforge"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n", "is not a video that sam"),
        ("a.mp4", b"ffconcat version 1.0\nfile other.mp4\n", "is not a video that samforge reads"),
        ("a.mp4", b"", "a.mp4 is empty: 0 bytes."),
        ("a.mp4", None, "a.mp4 does not exist"),
    ],
    ids=["text", "subtitles", "playlist", "list of files", "empty", "missing"],
)
def test_what_is_no_video(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=message):
        VideoReader(path)


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"is no file. Give one video file\."):
        VideoReader(tmp_path)


def test_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"has no video track, it holds audio\. Give a video."):
        VideoReader(path)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".mkv", "holds no frames: it ends after its header. Give another video."),
        (".mp4", "holds no frames: it has no tracks. Give another video."),
        (".avi", "holds no frames. Give another video."),
    ],
)
def test_zero_frames(suffix: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match=re.escape(message)):
        read(path)


def test_without_pyav(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    message = r"PyAV is not installed. Run: pip install 'samforge\[video\]'."
    with pytest.raises(MissingExtra, match=message):
        VideoReader(tmp_path / "a.mp4")
    with pytest.raises(MissingExtra, match=message):
        VideoWriter(tmp_path / "a.mp4", (64, 96))


def test_a_pyav_that_gets_colours_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(av, "__version__", "16.1.0")
    message = r"PyAV 17 or newer \(here is 16.1.0\) is not installed. Run: pip install 'samforge\["
    with pytest.raises(MissingExtra, match=message):
        VideoReader(tmp_path / "a.mp4")


def test_a_failure_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"mine")

    def fail() -> None:
        with VideoWriter(path, (64, 96)) as writer:
            writer.write(corners(), 0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_finishes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"

    def stop() -> None:
        with VideoWriter(path, (64, 96)) as writer:
            for i in range(4):
                writer.write(corners(), Fraction(i, 30))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert len(read(path)[0]) == 4
    assert list(tmp_path.iterdir()) == [path]


def test_frames_that_do_not_fit(tmp_path: Path) -> None:
    message = r"takes uint8 frames of \(64, 96, 3\), got"
    with VideoWriter(tmp_path / "out.mp4", (64, 96)) as writer:
        with pytest.raises(ShapeError, match=rf"{message} uint8 \(64, 95, 3\)"):
            writer.write(corners(64, 95), 0)
        with pytest.raises(ShapeError, match=f"{message} float64"):
            writer.write(corners() / 255, 0)
        writer.write(corners(), 0)
    with pytest.raises(SettingError, match=r"ends in .mp4, .m4v, .mov, got .*out.avi"):
        VideoWriter(tmp_path / "out.avi", (64, 96))
    with pytest.raises(OutputError, match="a video has at least one frame"):
        VideoWriter(tmp_path / "none.mp4", (64, 96)).finish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]


def test_times_that_do_not_rise_are_moved(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, (64, 96)) as writer:
        for seconds in (0, 0, Fraction(1, 30)):
            writer.write(corners(), seconds)
    assert [frame.seconds for frame in read(path)[0]] == [0, Fraction(1, 90_000), Fraction(1, 30)]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no" / "out.mp4"
    message = f"Cannot write {path}: No such file or directory. Check that the folder exists"
    with pytest.raises(OutputError, match=message):
        VideoWriter(path, (64, 96))


FILL = """
import sys
from pathlib import Path
import numpy as np
from samforge.core.errors import OutputError
from samforge.media.video import VideoWriter

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
try:
    with VideoWriter(folder / "out.mp4", (240, 320)) as writer:
        for i in range(100):
            writer.write(rng.integers(0, 256, (240, 320, 3), np.uint8), i / 30)
except OutputError as error:
    print(error, "left:", [entry.name for entry in folder.iterdir()])
"""


def test_a_full_disk(tmp_path: Path) -> None:
    # A file system of 300 KiB in a name space of its own: nothing of it outlives the command.
    script = f'mount -t tmpfs -o size=300k none "{tmp_path}" && "{sys.executable}" -c "$0" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*command, f'mount -t tmpfs none "{tmp_path}"'], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this system has no unprivileged name spaces: {error}")
    run = subprocess.run(
        [*command, script, FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    path = tmp_path / "out.mp4"
    assert run.stdout.startswith(f"No space is left to write {path} after ")
    assert "Free some space, or choose an output on another disk. left: []" in run.stdout


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert f"Cannot write {tmp_path / 'out.mp4'} after " in run.stdout
    assert "File too large. Check that the folder exists" in run.stdout
    assert "left: []" in run.stdout


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".ts"])
@pytest.mark.parametrize("late", [0, 50])
def test_a_video_need_not_start_at_zero(tmp_path: Path, suffix: str, late: int) -> None:
    path = tmp_path / f"x{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if suffix == ".webm" else "mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 10, np.uint8))
            frame.pts, frame.time_base = number + late, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with VideoReader(path) as reader:
        frames = list(reader.frames())
        assert len(frames) == 20
        assert reader.problem is None
        assert frames[0].seconds == 0
        assert frames[-1].seconds == pytest.approx(1.9, abs=0.01)
        assert reader.info.seconds == pytest.approx(2.0, abs=0.15)


def test_a_late_matroska_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 1
        rng = np.random.default_rng(0)
        for number in range(60):
            rgb = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb)
            frame.pts, frame.time_base = number + 50, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with VideoReader(path) as reader:
        assert 0 < len(list(reader.frames())) < 50
        assert reader.problem is not None
