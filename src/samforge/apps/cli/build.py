"""``samforge build``: from a checkpoint to a bundle, with a proof of each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import samforge
from samforge.apps.cli.output import (
    JsonOption,
    print_json,
    print_line,
    print_note,
    shown_path,
)
from samforge.apps.cli.progress import BuildProgress
from samforge.apps.cli.steps import print_steps
from samforge.core.capabilities import TEXT
from samforge.core.errors import SettingError
from samforge.core.files import size_text
from samforge.core.structure import unknown_names
from samforge.core.targets import PRECISIONS, TARGET_NAMES

if TYPE_CHECKING:
    from samforge.core.bundle import Bundle
    from samforge.core.recipe import Recipe

RECIPE_SUFFIX = ".toml"
FASTEST = "cpu"
"""The target that stands for whatever this processor is fastest with."""


def build(  # noqa: PLR0913  every argument is an option that a user types
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RECIPE",
            help="tiny, a checkpoint folder, Meta's sam3.pt, a Hugging Face id, or a recipe.toml.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the bundle.", show_default="build/<model name>"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help=f"Runtime: {', '.join(TARGET_NAMES)}; cpu takes what is fastest on this "
            "processor.",
            show_default=TARGET_NAMES[0],
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help=f"Number format: {', '.join(PRECISIONS)}.", show_default="fp32"
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Whose computation the weights belong to: meta (SAM 3 as Meta runs it) or "
            "transformers (what was fine-tuned there).",
            show_default="meta",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", help="Side of the square image in pixels.", show_default="the model's"
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            help="Build this part only, for example grounding; repeat it for several.",
            show_default="all that text and boxes need",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="A tokenizer.json in place of the checkpoint's."),
    ] = None,
    tracker: Annotated[
        bool | None,
        typer.Option(
            "--tracker/--no-tracker",
            help="Build the tracker's parts too, for clicks and for videos with memory.",
            show_default="no tracker",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", help="Stop after this stage: export or onnx."),
    ] = None,
    random_weights: Annotated[
        bool | None,
        typer.Option(
            "--random-weights/--trained-weights",
            help="Use random weights: they show size and speed, and find nothing.",
            show_default="trained",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Seed of random weights and example inputs.", show_default="0"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Folder of images or a video that sets the ranges of int8 and fp8.",
            show_default="drawn scenes, for tiny",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="A phrase that occurs in these images; repeat it."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", min=1, help="How many of these images to read.", show_default="16"
        ),
    ] = None,
    weak_evidence: Annotated[
        bool | None,
        typer.Option(
            "--weak-evidence/--enough-evidence",
            help="Publish, and say so, where the pictures are too few to be sure of the gates.",
            show_default="enough evidence",
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            help="GPU generation of an engine, such as 89; repeat it for several in one.",
            show_default="the GPU at hand",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Parts to work on side by side.",
            show_default="2 for a small model, else 1",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a model from its checkpoint to a bundle, and prove each step.

    Options override the fields of a recipe file. A failed gate publishes nothing.

    A build that was stopped resumes when it is run again.
    """
    if target is not None and (problem := unknown_names([target], (FASTEST, *TARGET_NAMES))):
        raise SettingError(f"--target is {problem}.")
    given = {
        "target": None if target == FASTEST else target,
        "precision": precision,
        "reference": reference,
        "image_size": image_size,
        "parts": tuple(part) if part else None,
        "tokenizer": tokenizer,
        "tracker": tracker,
        "random_weights": random_weights,
        "seed": seed,
        "compute_capabilities": tuple(compute_capability) if compute_capability else None,
    }
    recipe = recipe_from_options(model, {k: v for k, v in given.items() if v is not None})
    recipe = _calibrated_on(recipe, calibration, prompt, samples)
    if weak_evidence is not None:
        recipe = replace(recipe, gates=replace(recipe.gates, weak_evidence=weak_evidence))
    place = out or default_out(recipe)
    if target == FASTEST:
        if precision or until:
            raise SettingError("--target cpu chooses the precision and builds to the end.")
        bundle = _fastest(recipe, place, jobs=jobs, as_json=as_json)
    else:
        bundle = build_with_progress(recipe, place, until=until, jobs=jobs, as_json=as_json)
    if as_json:
        print_json("build", build_report(bundle))
        return
    print_steps(bundle.manifest.steps)
    print_built(bundle)


