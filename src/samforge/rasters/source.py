"""Reads rasters window by window: GeoTIFF and whatever else GDAL opens, large pictures too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.closing import Closing
from samforge.core.errors import ImageError, MissingExtra, SettingError
from samforge.core.paths import checked_path, is_file
from samforge.rasters.georeference import Georeference, georeference_of
from samforge.rasters.grid import PixelBox
from samforge.rasters.pieces import Valid

Bands: TypeAlias = npt.NDArray[Any]
"""(B, h, w), values as the file has them."""

_CACHE_BYTES = 64 << 20
_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Excerpt:
    """A part of a raster as it was read."""

    bands: Bands
    """(B, h, w)."""
    valid: Valid | None
    """(h, w), False where there is no data; None where all of it is valid."""


class RasterSource(Closing):
    """An open raster. Use it as a context manager."""

    def __init__(self, path: Path, *, bands: Sequence[int] | None, crs: str | None) -> None:
        """Open a raster and choose its bands.

        Args:
            path: A file; nothing is fetched over a network.
            bands: One or three of them, numbered from 1; None takes red, green and blue where the
                file says which they are, else the first three, or the first of fewer.
            crs: Its coordinate reference system, where the file has none.

        Raises:
            ImageError: It is no raster, or one that cannot be placed or shown.
            SettingError: A band is not there, or the file has another reference system.
            MissingExtra: rasterio is not installed.
        """
        self.path = path
        self._stack = ExitStack()
        try:
            self._file = _opened(self._stack, path)
            _require_usable(self._file, path)
            self.bands = _chosen(self._file, bands)
            self.place: Georeference = georeference_of(self._file, path, crs)
            """Where it lies."""
        except BaseException:
            self._stack.close()
            raise

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return int(self._file.height), int(self._file.width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the chosen bands."""
        dtype: np.dtype[Any] = np.dtype(self._file.dtypes[self.bands[0] - 1])
        return dtype

    @property
    def palette(self) -> npt.NDArray[np.uint8] | None:
        """(256, 3) colours that the values of its one band stand for; None where it has none."""
        if len(self.bands) != 1 or self._file.colorinterp[self.bands[0] - 1].name != "palette":
            return None
        colours = np.zeros((256, 3), np.uint8)
        for value, colour in self._file.colormap(self.bands[0]).items():
            colours[value] = colour[:3]
        return colours

    def read(self, box: PixelBox) -> Excerpt:
        """Read what a box covers, in full resolution.

        Raises:
            ImageError: The file is damaged there.
        """
        from rasterio.windows import Window

        left, top, right, bottom = box
        window = Window(left, top, right - left, bottom - top)
        with _damage(self.path, f"rows {top} to {bottom}, columns {left} to {right}"):
            bands = self._file.read(self.bands, window=window)
            return Excerpt(bands=bands, valid=self._valid(bands, window=window))

    def shrunk(self, longest: int, *, smooth: bool, box: PixelBox | None = None) -> Excerpt:
        """Read it made smaller; overviews are used where the file has them.

        Args:
            longest: The longer side becomes at most so many pixels.
            box: What is read of it; None for all.
            smooth: Whether pixels are averaged; else the nearest is taken, and values stay what
                they are.

        Raises:
            ImageError: The file is damaged.
        """
        from rasterio.enums import Resampling
        from rasterio.windows import Window

        left, top, right, bottom = box or (0, 0, self._file.width, self._file.height)
        sides = (bottom - top, right - left)
        scale = min(1.0, longest / max(sides))
        height, width = (max(1, round(side * scale)) for side in sides)
        where = {
            "window": Window(left, top, right - left, bottom - top),
            "out_shape": (len(self.bands), height, width),
        }
        averaged = smooth and self.palette is None
        how = Resampling.average if averaged else Resampling.nearest
        with _damage(self.path, "an overview"):
            bands = self._file.read(self.bands, resampling=how, **where)
            valid = self._valid(bands, **where)
        return Excerpt(bands=bands, valid=valid)

    def close(self) -> None:
        """Close its file."""
        self._stack.close()

    def _valid(self, bands: Bands, **where: Any) -> Valid | None:
        valid: Valid | None = None
        flags = [self._file.mask_flag_enums[band - 1] for band in self.bands]
        if any(flag.name != "all_valid" for one in flags for flag in one):
            valid = self._file.read_masks(self.bands, **where).any(axis=0)
        if bands.dtype.kind == "f":
            finite: Valid = np.asarray(np.isfinite(bands).all(axis=0))
            valid = finite if valid is None else valid & finite
        return None if valid is None or bool(valid.all()) else valid


def _opened(stack: ExitStack, path: Path) -> Any:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ModuleNotFoundError as error:
        raise MissingExtra("rasterio", "geo") from error
    checked_path(path, ImageError)
    if not is_file(path):
        raise ImageError(f"{path} is no file (looked in {Path.cwd()}). Give a raster or a picture.")
    try:
        # The filter is process-wide while it lasts: plain pictures have no georeference, and a
        # warning of it would say nothing new.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = stack.enter_context(rasterio.open(path))
            # Whole rows of blocks stay in memory, or striped files are decoded again for each
            # window of a row. Without a limit GDAL takes a twentieth of the machine's memory.
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES + _strip_bytes(file)))
    except RasterioError as error:
        raise ImageError(
            f"{path} cannot be opened as a raster: {error}. Give a GeoTIFF or another format that "
            "GDAL reads."
        ) from error
    return file


def _strip_bytes(file: Any) -> int:
    """Bytes of the rows that two rows of windows need, where blocks are as wide as the raster."""
    if not file.count or file.block_shapes[0][1] < file.width:
        return 0
    return int(2048 * file.width * file.count * np.dtype(file.dtypes[0]).itemsize)


def _require_usable(file: Any, path: Path) -> None:
    if not file.count:
        inner = ", ".join(file.subdatasets[:3])
        raise ImageError(
            f"{path} holds no bands of its own. Extract one of its data sets with gdal_translate"
            f"{': ' + inner if inner else ''}."
        )
    if any(np.dtype(one).kind == "c" for one in file.dtypes):
        raise ImageError(f"{path} holds complex numbers. Make a raster of their magnitude first.")


def _chosen(file: Any, bands: Sequence[int] | None) -> tuple[int, ...]:
    if bands is not None:
        wrong = [band for band in bands if not 1 <= band <= file.count]
        if wrong or len(bands) not in (1, 3):
            raise SettingError(
                f"Bands are one or three numbers from 1 to {file.count}, got "
                f"{','.join(map(str, bands))}. Write them like --bands 3,2,1."
            )
        chosen = tuple(bands)
    else:
        chosen = _by_colour(file)
    if len({file.dtypes[band - 1] for band in chosen}) > 1:
        raise SettingError(
            f"Bands {','.join(map(str, chosen))} hold different types of numbers. Choose others."
        )
    return chosen


def _by_colour(file: Any) -> tuple[int, ...]:
    names = [one.name for one in file.colorinterp]
    if set(_COLOURS) <= set(names):
        return tuple(names.index(colour) + 1 for colour in _COLOURS)
    shown = [number for number, name in enumerate(names, 1) if name != "alpha"]
    return tuple(shown[:3]) if len(shown) >= 3 else (shown[0] if shown else 1,)


@contextmanager
def _damage(path: Path, where: str) -> Iterator[None]:
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, MemoryError) as error:
        reason = error.__cause__ or error
        raise ImageError(
            f"{path} cannot be read at {where}: {reason}. The file is damaged or was not "
            "transferred whole."
        ) from error
