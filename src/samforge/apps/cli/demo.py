"""``samforge demo``: builds the tiny bundle, proves it, and shows what it finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import samforge
from samforge.apps.cli.build import build_with_progress
from samforge.apps.cli.compare import print_accuracy
from samforge.apps.cli.output import JsonOption, print_json, print_line, print_note, shown_path
from samforge.apps.cli.places import OverwriteOption
from samforge.apps.cli.progress import progress_bar
from samforge.apps.cli.stages import print_stages
from samforge.apps.cli.steps import print_steps
from samforge.core.files import writable_folder

if TYPE_CHECKING:
    from samforge.workflows.compare import BundleAccuracy
    from samforge.workflows.demo import Showing


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the bundle and the pictures.")] = (
        Path("build/demo")
    ),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build the tiny bundle, prove it, segment drawn scenes and show them; no network, no GPU.

    Fails when the model does not find what is there.
    """
    from samforge.workflows.demo import EVALUATED, SCENES, check_pictures, require_accuracy
    from samforge.workflows.demo import demo as demonstrated

    start = time.perf_counter()
    check_pictures(out, overwrite=overwrite)
    out = writable_folder(out)
    bundle, reused = _bundle(out / "bundle", as_json=as_json)
    with progress_bar("segmenting scenes", SCENES + EVALUATED, as_json=as_json) as done:
        shown = demonstrated(out, bundle=bundle, reused=reused, overwrite=overwrite, done=done)
    if not as_json:
        _print(bundle, reused, shown.showing, shown.measured)
    require_accuracy(shown.measured.accuracy)
    seconds = round(time.perf_counter() - start, 1)
    if as_json:
        payload = _payload(bundle, reused, shown.showing, shown.measured)
        print_json("demo", payload | {"seconds": seconds})
        return
    picture = shown.showing.picture
    print_line(f"Done in {seconds:.0f} s. Open this picture: {picture}", style="green")


def _bundle(path: Path, *, as_json: bool) -> tuple[samforge.Bundle, bool]:
    """Take over the bundle of an earlier run, or build it."""
    from samforge.workflows.demo import RECIPE, finished_bundle

    bundle, problem = finished_bundle(path, RECIPE)
    if bundle is not None:
        return bundle, True
    if problem:
        print_note(f"The bundle of an earlier run is built again: {problem}")
    return build_with_progress(RECIPE, path, as_json=as_json), False


def _payload(
    bundle: samforge.Bundle, reused: bool, showing: Showing, measured: BundleAccuracy
) -> dict[str, Any]:
    return {
        "bundle": bundle.root,
        "digest": bundle.digest,
        "reused": reused,
        "steps": bundle.manifest.steps,
        "gates": bundle.manifest.gates,
        "picture": showing.picture,
        "overlays": showing.overlays,
        "found": showing.found,
        "accuracy": measured.accuracy,
        "stages": showing.stages,
    }


def _print(
    bundle: samforge.Bundle, reused: bool, showing: Showing, measured: BundleAccuracy
) -> None:
    how = "taken over from an earlier run, every hash checked" if reused else "built and proven"
    print_steps(bundle.manifest.steps, title=f"Steps of the tiny bundle, {how}")
    gates = ", ".join(f"{name} {limit:g}" for name, limit in bundle.manifest.gates.items())
    print_line(f"Every step held its gate: {gates}.")
    print_accuracy([measured], title=f"Accuracy on {measured.accuracy.images} held-out scenes")
    print_stages(showing.stages, images=showing.scenes)
    shown = f"{showing.found} objects found by {len(showing.overlays)} prompts"
    print_line(f"{shown} in {showing.scenes} scenes: {shown_path(showing.picture)}")
