"""Runs each size of call once before clients do."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from samforge.core.errors import OutOfMemory
from samforge.runtime import Segmenter, question_from

_LOG = logging.getLogger("samforge.serving")
_SIZE_HW = (1080, 1920)


def warmed(segmenter: Segmenter) -> Iterator[int]:
    """Ask blank pictures one thing, in calls of each size, the largest first.

    A GPU captures a graph of each at its first call: a client would wait for it, and all others
    with it. A processor has none.

    Yields:
        Pictures of the call that comes next: whoever has enough stops asking.
    """
    if not segmenter.overlaps:
        return
    blank = np.zeros((*_SIZE_HW, 3), np.uint8)
    nothing = question_from("object", threshold=1.0)
    for count in range(segmenter.most_images, 0, -1):
        yield count
        try:
            encoded = segmenter.encode_images([blank] * count)
            segmenter.begin_answers(encoded, nothing).result()
        except OutOfMemory as error:  # clients get theirs in smaller calls
            _LOG.warning("no room for calls of %d pictures: %s", count, error)
