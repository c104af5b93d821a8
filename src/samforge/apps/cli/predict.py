"""``samforge predict``: finds what phrases, boxes or clicks show, as pictures and COCO files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import samforge
from samforge.apps.cli.finding import (
    MaskThresholdOption,
    NegativePointOption,
    TextOption,
    ThresholdForOption,
    ThresholdOption,
)
from samforge.apps.cli.output import (
    JsonOption,
    print_json,
    print_line,
    print_note,
    print_table,
    shown_path,
)
from samforge.apps.cli.places import DeviceOption, DigestOption, OverwriteOption, check_outputs
from samforge.apps.cli.progress import progress_bar
from samforge.apps.cli.stages import print_stages
from samforge.core.files import writable_folder
from samforge.core.words import escaped
from samforge.workflows.inputs import images_from_paths, left_out, results_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samforge.workflows.predict import Failure, ImageResult, Predictions, Prompts

HOPELESS = 0.05
"""Below this best score a lower threshold would only admit noise."""


def predict(  # noqa: PLR0913  every argument is an option that a user types
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for overlays and COCO files.")],
    text: TextOption = None,
    box: Annotated[
        list[str] | None,
        typer.Option("--box", help="Find what is like this: left,top,right,bottom. Repeat it."),
    ] = None,
    negative_box: Annotated[
        list[str] | None,
        typer.Option("--negative-box", help="Leave out what is like this. Repeat it."),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            help="Segment the object at x,y; with --text or --box, correct what was found there. "
            "Repeat it.",
        ),
    ] = None,
    negative_point: NegativePointOption = None,
    object_box: Annotated[
        list[str] | None,
        typer.Option(
            "--object-box",
            help="Segment the one object in left,top,right,bottom. Repeat it for several.",
        ),
    ] = None,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Give three masks of a clicked object, best first.")
    ] = False,
    hole_area: Annotated[
        int | None,
        typer.Option(
            "--hole-area",
            min=0,
            help="Fill holes of up to N cells of the model's mask in what clicks show; 0 keeps "
            "them.",
            show_default="256 of SAM 3's 288 x 288, as Meta does; 0 where transformers is the "
            "reference",
        ),
    ] = None,
    threshold: ThresholdOption = 0.5,
    threshold_for: ThresholdForOption = None,
    mask_threshold: MaskThresholdOption = 0.5,
    max_detections: Annotated[
        int | None,
        typer.Option(
            "--max-detections",
            min=1,
            help="Keep the N best scores of each image, over all phrases.",
            show_default="all",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Look into the folders of folders as well.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Processor threads.", show_default="all cores"),
    ] = None,
    device: DeviceOption = "auto",
    digest: DigestOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find what phrases, boxes or clicks show in images; write overlays and COCO files.

    Images that cannot be used are named at the end, and the others are done all the same. Files of
    a folder that are left out are named, too.
    """
    from dataclasses import replace

    from samforge.core.own_folder import require_outside_bundles
    from samforge.runtime import Thresholds
    from samforge.workflows.pointing import box_from_text, pointing_from_texts
    from samforge.workflows.predict import Prompts, failure_from
    from samforge.workflows.thresholds import thresholds_from_texts

    positive, negative = box or [], negative_box or []
    prompts = Prompts(
        text=tuple(text or ()),
        boxes_xyxy=tuple(box_from_text(one) for one in (*positive, *negative)),
        box_labels=(1,) * len(positive) + (0,) * len(negative),
        pointing=pointing_from_texts(point, negative_point, object_box),
        candidates=candidates,
        hole_area=hole_area,
        thresholds=Thresholds(score=threshold, mask=mask_threshold, max_detections=max_detections),
        own_thresholds=thresholds_from_texts(threshold_for or (), text or ()),
    )
    require_outside_bundles(out, "--out")  # before a folder is made
    files, unusable = images_from_paths(images, out, recursive=recursive)
    notes = left_out(images, out, recursive=recursive)
    check_outputs(results_for(files, out), overwrite=overwrite)
    out = writable_folder(out)
    opened = samforge.open_bundle(bundle, digest=digest)
    segmenter = _loaded(opened, device, threads)
    found = _run(segmenter, files, prompts, out, as_json=as_json)
    found = replace(
        found,
        failures=(*(failure_from(path, error) for path, error in unusable), *found.failures),
    )
    if as_json:
        _print_json(opened, segmenter, out, found, notes)
    else:
        _print(out, found, prompts)
        for note in notes:
            print_note(note)
    if found.failures:
        raise typer.Exit(found.failures[0].exit_code)


