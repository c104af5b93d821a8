"""A video session: frames in one by one, detections with ids out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samforge.core.errors import SettingError, ShapeError
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.pending import Pending
from samforge.runtime.prompts import phrases_from_text
from samforge.runtime.tracking.advance import advance
from samforge.runtime.tracking.ahead import Begun, followed_ahead, following_next, found_ahead
from samforge.runtime.tracking.asking import (
    Answer,
    Asked,
    ask_earlier,
    ask_now,
    asked_of_known,
    asked_of_new,
    checked_frame,
    known_object,
)
from samforge.runtime.tracking.bank import MemoryBank
from samforge.runtime.tracking.drawn import VideoFrame, frame_from_held
from samforge.runtime.tracking.earlier import read_again
from samforge.runtime.tracking.following import begin_following
from samforge.runtime.tracking.newest import Newest, settled, without
from samforge.runtime.tracking.objects import (
    SessionState,
    Turn,
    turned_state,
    without_objects,
)
from samforge.runtime.tracking.output import drain, held_from_decisions, release, without_ids
from samforge.runtime.tracking.parts import FoundInFrame, TrackerParts, encoded_by
from samforge.runtime.tracking.prompts import ObjectPrompt
from samforge.runtime.tracking.session_file import state_from_file, write_state
from samforge.runtime.tracking.settings import TrackingSettings


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
        self._begun: Begun | None = None

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

    def step(
        self,
        image: Any,
        index: int | None = None,
        *,
        ahead: Callable[[], EncodedImage | None] | None = None,
    ) -> list[VideoFrame]:
        """Take the next frame.

        Args:
            image: Any source of an image, of the size of the first one; or what the segmenter's
                ``encode`` gave of it.
            index: Its number; None counts on. Numbers may be left out, but not come back.
            ahead: Called before the host decides; gives the next frame as the segmenter's
                ``encode`` made it, or None. What a device can do of that frame is begun then, and
                runs while the host is at work. The results are the same, and an error of that
                frame is raised in its own step; what the call itself raises ends this one.

        Returns:
            The frames that leave, in order: none or one, and more when the delay becomes shorter.

        Raises:
            ImageError: The image cannot be read.
            ShapeError: It is of another size, or was encoded by other parts.
            SettingError: The number does not follow, or the session was finished.
            FidelityError: The model's output holds NaN.
        """
        self._require_open()
        begun, self._begun = self._begun, None
        state = settled(self._state, self._now)
        turn = self._turn(image, self._next_index() if index is None else index)
        looking = self._begin_detect(turn, state, begun)
        following = followed_ahead(begun, turn, state.objects)
        if following is None:
            following = begin_following(turn, state.objects)
        found = None if looking is None else looking.result()
        begun = self._begin_next(turn, state, None if ahead is None else ahead())
        advanced = advance(turn, state, found, following.result())
        begun = following_next(begun, advanced.objects)
        decisions, drawn = advanced.decisions, advanced.drawn.result()
        state = replace(
            state,
            tracking=advanced.tracking,
            objects=advanced.objects,
            size_hw=turn.encoded.size_hw,
            first=turn.frame if state.first is None else state.first,
            due=False,
        )
        left = release(state.waiting, decisions, self._rules, drawn, delay=self._delay(state))
        frames = [frame_from_held(held) for held in left.released]
        self._state = replace(state, waiting=left.waiting)
        held = held_from_decisions(decisions, drawn)
        self._now = Newest(turn=turn, held=held, raw=advanced.raw, pending={})
        self._begun = begun
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
        where = checked_frame(self._state, self._now, self._frames, frame)
        return self._answer(asked_of_new(self._state, self._rules, self._way, prompt, label, where))

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
        known_object(self._state, number)
        where = checked_frame(self._state, self._now, self._frames, frame)
        return self._answer(asked_of_known(self._state, number, prompt, where))

    def remove(self, number: int) -> None:
        """End an object, and take it out of all frames that wait. Its id is not given again.

        Raises:
            PromptError: There is no such object.
        """
        self._require_open()
        known_object(self._state, number)
        state = without_objects(self._state, {number})
        waiting = tuple(without_ids(held, {number}) for held in state.waiting)
        self._state = replace(state, waiting=waiting)
        if self._now is not None:
            self._now = without(self._now, number)

    def finish(self) -> list[VideoFrame]:
        """Let out all frames that wait: the video has ended."""
        frames = [frame_from_held(held) for held in drain(self._state.waiting).released]
        self._state = replace(self._state, waiting=(), ended=True)
        self._now = self._begun = None
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
        # Nothing of it stays: prompts of a frame are remembered together, those to come among them.
        write_state(path, self._settings, settled(self._state, self._now), self._parts)

    def turned(self) -> VideoSession:
        """A session that goes the other way from the newest frame, with the same objects and ids.

        Frames that wait stay with this one.

        Raises:
            SettingError: No frame was read, or the session was finished.
        """
        self._require_open()
        if self._state.tracking.frame is None:
            raise SettingError("No frame was read yet. Call step first.")
        settings = replace(self._settings, reverse=not self._settings.reverse)
        other = VideoSession(self._parts, settings=settings, frames=self._frames)
        state = settled(self._state, self._now)
        other._state = turned_state(state, self._rules, reverse=settings.reverse)
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
        encoded = encoded_by(self._parts, image)
        size_hw = self._state.size_hw
        if size_hw is not None and encoded.size_hw != size_hw:
            raise ShapeError(
                f"Frame {index} is {encoded.size_hw} (H, W), and those before are {size_hw}. "
                "Resize it, or begin another session: what is decided stays."
            )
        return Turn(
            parts=self._parts, encoded=encoded, frame=index, rules=self._rules, way=self._way
        )

    def _begin_detect(
        self, turn: Turn, state: SessionState, begun: Begun | None = None
    ) -> Pending[FoundInFrame] | None:
        """Begin to look for phrases, where they are due and nobody has begun that before."""
        due = state.due or state.first is None or turn.frame % self._settings.detect_every == 0
        if not state.phrases or not due:
            return None
        looking = found_ahead(begun, turn, state.phrases)
        if looking is not None:
            return looking
        thresholds = [self._rules.detection_score] * len(state.phrases)
        return self._parts.begin_detect(turn.encoded, state.phrases, thresholds)

    def _begin_next(self, turn: Turn, state: SessionState, image: Any) -> Begun | None:
        """Begin what of the next frame does not depend on what is decided about this one."""
        if image is None:
            return None
        number = turn.frame - 1 if self._way.reverse else turn.frame + 1
        after = replace(state, first=turn.frame, due=False)
        try:
            coming = self._turn(image, number)
            found = self._begin_detect(coming, after)
        except Exception:  # noqa: BLE001  # raised again in its turn, when the frame is given
            return None
        return Begun(turn=coming, phrases=state.phrases, found=found)

    def _delay(self, state: SessionState) -> int:
        if self._settings.delay is not None:
            return self._settings.delay
        found = bool(state.phrases) or any(one.by_text for one in state.objects.values())
        waits = found and self._rules.removes
        return max(0, self._rules.hot_start_frames - 1) if waits else 0

    def _answer(self, asked: Asked) -> Answer:
        if self._now is not None and asked.frame == self._now.turn.frame:
            self._state, self._now, answer = ask_now(self._state, self._now, asked)
            return answer
        state, now = settled(self._state, self._now), self._now
        now = None if now is None else replace(now, pending={})
        self._state, self._now, answer = ask_earlier(state, now, asked, self._turn_again)
        return answer

    def _turn_again(self, number: int) -> Turn:
        if self._now is not None and number == self._now.turn.frame:
            return self._now.turn
        return self._turn(read_again(self._frames, number), number)

    def _require_open(self) -> None:
        if self._state.ended:
            raise SettingError("The session was finished. Begin another one.")
