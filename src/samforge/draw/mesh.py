"""Views of a mesh: over its photo, from the front, from an angle, from the side, and turning.

The frame is SAM 3D Body's: metres, x to the right, y down, z away from the camera.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from samforge.core.errors import SettingError, ShapeError
from samforge.core.files import atomic_write_bytes
from samforge.core.images import RgbImage
from samforge.core.outputs import SOFTWARE
from samforge.draw.rasterize import Faces, Floats, Raster, rasterize

BASE = (166, 189, 219)
"""Colour of a mesh that is given none."""
FRAMES = 24
"""Of a turn: 15 degrees each."""

_PAPER = (255, 255, 255)
_SMOOTH = 2  # pixels of the raster along each side of one of the picture
_MARGIN = 0.06  # of the picture's side, around the mesh
# Directions towards the lights, and their shares: one at the camera's left shoulder, one low right.
_LIGHTS = (
    (np.array([-0.45, -0.65, -0.75]), 0.70),
    (np.array([0.70, 0.05, -0.50]), 0.26),
)
_AMBIENT = 0.30
_NEAREST = 1e-3  # metres before the camera: what is nearer is not drawn
_MOST_COLORS = 255
# Grey over yellow to red, darker all the way: readable without colour vision.
_SCALE = np.array(
    [(205, 212, 220), (250, 219, 128), (242, 142, 60), (206, 52, 44), (126, 6, 48)], np.float64
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A pinhole camera at the origin that looks along z."""

    focal_px: float
    """Focal length, pixels."""
    centre_xy: tuple[float, float]
    """Where the axis meets the picture, pixels."""


