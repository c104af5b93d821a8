"""A whole video through a session: forwards, backwards, or both ways from a frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from samforge.core.errors import PromptError, SettingError
from samforge.runtime.tracking.drawn import VideoFrame
from samforge.runtime.tracking.parts import TrackerParts
from samforge.runtime.tracking.prompts import ObjectPrompt
from samforge.runtime.tracking.session import VideoSession
from samforge.runtime.tracking.settings import TrackingSettings

Direction: TypeAlias = Literal["forward", "backward", "both"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptAt:
    """An object that is shown on a frame of a video."""

    frame: int
    """Number of the frame."""
    prompt: ObjectPrompt
    """What shows it."""
    label: str = "object"
    """Its name."""


def track_video(  # noqa: PLR0913  # a public call: every argument is one a user types
    parts: TrackerParts,
    frames: Iterable[Any],
    *,
    text: str | Sequence[str] | None = None,
    prompts: Sequence[PromptAt] = (),
    direction: Direction = "forward",
    start: int | None = None,
    settings: TrackingSettings | None = None,
) -> Iterator[VideoFrame]:
    """Follow objects through a video.

    The result is that of a session that is fed frame by frame: a file and a stream give the same.

    Args:
        parts: What runs the model.
        frames: Images of one size. A stream is read once and goes forwards only; a sequence (with
            ``len`` and numbers) can be gone through both ways.
        text: One or more noun phrases.
        prompts: Objects that are shown, each on a frame that is gone through.
        direction: ``both`` goes forwards from ``start``, then backwards from it: objects of that
            frame keep their ids, and those that ended on the way forwards do not come back.
        start: The first frame; None for frame 0, or for the last one backwards.
        settings: See :class:`TrackingSettings`; ``reverse`` is set by the direction.

    Yields:
        Frames in the order they are gone through.

    Raises:
        SettingError: A stream is asked to go backwards, or to start elsewhere; the direction is
            unknown; the start is no frame.
        PromptError: A prompt is on a frame that is not gone through.
    """
    seekable = frames if isinstance(frames, Sequence) else None
    if direction not in get_args(Direction):
        known = ", ".join(get_args(Direction))
        raise SettingError(f"direction is {direction!r:.40}. Give one of {known}.")
    if seekable is None and (direction != "forward" or start not in (None, 0)):
        raise SettingError(
            f"A live source is read once, from its first frame on, and cannot go {direction} from "
            f"frame {start if start is not None else 0 if direction == 'forward' else 'its end'}. "
            "Read it into a file first, or give frames as a sequence."
        )
    begin = _start(seekable, direction, start)
    settings = replace(settings or TrackingSettings(), reverse=direction == "backward")
    session = VideoSession(parts, text=text, settings=settings, frames=seekable)
    by_frame: dict[int, list[PromptAt]] = {}
    for one in prompts:
        by_frame.setdefault(one.frame, []).append(one)
    _check_prompts(by_frame, seekable, direction, begin)
    return _tracked(session, frames, by_frame, direction, begin)


def _start(frames: Sequence[Any] | None, direction: Direction, start: int | None) -> int:
    if frames is None:
        return 0
    begin = start if start is not None else len(frames) - 1 if direction == "backward" else 0
    if not 0 <= begin < len(frames):
        raise SettingError(f"start is {begin}, and there are {len(frames)} frames, from 0.")
    return begin


def _check_prompts(
    prompts: Mapping[int, Sequence[PromptAt]],
    frames: Sequence[Any] | None,
    direction: Direction,
    begin: int,
) -> None:
    low = begin if direction == "forward" else 0
    high = begin if direction == "backward" else None if frames is None else len(frames) - 1
    for number in prompts:
        if number < low or (high is not None and number > high):
            way = f"{low} to {'its end' if high is None else high}"
            raise PromptError(
                f"A prompt is on frame {number}, and the video is gone through from {way}."
            )


def _tracked(
    session: VideoSession,
    frames: Iterable[Any],
    prompts: Mapping[int, Sequence[PromptAt]],
    direction: Direction,
    begin: int,
) -> Iterator[VideoFrame]:
    if not isinstance(frames, Sequence):
        yield from _passed(session, enumerate(frames), prompts)
        check_reached(session, prompts)
        return
    if direction != "both":
        numbers = range(begin, -1, -1) if direction == "backward" else range(begin, len(frames))
        yield from _passed(session, ((number, frames[number]) for number in numbers), prompts)
        return
    first = stepped(session, begin, frames[begin], prompts)
    back = session.turned()
    ended: set[int] = set()
    onwards = ((number, frames[number]) for number in range(begin + 1, len(frames)))
    yield from first
    for found in _passed(session, onwards, prompts):
        ended.update(found.removed)
        yield found
    for number in sorted(ended & set(back.ids)):
        back.remove(number)
    back.skip_ids(session.next_id)
    backwards = ((number, frames[number]) for number in range(begin - 1, -1, -1))
    yield from _passed(back, backwards, prompts)


def _passed(
    session: VideoSession,
    numbered: Iterable[tuple[int, Any]],
    prompts: Mapping[int, Sequence[PromptAt]],
) -> Iterator[VideoFrame]:
    for number, image in numbered:
        left = session.step(image, number)
        try:
            left = with_prompts(session, left, prompts.get(number, ()))
        except Exception:
            yield from left  # decided before the prompt that does not fit
            raise
        yield from left
    yield from session.finish()


def stepped(
    session: VideoSession, number: int, image: Any, prompts: Mapping[int, Sequence[PromptAt]]
) -> list[VideoFrame]:
    """Take a frame, and show the session the objects that are prompted on it.

    Returns:
        The frames that leave.
    """
    return with_prompts(session, session.step(image, number), prompts.get(number, ()))


def with_prompts(
    session: VideoSession, left: Sequence[VideoFrame], prompts: Sequence[PromptAt]
) -> list[VideoFrame]:
    """Show a session the objects that are prompted on its newest frame.

    Args:
        session: Behind the frame.
        left: What left with it.
        prompts: Of the frame.

    Returns:
        The frames that leave; the newest one, if it did not wait, shows the objects.
    """
    frames = list(left)
    for one in prompts:
        answer = session.add(one.prompt, label=one.label)
        if frames and frames[-1].index == session.index:
            frames[-1] = answer.frame
    return frames


def check_reached(session: VideoSession, prompts: Mapping[int, Sequence[PromptAt]]) -> None:
    """Make sure that no prompt was on a frame behind the last one.

    Raises:
        PromptError: One was.
    """
    last = session.index
    late = [number for number in prompts if last is None or number > last]
    if late:
        raise PromptError(
            f"A prompt is on frame {min(late)}, and the source ended with frame {last}. All that "
            "came before was given."
        )
