"""Objects at seams: each once, to the pixel, whatever windows cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio.raw
import pytest
import shapely
from raster_oracle import NORTH_UP, Numbers, Oracle, oracle_of, write_numbers
from rasterio.features import rasterize

import samforge
from samforge.core.packed_crop import PackedCrop
from samforge.rasters import RasterPlan, RasterResult
from samforge.rasters.grid import Grid
from samforge.rasters.pieces import Piece, piece_from_crop
from samforge.rasters.resolve import objects_from_cluster
from samforge.rasters.stitch import Stitcher

Mask = npt.NDArray[np.bool_]
# Windows of 64 pixels that share 16: they begin at 0, 48, 96 and 136 of 200 pixels.
SIZE = (200, 200)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A raster that was segmented."""

    result: RasterResult
    outlines: list[Any]
    """In columns and rows, in the order of the file."""
    table: dict[str, list[Any]]

    def masks(self, size_hw: tuple[int, int] = SIZE) -> list[Mask]:
        return [rasterize([one], out_shape=size_hw).astype(bool) for one in self.outlines]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    def segment(numbers: Numbers, oracle: Oracle | None = None, **plan: Any) -> Run:
        path = write_numbers(tmp_path / "in.tif", numbers)
        out = tmp_path / "out.gpkg"
        settings: dict[str, Any] = {"text": ("thing",), "window": 64, "overlap": 16, **plan}
        result = samforge.segment_raster(
            oracle or oracle_of(numbers),  # type: ignore[arg-type]  # it has what is used
            RasterPlan(raster=path, outs=(out,), **settings),
        )
        info, _, geometries, columns = pyogrio.raw.read(out)
        table = {n: c.tolist() for n, c in zip(info["fields"], columns, strict=True)}
        inverse = ~NORTH_UP
        turned = (inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f)
        outlines = [
            shapely.affinity.affine_transform(one, turned) for one in shapely.from_wkb(geometries)
        ]
        return Run(result=result, outlines=outlines, table=table)

    return segment


def numbered(*masks: Mask) -> Numbers:
    numbers = np.zeros(masks[0].shape, np.int64)
    for number, mask in enumerate(masks, 1):
        assert not numbers[mask].any()
        numbers[mask] = number
    return numbers


