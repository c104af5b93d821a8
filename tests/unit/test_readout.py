"""The readout: readable on any ground, still while its digits change, inside any picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from samforge.core.errors import ShapeError
from samforge.draw.readout import draw_readout

Rgb = npt.NDArray[np.uint8]
ITEMS = ("onnxruntime int8", "185 ms", "5.4 fps")


def _luminance(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Relative luminance of sRGB, as WCAG 2.2 defines it."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance: npt.NDArray[np.float64] = linear @ np.array([0.2126, 0.7152, 0.0722])
    return luminance


def _panel(before: Rgb, after: Rgb) -> tuple[int, int]:
    """Height and width of what changed; it begins at the top left corner."""
    changed = (before != after).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (rows[0], columns[0]) == (0, 0)
    return int(rows[-1]) + 1, int(columns[-1]) + 1


@pytest.mark.parametrize("ground", [(255, 255, 255), (255, 255, 0), (128, 128, 128), (90, 0, 0)])
def test_text_stands_out(ground: tuple[int, int, int]) -> None:
    before = np.full((360, 640, 3), ground, np.uint8)
    after = draw_readout(before, ITEMS)
    height, width = _panel(before, after)
    light = _luminance(after[:height, :width] / 255)
    contrast = (light.max() + 0.05) / (np.median(light) + 0.05)
    assert contrast > 7, "WCAG 2.2 asks 7 of enhanced contrast"
    assert 1 < (light > 0.9).sum() < 0.5 * light.size
    assert np.array_equal(after[height:], before[height:])
    assert np.array_equal(after[:, width:], before[:, width:])


def test_the_picture_given_stays_as_it_is() -> None:
    before = np.full((100, 300, 3), 200, np.uint8)
    draw_readout(before, ITEMS)
    assert (before == 200).all()
    assert np.array_equal(draw_readout(before, ()), before)


def test_the_panel_does_not_follow_the_digits() -> None:
    before = np.full((360, 640, 3), 200, np.uint8)
    panels = {
        _panel(before, draw_readout(before, ("fake", f"{digit * 111} ms", f"{digit}.{digit} fps")))
        for digit in range(1, 10)
    }
    assert len(panels) == 1


@pytest.mark.parametrize("size_hw", [(1, 1), (8, 8), (60, 40), (100, 120), (2000, 30)])
def test_small_pictures_get_several_lines(size_hw: tuple[int, int]) -> None:
    before = np.full((*size_hw, 3), 200, np.uint8)
    after = draw_readout(before, ITEMS)
    assert after.shape == before.shape
    height, width = _panel(before, after)
    if size_hw == (100, 120):
        single = draw_readout(np.full((100, 400, 3), 200, np.uint8), ITEMS)
        assert height > _panel(np.full((100, 400, 3), 200, np.uint8), single)[0]
        assert width < 120


def test_letters_grow_with_the_picture() -> None:
    sizes = []
    for side in (480, 1920):
        before = np.full((side, side, 3), 200, np.uint8)
        sizes.append(_panel(before, draw_readout(before, ITEMS)))
    assert sizes[1][0] > 2 * sizes[0][0]


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_no_picture(wrong: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ShapeError, match=r"A picture is uint8 \(H, W, 3\), got"):
        draw_readout(wrong, ITEMS)  # type: ignore[arg-type]
