"""Pictures of one call are read one after the other, and decoded side by side."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samforge.core.images import RgbImage
from samforge.labelling import engine, labeller
from samforge.labelling.engine import labelled
from samforge.labelling.items import Item, WholeFile
from samforge.labelling.labeller import Loaded
from samforge.media import read_image, write_png

TOGETHER = 2


class Keeps:
    """A labeller that keeps what it is given."""

    def __init__(self) -> None:
        self.chunks: list[list[Loaded]] = []
        self.stagers: set[str] = set()

    def staged(self, rgb: RgbImage) -> RgbImage:
        self.stagers.add(threading.current_thread().name)
        return rgb + np.uint8(100)

    def pictures(self, chunk: list[Loaded]) -> list[Any]:
        self.chunks.append(chunk)
        return []


@pytest.fixture
def decoders_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is decoded when another is, or never."""
    barrier = threading.Barrier(TOGETHER, timeout=20)

    def meets(content: bytes) -> Any:
        barrier.wait()
        return read_image(content)

    monkeypatch.setattr(engine, "decoding_threads", lambda: TOGETHER)
    monkeypatch.setattr(labeller, "read_image", meets)


def test_pictures_are_decoded_side_by_side_in_their_order(
    decoders_meet: None, tmp_path: Path
) -> None:
    items = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        if number != 4:
            write_png(path, np.full((8, 9, 3), number, np.uint8))
        items.append(Item(name=path.name, place=WholeFile(file=str(path)), stamp=""))
    broken = tmp_path / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    keeps = Keeps()
    chunk = tuple(enumerate(items))
    assert list(labelled(keeps, [chunk[:2], chunk[2:]])) == [[], []]  # type: ignore[arg-type]
    found = [one for several in keeps.chunks for one in several]
    assert [len(several) for several in keeps.chunks] == [2, 5]
    assert [one.number for one in found] == list(range(7))
    for one in found:
        if one.number in {1, 4}:
            assert one.rgb is None
            assert one.failure is not None
            assert one.item.name in one.failure.message
        else:
            assert one.rgb is not None
            assert (one.rgb == 100 + one.number).all()  # as it was staged
            assert len(one.sha256) == 64
    assert all(name.startswith("samforge-decode") for name in keeps.stagers)
