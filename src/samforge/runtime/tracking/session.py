"""A video session: frames in one by one, detections with ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samforge.core.errors import PromptError, SettingError, ShapeError
from samforge.runtime.prompts import phrases_from_text
from samforge.runtime.tracking.advance import advance
from samforge.runtime.tracking.bank import MemoryBank
from samforge.runtime.tracking.drawn import VideoFrame, frame_from_held, with_object
from samforge.runtime.tracking.earlier import read_again, retrack
from samforge.runtime.tracking.newest import (
    Newest,
    alone,
    prompted,
    settled,
    with_drawn,
    with_track,
    without,
)
from samforge.runtime.tracking.objects import (
    SessionState,
    TrackedObject,
    Turn,
    phrase_of_prompt,
    track_of_prompt,
    without_objects,
)
from samforge.runtime.tracking.output import drain, held_from_decisions, release, without_ids
from samforge.runtime.tracking.parts import FoundInFrame, TrackerParts
from samforge.runtime.tracking.prompts import ObjectPrompt
from samforge.runtime.tracking.session_file import state_from_file, write_state
from samforge.runtime.tracking.settings import TrackingSettings
from samforge.runtime.tracking.state import Track


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What came of a prompt."""

    id: int
    """The object."""
    frame: VideoFrame
    """The frame that was prompted as it is now; of an earlier frame the object alone."""
    revised: tuple[VideoFrame, ...] = ()
    """Frames that had left and show the object otherwise now, in the order of the video: that
    object alone. Frames that wait are changed where they are."""


