"""Pictures of two recovered bodies: the work behind ``samforge mesh-compare --out``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from samforge.core.errors import MeshError
from samforge.core.files import writable_folder
from samforge.core.images import RgbImage
from samforge.draw import (
    Camera,
    Tag,
    colors_from_values,
    draw_tags,
    frame_of,
    grid,
    mesh_view,
    overlay_mesh,
    turntable,
    write_gif,
)
from samforge.measure import BodyMesh, root_relative_mm
from samforge.media import read_image, write_png

TURNS = (("front", 0.0), ("three-quarter", 45.0), ("side", 90.0))
"""Name and angle of each view."""
VIEW_PX = 420
OVERLAY_PX = 800
TAG = (235, 235, 235)
LEAST_MM = 1.0
"""Deviations below it are all drawn grey: noise would fill the scale otherwise."""


def write_views(
    reference: BodyMesh, other: BodyMesh, out: Path, *, image: Path | None = None
) -> tuple[Path, ...]:
    """Draw both bodies and the deviation: still views, a turn and, with the photo, an overlay.

    Args:
        reference: Drawn first.
        other: Drawn second, and a third time coloured by its deviation.
        out: Folder, made if it is not there.
        image: The photo both were recovered from.

    Returns:
        The files: ``views.png``, ``turn.gif`` and ``overlay.png``.

    Raises:
        MeshError: Neither file has faces, or for the overlay one has no ``pred_cam_t``.
        ImageError: The photo cannot be read.
    """
    faces = reference.faces if reference.faces is not None else other.faces
    if faces is None:
        raise MeshError(
            "Neither file has faces, and points alone make no picture. Save them with "
            "samforge.measure.save_people(path, people, estimator.faces)."
        )
    out = writable_folder(out)
    deviation = root_relative_mm(reference, other)
    high = max(LEAST_MM, float(np.percentile(deviation, 95)))
    colors = colors_from_values(deviation, high)
    written = []
    if image is not None:  # first: a wrong photo is told before the slow pictures are drawn
        photo = read_image(image)
        written.append(_write_overlay(out, photo, (reference, other), faces, (colors, high)))
    written += [
        _write_views(out, (reference, other), faces, (colors, high)),
        write_gif(out / "turn.gif", turntable(other.root_relative, faces, colors=colors)),
    ]
    return tuple(written)


def _write_views(
    out: Path,
    meshes: tuple[BodyMesh, BodyMesh],
    faces: npt.NDArray[np.int64],
    deviation: tuple[npt.NDArray[np.uint8], float],
) -> Path:
    ours, theirs = (mesh.root_relative for mesh in meshes)
    frame = frame_of(ours)
    pictures: list[RgbImage] = []
    titles: list[str] = []
    colors, high = deviation
    for row, vertices, tints in (
        ("A", ours, None),
        ("B", theirs, None),
        (f"B: grey 0, red {high:.1f} mm", theirs, colors),
    ):
        for name, yaw in TURNS:
            pictures.append(
                mesh_view(vertices, faces, yaw_degrees=yaw, size=VIEW_PX, colors=tints, frame=frame)
            )
            titles.append(f"{row}, {name}")
    return write_png(out / "views.png", grid(pictures, titles, columns=len(TURNS), cell=VIEW_PX))


def _write_overlay(
    out: Path,
    photo: RgbImage,
    meshes: tuple[BodyMesh, BodyMesh],
    faces: npt.NDArray[np.int64],
    deviation: tuple[npt.NDArray[np.uint8], float],
) -> Path:
    colors, high = deviation
    pictures = [photo]
    for mesh, tints in ((meshes[0], None), (meshes[1], None), (meshes[1], colors)):
        placed = mesh.in_camera
        if placed is None:
            raise MeshError(
                "An overlay wants to know where the camera is: save pred_cam_t with both meshes."
            )
        camera = _camera(photo, mesh.focal_px)
        pictures.append(overlay_mesh(photo, placed, faces, camera, colors=tints))
    titles = ("photo", "A", "B", f"B: grey 0, red {high:.1f} mm")
    tagged = [_tagged(rgb, title) for rgb, title in zip(pictures, titles, strict=True)]
    # Two by two where the photo is wide, in one row where it is tall: about square either way.
    columns = 2 if photo.shape[1] > photo.shape[0] else len(tagged)
    sheet = [
        np.concatenate(tagged[i : i + columns], axis=1) for i in range(0, len(tagged), columns)
    ]
    return write_png(out / "overlay.png", np.concatenate(sheet))


def _tagged(rgb: RgbImage, title: str) -> RgbImage:
    """A picture of a sheet: not larger than it can be seen, its title in the corner."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((OVERLAY_PX, OVERLAY_PX), Image.Resampling.LANCZOS)
    draw_tags(picture, [Tag(text=title, color=TAG, anchor=(0, 0, 1, 1))])
    return np.asarray(picture)


def _camera(photo: RgbImage, focal_px: float | None) -> Camera:
    """The photo's camera; without a focal length upstream's default, the picture's diagonal."""
    height, width = photo.shape[:2]
    return Camera(
        focal_px=float(np.hypot(height, width)) if focal_px is None else focal_px,
        centre_xy=(width / 2, height / 2),
    )
