"""Videos through a bundle, frame by frame, in turns with what everybody else asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock

from samforge.core.capabilities import TRACK
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.media import VideoFrame, VideoReader
from samforge.runtime import EncodedImage, PromptAt, Segmenter, VideoSession
from samforge.runtime.tracking.video import check_reached, stepped
from samforge.serving.asking import Ask, check_objects
from samforge.serving.bounded import Place
from samforge.serving.jobs import Job, Ticket
from samforge.serving.model import Model
from samforge.serving.service import Service

_TURNS = count()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoAsk:
    """What to follow through a video."""

    text: tuple[str, ...] | None = None
    """Noun phrases."""
    prompts: tuple[PromptAt, ...] = ()
    """Objects that are shown, each on a frame; they need a tracker."""
    threshold: float = 0.5
    """Of each frame, where the bundle has no tracker."""
    every: int = 1
    """Only every so many frames."""
    max_frames: int | None = None
    """End after so many."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameFound:
    """What is known of one frame."""

    index: int
    """Its number in the video."""
    seconds: float
    """When it is shown."""
    detections: Detections
    """With ids, where the bundle has a tracker."""
    removed: tuple[int, ...] = ()
    """Ids that ended on it."""


class VideoRun:
    """One video on its way. Close it, whether it came to its end or not."""

    def __init__(  # keyword-only behind what is asked
        self,
        service: Service,
        model: Model,
        path: Path,
        ask: VideoAsk,
        *,
        client: str,
        place: Place,
    ) -> None:
        """Open a video; nothing of it is looked at before :meth:`step`.

        Args:
            service: What answers.
            model: Which of its bundles.
            path: The video.
            ask: What to follow.
            client: Whose turn each frame takes.
            place: Among the videos under way; it is given back by :meth:`close`, and is still the
                caller's where this raises.

        Raises:
            VideoError: It is no video that can be read.
            PromptError: There is nothing to follow.
            SettingError: Objects are shown, and the bundle has no tracker.
            TooLarge: There are too many phrases, objects or points.
            Overloaded: The bundle is not ready.
        """
        limits = service.limits
        if ask.text is not None or not ask.prompts:
            Ask(text=ask.text, threshold=ask.threshold).within(limits).question()
        check_objects([one.prompt for one in ask.prompts], limits)
        self.tracks = TRACK.among(model.parts)
        if ask.prompts and not self.tracks:
            raise SettingError(
                f"The bundle {model.name} has no tracker, and objects that are shown need one. Ask "
                "with text: each frame is segmented by itself."
            )
        self._scheduler = model.require()
        self._service, self._ask, self._client = service, ask, client
        self._place = place
        most = min(ask.max_frames or limits.frames, limits.frames)
        self._reader = VideoReader(path)
        self._frames = iter(self._reader.frames(every=ask.every, at_most=most))
        self.info = self._reader.info
        self._worker = next(_TURNS) % self._scheduler.workers
        self._session: VideoSession | None = None
        self._number = 0
        self._waiting: deque[tuple[int, float]] = deque()
        """Numbers and seconds of frames that the tracker holds."""
        self._ended = self._closed = False
        self._lock = Lock()

    def step(self) -> Ticket | None:
        """Look at the next frame.

        Returns:
            Its ``future`` gives the frames that leave, none at first where a tracker waits for
            evidence; None where the video has ended.

        Raises:
            Overloaded: Others were first: try again after a moment.
        """
        if self._ended:
            return None
        return self._scheduler.submit(
            Job(
                client=self._client,
                seconds=self._service.limits.seconds,
                work=self._work,
                worker=self._worker,
            )
        )

    @property
    def problem(self) -> str | None:
        """After the last frame: why it is not the whole video, if it is not."""
        return self._reader.problem

    def close(self) -> None:
        """Let the file go, once nobody looks at a frame of it."""
        self._ended = True
        with self._lock:
            if not self._closed:
                self._closed = True
                self._reader.close()
                self._place.close()

    def _work(self, segmenter: Segmenter, _: EncodedImage | None) -> list[FrameFound]:
        with self._lock:  # a client may leave meanwhile
            return [] if self._closed else self._step(segmenter)

    def _step(self, segmenter: Segmenter) -> list[FrameFound]:
        frame = next(self._frames, None)
        if frame is None:
            self._ended = True
        if not self.tracks:
            return [] if frame is None else [self._alone(segmenter, frame)]
        return list(self._followed(segmenter, frame))

    def _alone(self, segmenter: Segmenter, frame: VideoFrame) -> FrameFound:
        found = segmenter.predict(
            frame.image_rgb,
            text=self._ask.text,
            threshold=self._ask.threshold,
            max_detections=self._service.limits.detections,
        )
        return FrameFound(index=frame.index, seconds=float(frame.seconds), detections=found)

    def _followed(self, segmenter: Segmenter, frame: VideoFrame | None) -> Iterator[FrameFound]:
        if self._session is None:
            self._session = segmenter.track(text=self._ask.text)
        by_frame: dict[int, Sequence[PromptAt]] = {}
        for shown in self._ask.prompts:
            by_frame[shown.frame] = [*by_frame.get(shown.frame, ()), shown]
        if frame is None:
            left = list(self._session.finish())
            if self._number:
                check_reached(self._session, by_frame)
        else:
            self._waiting.append((frame.index, float(frame.seconds)))
            left = stepped(self._session, self._number, frame.image_rgb, by_frame)
            self._number += 1
        for one in left:
            index, seconds = self._waiting.popleft()
            yield FrameFound(
                index=index,
                seconds=seconds,
                detections=one.detections,
                removed=one.removed,
            )
