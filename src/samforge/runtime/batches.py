"""Images one by one -> calls of several -> results one by one, the next call begun meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from samforge.core.detections import Detections
from samforge.core.errors import InputError, OutOfMemory
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage, Ready
from samforge.runtime.executor import Executor
from samforge.runtime.question import Question

Source = TypeVar("Source")
Taken = TypeVar("Taken", bound=Ready)


def numbered(
    images: Iterable[Source], take: Callable[[Source], Taken], kind: str
) -> Iterator[Taken]:
    """Take images over one after the other; an error names the image.

    Args:
        images: Each is taken over before the next is asked for: it may come in the same memory.
        take: Takes one over.
        kind: What they are of: ``list`` or ``stream``.
    """
    for index, image in enumerate(images):
        try:
            yield take(image)
        except (InputError, OutOfMemory) as error:
            raise type(error)(f"Image {index} of the {kind}: {error}") from error


def batched(images: Iterable[Ready], most: int) -> Iterator[list[Ready]]:
    """Neighbours that go in one call: at most so many, all of them encoded or none."""
    group: list[Ready] = []
    for image in images:
        if group and isinstance(group[0], EncodedImage) != isinstance(image, EncodedImage):
            yield group
            group = []
        group.append(image)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def pipelined(
    executor: Executor, groups: Iterable[list[Ready]], question: Question, timings: Timings | None
) -> Iterator[Detections]:
    """Start each group before the last one's results are waited for, where that helps."""
    running: Any = None
    for group in groups:
        before, running = (
            running,
            executor.start(group, question, timings, alone=not executor.overlaps),
        )
        if before is not None:
            yield from executor.finish(before)
        if not executor.overlaps:
            yield from executor.finish(running)
            running = None
    if running is not None:
        yield from executor.finish(running)
