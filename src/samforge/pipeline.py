"""The main flow: checkpoint -> part -> exported program -> ONNX -> bundle, each step proven.

Every step compares what it made with what it was made from and stops below the gate. Finished
steps survive a kill; nothing is published before all of them hold. What a step does stands in
:mod:`samforge.steps`; the order stands here.
"""

from __future__ import annotations

import gc
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from samforge.core.bundle import Bundle, open_bundle
from samforge.core.errors import SettingError
from samforge.core.files import require_space
from samforge.core.manifest import SCHEMA_VERSION, Manifest, PartEntry, StepResult, TextSpec
from samforge.core.recipe import Recipe
from samforge.core.staging import Staging, StepRecord, step_key
from samforge.core.version import __version__
from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.models.sam3.checkpoint import Sam3Checkpoint, state_shapes
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import DEFAULT_PARTS, PARTS
from samforge.steps import Made, Workshop, convert_part, export_part

STEPS: dict[str, tuple[tuple[str, Callable[[Workshop, str], Made]], ...]] = {
    "torch": (("export", export_part),),
    "onnxruntime": (("export", export_part), ("onnx", convert_part)),
}
"""The steps of each target, in order. The last one makes what the target runs."""
STAGES = {"export": "torch", "onnx": "onnxruntime"}
"""What ``until`` stops at, and the target that runs what is there by then."""
LICENSE_NAME = "LICENSE-weights.txt"
"""Licence of the weights, in every bundle."""
PACKAGES = ("numpy", "torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")


class Progress(Protocol):
    """Told about each step, so that a command line can show it."""

    def started(self, step: str, part: str, index: int, total: int) -> None:
        """A step begins; ``index`` counts from 0."""
        ...

    def finished(self, result: StepResult) -> None:
        """A step ended, or its earlier result was taken over."""
        ...