def block(top: int, left: int, bottom: int, right: int, size_hw: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros(size_hw, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def disc(row: float, column: float, radius: float, size_hw: tuple[int, int] = SIZE) -> Mask:
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    mask: Mask = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return mask


@pytest.mark.parametrize(
    ("mask", "windows", "source"),
    [
        pytest.param(block(10, 10, 30, 30), 1, "whole", id="inside one window"),
        pytest.param(block(70, 50, 78, 60), 1, "whole", id="inside the strip of two"),
        pytest.param(block(70, 40, 80, 94), 2, "joined", id="over two windows"),
        pytest.param(block(70, 40, 80, 130), 3, "joined", id="over three windows"),
        pytest.param(disc(56, 56, 25), 4, "joined", id="over four windows"),
        pytest.param(block(20, 70, 180, 74), 4, "joined", id="long and thin"),
        pytest.param(block(0, 0, 200, 5), 4, "joined", id="along the border of the raster"),
        pytest.param(
            disc(56, 56, 30) & ~disc(56, 56, 22), 4, "joined", id="a ring over four windows"
        ),
        pytest.param(
            block(70, 40, 74, 70) | block(80, 40, 84, 70), 2, "joined", id="two parts over a seam"
        ),
    ],
)
def test_one_object_is_found_once_to_the_pixel(
    run: Callable[..., Run], mask: Mask, windows: int, source: str
) -> None:
    done = run(numbered(mask), coarse=False)
    assert (done.result.objects, done.table["source"]) == (1, [source])
    assert done.table["windows"] == [windows]
    assert np.array_equal(done.masks()[0], mask)
    assert done.table["pixels"] == [np.count_nonzero(mask)]
    assert done.table["area"] == [np.count_nonzero(mask) / 4]
    assert done.outlines[0].is_valid


def test_a_ring_keeps_its_hole_and_an_object_its_parts(run: Callable[..., Run]) -> None:
    ring = disc(56, 56, 30) & ~disc(56, 56, 22)
    parts = block(120, 130, 124, 170) | block(130, 130, 134, 170)
    done = run(numbered(ring, parts), coarse=False)
    (one,) = done.outlines[0].geoms
    assert len(one.interiors) == 1
    assert shapely.Polygon(one.interiors[0]).area == np.count_nonzero(disc(56, 56, 22))
    assert len(done.outlines[1].geoms) == 2


@pytest.mark.parametrize("gap", [0, 1])
def test_objects_that_touch_stay_apart(run: Callable[..., Run], gap: int) -> None:
    """Both run through the same seams, side by side."""
    upper, lower = block(70, 30, 80, 120), block(80 + gap, 30, 90, 120)
    left, right = block(100, 20, 190, 56), block(100, 56 + gap, 190, 90)
    numbers = numbered(upper, lower, left, right)
    done = run(numbers, coarse=False)
    assert done.result.objects == 4
    found = sorted(done.masks(), key=lambda mask: np.argwhere(mask).tolist())
    assert [np.count_nonzero(one) for one in found] == [
        np.count_nonzero(one) for one in (upper, lower, left, right)
    ]
    for mask in (upper, lower, left, right):
        assert any(np.array_equal(mask, one) for one in found)


def test_what_one_window_runs_together_stays_apart_where_others_see_both_whole(
    run: Callable[..., Run],
) -> None:
    """The window at 0 shows a part of both as one object; that at 48 shows each of them whole."""
    upper, lower = block(10, 56, 20, 90), block(20, 56, 30, 90)
    numbers = numbered(upper, lower)
    oracle = oracle_of(numbers)

    def merged(number: int, mask: Mask) -> list[Mask]:
        if np.flatnonzero(mask.any(0))[0] != 56:  # not the first window
            return [mask]
        both = np.zeros_like(mask)
        both[10:30, 56:] = True
        return [both] if number == 1 else []

    oracle.seen = merged
    done = run(numbers, oracle, coarse=False)
    assert done.result.objects == 2
    assert sorted(done.table["source"]) == ["whole", "whole"]
    assert {mask.sum() for mask in done.masks()} == {340}


def test_what_an_edge_makes_of_an_object_is_not_believed_where_others_see_all_of_it(
    run: Callable[..., Run],
) -> None:
    """Its left part looks like a thing; all of it, in the next window, does not."""
    numbers = numbered(block(10, 56, 20, 80))
    oracle = oracle_of(numbers)
    oracle.seen = lambda number, mask: [mask] if mask.any(0)[56:].all() else []
    assert run(numbers, oracle, coarse=False).result.objects == 0
    # Where that window fails, nobody denies it.
    oracle = oracle_of(numbers, failing=lambda call: call == 1)
    oracle.seen = lambda number, mask: [mask] if mask.any(0)[56:].all() else []
    done = run(numbers, oracle, coarse=False, restart=True)
    assert (done.result.objects, done.table["source"]) == (1, ["cut"])
    assert done.table["pixels"] == [80]


def test_stray_pixels_at_an_edge_tie_no_objects(run: Callable[..., Run]) -> None:
    """The first window shows a corner of the second object, and gives it to the first one."""
    first, second = block(10, 10, 30, 30), block(50, 58, 80, 100)
    numbers = numbered(first, second)
    oracle = oracle_of(numbers)

    def strayed(number: int, mask: Mask) -> list[Mask]:
        if not (mask[10:30, 10:30].all() and mask.sum() == 400):
            return [] if mask[50:64, 58:64].all() and mask.sum() == 84 else [mask]
        strays = mask.copy()
        strays[52:64, 58:64] = True
        return [strays]

    oracle.seen = strayed
    done = run(numbers, oracle, coarse=False)
    assert done.result.objects == 2
    found = done.masks()
    assert any(np.array_equal(one, first) for one in found)
    assert any(np.array_equal(one, second) for one in found)


def test_what_lies_apart_at_an_edge_is_kept_where_it_is_much(run: Callable[..., Run]) -> None:
    """Two parts of one object, one of them over a seam."""
    parts = block(10, 20, 30, 40) | block(10, 45, 30, 85)
    done = run(numbered(parts), coarse=False)
    assert (done.result.objects, done.table["pixels"]) == (1, [1200])


def test_phrases_are_not_joined_with_each_other(run: Callable[..., Run]) -> None:
    numbers = numbered(block(70, 30, 80, 100), block(90, 30, 99, 100))
    oracle = oracle_of(numbers, labels={2: "other"})
    done = run(numbers, oracle, text=("thing", "other"), coarse=False)
    assert sorted(zip(done.table["label"], done.table["pixels"], strict=True)) == [
        ("other", 630.0),
        ("thing", 700.0),
    ]
    assert {name: tally.objects for name, tally in done.result.phrases.items()} == {
        "thing": 1,
        "other": 1,
    }


def scattered(seed: int, size_hw: tuple[int, int], radius: tuple[float, float]) -> Numbers:
    """Discs, rings and bars, some of which touch."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros(size_hw, np.int64)
    for number in range(1, 60):
        row, column = rng.uniform(0, size_hw[0]), rng.uniform(0, size_hw[1])
        size = rng.uniform(*radius)
        mask = disc(row, column, size, size_hw)
        if number % 3 == 0:
            mask &= ~disc(row, column, 0.6 * size, size_hw)
        if number % 3 == 1:
            mask &= abs(np.mgrid[: size_hw[0], : size_hw[1]][0] - row) < 0.4 * size
        if mask.any() and not numbers[mask].any():
            numbers[mask] = number
    return numbers


@pytest.mark.parametrize(
    ("seed", "overlap", "radius"),
    [(0, 16, (3, 8)), (1, 16, (3, 20)), (2, 32, (3, 15)), (3, 20, (2, 40)), (4, 1, (3, 20))],
)
def test_many_objects_are_found_once_to_the_pixel(
    run: Callable[..., Run], seed: int, overlap: int, radius: tuple[float, float]
) -> None:
    """Larger than the strip, than a window, with a strip of one pixel: what is seen joins."""
    size_hw = (230, 310)
    numbers = scattered(seed, size_hw, radius)
    truth = [numbers == number for number in np.unique(numbers)[1:]]
    done = run(numbers, overlap=overlap, coarse=False)
    assert done.result.objects == len(truth) > 20
    key = bytes.__hash__
    assert {key(one.tobytes()) for one in done.masks(size_hw)} == {
        key(one.tobytes()) for one in truth
    }


def test_memory_is_that_of_two_rows_of_windows() -> None:
    """Clusters leave as soon as the windows that reach them are done."""
    grid = Grid(size_hw=(5000, 200), window=64, overlap=16)
    stitcher = Stitcher(grid)
    most = given = 0
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            place = (row, column)
            left, top, *_ = grid.box(place)
            stitcher.add(place, [piece(grid, place, (top + 2, left + 20, top + 12, left + 30))])
        most = max(most, stitcher.held)
        given += sum(1 for _ in stitcher.closed())
    assert (stitcher.held, given) == (0, grid.shape[0] * grid.shape[1])
    assert most <= 2 * grid.shape[1]


def piece(grid: Grid, place: tuple[int, int], box: tuple[int, int, int, int]) -> Piece:
    """A block of one window: top, left, bottom, right."""
    top, left, bottom, right = box
    crop = PackedCrop.from_crop(np.ones((bottom - top, right - left), np.bool_), (top, left))
    made = piece_from_crop(crop, grid, place, "thing", 0.9)
    assert made is not None
    return made


def test_a_small_whole_object_does_not_swallow_a_large_cut_one() -> None:
    """A shed on the lawn of a house that goes on behind the edge."""
    grid = Grid(size_hw=(64, 112), window=64, overlap=16)
    house = piece(grid, (0, 0), (10, 10, 60, 64))
    shed = piece(grid, (0, 1), (20, 52, 26, 58))
    assert (house.cut, shed.cut) == (True, False)
    stitcher = Stitcher(grid)
    stitcher.add((0, 0), [house])
    stitcher.add((0, 1), [shed])
    (cluster,) = stitcher.closed()
    found = objects_from_cluster(cluster, grid, lambda place: True)
    assert {one.box for one in found} == {house.box, shed.box}


def test_nested_objects_of_one_window_stay_as_the_model_gave_them() -> None:
    """Both windows show both, whole: each comes once."""
    grid = Grid(size_hw=(64, 96), window=64, overlap=32)
    stitcher = Stitcher(grid)
    for place in ((0, 0), (0, 1)):
        stitcher.add(
            place, [piece(grid, place, box) for box in ((10, 36, 40, 60), (20, 44, 26, 50))]
        )
    (cluster,) = stitcher.closed()
    found = objects_from_cluster(cluster, grid, lambda place: True)
    assert sorted(one.box for one in found) == [(36, 10, 60, 40), (44, 20, 50, 26)]


class TestLargeObjects:
    """Larger than what windows share: the small picture of the whole decides."""

    def blind(self, number: int, mask: Mask) -> list[Mask]:
        """Sees no object that reaches two opposite edges of its picture, as models do."""
        rows, columns = mask.any(1), mask.any(0)
        through = (rows[0] and rows[-1]) or (columns[0] and columns[-1])
        return [] if through or mask.mean() > 0.6 else [mask]

    def test_one_is_found_once_where_windows_see_nothing(self, run: Callable[..., Run]) -> None:
        large, small = disc(100, 100, 80), block(5, 5, 15, 15)
        numbers = numbered(large, small)
        done = run(numbers, oracle_of(numbers, seen=self.blind))
        assert sorted(done.table["source"]) == ["coarse", "whole"]
        mask = done.masks()[done.table["source"].index("coarse")]
        assert np.count_nonzero(mask & large) / np.count_nonzero(mask | large) > 0.95
        without = run(numbers, oracle_of(numbers, seen=self.blind), coarse=False)
        assert without.table["source"].count("cut") > 1

    def test_the_finer_outline_stays_where_windows_join(self, run: Callable[..., Run]) -> None:
        large = disc(100, 100, 80)
        done = run(numbered(large))
        assert done.table["source"] == ["joined"]
        assert np.array_equal(done.masks()[0], large)

    def test_a_crowd_that_the_small_picture_runs_together_stays_a_crowd(
        self, run: Callable[..., Run]
    ) -> None:
        row = [block(90, left, 104, left + 14) for left in range(10, 190, 18)]
        numbers = numbered(*row)
        oracle = oracle_of(numbers)
        first = [True]

        def seen(number: int, mask: Mask) -> list[Mask]:
            if first:  # the small picture comes first
                first.clear()
                band = np.zeros_like(mask)
                band[28:34, 3:60] = True
                return [band]
            return [mask]

        oracle.seen = seen
        done = run(numbers, oracle)
        assert done.result.objects == len(row)
        assert set(done.table["source"]) == {"whole"}
