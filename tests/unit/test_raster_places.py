"""Where rasters lie: reference systems, turned ones, plain pictures, extents, areas."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from raster_oracle import (
    NORTH_UP,
    SIZE,
    colours_of,
    oracle_of,
    plan_of,
    read,
    scene,
    segment,
    write_numbers,
)
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from samforge.core.errors import (
    ImageError,
    SettingError,
)
from samforge.rasters import (
    expected_windows,
)


class TestReferenceSystems:
    def test_coordinates_are_those_of_the_raster(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        result = segment(oracle_of(numbers), plan_of(path))
        assert (result.crs, result.area_unit, result.objects) == ("EPSG:32633", "m2", 9)
        table = read(tmp_path / "out.gpkg")
        assert table["crs"] == "EPSG:32633"
        # Block 1: rows 5 to 35, columns 20 to 55, half a metre a pixel.
        expected = shapely.box(400_010, 5_799_982.5, 400_027.5, 5_799_997.5)
        assert any(one.equals(expected) for one in table["geometry"])
        assert set(table["area"]) == {30 * 35 / 4}

    def test_a_turned_raster_gives_turned_outlines(self, tmp_path: Path) -> None:
        numbers = scene()
        turned = Affine.translation(400_000, 5_800_000) @ Affine.rotation(30) @ Affine.scale(2, -2)
        path = write_numbers(tmp_path / "in.tif", numbers, transform=turned)
        assert segment(oracle_of(numbers), plan_of(path)).objects == 9
        table = read(tmp_path / "out.gpkg")
        block = shapely.box(20, 5, 55, 35)
        numbers_of_it = (turned.a, turned.b, turned.d, turned.e, turned.c, turned.f)
        expected = shapely.affinity.affine_transform(block, numbers_of_it)
        assert max(one.intersection(expected).area for one in table["geometry"]) == pytest.approx(
            expected.area, rel=1e-6
        )
        assert table["area"] == pytest.approx([30 * 35 * 4] * 9)
        # An extent is turned the other way: it reaches the one block around it.
        x, y = expected.centroid.coords[0]
        plan = plan_of(path, extent=(x - 5, y - 5, x + 5, y + 5))
        assert segment(oracle_of(numbers), plan).objects == 1

    def test_without_one_coordinates_are_the_rasters_own_and_a_note_says_so(
        self, tmp_path: Path
    ) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers, crs=None)
        result = segment(oracle_of(numbers), plan_of(path))
        assert (result.crs, result.area_unit) == ("unknown", "units2")
        assert "--crs EPSG:32633" in result.notes[0]
        table = read(tmp_path / "out.gpkg")
        assert table["geometry"][0].bounds[0] >= 400_000
        named = segment(oracle_of(numbers), plan_of(path, crs="EPSG:25833"))
        assert (named.crs, named.notes) == ("EPSG:25833", ())
        assert read(tmp_path / "out.gpkg")["crs"] == "EPSG:25833"

    def test_one_of_degrees_has_areas_on_the_ellipsoid(self, tmp_path: Path) -> None:
        numbers = scene()
        degrees = Affine(1e-5, 0, 13.4, 0, -1e-5, 60.0)
        path = write_numbers(tmp_path / "in.tif", numbers, crs="EPSG:4326", transform=degrees)
        result = segment(oracle_of(numbers), plan_of(path))
        assert result.area_unit == "m2"
        # At 60 degrees a degree is 111.4 km north and 55.8 km east: 1.114 m by 0.558 m a pixel.
        assert read(tmp_path / "out.gpkg")["area"] == pytest.approx(
            [30 * 35 * 1.114 * 0.558] * 9, rel=2e-3
        )

    def test_holes_are_no_area_on_the_ellipsoid_either(self, tmp_path: Path) -> None:
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        away = (rows - 75) ** 2 + (columns - 100) ** 2
        ring = ((away < 30**2) & (away >= 20**2)).astype(np.int64)
        ring[10:20, 180:190] = ring[5:9, 180:190] = 1  # parts of the same object
        degrees = Affine(1e-5, 0, 13.4, 0, -1e-5, 60.0)
        path = write_numbers(tmp_path / "in.tif", ring, crs="EPSG:4326", transform=degrees)
        segment(oracle_of(ring), plan_of(path, window=200, overlap=50))
        assert read(tmp_path / "out.gpkg")["area"] == pytest.approx(
            [ring.sum() * 1.114 * 0.558], rel=2e-3
        )

    def test_one_of_feet_has_areas_in_feet(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers, crs="EPSG:2263")
        assert segment(oracle_of(numbers), plan_of(path)).area_unit == "US survey foot2"

    def test_another_than_the_rasters_is_refused(self, tmp_path: Path) -> None:
        path = write_numbers(tmp_path / "in.tif", scene())
        with pytest.raises(SettingError, match="WGS 84 / UTM zone 33N, and --crs names WGS 84"):
            plan_of(path, crs="EPSG:4326").opened()
        with pytest.raises(SettingError, match="'EPSG:0' is no coordinate reference system"):
            plan_of(path, crs="EPSG:0").opened()

    def test_control_points_without_a_transform_are_refused(self, tmp_path: Path) -> None:
        points = [GroundControlPoint(r, c, 13 + c, 52 - r) for r, c in ((0, 0), (0, 9), (9, 0))]
        path = write_numbers(
            tmp_path / "in.tif",
            scene(),
            crs="EPSG:4326",
            transform=None,
            gcps=points,
        )
        with pytest.raises(ImageError, match=r"control points and no geotransform.*gdalwarp"):
            plan_of(path).opened()

    def test_pixels_without_area_are_refused(self, tmp_path: Path) -> None:
        flat = Affine(1, 1, 0, 1, 1, 0)
        path = write_numbers(tmp_path / "in.tif", scene(), transform=flat)
        with pytest.raises(ImageError, match="pixels have no area"):
            plan_of(path).opened()


@pytest.mark.parametrize("name", ["in.png", "in.jpg"])
def test_plain_pictures_have_pixel_coordinates(tmp_path: Path, name: str) -> None:
    numbers = scene()
    colours = colours_of(numbers * 0x1C1C1C).transpose(1, 2, 0)
    path = tmp_path / name
    Image.fromarray(np.ascontiguousarray(colours)).save(path, quality=100, subsampling=0)
    out = tmp_path / "out.geojson"
    oracle = oracle_of(numbers * 0x1C1C1C)
    result = segment(oracle, plan_of(path, outs=(out,)))
    assert (result.crs, result.area_unit) == ("pixels", "pixels")
    assert "rows downwards" in result.notes[0]
    if name == "in.png":
        features = json.loads(out.read_text(encoding="utf-8"))["features"]
        assert len(features) == 9
        boxes = {shapely.geometry.shape(one["geometry"]).bounds for one in features}
        assert (20.0, 5.0, 55.0, 35.0) in boxes
        inside = segment(oracle, plan_of(path, outs=(out,), extent=(20, 5, 30, 10)))
        assert inside.objects == 1


class TestExtents:
    BOXES = (
        (400_010.0, 5_799_990.0, 400_012.0, 5_799_991.0),
        (400_000.0, 5_799_950.0, 400_050.0, 5_799_970.0),
        (400_027.5, 5_799_925.0, 400_099.0, 5_799_999.0),
        (399_000.0, 5_700_000.0, 500_000.0, 5_900_000.0),
    )

    @pytest.mark.parametrize("extent", BOXES)
    @pytest.mark.parametrize("large", [False, True])
    def test_the_answer_is_that_of_the_whole_there(
        self, tmp_path: Path, extent: tuple[float, float, float, float], large: bool
    ) -> None:
        numbers = scene()
        if large:
            numbers[60:140, 15:190] = 77
        path = write_numbers(tmp_path / "in.tif", numbers)
        segment(oracle_of(numbers), plan_of(path))
        whole = read(tmp_path / "out.gpkg")
        part_plan = plan_of(path, extent=extent)
        segment(oracle_of(numbers), part_plan)
        part = read(tmp_path / "out.gpkg")

        def rows(table: dict[str, Any], keep: Callable[[Any], bool]) -> set[tuple[Any, ...]]:
            columns = [table[name] for name in ("label", "score", "area", "windows", "source")]
            return {
                (one.normalize().wkb, *values)
                for one, *values in zip(table["geometry"], *columns, strict=True)
                if keep(one)
            }

        box = shapely.box(*extent)
        expected = rows(whole, lambda one: one.intersection(box).area > 0)
        assert rows(part, lambda one: True) == expected
        assert expected

    def test_few_windows_are_taken(self, tmp_path: Path) -> None:
        path = write_numbers(tmp_path / "in.tif", scene())
        plan = plan_of(path, extent=self.BOXES[0], coarse=False)
        assert expected_windows(plan, 64) == 1
        assert expected_windows(replace(plan, extent=None), 64) == 12
        assert segment(oracle_of(scene()), plan).windows == 2  # one more completes its object

    def test_outside_the_raster(self, tmp_path: Path) -> None:
        path = write_numbers(tmp_path / "in.tif", scene())
        with pytest.raises(SettingError, match="outside the raster"):
            segment(oracle_of(scene()), plan_of(path, extent=(0, 0, 1, 1)))
        assert not (tmp_path / "out.gpkg").exists()


def test_smallest_area_and_simpler_outlines(tmp_path: Path) -> None:
    numbers = scene()
    numbers[60:63, 5:9] = 20
    path = write_numbers(tmp_path / "in.tif", numbers)
    result = segment(oracle_of(numbers), plan_of(path, min_area=4.0))
    assert (result.objects, result.too_small) == (9, 1)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = ((rows - 75) ** 2 + (columns - 75) ** 2 < 60**2).astype(np.int64)
    path = write_numbers(tmp_path / "in.tif", disc)
    exact = segment(oracle_of(disc), plan_of(path))
    corners = shapely.get_num_coordinates(read(tmp_path / "out.gpkg")["geometry"][0])
    simple = segment(oracle_of(disc), plan_of(path, simplify=1.0))
    fewer = shapely.get_num_coordinates(read(tmp_path / "out.gpkg")["geometry"][0])
    assert fewer < corners / 4
    assert exact.phrases["thing"].area == simple.phrases["thing"].area == disc.sum() / 4


def test_a_raster_smaller_than_a_window_is_one_window(tmp_path: Path) -> None:
    numbers = scene()[:40, :60]
    path = write_numbers(tmp_path / "in.tif", numbers)
    oracle = oracle_of(numbers)
    result = segment(oracle, plan_of(path, window=1008, overlap=252))
    assert (result.windows, result.objects, oracle.calls) == (1, 1, 1)
    assert NORTH_UP.a == 0.5
