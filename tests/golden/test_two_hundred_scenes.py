"""Two hundred scenes find the same, to the bit, whichever way of the library they take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import samforge
from samforge.media import write_png
from samforge.models import tiny

SCENES = 200
PHRASES = ("red circle", "star", "object")


def digest(found: samforge.Detections) -> str:
    """Of all that a detection says."""
    state = hashlib.sha256(repr((found.labels, found.size_hw)).encode())
    for array in (found.scores, found.boxes_xyxy):
        state.update(np.ascontiguousarray(array))
    for row in range(len(found)):
        rle = found.masks.rle(row)
        state.update(repr((rle["size"], rle["counts"])).encode())
    return state.hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return [
        write_png(folder / f"{number:03}.png", tiny.draw_scene(number, split="demo").image)
        for number in range(SCENES)
    ]


Way = Callable[[samforge.Segmenter, list[Path]], Iterator[samforge.Detections]]


def as_lists(segmenter: samforge.Segmenter, files: list[Path]) -> Iterator[samforge.Detections]:
    for start in range(0, len(files), 8):
        yield from segmenter.predict(files[start : start + 8], text=PHRASES)


def as_arrays(segmenter: samforge.Segmenter, files: list[Path]) -> Iterator[samforge.Detections]:
    for file in files:
        yield segmenter.predict(samforge.read_image(file), text=PHRASES)


def as_stream(segmenter: samforge.Segmenter, files: list[Path]) -> Iterator[samforge.Detections]:
    yield from segmenter.stream(iter(files), text=PHRASES)


def as_batches(segmenter: samforge.Segmenter, files: list[Path]) -> Iterator[samforge.Detections]:
    yield from segmenter.stream(iter(files), text=PHRASES, batch=4)


def encoded(segmenter: samforge.Segmenter, files: list[Path]) -> Iterator[samforge.Detections]:
    for file in files:
        yield segmenter.predict(segmenter.encode(file), text=PHRASES)


@pytest.fixture(scope="module")
def wanted(tiny_bundle: samforge.Bundle, files: list[Path]) -> list[str]:
    """Of each scene, asked one by one."""
    with samforge.load(tiny_bundle) as segmenter:
        found = [segmenter.predict(file, text=PHRASES) for file in files]
    assert sum(map(len, found)) > 4 * SCENES
    return [digest(one) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("way", [as_lists, as_arrays, as_stream, as_batches, encoded])
def test_it_finds_the_same(
    tiny_bundle: samforge.Bundle, files: list[Path], wanted: list[str], way: Way
) -> None:
    with samforge.load(tiny_bundle) as segmenter:
        assert [digest(one) for one in way(segmenter, files)] == wanted
