"""How far one recovered body lies from another, in millimetres.

The files are what SAM 3D Body's estimator gives for a person, saved with numpy: ``pred_vertices``
in metres, ``pred_cam_t``, ``pred_keypoints_3d``, ``focal_length`` and the body model's ``faces``.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.errors import MeshError
from samforge.core.files import output_errors

Floats = npt.NDArray[np.float64]

HIPS = (9, 10)
"""Left and right hip among SAM 3D Body's 70 keypoints: their middle is the root, as upstream's."""
_MM = 1e3


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyMesh:
    """One recovered person."""

    vertices: Floats
    """(V, 3), metres, in the body's frame: upstream's ``pred_vertices``."""
    faces: npt.NDArray[np.int64] | None = None
    """(F, 3)."""
    cam_t: Floats | None = None
    """(3,), metres: from the body's frame to the camera's, ``pred_cam_t``."""
    keypoints: Floats | None = None
    """(K, 3), metres: ``pred_keypoints_3d``."""
    focal_px: float | None = None
    """Focal length of the photo, pixels."""

    @property
    def root(self) -> Floats:
        """(3,): between the hips, or the mean of the vertices where there are no keypoints."""
        points = self.vertices if self.keypoints is None else self.keypoints[list(HIPS)]
        middle: Floats = points.mean(axis=0)
        return middle

    @property
    def root_relative(self) -> Floats:
        """(V, 3): vertices seen from the root."""
        return self.vertices - self.root

    @property
    def in_camera(self) -> Floats | None:
        """(V, 3): vertices in the camera's frame, if the file says where the camera is."""
        return None if self.cam_t is None else self.vertices + self.cam_t


@dataclass(frozen=True, kw_only=True, slots=True)
class Regions:
    """Parts of the body by vertex."""

    labels: npt.NDArray[np.int64]
    """(V,): index into ``names``; negative for vertices of no region."""
    names: tuple[str, ...]
    """Region names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """Distances between corresponding vertices, millimetres."""

    mean: float
    """Average."""
    median: float
    """Half of the vertices lie farther."""
    p95: float
    """One in twenty lies farther."""
    max: float
    """The farthest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionDeviation:
    """Root-relative deviation of one region."""

    region: str
    """Its name."""
    vertices: int
    """How many it has."""
    deviation: Deviation
    """Of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshComparison:
    """How one person's mesh deviates from the reference."""

    vertices: int
    """Compared."""
    root: str
    """What the meshes are aligned by: ``hips`` or ``mean of the vertices``."""
    height_m: float
    """Extent of the reference along the axis where it is largest."""
    root_relative: Deviation
    """With both roots at the origin: pose and shape."""
    camera_space: Deviation | None
    """Where the photo's camera sees them: placement too. None without ``pred_cam_t``."""
    root_shift_mm: float | None
    """Distance of the two roots in the camera's frame, millimetres."""
    regions: tuple[RegionDeviation, ...]
    """By region, worst mean first; empty without a region map."""


def compare_meshes(
    reference: BodyMesh, other: BodyMesh, regions: Regions | None = None
) -> MeshComparison:
    """Compare two recovered bodies vertex by vertex.

    Raises:
        MeshError: Their topology differs, or the regions belong to another one.
    """
    check_topology(reference, other)
    if regions is not None and len(regions.labels) != len(reference.vertices):
        raise MeshError(
            f"The region map labels {len(regions.labels)} vertices, and the meshes have "
            f"{len(reference.vertices)}. Give the map of this body model."
        )
    by_hips = reference.keypoints is not None and other.keypoints is not None
    distances = root_relative_mm(reference, other)
    ours, theirs = reference.in_camera, other.in_camera
    camera_space = root_shift = None
    if ours is not None and theirs is not None:
        camera_space = _deviation(np.linalg.norm(theirs - ours, axis=1) * _MM)
        # Vertex 0 in the camera's frame and seen from the root: what is left is the root's place.
        shift = (theirs[0] - other.root_relative[0]) - (ours[0] - reference.root_relative[0])
        root_shift = float(np.linalg.norm(shift) * _MM)
    extent = reference.vertices.max(axis=0) - reference.vertices.min(axis=0)
    return MeshComparison(
        vertices=len(reference.vertices),
        root="hips" if by_hips else "mean of the vertices",
        height_m=float(extent.max()),
        root_relative=_deviation(distances),
        camera_space=camera_space,
        root_shift_mm=root_shift,
        regions=() if regions is None else _by_region(distances, regions),
    )


