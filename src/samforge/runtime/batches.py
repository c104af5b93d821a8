"""Images one by one -> calls of several -> results one by one, the next call begun meanwhile."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from samforge.core.detections import Detections
from samforge.core.errors import InputError, OutOfMemory
from samforge.core.images import FILES
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage, Ready
from samforge.runtime.executor import Executor
from samforge.runtime.question import Question

Source = TypeVar("Source")
Taken = TypeVar("Taken", bound=Ready)


_DECODERS = 4
"""Threads: one decodes a JPEG of 1080p about as fast as a large GPU segments it."""


def decoded_ahead(
    images: Iterable[Any], read: Callable[[Any], Any]
) -> Iterator[tuple[Callable[[], Any], bool]]:
    """Decode the files among images in threads, some of them ahead.

    Pixels are given as they are, and the next image is not asked for before they are taken over:
    they may come in the same memory.

    Args:
        images: Of any source; asked for in the caller's thread.
        read: Decodes one.

    Yields:
        For each image, in order, what gives its pixels or raises why they cannot be had, and
        whether they were decoded here, so that nobody else fills them again.
    """
    waiting: deque[Future[Any]] = deque()
    threads = max(1, min(_DECODERS, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="samforge-decode")
    try:
        for image in images:
            if isinstance(image, FILES):
                waiting.append(pool.submit(read, image))
                if len(waiting) > threads:
                    yield waiting.popleft().result, True
                continue
            while waiting:
                yield waiting.popleft().result, True
            yield partial(_same, image), False
        while waiting:
            yield waiting.popleft().result, True
    finally:
        pool.shutdown(cancel_futures=True)


def _same(image: Any) -> Any:
    return image


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
