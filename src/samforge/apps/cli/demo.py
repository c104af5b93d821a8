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
    from samforge.workflows.demo import Demonstration


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the bundle and the pictures.")] = (
        Path("build/demo")
    ),
    tracker: Annotated[
        bool,
        typer.Option(
            "--tracker/--no-tracker",
            help="Build the tracker too, and show objects followed through a clip.",
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build the tiny bundle, prove it, segment drawn scenes and show them; no network, no GPU.

    Fails when the model does not find what is there.
    """
    from samforge.workflows.demo import EVALUATED, SCENES, check_pictures, require_accuracy
    from samforge.workflows.demo import demo as demonstrated
    from samforge.workflows.tracking_demo import FRAMES

    start = time.perf_counter()
    check_pictures(out, overwrite=overwrite)
    out = writable_folder(out)
    bundle, reused = _bundle(out / "bundle", tracker=tracker, as_json=as_json)
    steps = SCENES + EVALUATED + (FRAMES if tracker else 0)
    with progress_bar("segmenting scenes", steps, as_json=as_json) as done:
        shown = demonstrated(out, bundle=bundle, reused=reused, overwrite=overwrite, done=done)
    if not as_json:
        _print(shown)
    require_accuracy(shown.measured.accuracy)
    seconds = round(time.perf_counter() - start, 1)
    if as_json:
        payload = _payload(shown)
        print_json("demo", payload | {"seconds": seconds})
        return
    picture = shown.showing.picture
    print_line(f"Done in {seconds:.0f} s. Open this picture: {picture}", style="green")


def _bundle(path: Path, *, tracker: bool, as_json: bool) -> tuple[samforge.Bundle, bool]:
    """Take over the bundle of an earlier run, or build it."""
    from samforge.workflows.demo import finished_bundle, recipe_of

    recipe = recipe_of(tracker=tracker)
    bundle, problem = finished_bundle(path, recipe)
    if bundle is not None:
        return bundle, True
    if problem:
        print_note(f"The bundle of an earlier run is built again: {problem}")
    return build_with_progress(recipe, path, as_json=as_json), False


def _payload(shown: Demonstration) -> dict[str, Any]:
    bundle, showing = shown.bundle, shown.showing
    return {
        "bundle": bundle.root,
        "digest": bundle.digest,
        "reused": shown.reused,
        "steps": bundle.manifest.steps,
        "gates": bundle.manifest.gates,
        "picture": showing.picture,
        "overlays": showing.overlays,
        "found": showing.found,
        "accuracy": shown.measured.accuracy,
        "stages": showing.stages,
        "tracking": shown.tracking,
    }


def _print(shown: Demonstration) -> None:
    bundle, showing, measured = shown.bundle, shown.showing, shown.measured
    how = (
        "taken over from an earlier run, every hash checked" if shown.reused else "built and proven"
    )
    print_steps(bundle.manifest.steps, title=f"Steps of the tiny bundle, {how}")
    gates = ", ".join(f"{name} {limit:g}" for name, limit in bundle.manifest.gates.items())
    print_line(f"Every step held its gate: {gates}.")
    print_accuracy([measured], title=f"Accuracy on {measured.accuracy.images} held-out scenes")
    print_stages(showing.stages, images=showing.scenes)
    found = f"{showing.found} objects found by {len(showing.overlays)} prompts"
    print_line(f"{found} in {showing.scenes} scenes: {shown_path(showing.picture)}")
    if shown.tracking is not None:
        followed = shown.tracking
        print_line(
            f"{followed.objects} objects followed through {followed.frames} frames, "
            f"{followed.returned} of them hidden and found again: {shown_path(followed.picture)}"
        )
