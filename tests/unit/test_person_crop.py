"""The person crop and the camera of SAM 3D Body, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samforge.core.errors import PromptError, ShapeError
from samforge.core.images import ImageSpec
from samforge.integrations.person_crop import (
    PersonCrop,
    crop_from_box,
    crops_bchw,
    default_camera,
    warp,
)

IMAGENET = ImageSpec(size=512, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("box", "centre", "side"),
    [
        # Tall: 1.25 * 400 = 500 high; three quarters of that, 375, is wider than 1.25 * 200.
        ((100, 50, 300, 450), (200, 250), 500.0),
        # Wide: 1.25 * 300 = 375 wide, so 375 / 0.75 = 500 high.
        ((0, 100, 300, 200), (150, 150), 500.0),
        # Exactly 3:4.
        ((10, 10, 310, 410), (160, 210), 500.0),
        # Over the edge of the image: the crop keeps its centre.
        ((-100, 0, 100, 480), (0, 240), 600.0),
    ],
)
def test_the_square_around_a_box(box: Any, centre: Any, side: float) -> None:
    crop = crop_from_box(box, (480, 640))
    assert (crop.centre_xy, crop.side_px, crop.size) == (centre, side, 512)


def test_the_matrix_by_hand() -> None:
    crop = crop_from_box((100, 50, 300, 450), (480, 640))
    # 512 / 500 = 1.024; the centre (200, 250) goes to (256, 256).
    assert crop.matrix.tolist() == pytest.approx(
        np.array([[1.024, 0, 256 - 1.024 * 200], [0, 1.024, 256 - 1.024 * 250]])
    )
    assert crop.matrix @ [200, 250, 1] == pytest.approx([256, 256])
    # The square's upper left corner is the crop's.
    assert crop.matrix @ [200 - 250, 250 - 250, 1] == pytest.approx([0, 0])


def test_the_default_camera() -> None:
    camera = default_camera((480, 640))
    assert camera.focal_px == 800.0
    assert camera.matrix.tolist() == [[800, 0, 320], [0, 800, 240], [0, 0, 1]]


def picture(height: int = 6, width: int = 8) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_crop_at_the_images_own_scale_is_a_slice() -> None:
    rgb = picture()
    crop = PersonCrop(centre_xy=(4.0, 3.0), side_px=4.0, size=4)
    assert np.array_equal(warp(rgb, crop), rgb[1:5, 2:6])


def test_half_a_pixel_mixes_neighbours() -> None:
    rgb = np.array([[[0] * 3, [100] * 3, [201] * 3]], np.uint8)
    # Positions -0.5, 0.5, 1.5 and 2.5: black outside counts as black.
    crop = PersonCrop(centre_xy=(1.5, 0.0), side_px=4.0, size=4)
    row = warp(rgb, crop)[2, :, 0]
    # Half to even, as rint does: 150.5 becomes 150, and 201 / 2 becomes 100.
    assert row.tolist() == [0, 50, 150, 100]


def test_twice_as_large() -> None:
    rgb = np.array([[[10] * 3, [20] * 3], [[30] * 3, [40] * 3]], np.uint8)
    # Positions (i - 2) / 2 + 1 = 0, 0.5, 1, 1.5 in both directions.
    crop = PersonCrop(centre_xy=(1.0, 1.0), side_px=2.0, size=4)
    assert warp(rgb, crop)[:, :, 0].tolist() == [
        [10, 15, 20, 10],
        [20, 25, 30, 15],
        [30, 35, 40, 20],
        [15, 18, 20, 10],
    ]


def by_definition(rgb: Any, crop: PersonCrop) -> Any:
    """Bilinear at the inverse of the matrix, pixel by pixel."""
    inverse = np.linalg.inv(np.vstack((crop.matrix, (0, 0, 1))))
    out = np.zeros((crop.size, crop.size, 3))
    height, width = rgb.shape[:2]
    for row in range(crop.size):
        for column in range(crop.size):
            x, y, _ = inverse @ (column, row, 1)
            for i in (int(np.floor(y)), int(np.floor(y)) + 1):
                for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        out[row, column] += rgb[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return out


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-3, 12), st.floats(-3, 9), st.floats(0.5, 30), st.integers(1, 9), st.integers(0, 99)
)
def test_it_is_what_the_definition_says(
    x: float, y: float, side: float, size: int, seed: int
) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    crop = PersonCrop(centre_xy=(x, y), side_px=side, size=size)
    assert np.abs(warp(rgb, crop) - by_definition(rgb, crop)).max() <= 0.51


def test_crops_are_normalized_and_batched() -> None:
    rgb = np.full((480, 640, 3), 255, np.uint8)
    batch = crops_bchw(rgb, [(100, 100, 300, 400), (300, 100, 400, 300)], IMAGENET)
    assert batch.shape == (2, 3, 512, 512)
    assert batch.dtype == np.float32
    assert batch[0, :, 256, 256] == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rel=1e-5
    )
    # The first crop reaches above the image: black there.
    over = crops_bchw(rgb, [(0, 0, 100, 480)], IMAGENET)
    assert over[0, :, 0, 0] == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (10, 50, 60, 50), (60, 10, 20, 50)])
def test_a_box_of_no_area(box: Any) -> None:
    with pytest.raises(PromptError, match=r"has no area: right must exceed left and bottom exceed"):
        crop_from_box(box, (480, 640))


@pytest.mark.parametrize(
    "box", [(640, 0, 700, 100), (-50, 0, 0, 100), (0, 480, 50, 500), (0, -50, 50, -10)]
)
def test_a_box_outside_the_image(box: Any) -> None:
    with pytest.raises(PromptError, match="lies outside the image of 640 x 480 pixels"):
        crop_from_box(box, (480, 640))


@pytest.mark.parametrize("box", [(1, 2, 3), (1, 2, 3, np.nan), (0, 0, np.inf, 5)])
def test_a_box_that_is_none(box: Any) -> None:
    with pytest.raises(PromptError, match="four finite numbers"):
        crop_from_box(box, (480, 640))


def test_no_box_and_no_picture() -> None:
    with pytest.raises(PromptError, match="There is no box"):
        crops_bchw(picture(), [], IMAGENET)
    with pytest.raises(ShapeError, match="A crop is cut out of uint8"):
        warp(picture().astype(np.float32), PersonCrop(centre_xy=(1, 1), side_px=2, size=2))