def recipe_from_options(model: str, given: dict[str, Any]) -> Recipe:
    """Read the recipe, or start one for the model, and set what was given.

    Raises:
        SettingError: The file or a value is not usable.
    """
    if model.endswith(RECIPE_SUFFIX):
        return replace(samforge.Recipe.from_toml(model), **given)
    return replace(samforge.Recipe(model=model), **given)


def _calibrated_on(
    recipe: Recipe, source: Path | None, prompts: list[str] | None, samples: int | None
) -> Recipe:
    old = recipe.calibration
    new = replace(
        old,
        source=source or old.source,
        prompts=tuple(prompts) if prompts else old.prompts,
        samples=samples or old.samples,
    )
    return replace(recipe, calibration=new)


def default_out(recipe: Recipe) -> Path:
    """``build/<model name>``, the name being the last part of a path or a Hugging Face id."""
    path = Path(recipe.model)
    return Path("build", path.resolve().stem if path.is_file() else path.resolve().name)


def build_with_progress(
    recipe: Recipe, out: Path, *, until: str | None = None, jobs: int | None = None, as_json: bool
) -> Bundle:
    """Build a recipe and show how far it is."""
    from samforge.workflows.machine import jobs_for

    with BuildProgress(as_json=as_json) as progress:
        return samforge.build(
            recipe, out=out, until=until, jobs=jobs or jobs_for(recipe.model), progress=progress
        )


def _fastest(recipe: Recipe, out: Path, *, jobs: int | None, as_json: bool) -> Bundle:
    from samforge.pipeline import build_for_processor
    from samforge.workflows.machine import jobs_for

    with BuildProgress(as_json=as_json) as progress:
        return build_for_processor(
            recipe, out=out, jobs=jobs or jobs_for(recipe.model), progress=progress
        )


def build_report(bundle: Bundle) -> dict[str, object]:
    """What a build made, for machines."""
    from samforge.core.manifest import evidence_of

    manifest = bundle.manifest
    return {
        "bundle": bundle.root,
        "digest": bundle.digest,
        "bytes": bundle_bytes(bundle),
        "model": manifest.model,
        "reference": manifest.reference,
        "target": manifest.target,
        "recipe": manifest.recipe,
        "gates": manifest.gates,
        "evidence": evidence_of(manifest),
        "steps": manifest.steps,
    }


def bundle_bytes(bundle: Bundle) -> int:
    """Size of all the files of a bundle."""
    return sum(entry.bytes for entry in bundle.manifest.files.values())


def print_built(bundle: Bundle) -> None:
    """Say what a reader has to know, where the bundle is and what to type next."""
    from samforge.core.manifest import evidence_in_words

    for note in dict.fromkeys(note for step in bundle.manifest.steps for note in step.notes):
        print_note(note)
    if evidence := evidence_in_words(bundle.manifest):
        print_line(f"Held on: {evidence}")
    size = size_text(bundle_bytes(bundle))
    print_line(f"Bundle: {shown_path(bundle.root)} ({size})", style="green")
    print_line(f"Digest: {bundle.digest}")
    print_line(next_command(bundle))


def next_command(bundle: Bundle) -> str:
    """The command that uses what was built."""
    from samforge.core.manifest import PROOF_NAME, verified
    from samforge.workflows.vocabulary import knows_scenes

    manifest, root = bundle.manifest, shown_path(bundle.root)
    if PROOF_NAME in manifest.files and not verified(manifest):
        return f"Next, where it will run: samforge verify {root}"
    if manifest.recipe.get("random_weights"):
        return (
            "Its weights are random numbers: right for size and speed, and it finds nothing. "
            f"Next: samforge inspect {root}"
        )
    if not TEXT.among(manifest.parts):
        return f"Next: samforge inspect {root}"
    phrase = "red circle" if knows_scenes(bundle) else "person"
    return f"Next: samforge predict {root} IMAGE --text '{phrase}' --out out"
