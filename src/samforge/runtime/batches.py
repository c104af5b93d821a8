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
from samforge.core.forks import OfOneProcess
from samforge.core.images import FILES
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage, Ready
from samforge.runtime.executor import Executor
from samforge.runtime.faults import Fault, until_fault
from samforge.runtime.question import Question

Source = TypeVar("Source")
Taken = TypeVar("Taken", bound=Ready)


_DECODERS = 4
"""Threads: one decodes a JPEG of 1080p about as fast as a large GPU segments it."""


def decoding_threads(segmenters: int = 1) -> int:
    """How many threads decode for so many segmenters, while there are cores."""
    return max(1, min(_DECODERS * segmenters, os.cpu_count() or 1))


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

    Raises:
        ForkedSession: This is a child of the process that began.
    """
    threads = decoding_threads()
    decoders = _Decoders(threads)
    try:
        for image in until_fault(images):
            if isinstance(image, Fault):
                while decoders.waiting:
                    yield decoders.first(), True
                raise image.error
            if isinstance(image, FILES):
                decoders.begin(read, image)
                if len(decoders.waiting) > threads:
                    yield decoders.first(), True
                continue
            while decoders.waiting:
                yield decoders.first(), True
            yield partial(_same, image), False
        while decoders.waiting:
            yield decoders.first(), True
    finally:
        decoders.close()


class _Decoders(OfOneProcess):
    """Threads, and what they were given, in order. A child of a fork has none of them."""

    def __init__(self, threads: int) -> None:
        self.waiting: deque[Future[Any]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="samforge-decode")
        self.hold()

    def begin(self, read: Callable[[Any], Any], image: Any) -> None:
        """Decode one more."""
        self.require_own("The stream")
        self.waiting.append(self._pool.submit(read, image))

    def first(self) -> Callable[[], Any]:
        """What gives the pixels of the first that waits."""
        self.require_own("The stream")
        return self.waiting.popleft().result

    def close(self) -> None:
        """Decode no more."""
        if not self.is_inherited:
            self._pool.shutdown(cancel_futures=True)


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
    for image in until_fault(images):
        if isinstance(image, Fault):
            if group:
                yield group
            raise image.error
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
    for group in until_fault(groups):
        if isinstance(group, Fault):
            if running is not None:
                yield from executor.finish(running)
            raise group.error
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
