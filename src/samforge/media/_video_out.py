"""Video files out: H.264 in MP4 that browsers play."""

from __future__ import annotations

import contextlib
import errno
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.closing import Leaving
from samforge.core.cpu_flags import cpu_flags
from samforge.core.errors import OutputError, SettingError, ShapeError
from samforge.core.images import RgbImage
from samforge.core.outputs import SOFTWARE
from samforge.core.placing import part_beside
from samforge.media._pyav import pyav

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov")
"""File name endings that ``VideoWriter`` takes."""

# Hardly larger than the default preset, and a third of its work: inference needs the processor.
_OPTIONS = {"crf": "18", "preset": "veryfast"}
# With AVX-512, x264's macroblock tree made another file of equal frames, one in five of 112 pixels
# (seven blocks), whatever its threads; without the tree, or with its AVX2 code, all files were
# equal (x264 in PyAV 18.1).
_WITHOUT_AVX512 = {"x264-params": "asm=avx2"}
_BT709, _LIMITED = 1, 1  # of ITU-T H.273: what a browser assumes, and says so


class VideoWriter(Leaving):
    """Writes frames of one size as H.264 in yuv420p, with the index in front (faststart).

    The file appears under its name when it is finished: as a context manager on leaving, also
    after Ctrl-C; after any other error nothing is left behind. H.264 of this kind has even sides:
    the last row or column of an odd picture is written twice.
    """

    def __init__(
        self,
        path: Path,
        size_hw: tuple[int, int],
        *,
        frame_rate: Fraction = Fraction(30),
        time_base: Fraction = Fraction(1, 90_000),
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        """Begin a file.

        Args:
            path: Ends in ``.mp4``, ``.m4v`` or ``.mov``; its folder exists.
            size_hw: Height and width of the frames, pixels.
            frame_rate: Frames a second, as a hint to the encoder: the times given to ``write``
                count.
            time_base: Times are rounded to multiples of it, seconds.
            pixel_aspect: Width of a pixel through its height.

        Raises:
            SettingError: The ending of the name is another one.
            OutputError: The file cannot be written.
            MissingExtra: PyAV is not installed.
        """
        self._av = pyav()
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise SettingError(
                f"A video is written to a file that ends in {', '.join(VIDEO_SUFFIXES)}, "
                f"got {path}."
            )
        self.frames = 0
        """Frames written so far."""
        self.padding_hw = (size_hw[0] % 2, size_hw[1] % 2)
        """Rows and columns added to make the sides even."""
        self.coded_hw = (size_hw[0] + self.padding_hw[0], size_hw[1] + self.padding_hw[1])
        """Height and width of the video."""
        self._path, self._size_hw, self._time_base = path, size_hw, time_base
        self._last = -1
        self._temporary = part_beside(path, suffix=path.suffix)
        self._container = self._opened()
        options = _OPTIONS | (_WITHOUT_AVX512 if "avx512f" in cpu_flags() else {})
        self._stream = self._container.add_stream("libx264", rate=frame_rate, options=options)
        # One for all frames: each of them would start threads of its own.
        self._reformatter = self._av.video.reformatter.VideoReformatter()
        self._set_up(pixel_aspect)
        self._container.metadata["comment"] = SOFTWARE

    def write(self, rgb: RgbImage, seconds: Fraction | float) -> None:
        """Append a frame.

        Args:
            rgb: (H, W, 3), uint8.
            seconds: When it is shown. A time that is not after the frame before is moved there.

        Raises:
            ShapeError: ``rgb`` has another size or type.
            OutputError: The disk is full, or the file cannot be written.
        """
        if rgb.dtype != np.uint8 or rgb.shape != (*self._size_hw, 3):
            raise ShapeError(
                f"This video takes uint8 frames of {(*self._size_hw, 3)}, "
                f"got {rgb.dtype} {rgb.shape}."
            )
        down, across = self.padding_hw
        if down or across:
            rgb = np.pad(rgb, ((0, down), (0, across), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame = self._reformatter.reformat(
            frame,
            format="yuv420p",
            dst_colorspace=_BT709,
            dst_color_range=_LIMITED,
            threads=1,
        )
        self._last = max(self._last + 1, round(seconds / self._time_base))
        frame.pts, frame.time_base = self._last, self._time_base
        with self._errors():
            self._mux(frame)
        self.frames += 1

    def finish(self) -> Path:
        """Finish the file and put it under its name; an existing file is replaced.

        Returns:
            The path written.

        Raises:
            OutputError: The disk is full, the file cannot be written, or there is no frame.
        """
        if self.frames == 0:
            self.discard()
            raise OutputError(f"{self._path} was not written: a video has at least one frame.")
        with self._errors():
            self._mux(None)
            self._container.close()
            self._temporary.replace(self._path)
        return self._path

    def discard(self) -> None:
        """Give up: nothing is left behind, and an earlier file of the name stays."""
        # Closing writes the index of a file that is thrown away: a full disk does not matter.
        with contextlib.suppress(OSError, ValueError, self._av.error.FFmpegError):
            self._container.close()
        self._temporary.unlink(missing_ok=True)

    def leave(self, kind: type[BaseException] | None) -> None:
        """Finish, and keep what was written before Ctrl-C; after an error discard."""
        if kind is None or (issubclass(kind, KeyboardInterrupt) and self.frames):
            self.finish()
        else:
            self.discard()

    def _opened(self) -> Any:
        with self._errors():
            # A clear error for a missing or read-only folder, before FFmpeg's.
            self._temporary.touch(exist_ok=False)
            options = {"movflags": "faststart"}
            return self._av.open(f"file:{self._temporary}", "w", options=options)

    def _set_up(self, pixel_aspect: Fraction) -> None:
        stream = self._stream
        stream.height, stream.width = self.coded_hw
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        stream.time_base = context.time_base = self._time_base
        context.sample_aspect_ratio = pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    @contextlib.contextmanager
    def _errors(self) -> Any:
        """Turn an OSError of the body, PyAV's included, into an OutputError; clean up."""
        try:
            yield
        except (OSError, self._av.error.FFmpegError) as error:
            if hasattr(self, "_container"):
                self.discard()
            self._temporary.unlink(missing_ok=True)
            raise OutputError(self._explained(error)) from error

    def _explained(self, error: Exception) -> str:
        done = f" after {self.frames} frames" if self.frames else ""
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"No space is left to write {self._path}{done}: nothing is left behind. "
                "Free some space, or choose an output on another disk."
            )
        reason = getattr(error, "strerror", None) or error
        return (
            f"Cannot write {self._path}{done}: {reason}. "
            "Check that the folder exists, may be written and has space left."
        )
