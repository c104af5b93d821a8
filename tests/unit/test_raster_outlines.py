"""Outlines of rasters' objects: valid polygons that are the pixels, as GDAL traces them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio import Affine
from rasterio.features import shapes
from shapely import MultiPolygon, Polygon, box, normalize

from samforge.rasters.outline import outline_of_crop

CROPS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any)


def of_gdal(crop: npt.NDArray[np.bool_], left_top: tuple[int, int]) -> Any:
    found = shapes(
        crop.astype(np.uint8), mask=crop, connectivity=4, transform=Affine.translation(*left_top)
    )
    rings = [geometry["coordinates"] for geometry, _ in found]
    polygons = [Polygon(shell, holes) for shell, *holes in rings]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


@given(crop=CROPS, left_top=st.tuples(st.integers(0, 99), st.integers(0, 99)))
@settings(max_examples=300, deadline=None)
def test_they_are_those_of_gdal(crop: npt.NDArray[np.bool_], left_top: tuple[int, int]) -> None:
    outline = outline_of_crop(crop, left_top)
    assert outline.is_valid
    assert outline.area == np.count_nonzero(crop)
    assert normalize(outline).equals_exact(normalize(of_gdal(crop, left_top)), 0)


@pytest.mark.parametrize(
    ("rows", "parts", "holes"),
    [
        (["###", "#.#", "###"], 1, 1),
        (["####", "#.##", "##.#", "####"], 1, 2),  # holes that meet at a corner
        (["####", "#.##", "###.", "####"], 1, 1),  # a hole and a bay
        (["###", "#.#", "##."], 1, 1),  # a hole that meets the outside
        (["#.", ".#"], 2, 0),
    ],
)
def test_corners_where_rings_meet(rows: list[str], parts: int, holes: int) -> None:
    crop = np.array([[one == "#" for one in row] for row in rows])
    outline = outline_of_crop(crop, (0, 0))
    polygons = list(getattr(outline, "geoms", [outline]))
    assert outline.is_valid
    assert len(polygons) == parts
    assert sum(len(one.interiors) for one in polygons) == holes
    pixels = (box(x, y, x + 1, y + 1) for y, x in np.argwhere(crop))
    assert all(outline.contains(pixel) for pixel in pixels)
