"""The main flow: checkpoint -> part -> exported program -> ONNX -> bundle, each step proven.

Every step compares what it made with what it was made from and stops below the gate. Finished
steps survive a kill; nothing is published before all of them hold. What a step does stands in
:mod:`samforge.steps`, one file each; which steps a recipe takes, in :mod:`samforge.steps.plan`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import TRACKER_PARTS
from samforge.core.errors import FidelityError, OutputError, SamforgeWarning, SettingError
from samforge.core.files import require_space, system_errors
from samforge.core.own_folder import require_outside_bundles
from samforge.core.paths import checked_path
from samforge.core.recipe import Recipe
from samforge.core.staging import Staging
from samforge.core.targets import stop_of, target_from_name
from samforge.models.family import Model
from samforge.models.loading import model_from_name
from samforge.steps.assets import write_tokenizer_and_license
from samforge.steps.context import BuildContext
from samforge.steps.plan import stages
from samforge.steps.processor import Choice, processor_choices
from samforge.steps.publish import manifest_of, origin_of, published_files
from samforge.steps.report import report_of
from samforge.steps.run import Progress, Run

__all__ = ["Choice", "build", "build_for_processor", "processor_choices"]
WITH_TRACKER = " Build it with its tracker (--tracker), which has this part."


def build(
    model: str | Recipe = "tiny",
    *,
    out: str | Path,
    until: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    **settings: Any,
) -> Bundle:
    """Take a model from its checkpoint to a published bundle.

    Args:
        model: A recipe, or the model's name with the recipe's other fields as ``settings``.
        out: Folder of the bundle. An older bundle there is replaced once the new one is whole.
        until: ``export`` or ``onnx``: stop after that stage and publish what runs by then.
        jobs: Parts that are worked on side by side, in processes of their own. Each holds its part
            in memory; the calling script needs ``if __name__ == "__main__":``.
        progress: Told about each step.
        settings: Fields of :class:`Recipe`, such as ``target`` and ``precision``.

    Returns:
        The bundle, opened and checked.

    Raises:
        SettingError: A setting is not usable.
        CheckpointError: The model cannot be loaded.
        ExportError: A part could not be converted.
        FidelityError: A gate did not hold; nothing was published.
        OutputError: The folder cannot be written.
    """
    recipe = _recipe(model, settings)
    stop_of(target_from_name(recipe.target), recipe.precision, until)
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise SettingError(f"jobs wants a whole number from 1 up, got {jobs}.")
    place = checked_path(out, OutputError)
    with system_errors(place):
        return _built(recipe, place, until=until, jobs=jobs, progress=progress)


def _built(
    recipe: Recipe, out: Path, *, until: str | None, jobs: int, progress: Progress | None
) -> Bundle:
    checkpoint = model_from_name(
        recipe.model,
        reference=recipe.reference,
        image_size=recipe.image_size,
        random_weights=recipe.random_weights,
        seed=recipe.seed,
        tokenizer=recipe.tokenizer,
        tracker=recipe.tracker,
    )
    parts = _part_names(recipe, checkpoint)
    planned = stages(recipe, parts, until=until)
    if recipe.engine.timing_cache is not None:
        require_outside_bundles(recipe.engine.timing_cache, "the timing cache")
    require_space(out, _needed_bytes(checkpoint))
    with Staging.open(out) as staging:
        context = BuildContext(
            recipe=recipe, model=checkpoint, root=staging.root, parts=parts, until=until
        )
        origin = origin_of(checkpoint)
        run = Run(context=context, staging=staging, origin=origin, progress=progress)
        records = run.all(planned, jobs=jobs)
        manifest = manifest_of(context, planned, records, origin)
        extra = (*write_tokenizer_and_license(context), report_of(context, manifest))
        return open_bundle(staging.publish(manifest, published_files(manifest, records, extra)))


def build_for_processor(
    recipe: Recipe, *, out: str | Path, jobs: int = 1, progress: Progress | None = None
) -> Bundle:
    """Build for whatever this processor is fastest with, and the next where a gate does not hold.

    Args:
        recipe: Its target and precision are replaced by what is measured here.
        out: As in :func:`build`, like all that follows.
        jobs: Parts that are worked on side by side.
        progress: Told about each step.

    Raises:
        FidelityError: No precision holds the gates.
    """
    *choices, last = processor_choices()
    for choice in choices:
        chosen = replace(recipe, target=choice.target, precision=choice.precision)
        try:
            return build(chosen, out=out, jobs=jobs, progress=progress)
        except FidelityError as error:
            warnings.warn(
                f"{choice.target} in {choice.precision} is fastest here and does not hold: {error} "
                "The next is tried.",
                SamforgeWarning,
                stacklevel=2,
            )
    chosen = replace(recipe, target=last.target, precision=last.precision)
    return build(chosen, out=out, jobs=jobs, progress=progress)


def _recipe(model: str | Recipe, settings: Mapping[str, Any]) -> Recipe:
    if isinstance(model, Recipe):
        if settings:
            raise SettingError(
                f"build got a recipe and {', '.join(sorted(settings))} beside it. "
                "Put them into the recipe: dataclasses.replace(recipe, …)."
            )
        return model
    return Recipe.from_dict({"model": model, **settings})


def _part_names(recipe: Recipe, model: Model) -> tuple[str, ...]:
    names = recipe.parts or model.default_parts
    unknown = [name for name in names if name not in model.part_names]
    if unknown:
        raise SettingError(
            f"{model.family} has no part {', '.join(unknown)}. "
            f"Its parts: {', '.join(model.part_names)}."
            + (WITH_TRACKER if set(unknown) & set(TRACKER_PARTS) and not recipe.tracker else "")
        )
    return names


def _needed_bytes(model: Model) -> int:
    """Room for the exported and the fused program and the ONNX file, all float32."""
    return int(3.2 * 4 * model.weight_count())
