"""What to make of which video: decided before a model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samforge.core.capabilities import TRACK
from samforge.core.errors import PromptError, SettingError
from samforge.media import VideoInfo
from samforge.runtime import PromptAt, Thresholds, TrackingSettings
from samforge.workflows.pointing import Pointing
from samforge.workflows.thresholds import scores_of


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoPlan:
    """What to make of which video."""

    video: Path
    """The video to read."""
    out: Path
    """The video to write."""
    coco: Path | None = None
    """The COCO file to write, if any."""
    tracks: tuple[Path, ...] = ()
    """Files of tracks to write: see :class:`samforge.formats.TrackWriter`."""
    text: tuple[str, ...] = ()
    """Phrases, each looked for by itself."""
    prompts: tuple[PromptAt, ...] = ()
    """Objects that are shown on a frame, counted over those that are kept; they are followed."""
    track: bool | None = None
    """Whether objects are followed and keep their ids, or each frame stands for itself; None
    follows them where the segmenter has a tracker."""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    """How objects are followed."""
    thresholds: Thresholds
    """What counts as found."""
    own_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Phrases that detections have to score above another number for."""
    every: int = 1
    """Every Nth frame is kept, the others are left out."""
    max_frames: int | None = None
    """Most frames to segment."""
    title: str = ""
    """First words of the readout: ``onnxruntime int8``."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every name that an object can have, each once."""
        return tuple(dict.fromkeys((*self.text, *(one.label for one in self.prompts))))

    def require_asked(self) -> None:
        """Make sure that something is looked for or shown.

        Raises:
            PromptError: Nothing is.
        """
        if not self.text and not self.prompts:
            raise PromptError(
                "There is nothing to find. Give --text 'red circle', or --point 'x,y'."
            )

    def follows(self, parts: Collection[str]) -> bool:
        """Whether a segmenter of these parts follows objects.

        Raises:
            PromptError: There is nothing to find.
            SettingError: What is asked for needs a tracker, and there is none, or it was declined;
                or it means nothing where objects are followed.
        """
        self.require_asked()
        able = TRACK.among(parts)
        follows = able and self.track is not False
        needs = _given(
            {
                "--track": self.track is True,
                "--tracks": bool(self.tracks),
                "--point or --object-box": bool(self.prompts),
                "--detect-every": self.tracking.detect_every > 1,
                "--max-objects": self.tracking.most_objects is not None,
            }
        )
        if needs and not able:
            raise SettingError(
                f"{needs} needs a bundle with a tracker, and this one has none. Build it with "
                "--tracker."
            )
        if needs and not follows:
            raise SettingError(f"{needs} follows objects. Leave --no-track out.")
        idle = _given(
            {
                "--threshold-for": bool(self.own_thresholds),
                "--mask-threshold": self.thresholds.mask != Thresholds().mask,
                "--max-detections": self.thresholds.max_detections is not None,
            }
        )
        if idle and follows:
            raise SettingError(
                f"{idle} is for frames that stand for themselves, and objects are followed here. "
                "Leave it out (--max-objects limits objects), or add --no-track."
            )
        return follows

    def scores(self) -> tuple[float, ...]:
        """What detections of each phrase score above."""
        return scores_of(self.text, self.own_thresholds, self.thresholds.score)

    def expected(self, info: VideoInfo) -> int | None:
        """Frames that will come out, as far as the file says."""
        if info.frames is None:
            return self.max_frames
        count = -(-info.frames // self.every)
        return count if self.max_frames is None else min(count, self.max_frames)

    def require_frames(self, info: VideoInfo) -> None:
        """Make sure that the video has the frames on which objects are shown.

        Raises:
            PromptError: It ends before one of them, as far as the file says.
        """
        count = self.expected(info)
        last = max((one.frame for one in self.prompts), default=0)
        if count is not None and last >= count:
            raise PromptError(
                f"Clicks are on frame {last}, and {self.video.name} has {count} frames, from 0. "
                f"Give frame {count - 1} at most (--at)."
            )


def shown_at(pointing: Pointing, frame: int) -> tuple[PromptAt, ...]:
    """Objects that are shown on a frame, named by their number.

    Raises:
        PromptError: All clicks say what is not the object.
    """
    return tuple(
        PromptAt(frame=frame, prompt=prompt, label=f"object {number}")
        for number, prompt in enumerate(pointing.objects(), 1)
    )


def _given(options: Mapping[str, bool]) -> str:
    return ", ".join(option for option, given in options.items() if given)
