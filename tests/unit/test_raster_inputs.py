"""Rasters as they come: bands, types, reference systems, holes, extents, and what fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio.raw
import pytest
import shapely
from PIL import Image
from raster_oracle import (
    NORTH_UP,
    Numbers,
    Oracle,
    colours_of,
    oracle_of,
    write_numbers,
    write_raster,
)
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

import samforge
from samforge.core.errors import (
    ImageError,
    MissingExtra,
    OutputError,
    PromptError,
    SettingError,
)
from samforge.rasters import (
    RasterPlan,
    RasterResult,
    Stretch,
    bands_from_text,
    expected_windows,
    extent_from_text,
    stretch_from_text,
)
from samforge.rasters.source import RasterSource
from samforge.rasters.stretch import FILL, picture_of, stretch_of

SIZE = (150, 200)


def scene() -> Numbers:
    """Nine blocks; some lie over seams of windows of 64 pixels that share 16."""
    numbers = np.zeros(SIZE, np.int64)
    for number in range(9):
        top, left = 5 + 48 * (number // 3), 20 + 60 * (number % 3)
        numbers[top : top + 30, left : left + 35] = number + 1
    return numbers


def plan_of(path: Path, **settings: Any) -> RasterPlan:
    given: dict[str, Any] = {
        "outs": (path.with_name("out.gpkg"),),
        "text": ("thing",),
        "window": 64,
        "overlap": 16,
        **settings,
    }
    return RasterPlan(raster=path, **given)


def segment(oracle: Oracle, plan: RasterPlan) -> RasterResult:
    return samforge.segment_raster(oracle, plan)  # type: ignore[arg-type]  # it has what is used


def read(path: Path) -> dict[str, Any]:
    info, _, geometries, columns = pyogrio.raw.read(path)
    table = {name: list(one) for name, one in zip(info["fields"], columns, strict=True)}
    return {"crs": info["crs"], "geometry": shapely.from_wkb(geometries).tolist(), **table}


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


class TestBandsAndTypes:
    def source(self, path: Path, bands: tuple[int, ...] | None = None) -> RasterSource:
        return RasterSource(path, bands=bands, crs=None)

    def picture(self, path: Path, bands: tuple[int, ...] | None = None) -> npt.NDArray[np.uint8]:
        with self.source(path, bands) as source:
            whole = source.read((0, 0, source.size_hw[1], source.size_hw[0]))
            return picture_of(whole, stretch_of(source), source.palette)

    def test_8_bit_values_stay_what_they_are(self, tmp_path: Path) -> None:
        values = np.arange(3 * 16 * 16, dtype=np.uint32).reshape(3, 16, 16).astype(np.uint8) // 4
        path = write_raster(tmp_path / "in.tif", values)
        assert np.array_equal(self.picture(path), values.transpose(1, 2, 0))

    @pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32", "float64"])
    def test_others_are_stretched_alike_everywhere(self, tmp_path: Path, dtype: str) -> None:
        """All bands together: colours keep their balance."""
        ramp = np.linspace(1000, 3000, 128 * 128).reshape(128, 128)
        values = np.stack([ramp, ramp, np.full_like(ramp, 2000)]).astype(dtype)
        path = write_raster(tmp_path / "in.tif", values)
        with self.source(path) as source:
            stretch = stretch_of(source)
        low, high = np.percentile(values, (2, 98))
        assert stretch is not None
        assert (stretch.low, stretch.high) == pytest.approx((low, high), rel=1e-3)
        shown = self.picture(path)
        expected = ((values - low) / (high - low) * 255).clip(0, 255).transpose(1, 2, 0)
        assert np.abs(shown - expected).max() <= 1
        assert set(np.unique(shown[..., 2])) == {round((2000 - low) / (high - low) * 255)}

    def test_one_value_everywhere_is_shown(self, tmp_path: Path) -> None:
        path = write_raster(tmp_path / "in.tif", np.full((1, 20, 20), 700, np.uint16))
        assert np.unique(self.picture(path)).tolist() == [0]

    def test_one_band_is_grey_and_a_fourth_is_left_out(self, tmp_path: Path) -> None:
        one = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        grey = self.picture(write_raster(tmp_path / "one.tif", one))
        assert all(np.array_equal(grey[..., band], one[0]) for band in range(3))
        four = np.stack([one[0], one[0] // 2, one[0] // 3, 255 - one[0]])
        path = write_raster(tmp_path / "four.tif", four, photometric="MINISBLACK")
        assert np.array_equal(self.picture(path), four[:3].transpose(1, 2, 0))
        assert np.array_equal(self.picture(path, (4, 3, 2)), four[[3, 2, 1]].transpose(1, 2, 0))

    def test_colours_are_found_by_what_the_file_says(self, tmp_path: Path) -> None:
        four = np.stack([np.full((16, 16), value, np.uint8) for value in (1, 2, 3, 4)])
        order = (ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red)
        path = write_raster(
            tmp_path / "in.tif", four, after=lambda file: setattr(file, "colorinterp", order)
        )
        assert self.picture(path)[0, 0].tolist() == [4, 3, 2]

    def test_alpha_says_what_is_valid(self, tmp_path: Path) -> None:
        four = np.full((4, 16, 16), 200, np.uint8)
        four[3, :, :8] = 0
        path = write_raster(tmp_path / "in.tif", four, photometric="RGB", alpha="yes")
        shown = self.picture(path)
        assert (np.unique(shown[:, :8]), np.unique(shown[:, 8:])) == ([FILL], [200])

    def test_a_palette_is_looked_up(self, tmp_path: Path) -> None:
        colours = {0: (0, 0, 0, 255), 1: (250, 10, 20, 255), 2: (5, 6, 7, 255)}
        path = write_raster(
            tmp_path / "in.tif",
            np.array([[[1, 2], [2, 0]]], np.uint8),
            photometric="PALETTE",
            after=lambda file: file.write_colormap(1, colours),
        )
        assert self.picture(path)[0].tolist() == [[250, 10, 20], [5, 6, 7]]

    def test_not_a_number_is_no_data(self, tmp_path: Path) -> None:
        values = np.linspace(0, 1, 400, dtype=np.float32).reshape(1, 20, 20)
        values[0, 3, 4], values[0, 5, 6] = np.nan, np.inf
        shown = self.picture(write_raster(tmp_path / "in.tif", values))
        assert (shown[3, 4].tolist(), shown[5, 6].tolist()) == ([FILL] * 3, [FILL] * 3)
        assert (shown[0, 0, 0], shown[-1, -1, 0]) == (0, 255)

    @pytest.mark.parametrize("bands", [(0,), (4,), (1, 2), (1, 2, 3, 1)])
    def test_bands_that_are_not_there(self, tmp_path: Path, bands: tuple[int, ...]) -> None:
        path = write_numbers(tmp_path / "in.tif", scene())
        with pytest.raises(SettingError, match="one or three numbers from 1 to 3"):
            self.source(path, bands)

    def test_complex_numbers(self, tmp_path: Path) -> None:
        path = write_raster(tmp_path / "in.tif", np.ones((1, 8, 8), np.complex64))
        with pytest.raises(ImageError, match="complex numbers"):
            self.source(path)


class TestNodata:
    def test_windows_without_data_are_skipped(self, tmp_path: Path) -> None:
        numbers = scene()
        numbers[:, 100:] = 0
        bands = colours_of(numbers)
        bands[:, :, :100][:, numbers[:, :100] == 0] = 9  # ground with data
        path = write_raster(tmp_path / "in.tif", bands, nodata=0)
        oracle = oracle_of(numbers)
        result = segment(oracle, plan_of(path, coarse=False))
        # Windows at columns 0, 48 and 96 reach data; all at 136 hold none.
        assert (result.windows, result.without_data, oracle.calls) == (12, 3, 9)
        table = read(tmp_path / "out.gpkg")
        assert sum(table["pixels"]) == np.count_nonzero(numbers)

    def test_a_raster_without_any_is_empty_and_says_so(self, tmp_path: Path) -> None:
        path = write_raster(tmp_path / "in.tif", np.zeros((3, *SIZE), np.uint16), nodata=0)
        oracle = oracle_of(scene())
        result = segment(oracle, plan_of(path, coarse=False))
        assert (result.objects, oracle.calls) == (0, 0)
        assert result.notes == ("No window holds any data: all of the raster is nodata.",)
        assert read(tmp_path / "out.gpkg")["geometry"] == []

    def test_masks_end_where_data_ends(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers, nodata=0)
        oracle = oracle_of(numbers, seen=lambda number, mask: [np.ones_like(mask)])
        oracle.known = frozenset({5})
        result = segment(oracle, plan_of(path, coarse=False, window=200, overlap=50))
        assert result.objects == 1
        assert read(tmp_path / "out.gpkg")["pixels"] == [np.count_nonzero(numbers)]


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


class TestFailures:
    def test_windows_that_fail_are_named_and_tried_again(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        out = tmp_path / "out.geojson"
        plan = plan_of(path, outs=(out,), coarse=False)
        oracle = oracle_of(numbers, failing=lambda call: call == 5)
        result = segment(oracle, plan)
        (failure,) = result.failures
        assert (failure.window, failure.box) == ("1,1", (48, 48, 112, 112))
        assert (failure.kind, failure.exit_code) == ("ItemError", 1)
        assert failure.message == "RuntimeError: the device was lost"
        report = json.loads(out.read_text(encoding="utf-8"))["report"]
        assert report["failed_windows"][0]["message"] == failure.message
        assert plan.ledger.exists()

        again = oracle_of(numbers)
        result = segment(again, plan)
        assert (again.calls, result.resumed, result.failures) == (1, 11, ())
        assert result.objects == 9
        assert not plan.ledger.exists()

    def test_a_stopped_run_goes_on_and_ends_with_the_same_file(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        out = tmp_path / "out.geojson"
        plan = plan_of(path, outs=(out,), coarse=False)
        segment(oracle_of(numbers), plan)
        unbroken = out.read_bytes()
        out.unlink()
        for stop in range(1, 12, 3):
            counted = iter(range(100))

            def done(counted: Any = counted, stop: int = stop) -> None:
                if next(counted) == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                samforge.segment_raster(oracle_of(numbers), plan, done=done)  # type: ignore[arg-type]
            assert [one.name for one in tmp_path.glob("*out*")] == [plan.ledger.name]
            # Killed while it wrote a line.
            with plan.ledger.open("ab") as file:
                file.write(b'{"window": [3, 1], "pieces": [{"la')
        assert segment(oracle_of(numbers), plan).resumed == 11
        assert out.read_bytes() == unbroken
        assert not plan.ledger.exists()

    def test_what_another_run_kept_is_not_mixed_in(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        plan = plan_of(path, coarse=False)
        segment(oracle_of(numbers, failing=lambda call: call == 2), plan)
        other = oracle_of(numbers, digest="another bundle")
        with pytest.raises(SettingError, match=r"of another run.*--restart"):
            segment(other, plan)
        assert segment(other, replace(plan, restart=True)).resumed == 0

    def test_a_damaged_tile_is_named_and_the_others_are_done(self, tmp_path: Path) -> None:
        numbers = np.kron(np.arange(1, 17).reshape(4, 4), np.ones((64, 64), np.int64))
        numbers[::64] = numbers[:, ::64] = numbers[63::64] = numbers[:, 63::64] = 0
        path = write_numbers(
            tmp_path / "in.tif", numbers, tiled=True, blockxsize=64, blockysize=64, compress="lzw"
        )
        content = path.read_bytes()
        path.write_bytes(content[:-200] + b"\xff" * 200)  # the last tile
        result = segment(oracle_of(numbers), plan_of(path, coarse=False))
        assert result.failures
        assert {one.kind for one in result.failures} == {"ImageError"}
        assert "damaged" in result.failures[0].message
        assert result.objects >= 8

    def test_a_full_disk_ends_the_run(self, tmp_path: Path) -> None:
        path = write_numbers(tmp_path / "in.tif", scene())
        with pytest.raises(OutputError, match="cannot be written"):
            segment(oracle_of(scene()), plan_of(path, outs=(tmp_path / "no" / "out.gpkg",)))


class TestWhatIsGiven:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"no\.tif is no file"):
            plan_of(tmp_path / "no.tif").opened()

    def test_no_raster(self, tmp_path: Path) -> None:
        path = tmp_path / "in.tif"
        path.write_bytes(b"no raster at all")
        with pytest.raises(ImageError, match="cannot be opened as a raster"):
            plan_of(path).opened()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"text": ()}, "nothing to find"),
            ({"text": (" ",)}, "phrase is empty"),
        ],
    )
    def test_phrases(self, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(PromptError, match=message):
            plan_of(tmp_path / "in.tif", **settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"outs": ()}, "Name a file to write"),
            ({"outs": (Path("out.shp"),)}, r"ends in .*got out\.shp"),
            ({"min_area": -1.0}, "--min-area is a number from 0 on"),
            ({"simplify": float("nan")}, "--simplify is a number from 0 on"),
            ({"extent": (3.0, 0.0, 1.0, 2.0)}, "left below right"),
        ],
    )
    def test_settings(self, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(SettingError, match=message):
            plan_of(tmp_path / "in.tif", **settings)

    @pytest.mark.parametrize(
        ("window", "overlap", "message"),
        [(8, 2, "at least 16"), (64, 0, "by 1 to 32"), (64, 33, "by 1 to 32")],
    )
    def test_windows(self, tmp_path: Path, window: int, overlap: int, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            plan_of(tmp_path / "in.tif", window=window, overlap=overlap).grid(SIZE, 64)

    def test_texts(self) -> None:
        assert extent_from_text("1,2,3.5,4") == (1, 2, 3.5, 4)
        assert bands_from_text("4,3,2") == (4, 3, 2)
        assert stretch_from_text("auto") is None
        assert stretch_from_text("0,3000") == Stretch(low=0, high=3000)
        for read_text, text in (
            (extent_from_text, "1,2,3"),
            (extent_from_text, "a,b,c,d"),
            (extent_from_text, "0,0,nan,1"),
            (bands_from_text, "red"),
            (stretch_from_text, "5"),
            (stretch_from_text, "5,5"),
            (stretch_from_text, "nan,5"),
        ):
            with pytest.raises(SettingError):
                read_text(text)

    def test_a_package_that_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_numbers(tmp_path / "in.tif", scene())
        monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
        with pytest.raises(MissingExtra, match=r"pip install 'samforge\[geo\]'"):
            plan_of(path).opened()


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