class VideoSession:
    """Follows objects through a video, frame by frame.

    Objects come from phrases, which are looked for on every frame, or from points, boxes and masks.
    What it remembers does not grow with the frames. Whatever raises an error leaves the session as
    it was. Not safe to use from several threads at once.
    """

    def __init__(
        self,
        parts: TrackerParts,
        *,
        text: str | Sequence[str] | None = None,
        settings: TrackingSettings | None = None,
        frames: Sequence[Any] | None = None,
    ) -> None:
        """Begin before the first frame.

        Args:
            parts: What runs the model.
            text: One or more noun phrases; None where objects are shown by prompts.
            settings: See :class:`TrackingSettings`.
            frames: The frames by number, where they can be read again: then earlier ones can be
                prompted, too.

        Raises:
            PromptError: A phrase is not usable.
            SettingError: The bundle cannot do what is set.
        """
        self._parts = parts
        self._settings = settings or TrackingSettings()
        self._rules, self._way = self._settings.settled(parts.facts)
        self._frames = frames
        phrases = () if text is None else phrases_from_text(text, has_boxes=False)
        self._state = SessionState(phrases=phrases)
        self._now: Newest | None = None

    @classmethod
    def from_file(
        cls, path: Path, parts: TrackerParts, *, frames: Sequence[Any] | None = None
    ) -> VideoSession:
        """Go on with what :meth:`save` wrote: the next frame gives what it would have given.

        Args:
            path: The file.
            parts: What runs the same bundle.
            frames: See the constructor.

        Raises:
            InputError: The file is no session, or one of another bundle.
        """
        settings, state = state_from_file(path, parts)
        session = cls(parts, settings=settings, frames=frames)
        session._state = state
        return session

    @property
    def ids(self) -> tuple[int, ...]:
        """Objects that live, ascending; those in their hot start among them."""
        return tuple(self._state.objects)

    @property
    def next_id(self) -> int:
        """The id of the next object: all below were given."""
        return self._state.tracking.next_id

    @property
    def index(self) -> int | None:
        """Number of the newest frame."""
        return self._state.tracking.frame

    @property
    def phrases(self) -> tuple[str, ...]:
        """What is looked for."""
        return self._state.phrases

    @property
    def banks(self) -> dict[int, MemoryBank]:
        """What each object remembers, by id; prompts of the newest frame are not yet in it."""
        return {number: one.bank for number, one in self._state.objects.items()}

    @property
    def size_bytes(self) -> int:
        """Bytes that objects remember, wherever they are kept."""
        return sum(bank.size_bytes for bank in self.banks.values())

    def step(self, image: Any, index: int | None = None) -> list[VideoFrame]:
        """Take the next frame.

        Args:
            image: Any source of an image, of the size of the first one.
            index: Its number; None counts on. Numbers may be left out, but not come back.

        Returns:
            The frames that leave, in order: none or one, and more when the delay becomes shorter.

        Raises:
            ImageError: The image cannot be read.
            ShapeError: It is of another size.
            SettingError: The number does not follow, or the session was finished.
            FidelityError: The model's output holds NaN.
        """
        self._require_open()
        state = settled(self._state, self._now)
        turn = self._turn(image, self._next_index() if index is None else index)
        found = self._found(turn, state)
        advanced = advance(turn, state, found)
        decisions = advanced.decisions
        state = replace(
            state,
            tracking=advanced.tracking,
            objects=advanced.objects,
            size_hw=turn.encoded.size_hw,
            first=turn.frame if state.first is None else state.first,
            due=False,
        )
        left = release(
            state.waiting, decisions, self._rules, advanced.drawn, delay=self._delay(state)
        )
        frames = [frame_from_held(held) for held in left.released]
        self._state = replace(state, waiting=left.waiting)
        held = held_from_decisions(decisions, advanced.drawn)
        self._now = Newest(turn=turn, held=held, raw=advanced.raw, pending={})
        return frames

    def add_text(self, text: str | Sequence[str]) -> None:
        """Look for more phrases, from the next frame on.

        Raises:
            PromptError: A phrase is not usable.
            SettingError: The session was finished.
        """
        self._require_open()
        phrases = phrases_from_text(text, has_boxes=False)
        joined = tuple(dict.fromkeys([*self._state.phrases, *phrases]))
        self._state = replace(self._state, phrases=joined, due=True)

    def add(
        self, prompt: ObjectPrompt, *, label: str = "object", frame: int | None = None
    ) -> Answer:
        """Follow an object that is shown by points, a box or a mask.

        No rule removes it. Named like a phrase, it counts as one of that phrase's objects, and the
        phrase does not find it again.

        Args:
            prompt: What shows it.
            label: Its name.
            frame: The frame it is shown on: None for the newest. An earlier one only where the
                frames can be read again; the object is then followed from there.

        Raises:
            PromptError: The frame was not read yet, or the prompt does not fit it.
            SettingError: There is no room for more objects, or frames cannot be read again.
        """
        self._require_open()
        where = self._checked_frame(frame)
        most, count = self._rules.most_tracks, len(self._state.objects)
        if count >= most:
            raise SettingError(
                f"{count} objects live, and {most} may. Remove one, or raise most_objects."
            )
        number = self._state.tracking.next_id
        one = TrackedObject(id=number, label=label, by_text=False, begun=where)
        phrase = phrase_of_prompt(number, label, self._state.phrases)
        track = track_of_prompt(number, where, phrase, self._rules, reverse=self._way.reverse)
        return self._prompted(one, track, prompt, where)

    def correct(self, number: int, prompt: ObjectPrompt, *, frame: int | None = None) -> Answer:
        """Correct an object by points on it and beside it, a box, or a mask.

        Points refine what is known of it on the frame, which becomes one that later frames attend
        to.

        Args:
            number: Its id.
            prompt: What shows it.
            frame: See :meth:`add`.

        Raises:
            PromptError: There is no such object, the frame was not read yet, or the prompt does not
                fit it.
            SettingError: Frames cannot be read again.
        """
        self._require_open()
        one = self._known(number)
        track = next(track for track in self._state.tracking.tracks if track.id == number)
        return self._prompted(one, track, prompt, self._checked_frame(frame))

    def remove(self, number: int) -> None:
        """End an object, and take it out of all frames that wait. Its id is not given again.

        Raises:
            PromptError: There is no such object.
        """
        self._require_open()
        self._known(number)
        state = without_objects(self._state, {number})
        waiting = tuple(without_ids(held, {number}) for held in state.waiting)
        self._state = replace(state, waiting=waiting)
        if self._now is not None:
            self._now = without(self._now, number)

    def finish(self) -> list[VideoFrame]:
        """Let out all frames that wait: the video has ended."""
        frames = [frame_from_held(held) for held in drain(self._state.waiting).released]
        self._state = replace(self._state, waiting=(), ended=True)
        self._now = None
        return frames

    def save(self, path: Path) -> None:
        """Write all that is known to an npz file, to go on later with the same bundle.

        The newest frame itself is not in it: after :meth:`from_file` it can be prompted only where
        frames can be read again.

        Raises:
            OutputError: The file cannot be written.
            SettingError: The session was finished.
        """
        self._require_open()
        self._settle()
        write_state(path, self._settings, self._state, self._parts)

    def turned(self) -> VideoSession:
        """A session that goes the other way from the newest frame, with the same objects and ids.

        Frames that wait stay with this one.

        Raises:
            SettingError: No frame was read, or the session was finished.
        """
        self._require_open()
        self._settle()
        frame = self._state.tracking.frame
        if frame is None:
            raise SettingError("No frame was read yet. Call step first.")
        settings = replace(self._settings, reverse=not self._settings.reverse)
        other = VideoSession(self._parts, settings=settings, frames=self._frames)
        tracks = tuple(
            track
            if self._state.objects[track.id].by_text
            else track_of_prompt(
                track.id, frame, track.phrase, self._rules, reverse=settings.reverse
            )
            for track in self._state.tracking.tracks
        )
        tracking = replace(self._state.tracking, tracks=tracks)
        other._state = replace(self._state, tracking=tracking, waiting=(), due=True)
        return other

    def skip_ids(self, first: int) -> None:
        """Give no id below a number: another session of the video gives those."""
        tracking = self._state.tracking
        next_id = max(first, tracking.next_id)
        self._state = replace(self._state, tracking=replace(tracking, next_id=next_id))

    # What a frame needs

    def _next_index(self) -> int:
        last = self._state.tracking.frame
        if last is None:
            return 0
        return last - 1 if self._way.reverse else last + 1

    def _turn(self, image: Any, index: int) -> Turn:
        encoded = self._parts.encode(image)
        size_hw = self._state.size_hw
        if size_hw is not None and encoded.size_hw != size_hw:
            raise ShapeError(
                f"Frame {index} is {encoded.size_hw} (H, W), and those before are {size_hw}. "
                "Resize it, or begin another session: what is decided stays."
            )
        return Turn(
            parts=self._parts, encoded=encoded, frame=index, rules=self._rules, way=self._way
        )

    def _found(self, turn: Turn, state: SessionState) -> FoundInFrame | None:
        due = state.due or state.first is None or turn.frame % self._settings.detect_every == 0
        if not state.phrases or not due:
            return None
        thresholds = [self._rules.detection_score] * len(state.phrases)
        return self._parts.detect(turn.encoded, state.phrases, thresholds)

    def _delay(self, state: SessionState) -> int:
        if self._settings.delay is not None:
            return self._settings.delay
        found = bool(state.phrases) or any(one.by_text for one in state.objects.values())
        waits = found and self._rules.removes
        return max(0, self._rules.hot_start_frames - 1) if waits else 0

    # Prompts

    def _checked_frame(self, frame: int | None) -> int:
        first, last = self._state.first, self._state.tracking.frame
        if first is None or last is None:
            raise PromptError("No frame was read yet. Call step first, then prompt that frame.")
        where = last if frame is None else frame
        if not min(first, last) <= where <= max(first, last):
            raise PromptError(
                f"Frame {where} was not read yet: this session has come from frame {first} to "
                f"{last}. Prompt it when it is the newest."
            )
        is_now = self._now is not None and where == last
        if not is_now and self._frames is None:
            raise SettingError(
                f"Frame {where} has passed, and frames of a live source cannot be read again. "
                "Prompt the newest frame, or give frames= a sequence."
            )
        return where

    def _known(self, number: int) -> TrackedObject:
        if number not in self._state.objects:
            was = 0 <= number < self._state.tracking.next_id
            told = ", ".join(map(str, self._state.objects)) or "none"
            raise PromptError(
                f"Object {number} {'has ended' if was else 'is unknown'}. Those that live: {told}."
            )
        return self._state.objects[number]

    def _prompted(
        self, one: TrackedObject, track: Track, prompt: ObjectPrompt, frame: int
    ) -> Answer:
        now = self._now
        if now is None or frame != now.turn.frame:
            return self._prompted_earlier(one, track, prompt, frame)
        self._state, self._now = prompted(self._state, now, one, track, prompt)
        return Answer(id=one.id, frame=frame_from_held(self._now.held))

    def _prompted_earlier(
        self, one: TrackedObject, track: Track, prompt: ObjectPrompt, frame: int
    ) -> Answer:
        self._settle()
        one = self._state.objects.get(one.id, one)
        last = self._state.tracking.frame or 0
        numbers = range(frame, last - 1, -1) if self._way.reverse else range(frame, last + 1)
        new = retrack(one, track, prompt, numbers, self._turn_again)
        waits = {held.frame for held in self._state.waiting}
        frames = {
            number: frame_from_held(alone(number, one.id, drawn), only=[one.id])
            for number, drawn in new.drawn.items()
        }
        state = with_track(self._state, new.object, track)
        self._state = with_drawn(state, one.id, new.drawn)
        if self._now is not None and last in new.drawn:
            self._now = replace(
                self._now,
                held=with_object(self._now.held, one.id, new.drawn[last]),
                raw={**self._now.raw, one.id: new.seen[last].masks[0]},
            )
        return Answer(
            id=one.id,
            frame=frames[frame],
            revised=tuple(found for number, found in frames.items() if number not in waits),
        )

    def _turn_again(self, number: int) -> Turn:
        if self._now is not None and number == self._now.turn.frame:
            return self._now.turn
        return self._turn(read_again(self._frames, number), number)

    def _settle(self) -> None:
        """Remember what was prompted on the newest frame."""
        self._state = settled(self._state, self._now)
        if self._now is not None:
            self._now = replace(self._now, pending={})

    def _require_open(self) -> None:
        if self._state.ended:
            raise SettingError("The session was finished. Begin another one.")
