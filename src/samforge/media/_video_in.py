"""Video files in: frames as a player shows them, with their times."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.closing import Closing
from samforge.core.errors import SettingError, VideoError
from samforge.core.images import RgbImage
from samforge.core.paths import checked_path
from samforge.media._pyav import pyav

# Demuxers of real video files. Others would open text as subtitles, or follow a playlist to files
# and hosts that nobody named.
_FORMATS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "mxf", "nut", "dv"),
    *("h264", "hevc", "m4v", "mpegvideo", "ivf", "obu", "yuv4mpegpipe", "gif", "apng"),
)
_COMMON = "MP4, MOV, MKV, WebM, AVI, MPEG-TS, FLV, OGG, WMV, GIF"
_USUAL_RATE = Fraction(30)
_FINEST = 1_000_000  # ticks a second that MP4's 32-bit fields hold for hours
_TICK = Fraction(1, 90_000)  # of MPEG
_UNSPECIFIED, _BT709, _BT601 = 2, 1, 5  # of ITU-T H.273, as FFmpeg and swscale number them
_UPRIGHT = (1, 0, 0, 1)
_HD_ROWS = 720  # from here on, players take unlabelled colours for BT.709, below for BT.601


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video file says of itself; it need not be true."""

    codec: str
    """FFmpeg's name: ``h264``, ``vp9``, …"""
    frame_rate: Fraction
    """Frames a second, on average where the rate varies."""
    time_base: Fraction
    """Seconds that one tick of its clock lasts."""
    frames: int | None
    """Frames, counted or from the duration; None when the file says neither."""
    seconds: float | None
    """Duration, or None."""
    has_sound: bool
    """Whether there is an audio track."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoFrame:
    """One picture of a video."""

    index: int
    """Number in the file, from 0."""
    seconds: Fraction
    """When it is shown, counted from the first frame."""
    image_rgb: RgbImage
    """(H, W, 3), turned upright."""
    pixel_aspect: Fraction
    """Width of a pixel through its height: 1 but for anamorphic video."""
    owns_pixels: bool = True
    """Every frame has memory of its own: streams need not copy it."""


class VideoReader(Closing):
    """Reads a video frame by frame, whatever its length in the same memory."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            VideoError: There is no file, it is no video that is read, or has no video track.
            MissingExtra: PyAV is not installed.
        """
        self._av = pyav()
        self._path = path
        self._container = self._opened()
        try:
            self._stream = self._video_stream()
            self._stream.thread_type = "AUTO"
            self.info = self._described()
        except BaseException:
            self._container.close()
            raise
        self.problem: str | None = None
        """After the last frame: why it is not the whole video, if it is not."""
        self._damaged = 0
        self._decoding: Generator[Any, None, None] | None = None

    def frames(self, *, every: int = 1, at_most: int | None = None) -> Iterator[VideoFrame]:
        """Decode from the start to the end, or to where the file breaks off: see ``problem``.

        Args:
            every: Give every Nth frame; the others are decoded and dropped.
            at_most: Most frames to give; what comes after them is not looked at.

        Raises:
            VideoError: There is no frame at all.
            SettingError: ``every`` or ``at_most`` is below 1.
        """
        if every < 1 or (at_most is not None and at_most < 1):
            raise SettingError(f"every and at_most are at least 1, got {every} and {at_most}.")
        size, matrix = (0, 0), _UPRIGHT
        start = last = Fraction(-1)
        count = given = 0
        # One for all frames: each of them would start threads of its own.
        reformatter = self._av.video.reformatter.VideoReformatter()
        with contextlib.closing(self._decoded()) as self._decoding:
            for count, frame in enumerate(self._decoding, 1):
                seconds = self._time_of(frame, last)
                if count == 1:
                    start, size = seconds, (frame.width, frame.height)
                    # Once: a frame whose side data was looked at is in a cycle with it, and stays
                    # until the garbage collector comes, hundreds of frames later (PyAV 18.1).
                    matrix = _matrix_of(frame)
                last = seconds
                if (count - 1) % every:
                    continue
                yield VideoFrame(
                    index=count - 1,
                    seconds=seconds - start,
                    image_rgb=_upright(_rgb(reformatter, frame, size), matrix),
                    pixel_aspect=_pixel_aspect(self._stream, matrix),
                )
                given += 1
                if given == at_most:
                    return
        if count == 0:
            raise VideoError(
                f"{self._path} holds no frames"
                f"{' that can be decoded: it is damaged' if self._damaged else ''}. "
                "Give another video."
            )
        self.problem = self._shortfall(count, last - start)

    def close(self) -> None:
        """Close the file; frames that were not read yet are lost."""
        # First what reads it: a demuxer that outlives its file would clean up in freed memory.
        if self._decoding is not None:
            self._decoding.close()
        self._container.close()

    def _opened(self) -> Any:
        path = checked_path(self._path, VideoError)
        if not path.exists():
            raise VideoError(f"{path} does not exist (looked in {Path.cwd()}).")
        if not path.is_file():
            raise VideoError(f"{path} is no file. Give one video file.")
        try:
            with path.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            raise VideoError(f"{path} cannot be read: {error.strerror}.") from error
        if not head:
            raise VideoError(f"{path} is empty: 0 bytes.")
        options = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
        try:
            # "file:" keeps FFmpeg from reading a name such as a:b.mp4 as a protocol.
            return self._av.open(f"file:{path.absolute()}", options=options)
        except self._av.error.EOFError as error:
            raise VideoError(
                f"{path} holds no frames: it ends after its header. Give another video."
            ) from error
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            # An MP4's index may stand at its end, so half a file cannot even be opened.
            if head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3":
                raise VideoError(
                    f"{path} looks like a video but cannot be opened: it is damaged or was not "
                    "transferred whole. Copy it again."
                ) from error
            raise VideoError(
                f"{path} is not a video that samforge reads (it begins with {head[:8]!r}). "
                f"Give one of {_COMMON}."
            ) from error

    def _video_stream(self) -> Any:
        for stream in self._container.streams.video:
            # The cover of a piece of music is a video track of one picture.
            if not stream.disposition & type(stream.disposition).attached_pic:
                if stream.codec_context is None:
                    raise VideoError(
                        f"{self._path} is coded in a way that this FFmpeg cannot decode. "
                        "Convert it to H.264 first."
                    )
                return stream
        kinds = sorted({stream.type for stream in self._container.streams})
        if not kinds:
            raise VideoError(f"{self._path} holds no frames: it has no tracks. Give another video.")
        raise VideoError(
            f"{self._path} has no video track, it holds {', '.join(kinds)}. Give a video."
        )

    def _described(self) -> VideoInfo:
        stream, container = self._stream, self._container
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate or _USUAL_RATE
        base = stream.time_base or _TICK
        # Matroska's duration ends where the last frame does and begins at zero, wherever the first
        # frame stands; other formats count from their first frame.
        absolute = "matroska" in container.format.name and stream.start_time
        late = float(stream.start_time * base) if absolute else 0.0
        # A track's own duration counts what an edit list cuts off; the file's may count sound.
        spans = [
            *([float(stream.duration * base)] if stream.duration else []),
            *([container.duration / self._av.time_base - late] if container.duration else []),
        ]
        spans = [span for span in spans if span > 0]
        seconds = min(spans) if spans else None
        estimate = round(seconds * float(rate)) if seconds is not None else 0
        return VideoInfo(
            codec=stream.codec_context.name,
            frame_rate=Fraction(rate),
            time_base=Fraction(base) if base.denominator <= _FINEST * base.numerator else _TICK,
            frames=stream.frames or estimate or None,
            seconds=seconds,
            has_sound=bool(container.streams.audio),
        )

    def _decoded(self) -> Generator[Any, None, None]:
        """Frames of every packet that can be decoded; the others are counted."""
        with contextlib.closing(self._container.demux(self._stream)) as packets:
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        return
                except self._av.error.FFmpegError:
                    self._damaged += 1
                    return
                try:
                    frames = packet.decode()
                except self._av.error.FFmpegError:
                    self._damaged += 1
                    continue
                yield from frames

    def _time_of(self, frame: Any, last: Fraction) -> Fraction:
        """When a frame is shown, in seconds; always later than the one before."""
        if frame.pts is None:  # a bare H.264 stream has no times
            return last + 1 / self.info.frame_rate if last >= 0 else Fraction(0)
        seconds = Fraction(frame.pts * frame.time_base)
        return seconds if seconds > last else last + self.info.time_base

    def _shortfall(self, count: int, seconds: Fraction) -> str | None:
        """Say what is missing, from what the file said and what was there."""
        info = self.info
        told = info.seconds
        end = float(seconds + 1 / info.frame_rate)
        # Sound may go on longer than the pictures.
        slack = max(1.0 if info.has_sound else 0.0, 2.5 / float(info.frame_rate))
        if told is not None and end < told - slack:
            return (
                f"{self._path} ends after {count} frames ({end:.1f} s), it should last "
                f"{told:.1f} s. It is damaged or was not transferred whole."
            )
        if self._damaged:
            return (
                f"{self._path} is damaged: {self._damaged} of its packets cannot be decoded, "
                f"{count} frames can."
            )
        return None


def _rgb(reformatter: Any, frame: Any, size: tuple[int, int]) -> RgbImage:
    """Convert to RGB with the colours that a player shows; all frames to the first one's size."""
    colorspace = int(frame.colorspace)
    if colorspace == _UNSPECIFIED:
        colorspace = _BT709 if frame.height >= _HD_ROWS else _BT601
    converted = reformatter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format="rgb24",
        src_colorspace=colorspace,
        threads=1,
    )
    rgb: RgbImage = converted.to_ndarray()
    return rgb


def _matrix_of(frame: Any) -> tuple[int, int, int, int]:
    """How a player lays a frame on the screen: x' = a x + c y, y' = b x + d y.

    FFmpeg's display matrix (libavutil/display.h) holds a, b, 0, c, d, 0, … in 16.16 numbers.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            return a, b, c, d
    return _UPRIGHT


def _is_turned(matrix: tuple[int, int, int, int]) -> bool:
    a, b, _, _ = matrix
    return abs(b) > abs(a)


def _upright(rgb: RgbImage, matrix: tuple[int, int, int, int]) -> RgbImage:
    """Turn and mirror by the nearest quarter turn."""
    a, b, c, d = matrix
    if _is_turned(matrix):
        rgb = rgb.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _pixel_aspect(stream: Any, matrix: tuple[int, int, int, int]) -> Fraction:
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if aspect <= 0:
        return Fraction(1)
    return 1 / aspect if _is_turned(matrix) else aspect
