"""Triangles to pixels on the processor: a z-buffer over whole arrays, without OpenGL.

Small triangles are the usual case (a body of 37,000 on a picture of 600 pixels: about ten pixels
each), so triangles of a similar size are tested together, each over the pixels of its own box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError, ShapeError

Floats = npt.NDArray[np.float64]
Faces = npt.NDArray[np.integer]

_CHUNK = 1 << 20  # candidate pixels in one pass: a few tens of MiB
_INSIDE = -1e-9  # a pixel on the edge of two triangles belongs to both, and to no gap


@dataclass(frozen=True, kw_only=True, slots=True)
class Raster:
    """Which triangle is seen in each pixel, and where in it."""

    face: npt.NDArray[np.int64]
    """(H, W): index of the nearest triangle, -1 where there is none."""
    weights: Floats
    """(H, W, 3): weights of the triangle's three corners at the pixel's centre; 0 outside."""

    @property
    def covered(self) -> npt.NDArray[np.bool_]:
        """(H, W): pixels with a triangle."""
        return self.face >= 0

    def interpolate(self, values: Floats, faces: Faces) -> Floats:
        """Values of vertices at every covered pixel.

        Args:
            values: (V, C).
            faces: (F, 3), those that were drawn.

        Returns:
            (N, C) for the N covered pixels in row order.
        """
        seen = self.covered
        corners = values[faces[self.face[seen]]]  # [N, 3, C]
        found: Floats = (self.weights[seen][:, :, None] * corners).sum(axis=1)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Triangles:
    """Triangles that may be seen, as columns of one table."""

    index: npt.NDArray[np.int64]
    """(N,): number of the face."""
    corners: Floats
    """(N, 3, 2), pixels."""
    near: Floats
    """(N, 3), 0 to 1."""
    low: npt.NDArray[np.int64]
    """(N, 2): first column and row of the box."""
    span: npt.NDArray[np.int64]
    """(N, 2): columns and rows of the box."""

    def take(self, rows: npt.NDArray[np.int64]) -> _Triangles:
        """Some of them."""
        return _Triangles(
            index=self.index[rows],
            corners=self.corners[rows],
            near=self.near[rows],
            low=self.low[rows],
            span=self.span[rows],
        )


def rasterize(
    points_xy: Floats, nearness: Floats, faces: Faces, size_hw: tuple[int, int]
) -> Raster:
    """Find the nearest triangle at the centre of every pixel.

    Args:
        points_xy: (V, 2), pixels; the centre of the upper left pixel is at (0.5, 0.5).
        nearness: (V,), larger is nearer to the viewer, and linear on the screen: ``1 / depth`` in
            perspective, ``-depth`` in parallel projection. A triangle with a corner that is not a
            finite number is left out.
        faces: (F, 3), indices of corners.
        size_hw: Height and width of the picture.

    Raises:
        ShapeError: Arrays do not belong together, or a face names a vertex that does not exist.
        SettingError: The picture has no pixels.
    """
    _check(points_xy, nearness, faces, size_hw)
    height, width = size_hw
    corners = points_xy[faces]  # [F, 3, 2]
    near = nearness[faces]  # [F, 3]
    double_area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    with np.errstate(invalid="ignore"):
        # Pixels whose centres lie in the triangle's box: i + 0.5 within low to high.
        low = np.ceil(corners.min(axis=1) - 0.5)
        high = np.floor(corners.max(axis=1) - 0.5)
        low = np.maximum(low, 0)
        high = np.minimum(high, (width - 1, height - 1))
        kept = (high >= low).all(axis=1) & np.isfinite(near).all(axis=1) & (double_area != 0)
    index = np.flatnonzero(kept)
    best = np.zeros(height * width, np.uint64)
    if len(index):
        triangles = _Triangles(
            index=index,
            corners=corners[index],
            near=_unit(near[index]),
            low=low[index].astype(np.int64),
            span=(high - low)[index].astype(np.int64) + 1,
        )
        _fill(best, triangles, width)
    face = (best & np.uint64(0xFFFFFFFF)).astype(np.int64).reshape(size_hw) - 1
    return Raster(face=face, weights=_weights(face, corners, double_area))


def _check(points_xy: Floats, nearness: Floats, faces: Faces, size_hw: tuple[int, int]) -> None:
    count = len(points_xy)
    if points_xy.shape != (count, 2) or nearness.shape != (count,):
        raise ShapeError(
            f"Give points (V, 2) and nearness (V,), got {points_xy.shape} and {nearness.shape}."
        )
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ShapeError(f"Faces are (F, 3), got {faces.shape}.")
    if faces.size and (faces.min() < 0 or faces.max() >= count):
        raise ShapeError(
            f"Faces name vertices {faces.min()} to {faces.max()}, and there are {count}."
        )
    if min(size_hw) < 1:
        raise SettingError(f"A picture has at least one pixel, got {size_hw} (H, W).")


def _cross(one: Floats, other: Floats) -> Floats:
    crossed: Floats = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return crossed


def _unit(near: Floats) -> Floats:
    """Nearness scaled to 0 to 1: its float32 bits then sort like the values."""
    low, high = near.min(), near.max()
    scaled: Floats = (near - low) / ((high - low) or 1.0)
    return scaled


def _fill(best: npt.NDArray[np.uint64], triangles: _Triangles, width: int) -> None:
    """Write each triangle where it is nearest: a key is its depth, then its number."""
    # Boxes up to the next power of two in each direction share a pass.
    group = np.ceil(np.log2(triangles.span)).astype(np.int64)
    code = group[:, 0] * 64 + group[:, 1]
    for value in np.unique(code):
        members = np.flatnonzero(code == value)
        box = triangles.span[members].max(axis=0)
        step = max(1, _CHUNK // int(box[0] * box[1]))
        for start in range(0, len(members), step):
            pixels, keys = _hits(triangles.take(members[start : start + step]), width)
            np.maximum.at(best, pixels, keys)


def _hits(
    triangles: _Triangles, width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Pixels whose centres lie in a triangle, and what competes for them."""
    span, near = triangles.span, triangles.near
    across = np.arange(span[:, 0].max())
    down = np.arange(span[:, 1].max())
    x = triangles.low[:, 0, None] + across  # [N, w]
    y = triangles.low[:, 1, None] + down  # [N, h]
    # Twice the signed areas opposite to each corner, linear in x and y, over the whole's.
    a, b, c = (triangles.corners[:, k] for k in range(3))
    total = _cross(b - a, c - a)[:, None, None]
    first = _edge(b, c, x, y) / total  # [N, h, w]
    second = _edge(c, a, x, y) / total
    third = 1.0 - first - second
    inside = (first >= _INSIDE) & (second >= _INSIDE) & (third >= _INSIDE)
    inside &= (across < span[:, :1])[:, None, :] & (down < span[:, 1:])[:, :, None]
    who, row, column = np.nonzero(inside)
    depth = (
        first[who, row, column] * near[who, 0]
        + second[who, row, column] * near[who, 1]
        + third[who, row, column] * near[who, 2]
    )
    bits = np.clip(depth, 0.0, 1.0).astype(np.float32).view(np.uint32).astype(np.uint64)
    keys = (bits << np.uint64(32)) | (triangles.index[who] + 1).astype(np.uint64)
    return y[who, row] * width + x[who, column], keys


def _edge(start: Floats, end: Floats, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> Floats:
    """Twice the area of (start, end, pixel centre) for a grid of pixels, (N, h, w)."""
    along = end - start
    columns = along[:, 1, None] * (x + 0.5 - start[:, :1])
    rows = along[:, 0, None] * (y + 0.5 - start[:, 1:])
    area: Floats = rows[:, :, None] - columns[:, None, :]
    return area


def _weights(face: npt.NDArray[np.int64], corners: Floats, double_area: Floats) -> Floats:
    """Weights of the corners where a triangle is seen."""
    weights = np.zeros((*face.shape, 3))
    row, column = np.nonzero(face >= 0)
    which = face[row, column]
    centre = np.stack((column + 0.5, row + 0.5), axis=-1)
    a, b, c = (corners[which, k] for k in range(3))
    first = _cross(c - b, centre - b) / double_area[which]
    second = _cross(a - c, centre - c) / double_area[which]
    weights[row, column] = np.stack((first, second, 1.0 - first - second), axis=-1)
    return weights