def root_relative_mm(reference: BodyMesh, other: BodyMesh) -> Floats:
    """Distance of each pair of vertices with both roots at the origin, (V,), millimetres.

    The root is between the hips where both have keypoints, else the mean of the vertices in both.

    Raises:
        MeshError: Their topology differs.
    """
    check_topology(reference, other)
    if reference.keypoints is None or other.keypoints is None:
        ours = reference.vertices - reference.vertices.mean(axis=0)
        theirs = other.vertices - other.vertices.mean(axis=0)
    else:
        ours, theirs = reference.root_relative, other.root_relative
    distances: Floats = np.linalg.norm(theirs - ours, axis=1) * _MM
    return distances


def check_topology(reference: BodyMesh, other: BodyMesh) -> None:
    """Make sure that vertex i of one mesh is vertex i of the other.

    Raises:
        MeshError: The counts or the faces differ.
    """
    if len(reference.vertices) != len(other.vertices):
        raise MeshError(
            f"The meshes have {len(reference.vertices)} and {len(other.vertices)} vertices: they "
            "are of different body models and cannot be compared vertex by vertex."
        )
    if reference.faces is None or other.faces is None:
        return
    if not np.array_equal(reference.faces, other.faces):
        raise MeshError(
            f"The meshes have {len(reference.faces)} and {len(other.faces)} faces, and these are "
            "not the same: their vertices do not correspond."
        )


def mesh_from_file(path: str | os.PathLike[str], *, person: int = 0) -> BodyMesh:
    """Read one person of an ``.npz``.

    Args:
        path: With ``pred_vertices`` (V, 3), or (P, V, 3) for several persons, and what else
            :class:`BodyMesh` names.
        person: Which one, from 0.

    Raises:
        MeshError: The file cannot be read, lacks the vertices, has other shapes, no such person,
            or holds NaN.
    """
    arrays = _arrays(path)
    if "pred_vertices" not in arrays:
        raise MeshError(
            f"{path} has no pred_vertices; it holds {', '.join(arrays) or 'nothing'}. Save "
            "upstream's output with samforge.measure.save_people."
        )
    vertices = _of_person(arrays, "pred_vertices", 2, person, path)
    if vertices is None or vertices.shape[1] != 3 or not len(vertices):
        raise MeshError(f"pred_vertices in {path} is {arrays['pred_vertices'].shape}, not (V, 3).")
    cam_t = _of_person(arrays, "pred_cam_t", 1, person, path)
    if cam_t is not None and cam_t.shape != (3,):
        raise MeshError(f"pred_cam_t in {path} is {cam_t.shape}, not (3,).")
    keypoints = _of_person(arrays, "pred_keypoints_3d", 2, person, path)
    if keypoints is not None and (keypoints.shape[1] != 3 or len(keypoints) <= max(HIPS)):
        raise MeshError(
            f"pred_keypoints_3d in {path} is {keypoints.shape}. SAM 3D Body gives (70, 3), and "
            f"{HIPS[0]} and {HIPS[1]} of them are the hips."
        )
    focal = _of_person(arrays, "focal_length", 0, person, path)
    return BodyMesh(
        vertices=vertices,
        faces=_faces(arrays, len(vertices), path),
        cam_t=cam_t,
        keypoints=keypoints,
        focal_px=None if focal is None else float(focal),
    )