def _loaded(bundle: samforge.Bundle, device: str, threads: int | None) -> samforge.Segmenter:
    """Load a bundle, and say what is to be known of its results."""
    from samforge.core.manifest import verified

    if not verified(bundle.manifest) and not bundle.manifest.recipe.get("random_weights"):
        print_note(f"{bundle.root} was not verified on hardware: run samforge verify first.")
    if bundle.manifest.recipe.get("random_weights"):
        print_note(f"{bundle.root} has random weights: what it finds means nothing.")
    return samforge.load(bundle, device=device, threads=threads)


def _run(
    segmenter: samforge.Segmenter,
    files: list[Path],
    prompts: Prompts,
    out: Path,
    *,
    as_json: bool,
) -> Predictions:
    from samforge.workflows.predict import predict_files

    with progress_bar("images", len(files), as_json=as_json or len(files) < 2) as done:
        return predict_files(segmenter, files, prompts, out, done=done)


def _print_json(
    bundle: samforge.Bundle,
    segmenter: samforge.Segmenter,
    out: Path,
    found: Predictions,
    notes: Sequence[str],
) -> None:
    payload: dict[str, Any] = {
        "bundle": bundle.root,
        "processor": segmenter.processor,
        "out": out,
        "images": [
            {"image": one.image, **one.found, "overlay": one.overlay, "coco": one.coco}
            for one in found.images
        ],
        "failures": found.failures,
        "notes": notes,
        "stages": found.stages,
        "total_ms": found.total_ms,
    }
    if found.failures:
        first = found.failures[0]
        payload["error"] = {
            "kind": first.kind,
            "message": first.message,
            "exit_code": first.exit_code,
        }
    print_json("predict", payload, ok=not found.failures)


def _print(out: Path, found: Predictions, prompts: Prompts) -> None:
    for one in found.images:
        _print_image(one, prompts)
    if found.images:
        print_stages(found.stages, images=len(found.images))
        print_line(f"Written to {shown_path(out)}:", style="green")
        for one in found.images:
            print_line(f"  {one.overlay.name}, {one.coco.name}")
    for failure in found.failures:
        print_note(f"{failure.kind}: {_naming(failure)}", style="red")
    if found.failures and found.images:
        print_note(f"{len(found.failures)} failed, {len(found.images)} done.", style="red")


def _print_image(one: ImageResult, prompts: Prompts) -> None:
    rows = [
        (
            detection["label"],
            f"{detection['score']:.3f}",
            box_text(detection["box_xyxy"]),
            detection["area"],
        )
        for detection in one.found["detections"]
    ]
    height, width = one.found["size_hw"]
    if rows:
        print_table(
            f"{one.image} ({width} x {height})",
            ("label", "score", "box (left, top, right, bottom)", "pixels"),
            rows,
            numbers=("score", "pixels"),
        )
    else:
        print_line(f"{one.image} ({width} x {height}): nothing found.")
    if one.found["cut_off"]:
        print_line(f"  {one.found['cut_off']} more with lower scores were left out.")
    for phrase, score in _misses(one, prompts).items():
        print_line(_hint(phrase, score, prompts), style="yellow")


def box_text(box_xyxy: Sequence[float]) -> str:
    """A box for people, in as few digits as keep its area: ``--box`` takes it back."""
    left, top, right, bottom = box_xyxy
    narrow = min(right - left, bottom - top)
    digits = 0 if narrow >= 2 else 2 if narrow >= 0.02 else 6
    return ", ".join(f"{edge:.{digits}f}" for edge in box_xyxy)


def _misses(one: ImageResult, prompts: Prompts) -> dict[str, float]:
    """Phrases that found nothing, with the best score each saw.

    One of which all was left out, for the better scores of others, did find something.
    """
    labels = {detection["label"] for detection in one.found["detections"]}
    scores = one.found["best_scores"].items()
    left_out = one.found["cut_off"] > 0
    return {
        phrase: score
        for phrase, score in scores
        if phrase not in labels and not (left_out and score > prompts.threshold_of(phrase))
    }


def _hint(phrase: str, score: float, prompts: Prompts) -> str:
    """What to try when a phrase finds nothing."""
    threshold = prompts.threshold_of(phrase)
    text = f"  '{phrase}': nothing above {threshold:g}; the best score is {score:.3f}."
    if score > HOPELESS:
        lower = f"{max(HOPELESS, int(score * 90) / 100):g}"
        if phrase in prompts.own_thresholds:
            return f"{text} To see it: --threshold-for '{phrase}={lower}'"
        return f"{text} To see it: --threshold {lower}"
    return f"{text} The model sees nothing like it here."


def _naming(failure: Failure) -> str:
    """The message, with the image's name where it does not say it."""
    name = str(failure.image)
    if name not in failure.message:
        return f"{escaped(name)}: {failure.message}"
    return failure.message.replace(name, escaped(name))  # ends of lines in a name too
