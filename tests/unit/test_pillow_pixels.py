"""Pillow's pixels, copied without the interpreter's lock."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samforge.media import read_image
from samforge.media._pillow_pixels import rgb_pixels


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own way, under the lock, is an error."""

    def packed(self: Image.Image, *_: object) -> bytes:
        raise AssertionError(f"{self.size} was packed under the interpreter's lock")

    monkeypatch.setattr(Image.Image, "tobytes", packed)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (33, 65), (1080, 1920)])
def test_pixels_are_those_of_numpy(size: tuple[int, int]) -> None:
    image = picture(*size)
    found = rgb_pixels(image)
    np.testing.assert_array_equal(found, np.asarray(image))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


def test_they_are_not_packed_under_the_lock(without_packing: None) -> None:
    wanted = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    image = Image.fromarray(wanted)
    np.testing.assert_array_equal(rgb_pixels(image), wanted)
    file = io.BytesIO()
    grey = Image.fromarray(wanted[..., 0])
    grey.save(file, "PNG")
    np.testing.assert_array_equal(read_image(file.getvalue()), wanted[..., :1].repeat(3, 2))


def test_they_outlive_their_image() -> None:
    image = picture(40, 30)
    wanted = np.asarray(image).copy()
    found = rgb_pixels(image)
    image.paste((0, 0, 0), (0, 0, 30, 40))
    image.close()
    np.testing.assert_array_equal(found, wanted)


def test_memory_is_given_back() -> None:
    """Capsules that somebody kept would hold the memory of every image: 3 MB each here."""
    image = picture(750, 1000)
    before = resident_mib()
    for _ in range(100):
        rgb_pixels(image.copy())
    assert resident_mib() - before < 60


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_images_of_several_blocks_are_packed() -> None:
    """Pillow does not show memory that is in pieces."""
    image = picture(2600, 2600)
    with pytest.raises(ValueError, match=r"contiguous|block"):
        image.__arrow_c_array__()
    np.testing.assert_array_equal(rgb_pixels(image), np.asarray(image))
