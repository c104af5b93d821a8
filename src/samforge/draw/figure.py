"""A jointed figure of capsules: a body to draw and measure where no body model is at hand.

Nobody's body and no statistics behind it, but a mesh of the usual size with named regions, in the
frame that SAM 3D Body uses: metres, x to the right, y down, z away from the camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Region, start, end and radii of each capsule, metres from between the hips; y down.
_CAPSULES: tuple[tuple[str, Floats, Floats, float, float], ...] = tuple(
    (name, np.array(start), np.array(end), wide, narrow)
    for name, start, end, wide, narrow in (
        ("torso", (0.0, 0.0, 0.0), (0.0, -0.44, 0.0), 0.145, 0.155),
        ("head", (0.0, -0.68, -0.02), (0.0, -0.78, -0.02), 0.09, 0.10),
        ("neck", (0.0, -0.48, 0.0), (0.0, -0.66, -0.01), 0.06, 0.055),
        ("left arm", (0.19, -0.47, 0.0), (0.47, -0.42, 0.02), 0.055, 0.045),
        ("left arm", (0.47, -0.42, 0.02), (0.62, -0.62, -0.10), 0.044, 0.032),
        ("left hand", (0.62, -0.62, -0.10), (0.67, -0.74, -0.13), 0.036, 0.026),
        ("right arm", (-0.19, -0.47, 0.0), (-0.33, -0.22, 0.04), 0.055, 0.045),
        ("right arm", (-0.33, -0.22, 0.04), (-0.36, 0.02, -0.08), 0.044, 0.032),
        ("right hand", (-0.36, 0.02, -0.08), (-0.36, 0.13, -0.12), 0.036, 0.026),
        ("left leg", (0.10, 0.06, 0.0), (0.14, 0.45, -0.06), 0.09, 0.062),
        ("left leg", (0.14, 0.45, -0.06), (0.15, 0.86, 0.04), 0.06, 0.042),
        ("left foot", (0.15, 0.90, 0.05), (0.17, 0.92, -0.13), 0.045, 0.035),
        ("right leg", (-0.10, 0.06, 0.0), (-0.13, 0.46, 0.02), 0.09, 0.062),
        ("right leg", (-0.13, 0.46, 0.02), (-0.14, 0.87, 0.10), 0.06, 0.042),
        ("right foot", (-0.14, 0.91, 0.11), (-0.16, 0.93, -0.07), 0.045, 0.035),
    )
)
# Of SAM 3D Body's 70 keypoints only the hips matter here: they are the root.
_KEYPOINTS, _LEFT_HIP, _RIGHT_HIP = 70, 9, 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A mesh with named regions."""

    vertices: Floats
    """(V, 3), metres."""
    faces: npt.NDArray[np.int64]
    """(F, 3), counter-clockwise seen from outside in the frame of the module."""
    labels: npt.NDArray[np.int64]
    """(V,), index into ``names``."""
    names: tuple[str, ...]
    """Regions."""
    keypoints: Floats
    """(70, 3), metres, as SAM 3D Body orders them; all but the hips are zero."""


def demo_figure(
    rings: int = 30, segments: int = 41, *, offsets: Mapping[str, tuple[float, float, float]] = {}
) -> Figure:
    """Build the figure; the default has 18,480 vertices, as many as SAM 3D Body's within 0.3 %.

    Args:
        rings: Around each capsule's axis, at least 4.
        segments: Of each ring, at least 3.
        offsets: Metres by which the ends of a region's capsules are moved, by region.
    """
    names = tuple(dict.fromkeys(name for name, *_ in _CAPSULES))
    vertices, faces, labels = [], [], []
    count = 0
    for name, start, end, wide, narrow in _CAPSULES:
        moved = np.array(offsets.get(name, (0.0, 0.0, 0.0)))
        points, triangles = _capsule(start, end + moved, (wide, narrow), rings, segments)
        vertices.append(points)
        faces.append(triangles + count)
        labels.append(np.full(len(points), names.index(name)))
        count += len(points)
    keypoints = np.zeros((_KEYPOINTS, 3))
    keypoints[_LEFT_HIP], keypoints[_RIGHT_HIP] = (0.1, 0.06, 0.0), (-0.1, 0.06, 0.0)
    return Figure(
        vertices=np.concatenate(vertices),
        faces=np.concatenate(faces),
        labels=np.concatenate(labels),
        names=names,
        keypoints=keypoints,
    )


def _capsule(
    start: Floats, end: Floats, radii: tuple[float, float], rings: int, segments: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """A closed tube with round ends: rings * segments + 2 vertices."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    axis = axis / length
    helper = np.array([1.0, 0.0, 0.0]) if abs(axis[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    side = np.cross(axis, helper)
    side /= np.linalg.norm(side)
    other = np.cross(axis, side)
    # From the start's pole to the end's: a quarter of the rings on each round end.
    share = np.linspace(0.0, 1.0, rings + 2)
    turn = np.clip(share * 4, 0, 1) - 1 + np.clip(share * 4 - 3, 0, 1)  # -1 … 0 … 1
    along = np.clip(share * 2 - 0.5, 0, 1)
    radius = radii[0] + (radii[1] - radii[0]) * along
    height = along * length + radius * np.sin(turn * np.pi / 2)
    width = radius * np.cos(turn * np.pi / 2)
    angle = np.arange(segments) * (2 * np.pi / segments)
    circle = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other  # [S, 3]
    poles = start + height[[0, -1], None] * axis
    tube = start + height[1:-1, None, None] * axis + width[1:-1, None, None] * circle
    vertices = np.concatenate((tube.reshape(-1, 3), poles))
    return vertices, _tube_faces(rings, segments)


def _tube_faces(rings: int, segments: int) -> npt.NDArray[np.int64]:
    ring, segment = np.mgrid[: rings - 1, :segments]
    here = ring * segments + segment
    beside = ring * segments + (segment + 1) % segments
    above, above_beside = here + segments, beside + segments
    strips = np.stack(
        (
            np.stack((here, beside, above), axis=-1),
            np.stack((beside, above_beside, above), axis=-1),
        )
    ).reshape(-1, 3)
    first = np.arange(segments)
    second = (first + 1) % segments
    last = (rings - 1) * segments
    low = np.stack((np.full(segments, rings * segments), second, first), axis=-1)
    high = np.stack((np.full(segments, rings * segments + 1), last + first, last + second), axis=-1)
    return np.concatenate((strips, low, high)).astype(np.int64)
