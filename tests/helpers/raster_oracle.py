"""Rasters of numbered objects, and a segmenter that reads the numbers: seams without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio.raw
import rasterio
import shapely
from rasterio.transform import Affine

import samforge
from samforge.core.detections import Detections
from samforge.core.masks import Masks
from samforge.rasters import RasterPlan, RasterResult

Numbers = npt.NDArray[np.int64]
Seen = Callable[[int, npt.NDArray[np.bool_]], list[npt.NDArray[np.bool_]]]
"""What is seen of an object in a window: its number and its pixels there to masks."""

NORTH_UP = Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)


def as_seen(number: int, mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """Every pixel of it."""
    return [mask]


@dataclass(kw_only=True)
class Oracle:
    """Gives back the objects of a picture whose colours are their numbers."""

    known: frozenset[int]
    """Numbers of objects; other colours are ground."""
    label: str = "thing"
    """The phrase that finds all of them."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Phrases of those that another one finds."""
    seen: Seen = as_seen
    """What is seen of each."""
    image_size: int = 64
    digest: str = "oracle"
    failing: Callable[[int], bool] = lambda call: False
    """Which calls fail, counted from 0."""
    calls: int = 0

    def predict(
        self, image: npt.NDArray[np.uint8], *, text: tuple[str, ...], **_: Any
    ) -> Detections:
        self.calls += 1
        if self.failing(self.calls - 1):
            raise RuntimeError("the device was lost")
        numbers = numbers_of(image)
        masks, labels = [], []
        for number in np.unique(numbers).tolist():
            label = self.labels.get(number, self.label)
            if number in self.known and label in text:
                masks += self.seen(number, numbers == number)
                labels += [label] * (len(masks) - len(labels))
        size_hw = image.shape[:2]
        return Detections(
            masks=Masks.from_dense(np.array(masks)) if masks else Masks.empty(size_hw),
            boxes_xyxy=np.zeros((len(masks), 4), np.float32),
            scores=np.full(len(masks), 0.9, np.float32),
            labels=tuple(labels),
            size_hw=size_hw,
            best_scores=dict.fromkeys(text, 0.9 if masks else 0.0),
        )


def oracle_of(numbers: Numbers, **settings: Any) -> Oracle:
    """An oracle that knows every object of a raster."""
    return Oracle(known=frozenset(np.unique(numbers[numbers > 0]).tolist()), **settings)


def numbers_of(image: npt.NDArray[np.uint8]) -> Numbers:
    """Numbers that colours stand for."""
    wide = image.astype(np.int64)
    result: Numbers = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return result


def colours_of(numbers: Numbers) -> npt.NDArray[np.uint8]:
    """Bands (3, H, W) whose colours are numbers."""
    return np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255]).astype(np.uint8)


def write_raster(path: Path, bands: npt.NDArray[Any], **profile: Any) -> Path:
    """A GeoTIFF of bands (B, H, W), half a metre a pixel, unless the profile says otherwise."""
    count, height, width = bands.shape
    settings: dict[str, Any] = {
        "driver": "GTiff",
        "crs": "EPSG:32633",
        "transform": NORTH_UP,
        **profile,
    }
    after = settings.pop("after", None)
    settings = {name: value for name, value in settings.items() if value is not None}
    with rasterio.open(
        path, "w", width=width, height=height, count=count, dtype=bands.dtype, **settings
    ) as file:
        file.write(bands)
        if after is not None:
            after(file)
    return path


def write_numbers(path: Path, numbers: Numbers, **profile: Any) -> Path:
    """A GeoTIFF whose colours are numbers."""
    return write_raster(path, colours_of(numbers), **profile)


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
