"""Segments a video file into an overlay video: the work behind ``samforge video``."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from samforge.core.closing import Leaving
from samforge.core.timing import Timings
from samforge.draw import draw_readout, overlay
from samforge.formats import CocoStream, TrackWriter
from samforge.measure import StageLatency, latency_from_samples
from samforge.media import VideoFrame, VideoInfo, VideoReader, VideoWriter
from samforge.runtime import SegmentedFrame, Segmenter, follow_video, segment_video
from samforge.runtime.prefetch import Prefetcher
from samforge.runtime.tracking import rules_from_reference
from samforge.workflows.interrupts import interrupts_held
from samforge.workflows.video_plan import VideoPlan
from samforge.workflows.watching import Done, unseen

PACE_FRAMES = 15
"""The readout shows means over as many frames, so that its figures can be read."""

_AROUND = ("decode", "draw", "encode")  # stages that are not the model's

Shot = SegmentedFrame[VideoFrame]


@dataclass(kw_only=True, slots=True)
class PhraseTally:
    """How one phrase fared."""

    detections: int = 0
    """Found in all frames together."""
    frames: int = 0
    """Frames in which it was found."""
    best_score: float = 0.0
    """Highest score, admitted or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFailure:
    """A frame that could not be segmented."""

    frame: int
    """Its number in the video, from 0."""
    kind: str
    """Class of the error."""
    message: str
    """Its message."""
    exit_code: int
    """Exit status of its kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoResult:
    """What came of a run."""

    frames: int
    """Frames segmented and written."""
    size_hw: tuple[int, int]
    """Height and width of the written video."""
    info: VideoInfo
    """What the file said of itself."""
    problem: str | None
    """Why it is not the whole video, if it is not."""
    failures: tuple[FrameFailure, ...]
    """Frames that could not be segmented: they are in the video, without masks."""
    interrupted: bool
    """Whether Ctrl-C ended it."""
    seconds: float
    """From the first frame asked for to the finished file."""
    stages: tuple[StageLatency, ...]
    """Where the time went. Stages of different frames overlap."""
    detections: int
    """Found in all frames together."""
    most_in_frame: int
    """Found in the frame with most of them."""
    frames_without: int
    """Frames in which nothing was found."""
    phrases: dict[str, PhraseTally]
    """The same by phrase."""
    ids: int | None
    """Different objects that were shown; None where each frame stands for itself."""
    notes: tuple[str, ...]
    """What the user should know of the file written."""


def segment_video_file(
    segmenter: Segmenter, plan: VideoPlan, *, done: Done = unseen
) -> VideoResult:
    """Segment a video and write what was found over it.

    A frame that cannot be segmented is written as it is, and named; the others go on.

    Decoding, inference, and drawing with encoding run at the same time in three threads; memory
    does not grow with the length of the video. After Ctrl-C the files are finished with the frames
    done so far.

    Args:
        segmenter: With its sessions loaded.
        plan: What to do.
        done: Called after each frame.

    Raises:
        VideoError: The video cannot be read or holds no frames.
        PromptError: An object is shown on a frame that the video does not have.
        OutputError: A file cannot be written.
        KeyboardInterrupt: Before the first frame was written.
    """
    tally = VideoTally()
    interrupted = False
    start = time.perf_counter()
    with VideoReader(plan.video) as reader:
        plan.require_frames(reader.info)
        frames = reader.frames(every=plan.every, at_most=plan.max_frames)
        stream = _stream(segmenter, frames, plan)
        # The innermost is left first: after Ctrl-C the files are whole before anything else waits.
        with stream, Recording(plan, reader.info) as recording:
            try:
                for shot in stream:
                    recording.add(shot)
                    tally.add(shot)
                    done()
            except KeyboardInterrupt:
                if recording.writer is None:
                    raise
                interrupted = True
            with interrupts_held():
                recording.finish()
    return tally.result(recording, reader, interrupted, time.perf_counter() - start)


def _stream(
    segmenter: Segmenter, frames: Iterator[VideoFrame], plan: VideoPlan
) -> Prefetcher[Shot]:
    if not plan.follows(segmenter.parts):
        return segment_video(
            segmenter,
            frames,
            text=plan.text,
            thresholds=[replace(plan.thresholds, score=score) for score in plan.scores()],
            isolate=True,
        )
    rules = plan.tracking.rules or rules_from_reference(segmenter.tracker_parts().facts.reference)
    rules = replace(rules, detection_score=plan.thresholds.score)
    return follow_video(
        segmenter,
        frames,
        text=plan.text or None,
        prompts=plan.prompts,
        settings=replace(plan.tracking, rules=rules),
        isolate=True,
    )


class Recording(Leaving):
    """The files that are written, and the readout drawn into them."""

    def __init__(self, plan: VideoPlan, info: VideoInfo) -> None:
        """Begin the COCO file; the video begins with its first frame, which says how large it is.

        Raises:
            OutputError: The file cannot be written.
        """
        self._plan, self._info = plan, info
        self._coco = CocoStream(plan.coco, plan.video, plan.labels) if plan.coco else None
        self._tracks: list[TrackWriter] = []
        try:
            for path in plan.tracks:
                self._tracks.append(TrackWriter(path, plan.video))
        except BaseException:
            self._discard()
            raise
        self._pace = Pace()
        self.writer: VideoWriter | None = None
        """Writes the video, from the first frame on."""

    def add(self, shot: Shot) -> None:
        """Draw one frame and write it, whole or not at all.

        Raises:
            OutputError: The disk is full.
        """
        frame, found, timings = shot.frame, shot.detections, shot.timings
        with timings.stage("draw"):
            picture = overlay(frame.image_rgb, found, color_by_phrase=True)
            picture = draw_readout(picture, (self._plan.title, *self._pace.words(timings)))
        with interrupts_held():
            with timings.stage("encode"):
                self.writer = self.writer or self._opened(frame)
                self.writer.write(picture, frame.seconds)
            if self._coco is not None:
                self._coco.add(frame.index, frame.seconds, found)
            for tracks in self._tracks:
                tracks.add(frame.index, frame.seconds, found)

    def finish(self) -> None:
        """Put the files under their names.

        Raises:
            OutputError: The disk is full.
        """
        if self.writer is not None:
            self.writer.finish()
        if self._coco is not None:
            self._coco.finish()
        for tracks in self._tracks:
            tracks.finish()
        self._coco, self._tracks = None, []

    def leave(self, kind: type[BaseException] | None) -> None:
        """After an error leave nothing behind; without one all was finished."""
        if kind is None:
            return
        if self.writer is not None:
            self.writer.discard()
        self._discard()

    def _discard(self) -> None:
        """Give the files beside the video up."""
        if self._coco is not None:
            self._coco.discard()
        for tracks in self._tracks:
            tracks.discard()

    def _opened(self, frame: VideoFrame) -> VideoWriter:
        height, width = frame.image_rgb.shape[:2]
        return VideoWriter(
            self._plan.out,
            (height, width),
            frame_rate=self._info.frame_rate / self._plan.every,
            time_base=self._info.time_base,
            pixel_aspect=frame.pixel_aspect,
        )


class Pace:
    """How fast it goes at the moment."""

    def __init__(self) -> None:
        self._model_ms: deque[float] = deque(maxlen=PACE_FRAMES)
        self._moments: deque[float] = deque(maxlen=PACE_FRAMES + 1)

    def words(self, timings: Timings) -> tuple[str, str]:
        """Take a frame into account; give the milliseconds of the model and frames a second."""
        stages = timings.stages()
        self._model_ms.append(sum(s.milliseconds for s in stages if s.stage not in _AROUND))
        self._moments.append(time.perf_counter())
        milliseconds = sum(self._model_ms) / len(self._model_ms)
        passed = self._moments[-1] - self._moments[0]
        rate = f"{(len(self._moments) - 1) / passed:.1f}" if passed > 0 else "-"
        return f"{milliseconds:.{0 if milliseconds >= 100 else 1}f} ms", f"{rate} fps"


@dataclass(kw_only=True, slots=True)
class VideoTally:
    """Counts over the frames; a few bytes for each."""

    frames: int = 0
    detections: int = 0
    most_in_frame: int = 0
    frames_without: int = 0
    phrases: dict[str, PhraseTally] = field(default_factory=dict)
    failures: list[FrameFailure] = field(default_factory=list)
    ids: set[int] | None = None
    """Of the objects that were shown."""
    _stages: dict[str, array[float]] = field(default_factory=dict)
    _processors: dict[str, str] = field(default_factory=dict)

    def add(self, shot: Shot) -> None:
        """Count one frame."""
        found = shot.detections
        self.frames += 1
        self.detections += len(found)
        self.most_in_frame = max(self.most_in_frame, len(found))
        self.frames_without += len(found) == 0
        if found.ids is not None:
            self.ids = (self.ids or set()) | set(found.ids.tolist())
        if shot.problem is not None:
            self.failures.append(
                FrameFailure(
                    frame=shot.frame.index,
                    kind=type(shot.problem).__name__,
                    message=str(shot.problem),
                    exit_code=shot.problem.exit_code,
                )
            )
        scores = dict(found.best_scores)
        for label, score in zip(found.labels, found.scores.tolist(), strict=True):
            if label not in found.best_scores:  # shown by a prompt
                scores[label] = max(score, scores.get(label, 0.0))
        for phrase, score in scores.items():
            tally = self.phrases.setdefault(phrase, PhraseTally())
            count = found.labels.count(phrase)
            tally.detections += count
            tally.frames += count > 0
            tally.best_score = max(tally.best_score, score)
        for stage in shot.timings.stages():
            self._stages.setdefault(stage.stage, array("d")).append(stage.milliseconds)
            self._processors[stage.stage] = stage.processor

    def result(
        self, recording: Recording, reader: VideoReader, interrupted: bool, seconds: float
    ) -> VideoResult:
        """Put the figures together."""
        writer = recording.writer
        assert writer is not None  # noqa: S101  a video without frames is an error before this
        stages = tuple(
            StageLatency(
                stage=stage,
                processor=self._processors[stage],
                latency=latency_from_samples(values),
            )
            for stage, values in self._stages.items()
        )
        return VideoResult(
            frames=writer.frames,
            size_hw=writer.coded_hw,
            info=reader.info,
            problem=reader.problem,
            failures=tuple(self.failures),
            interrupted=interrupted,
            seconds=seconds,
            stages=stages,
            detections=self.detections,
            most_in_frame=self.most_in_frame,
            frames_without=self.frames_without,
            phrases=self.phrases,
            ids=None if self.ids is None else len(self.ids),
            notes=_notes(writer, reader.info),
        )


def _notes(writer: VideoWriter, info: VideoInfo) -> tuple[str, ...]:
    notes = []
    if any(writer.padding_hw):
        height, width = writer.coded_hw
        down, across = writer.padding_hw
        notes.append(
            f"H.264 for browsers has even sides: {width - across} x {height - down} became "
            f"{width} x {height}, the last row or column is there twice."
        )
    if info.has_sound:
        notes.append("The sound of the video is not copied.")
    return tuple(notes)