def build(
    model: str | Recipe = "tiny",
    *,
    out: str | Path,
    until: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Bundle:
    """Take a model from its checkpoint to a published bundle.

    Args:
        model: A recipe, or the model's name with the recipe's other fields as ``settings``.
        out: Folder of the bundle. An older bundle there is replaced once the new one is whole.
        until: ``export`` or ``onnx``: stop after that stage and publish what runs by then.
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
    recipe = _recipe(model, until, settings)
    checkpoint = checkpoint_from_name(
        recipe.model,
        image_size=recipe.image_size,
        random_weights=recipe.random_weights,
        seed=recipe.seed,
        tokenizer=recipe.tokenizer,
    )
    parts = _part_names(recipe)
    require_space(Path(out), _needed_bytes(checkpoint))
    with Staging.open(out) as staging:
        shop = Workshop(recipe=recipe, checkpoint=checkpoint, staging=staging)
        plan = [(step, part, make) for part in parts for step, make in STEPS[recipe.target]]
        origin = _origin(shop)
        records = {}
        for index, (step, part, make) in enumerate(plan):
            if progress:
                progress.started(step, part, index, len(plan))
            records[step, part] = _run(shop, step, part, make, origin)
            if progress:
                progress.finished(records[step, part].result)
        _write_tokenizer_and_license(shop)
        manifest = _manifest(shop, parts, records, origin)
        files = [
            path
            for entry in manifest.parts.values()
            for path in (entry.artifact, *entry.side_files)
        ]
        return open_bundle(staging.publish(manifest, [*files, "tokenizer", LICENSE_NAME]))


def _run(
    shop: Workshop,
    step: str,
    part: str,
    make: Callable[[Workshop, str], Made],
    origin: Mapping[str, Mapping[str, str]],
) -> StepRecord:
    """Run one step, or take over its result from an earlier build."""
    name = f"{step}/{part}"
    key = step_key(
        name,
        inputs=origin["parents"],
        settings={
            "config": shop.checkpoint.config.to_dict(),
            "eos_id": shop.checkpoint.eos_id,
            "seed": shop.recipe.seed,
            "gates": shop.recipe.gates,
        },
        versions=origin["versions"],
    )
    record = shop.staging.step(name, key)
    if record is not None:
        return record
    start = time.perf_counter()
    made = make(shop, part)
    gc.collect()
    result = StepResult(
        name=step,
        part=part,
        seconds=round(time.perf_counter() - start, 3),
        bytes=sum(
            shop.staging.path(path).stat().st_size
            for path in made.outputs
            if path.startswith("parts/")  # samples for later steps are not counted
        ),
        peak_gib=_peak_gib(),
        resumed=False,
        fidelity=made.figures,
    )
    return shop.staging.record(name, key, made.outputs, result)


def _origin(shop: Workshop) -> dict[str, dict[str, str]]:
    """What a bundle is made from and with: hashes of its parents, versions of the packages."""
    packages = {package: version(package) for package in PACKAGES}
    return {
        "parents": {"weights": shop.checkpoint.source.digest()},
        "versions": {"python": sys.version.split()[0], "samforge": __version__, **packages},
    }


def _recipe(model: str | Recipe, until: str | None, settings: Mapping[str, Any]) -> Recipe:
    if isinstance(model, Recipe):
        if settings:
            raise SettingError(
                f"build got a recipe and {', '.join(sorted(settings))} beside it. "
                "Put them into the recipe: dataclasses.replace(recipe, …)."
            )
        recipe = model
    else:
        recipe = Recipe.from_dict({"model": model, **settings})
    if until is None:
        return recipe
    if until not in STAGES:
        raise SettingError(
            f"until is '{until}'; target {recipe.target} can stop at: {', '.join(STAGES)}."
        )
    return replace(recipe, target=STAGES[until])


def _part_names(recipe: Recipe) -> tuple[str, ...]:
    names = recipe.parts or DEFAULT_PARTS
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SettingError(f"sam3 has no part {', '.join(unknown)}. Its parts: {', '.join(PARTS)}.")
    return names


def _needed_bytes(checkpoint: Sam3Checkpoint) -> int:
    """Room for the exported program and the ONNX file, both float32."""
    weights = sum(int(np.prod(shape)) for shape in state_shapes(checkpoint.config).values())
    return int(2.2 * 4 * weights)


def _write_tokenizer_and_license(shop: Workshop) -> None:
    tokenizer = shop.staging.path("tokenizer/tokenizer.json")
    if shop.checkpoint.tokenizer is None:
        byte_tokenizer(shop.checkpoint.config.text_config.vocab_size).save(str(tokenizer))
    else:
        shutil.copyfile(shop.checkpoint.tokenizer, tokenizer)
    license_file = shop.staging.path(LICENSE_NAME)
    license_file.write_text(shop.checkpoint.license_text, encoding="utf-8")


def _manifest(
    shop: Workshop,
    parts: tuple[str, ...],
    records: Mapping[tuple[str, str], StepRecord],
    origin: Mapping[str, Mapping[str, str]],
) -> Manifest:
    last_step, _ = STEPS[shop.recipe.target][-1]
    entries = {}
    for part in parts:
        artifact, *sides = records[last_step, part].outputs
        entries[part] = PartEntry(
            spec=shop.spec(part),
            artifact=artifact,
            side_files=tuple(side for side in sides if side.startswith("parts/")),
        )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        samforge=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        family="sam3",
        model=shop.recipe.model,
        recipe=shop.recipe.to_dict(),
        image=shop.checkpoint.image,
        text=TextSpec(
            context=shop.checkpoint.context,
            pad_id=shop.checkpoint.eos_id,
            tokenizer="tokenizer/tokenizer.json",
            synthetic=shop.checkpoint.tokenizer is None,
        ),
        target=shop.recipe.target,
        parts=entries,
        files={},
        parents=origin["parents"],
        versions=origin["versions"],
        steps=tuple(record.result for record in records.values()),
        gates={key: float(value) for key, value in asdict(shop.recipe.gates).items()},
        weights_license=LICENSE_NAME,
    )


def _peak_gib() -> float:
    """Highest memory use of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2 ** (30 if sys.platform == "darwin" else 20), 2)
