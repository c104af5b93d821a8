"""Masks that a detector found are taken before it runs again, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from samforge.core.errors import OutOfMemory
from samforge.runtime.device.looking import Looking
from samforge.runtime.device.stacks import Ground


@contextmanager
def here() -> Iterator[None]:
    with torch.inference_mode():
        yield


GROUND = Ground(device=torch.device("cpu"), here=here, beside=None)
SUMMARY = torch.tensor([[[[0.9, 0, 0, 1, 1, 3], [0.1, 0, 0, 1, 1, 3], [0.8, 0, 0, 1, 1, 3]]]])
"""Of one image, one phrase and three queries."""


class Full:
    """Masks that the device has no room for a copy of, the first time."""

    def __init__(self, masks: torch.Tensor) -> None:
        self.masks, self.asked = masks, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.asked += 1
        if self.asked == 1:
            raise torch.OutOfMemoryError("no room")
        return iter(self.masks)


def looking(masks: Any) -> Looking:
    return Looking(masks, SUMMARY, ("cat",), (0.5,), GROUND)


def test_masks_are_those_that_lay_there_when_they_were_taken() -> None:
    masks = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone()
    one = looking(masks)
    one.take()
    masks.fill_(-1)
    assert one.found().masks.host()[:, 0, 0].tolist() == [0, 2]


def test_masks_that_could_not_be_taken_are_not_taken_later() -> None:
    """By then another image's may lie there."""
    one = looking(Full(torch.ones(1, 3, 2, 2)))
    with pytest.raises(torch.OutOfMemoryError):
        one.take()
    for _ in "twice":
        with pytest.raises(OutOfMemory, match="masks of cat"):
            one.found()
