"""The software rasterizer: coverage, depth and weights against definitions, one pixel at a time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samforge.core.errors import SettingError, ShapeError
from samforge.draw import demo_figure, mesh_view
from samforge.draw.rasterize import rasterize


def by_definition(points: Any, near: Any, faces: Any, size_hw: tuple[int, int]) -> Any:
    """Every triangle at every pixel's centre, in a loop."""
    face = np.full(size_hw, -1)
    best = np.full(size_hw, -np.inf)
    for index, corners in enumerate(faces):
        a, b, c = points[corners]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        for row in range(size_hw[0]):
            for column in range(size_hw[1]):
                p = np.array([column + 0.5, row + 0.5])
                first = ((c - b)[0] * (p - b)[1] - (c - b)[1] * (p - b)[0]) / area
                second = ((a - c)[0] * (p - c)[1] - (a - c)[1] * (p - c)[0]) / area
                weights = np.array([first, second, 1 - first - second])
                if weights.min() < -1e-9:
                    continue
                depth = weights @ near[corners]
                if depth > best[row, column]:
                    best[row, column], face[row, column] = depth, index
    return face


def test_a_triangle_covers_the_centres_inside_it() -> None:
    # Corners at (0, 0), (4, 0), (0, 4): centres with x + y <= 4.
    raster = rasterize(
        np.array([[0.0, 0], [4, 0], [0, 4]]), np.ones(3), np.array([[0, 1, 2]]), (4, 4)
    )
    assert raster.covered.tolist() == [
        [True, True, True, True],
        [True, True, True, False],
        [True, True, False, False],
        [True, False, False, False],
    ]
    # At (0.5, 0.5): an eighth each of the second and the third corner.
    assert raster.weights[0, 0] == pytest.approx([0.75, 0.125, 0.125])
    assert raster.weights[3, 3] == pytest.approx([0, 0, 0])


def test_winding_does_not_matter() -> None:
    points = np.array([[0.0, 0], [4, 0], [0, 4]])
    one = rasterize(points, np.ones(3), np.array([[0, 1, 2]]), (4, 4))
    other = rasterize(points, np.ones(3), np.array([[0, 2, 1]]), (4, 4))
    assert np.array_equal(one.face, other.face)


def test_the_nearer_one_is_seen_whatever_the_order() -> None:
    square = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])
    points = np.concatenate((square, square))
    near = np.array([1.0] * 4 + [2.0] * 4)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    assert rasterize(points, near, faces, (4, 4)).face.min() == 2
    assert rasterize(points, near, faces[::-1], (4, 4)).face.max() == 1


def test_triangles_that_pierce_each_other() -> None:
    # One leans towards the viewer from left to right, the other is upright in the middle.
    points = np.array([[0.0, -9], [8, 4], [0, 17], [0, -9], [8, 4], [0, 17]])
    near = np.array([0.0, 8, 0, 4, 4, 4])
    face = rasterize(points, near, np.array([[0, 1, 2], [3, 4, 5]]), (8, 8)).face
    assert (face[4, :4] == 1).all()
    assert (face[4, 4:8] == 0).all()


def test_neighbours_leave_no_gap_and_values_are_linear() -> None:
    size = 64
    lines = np.linspace(0, size, 14)
    x, y = np.meshgrid(lines, lines)
    points = np.stack((x.ravel(), y.ravel()), axis=-1)
    corner = (np.arange(13)[:, None] * 14 + np.arange(13)).ravel()
    faces = np.concatenate(
        [
            np.stack((corner, corner + 1, corner + 14), axis=-1),
            np.stack((corner + 1, corner + 15, corner + 14), axis=-1),
        ]
    )
    raster = rasterize(points, np.ones(len(points)), faces, (size, size))
    assert raster.covered.all()
    values = raster.interpolate(points, faces).reshape(size, size, 2)
    assert np.allclose(values[..., 0], np.arange(size) + 0.5)
    assert np.allclose(values[..., 1], (np.arange(size) + 0.5)[:, None])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_it_is_what_the_definition_says(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, 16, (3 * count, 2))
    near = rng.uniform(0, 1, 3 * count)
    faces = np.arange(3 * count).reshape(count, 3)
    found = rasterize(points, near, faces, (11, 13)).face
    assert np.array_equal(found, by_definition(points, near, faces, (11, 13)))


def test_what_cannot_be_drawn_is_left_out() -> None:
    points = np.array([[0.0, 0], [4, 0], [0, 4], [np.nan, 1], [2, 2], [2, 2]])
    near = np.array([1.0, 1, 1, 1, 1, np.nan])
    faces = np.array([[0, 1, 3], [0, 1, 5], [4, 4, 1], [0, 1, 2]])
    raster = rasterize(points, near, faces, (4, 4))
    assert set(np.unique(raster.face)) == {-1, 3}
    nothing = rasterize(points, near, faces[:3], (4, 4))
    assert not nothing.covered.any()
    assert not rasterize(points + 100, near, faces, (4, 4)).covered.any()


@pytest.mark.parametrize(
    ("points", "near", "faces", "named"),
    [
        (np.zeros((3, 3)), np.zeros(3), np.zeros((1, 3), int), "Give points"),
        (np.zeros((3, 2)), np.zeros(2), np.zeros((1, 3), int), "Give points"),
        (np.zeros((3, 2)), np.zeros(3), np.zeros((1, 4), int), r"Faces are \(F, 3\)"),
        (np.zeros((3, 2)), np.zeros(3), np.array([[0, 1, 3]]), "name vertices 0 to 3, and there"),
        (np.zeros((3, 2)), np.zeros(3), np.array([[0, 1, -1]]), "name vertices -1 to 1"),
    ],
)
def test_arrays_that_do_not_belong_together(points: Any, near: Any, faces: Any, named: str) -> None:
    with pytest.raises(ShapeError, match=named):
        rasterize(points, near, faces, (4, 4))
    with pytest.raises(SettingError, match="at least one pixel"):
        rasterize(np.zeros((3, 2)), np.zeros(3), np.array([[0, 1, 2]]), (0, 4))


def test_a_whole_body_takes_little_time() -> None:
    figure = demo_figure()
    assert len(figure.vertices) >= 18_439
    assert len(figure.faces) >= 36_874
    start = time.process_time()
    mesh_view(figure.vertices, figure.faces, size=480)
    # All views and 24 frames have 20 s: half a second each would do. Idle, it takes a fifth.
    assert time.process_time() - start < 2