def overlay_mesh(
    image_rgb: RgbImage,
    vertices: Floats,
    faces: Faces,
    camera: Camera,
    *,
    colors: npt.NDArray[np.uint8] | None = None,
    opacity: float = 0.85,
) -> RgbImage:
    """Draw a mesh over the photo it was recovered from.

    Args:
        image_rgb: (H, W, 3), uint8.
        vertices: (V, 3), metres, in the camera's frame (upstream's vertices plus ``pred_cam_t``).
        faces: (F, 3).
        camera: Of the photo.
        colors: (V, 3), uint8, of the vertices; None for one colour.
        opacity: Of the mesh, 0 to 1.

    Raises:
        ShapeError: Arrays do not belong together.
        SettingError: ``opacity`` is outside 0 to 1, or nothing of the mesh is in the picture.
    """
    if not 0.0 <= opacity <= 1.0:
        raise SettingError(f"opacity is {opacity}. Give a number from 0 to 1.")
    _check_mesh(vertices, colors)
    depth = vertices[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        points = vertices[:, :2] / depth[:, None] * camera.focal_px + camera.centre_xy
        nearness = np.where(depth > _NEAREST, 1 / depth, np.nan)
    height, width = image_rgb.shape[:2]
    raster = rasterize(points * _SMOOTH, nearness, faces, (height * _SMOOTH, width * _SMOOTH))
    if not raster.covered.any():
        raise SettingError(
            f"Nothing of the mesh is in the picture of {width} x {height} pixels. Give the photo "
            "that it was recovered from, and its focal length."
        )
    shaded = _shaded(raster, vertices, faces, colors)
    return _composed(shaded, opacity, raster, image_rgb)


def mesh_view(
    vertices: Floats,
    faces: Faces,
    *,
    yaw_degrees: float = 0.0,
    size: int = 640,
    colors: npt.NDArray[np.uint8] | None = None,
    frame: tuple[Floats, float] | None = None,
) -> RgbImage:
    """Draw a mesh by itself in parallel projection, turned about its vertical axis.

    Args:
        vertices: (V, 3), metres.
        faces: (F, 3).
        yaw_degrees: 0 is the camera's view, 45 three-quarter, 90 the side.
        size: Side of the square picture, pixels.
        colors: (V, 3), uint8, of the vertices; None for one colour.
        frame: Middle (3,) and radius in metres of what is shown, from :func:`frame_of`; None fits
            the mesh. Meshes drawn in one frame can be compared.

    Raises:
        ShapeError: Arrays do not belong together, or a vertex is not a finite number.
    """
    _check_mesh(vertices, colors)
    if not np.isfinite(vertices).all():
        raise ShapeError("A vertex of the mesh is NaN or infinite: it cannot be drawn.")
    middle, reach = frame or frame_of(vertices)
    turn = np.deg2rad(yaw_degrees)
    cos, sin = np.cos(turn), np.sin(turn)
    about_y = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    turned = (vertices - middle) @ about_y.T
    pixels = size * _SMOOTH
    scale = pixels * (0.5 - _MARGIN) / reach
    raster = rasterize(turned[:, :2] * scale + pixels / 2, -turned[:, 2], faces, (pixels, pixels))
    shaded = _shaded(raster, turned, faces, colors)
    paper = np.full((size, size, 3), _PAPER, np.uint8)
    return _composed(shaded, 1.0, raster, paper)


def turntable(
    vertices: Floats,
    faces: Faces,
    *,
    frames: int = FRAMES,
    size: int = 360,
    colors: npt.NDArray[np.uint8] | None = None,
) -> list[RgbImage]:
    """One full turn of a mesh about its vertical axis, the camera's view first.

    Raises:
        SettingError: Fewer than two frames.
        ShapeError: Arrays do not belong together.
    """
    if frames < 2:
        raise SettingError(f"A turn has at least 2 frames, got {frames}.")
    return [
        mesh_view(vertices, faces, yaw_degrees=360.0 * frame / frames, size=size, colors=colors)
        for frame in range(frames)
    ]


def write_gif(
    path: str | os.PathLike[str], frames: Sequence[RgbImage], *, frame_ms: int = 80
) -> Path:
    """Write pictures of one size as an endless GIF with one palette, whole or not at all.

    Raises:
        ShapeError: There is no picture, or they differ in size.
        OutputError: The file cannot be written.
    """
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise ShapeError(
            f"A GIF wants pictures of one size, got {sorted({f.shape for f in frames})}."
        )
    # One palette for all: with one each, the ground flickers.
    strip = Image.fromarray(np.concatenate(frames))
    palette = strip.quantize(_MOST_COLORS, dither=Image.Dither.NONE)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    content = io.BytesIO()
    pictures[0].save(
        content,
        format="GIF",
        comment=SOFTWARE.encode(),
        save_all=True,
        append_images=pictures[1:],
        duration=frame_ms,
        loop=0,
        optimize=False,
    )
    atomic_write_bytes(Path(path), content.getvalue())
    return Path(path)


def colors_from_values(values: Floats, high: float) -> npt.NDArray[np.uint8]:
    """Colour of each vertex by a value: grey at 0, dark red from ``high`` up.

    Args:
        values: (V,), from 0.
        high: Value of the last colour, above 0.

    Returns:
        (V, 3), uint8.
    """
    place = np.clip(values / high, 0, 1) * (len(_SCALE) - 1)
    stops = np.arange(len(_SCALE))
    channels = [np.interp(place, stops, _SCALE[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def vertex_normals(vertices: Floats, faces: Faces) -> Floats:
    """Normal of each vertex, (V, 3): the sum of its triangles' normals, weighted by their area.

    Vertices without a triangle of any area get zero.
    """
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face_normals = np.cross(b - a, c - a)
    corners = faces.ravel()
    sums = [
        np.bincount(corners, np.repeat(face_normals[:, axis], 3), minlength=len(vertices))
        for axis in range(3)
    ]
    normals = np.stack(sums, axis=-1)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit: Floats = normals / np.where(length > 0, length, 1.0)
    return unit


def frame_of(vertices: Floats) -> tuple[Floats, float]:
    """Middle of a mesh, and the radius that holds all of it in every turn about the vertical."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle = (low + high) / 2
    away = vertices - middle
    reach = max(float(np.hypot(away[:, 0], away[:, 2]).max()), float(np.abs(away[:, 1]).max()))
    return middle, reach or 1.0


def _check_mesh(vertices: Floats, colors: npt.NDArray[np.uint8] | None) -> None:
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not len(vertices):
        raise ShapeError(f"Vertices are (V, 3), got {vertices.shape}.")
    if colors is not None and (colors.shape != vertices.shape or colors.dtype != np.uint8):
        raise ShapeError(
            f"Colours are uint8 {vertices.shape}, one a vertex, got {colors.dtype} {colors.shape}."
        )


def _shaded(
    raster: Raster, vertices: Floats, faces: Faces, colors: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.float32]:
    """Colour of every covered pixel of the raster in row order, (N, 3) from 0 to 255."""
    normals = raster.interpolate(vertex_normals(vertices, faces), faces)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals /= np.where(length > 0, length, 1.0)
    # Both sides are lit: some meshes are wound the other way, and all of them have holes.
    normals[normals[:, 2] > 0] *= -1
    light = np.full(len(normals), _AMBIENT)
    for direction, share in _LIGHTS:
        light += share * np.clip(normals @ (direction / np.linalg.norm(direction)), 0, None)
    if colors is None:
        color = np.broadcast_to(np.array(BASE, np.float64), normals.shape)
    else:
        color = raster.interpolate(colors.astype(np.float64), faces)
    shaded: npt.NDArray[np.float32] = np.clip(color * light[:, None], 0, 255).astype(np.float32)
    return shaded


def _composed(
    shaded: npt.NDArray[np.float32], opacity: float, raster: Raster, ground: RgbImage
) -> RgbImage:
    """Lay a raster over a picture of half its size; its edges become smooth."""
    picture = ground.copy()
    covered = raster.covered
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not len(rows):
        return picture
    # Only the mesh's own box, in whole pixels of the picture.
    top, left = rows[0] // _SMOOTH, columns[0] // _SMOOTH
    bottom, right = rows[-1] // _SMOOTH + 1, columns[-1] // _SMOOTH + 1
    inside = covered[top * _SMOOTH : bottom * _SMOOTH, left * _SMOOTH : right * _SMOOTH]
    layers = np.zeros((*inside.shape, 4), np.float32)  # colour and cover: black adds nothing
    layers[inside, :3], layers[inside, 3] = shaded, 1.0
    height, width = bottom - top, right - left
    mean = layers.reshape(height, _SMOOTH, width, _SMOOTH, 4).mean(axis=(1, 3)) * opacity
    view = picture[top:bottom, left:right]
    view[...] = np.rint(mean[:, :, :3] + view * (1 - mean[:, :, 3:])).clip(0, 255)
    return picture
