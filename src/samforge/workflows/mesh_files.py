"""Compares recovered bodies that lie in files: the work behind ``samforge mesh-compare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samforge.core.errors import SettingError
from samforge.measure import MeshComparison, compare_meshes, mesh_from_file, regions_from_file
from samforge.workflows.mesh_views import write_views


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshReport:
    """How far one recovered body lies from another, and pictures of both."""

    comparison: MeshComparison
    """Deviations in millimetres: of the whole body, and by region where there is a map."""
    views: tuple[Path, ...] = ()
    """The pictures that were written; none without a folder for them."""


def compare_mesh_files(
    reference: str | Path,
    other: str | Path,
    *,
    regions: str | Path | None = None,
    person: int = 0,
    out: str | Path | None = None,
    image: str | Path | None = None,
) -> MeshReport:
    """Compare two recovered bodies vertex by vertex, in millimetres.

    Args:
        reference: An ``.npz`` that ``samforge.measure.save_people`` wrote: upstream's own result.
        other: What is compared with it, of the same body model.
        regions: Region map: an ``.npz`` with ``labels`` (V,) and ``names``; None for none.
        person: Which person of both files, from 0.
        out: Folder for ``views.png``, ``turn.gif`` and ``overlay.png``, which replace what is
            there; None draws nothing.
        image: The photo both were recovered from, for the overlay; needs ``out``.

    Raises:
        MeshError: A file cannot be read, has no such person, or the bodies are of different
            topology; or, for pictures, there are no faces or no ``pred_cam_t``.
        ImageError: The photo cannot be read.
        SettingError: There is a photo and no folder.
        OutputError: The pictures cannot be written.
    """
    if image is not None and out is None:
        raise SettingError("image is drawn into a folder: give out=, too.")
    one, two = (mesh_from_file(path, person=person) for path in (reference, other))
    labelled = None if regions is None else regions_from_file(regions)
    comparison = compare_meshes(one, two, labelled)
    if out is None:
        return MeshReport(comparison=comparison)
    photo = None if image is None else Path(image)
    return MeshReport(comparison=comparison, views=write_views(one, two, Path(out), image=photo))
