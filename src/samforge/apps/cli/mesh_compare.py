"""``samforge mesh-compare``: how far one recovered body lies from another, in figures and views."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import samforge
from samforge.apps.cli.output import (
    JsonOption,
    print_json,
    print_line,
    print_table,
    shown_path,
)
from samforge.apps.cli.places import OverwriteOption, check_outputs

if TYPE_CHECKING:
    from samforge.measure import Deviation, MeshComparison

FIGURES = ("mean", "median", "p95", "max")


def mesh_compare(  # noqa: PLR0913  every argument is an option that a user types
    reference: Annotated[
        Path, typer.Argument(metavar="A.npz", help="The reference: upstream's own result.")
    ],
    other: Annotated[Path, typer.Argument(metavar="B.npz", help="What is compared with it.")],
    *,
    regions: Annotated[
        Path | None,
        typer.Option("--regions", help="Region map: .npz with labels (V,) and names."),
    ] = None,
    person: Annotated[int, typer.Option("--person", min=0, help="Which person, from 0.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for views: pictures and a turning GIF.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="The photo, for an overlay (needs --out).")
    ] = None,
    limit_mm: Annotated[
        float | None,
        typer.Option("--limit-mm", min=0, help="Fail above this root-relative mean."),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two recovered bodies vertex by vertex, in millimetres.

    Root-relative deviation shows pose and shape, camera-space deviation shows placement as well.
    samforge.measure.save_people writes such files from SAM 3D Body's results.
    """
    from samforge.core.errors import FidelityError, SettingError

    if image is not None and out is None:
        raise SettingError("--image is drawn into a folder: add --out DIR.")
    if out is not None:
        names = ("views.png", "turn.gif", *(("overlay.png",) if image is not None else ()))
        check_outputs([out / name for name in names], overwrite=overwrite)
    report = samforge.compare_mesh_files(
        reference, other, regions=regions, person=person, out=out, image=image
    )
    found, written = report.comparison, report.views
    held = limit_mm is None or found.root_relative.mean <= limit_mm
    if as_json:
        payload = {
            "reference": reference,
            "other": other,
            "person": person,
            "comparison": found,
            "limit_mm": limit_mm,
            "views": written,
        }
        print_json("mesh-compare", payload, ok=held)
        if not held:
            raise typer.Exit(FidelityError.exit_code)
        return
    _print(reference, other, found, written)
    if not held:
        raise FidelityError(
            f"The root-relative mean is {found.root_relative.mean:.2f} mm, above the limit of "
            f"{limit_mm:g} mm. The regions with the largest means tell where."
        )


def _print(reference: Path, other: Path, found: MeshComparison, written: tuple[Path, ...]) -> None:
    rows: list[tuple[object, ...]] = [("root-relative", *_figures(found.root_relative))]
    if found.camera_space is not None:
        rows.append(("camera space", *_figures(found.camera_space)))
    print_table(
        f"{other.name} against {reference.name}: {found.vertices} vertices, millimetres",
        ("deviation", *FIGURES),
        rows,
        numbers=FIGURES,
    )
    share = found.root_relative.mean / 1e3 / found.height_m
    print_line(f"Aligned by the {found.root}; the mean is {share:.2%} of {found.height_m:.2f} m.")
    if found.root_shift_mm is not None:
        print_line(f"The roots are {found.root_shift_mm:.1f} mm apart in the camera's frame.")
    else:
        print_line("Without pred_cam_t in both files there is no camera-space deviation.")
    if found.regions:
        print_table(
            "By region, root-relative",
            ("region", "vertices", *FIGURES),
            [(one.region, one.vertices, *_figures(one.deviation)) for one in found.regions],
            numbers=("vertices", *FIGURES),
        )
    for path in written:
        print_line(f"Written {shown_path(path)}", style="green")


def _figures(deviation: Deviation) -> tuple[str, ...]:
    values = (deviation.mean, deviation.median, deviation.p95, deviation.max)
    return tuple(f"{value:.2f}" for value in values)
