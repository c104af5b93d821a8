"""Rasters as they come: bands, types of numbers, holes, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from raster_oracle import (
    SIZE,
    colours_of,
    oracle_of,
    plan_of,
    read,
    scene,
    segment,
    write_numbers,
    write_raster,
)
from rasterio.enums import ColorInterp

from samforge.core.errors import (
    ImageError,
    MissingExtra,
    PromptError,
    SettingError,
)
from samforge.rasters import (
    Stretch,
    bands_from_text,
    extent_from_text,
    stretch_from_text,
)
from samforge.rasters.source import RasterSource
from samforge.rasters.stretch import FILL, picture_of, stretch_of


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


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    numbers = scene()
    path = write_numbers(tmp_path / "in.tif", numbers)
    strange = path.rename(tmp_path / os.fsdecode(b"caf\xe9.tif"))
    with pytest.raises(SettingError, match="no UTF-8, and GDAL takes no other"):
        plan_of(strange)
    path.symlink_to(strange)
    assert segment(oracle_of(numbers), plan_of(path, coarse=False)).objects == 9
    with pytest.raises(PromptError, match="no UTF-8"):
        plan_of(path, text=("caf\udce9",))