def regions_from_file(path: str | os.PathLike[str]) -> Regions:
    """Read a region map: an ``.npz`` with ``labels`` (V,) integers and ``names`` (R,) strings.

    Raises:
        MeshError: The file cannot be read or has another form.
    """
    arrays = _arrays(path)
    if not {"labels", "names"} <= arrays.keys():
        raise MeshError(f"{path} is no region map: it wants labels and names, has {list(arrays)}.")
    labels, names = arrays["labels"], arrays["names"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or names.ndim != 1:
        raise MeshError(
            f"{path} is no region map: labels are integers (V,), got {labels.dtype} "
            f"{labels.shape}; names are (R,), got {names.shape}."
        )
    if labels.size and int(labels.max()) >= len(names):
        raise MeshError(f"{path} has label {labels.max()} and only {len(names)} names.")
    return Regions(
        labels=labels.astype(np.int64), names=tuple(str(name) for name in names.tolist())
    )


def save_people(
    path: str | os.PathLike[str], people: list[Mapping[str, Any]], faces: npt.ArrayLike
) -> Path:
    """Save what upstream's ``process_one_image`` returns, for :func:`mesh_from_file`.

    Args:
        path: An ``.npz``.
        people: One table a person, with ``pred_vertices`` and what else is there.
        faces: (F, 3): upstream's ``estimator.faces``.

    Raises:
        MeshError: There is nobody.
        OutputError: The file cannot be written.
    """
    if not people:
        raise MeshError("There is nobody to save: the estimator found no person.")
    kept = ("pred_vertices", "pred_cam_t", "pred_keypoints_3d", "focal_length")
    arrays: dict[str, Any] = {
        name: np.stack([np.asarray(person[name]) for person in people])
        for name in kept
        if all(name in person for person in people)
    }
    path = Path(path)
    with output_errors(path), path.open("wb") as file:
        np.savez_compressed(file, faces=np.asarray(faces), **arrays)
    return path


def _arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise MeshError(f"{path} is a single array. Give an .npz with named arrays.")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        raise MeshError(f"{path} does not exist.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MeshError(f"{path} cannot be read as .npz without running code: {error}") from error


def _of_person(
    arrays: Mapping[str, npt.NDArray[Any]],
    name: str,
    dimensions: int,
    person: int,
    path: str | os.PathLike[str],
) -> Floats | None:
    """One person's part of an array that may be stacked over persons; None where it is missing."""
    if name not in arrays:
        return None
    array = arrays[name]
    if array.dtype.kind not in "fiu":
        raise MeshError(f"{name} in {path} holds {array.dtype}, not numbers.")
    people = 1
    if array.ndim == dimensions + 1:
        people = len(array)
    elif array.ndim != dimensions:
        raise MeshError(f"{name} in {path} has {array.ndim} axes, not {dimensions}.")
    if not 0 <= person < people:
        raise MeshError(f"{path} has {people} person(s), numbered from 0; there is no {person}.")
    values: Floats = (array[person] if array.ndim > dimensions else array).astype(np.float64)
    broken = int(values.size - np.isfinite(values).sum())
    if broken:
        raise MeshError(
            f"{broken} of {values.size} numbers of {name} in {path} are NaN or infinite: the "
            "pipeline that made it is broken. Check the backbone with samforge features."
        )
    return values


def _faces(
    arrays: Mapping[str, npt.NDArray[Any]], count: int, path: str | os.PathLike[str]
) -> npt.NDArray[np.int64] | None:
    if "faces" not in arrays:
        return None
    faces = arrays["faces"]
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise MeshError(f"faces in {path} are {faces.dtype} {faces.shape}, not integers (F, 3).")
    if faces.size and not 0 <= faces.min() <= faces.max() < count:
        raise MeshError(
            f"faces in {path} name vertices {faces.min()} to {faces.max()}, and there are {count}."
        )
    return faces.astype(np.int64)


def _deviation(distances_mm: Floats) -> Deviation:
    return Deviation(
        mean=float(distances_mm.mean()),
        median=float(np.median(distances_mm)),
        p95=float(np.percentile(distances_mm, 95)),
        max=float(distances_mm.max()),
    )


def _by_region(distances_mm: Floats, regions: Regions) -> tuple[RegionDeviation, ...]:
    found = []
    for index, name in enumerate(regions.names):
        inside = regions.labels == index
        if inside.any():
            found.append(
                RegionDeviation(
                    region=name,
                    vertices=int(inside.sum()),
                    deviation=_deviation(distances_mm[inside]),
                )
            )
    return tuple(sorted(found, key=lambda one: -one.deviation.mean))
