"""The main flow: checkpoint -> part -> exported program -> ONNX -> bundle, each step proven.

Every step compares what it made with what it was made from and stops below the gate. Finished
steps survive a kill; nothing is published before all of them hold.
"""

from __future__ import annotations

import gc
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from samforge.backends import backend_from_name
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.errors import FidelityError, SettingError
from samforge.core.files import require_space
from samforge.core.manifest import SCHEMA_VERSION, Manifest, PartEntry, StepResult, TextSpec
from samforge.core.recipe import Recipe
from samforge.core.staging import Staging, StepRecord, step_key
from samforge.core.version import __version__
from samforge.measure.fidelity import TensorFidelity, compare_outputs, rows, worst
from samforge.models.part import example_inputs
from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.models.sam3.checkpoint import Sam3Checkpoint, state_shapes
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import DEFAULT_PARTS, PARTS, part_from_checkpoint, part_spec
from samforge.transform.export import (
    TRACED_SIZES,
    exported_from_file,
    exported_from_part,
    release,
    run_exported,
    save_exported,
)
from samforge.transform.onnx.convert import onnx_from_exported, release_model, save_onnx

STAGES = {"export": "torch", "onnx": "onnxruntime"}
"""What ``until`` stops at, and the target that runs what is there by then."""
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
        run = _Run(recipe, checkpoint, staging, progress)
        steps = [("export", _export)] + [("onnx", _convert)] * (recipe.target != "torch")
        total = len(parts) * len(steps)
        plan = [(name, step, make) for name in parts for step, make in steps]
        results = tuple(
            run.step(step, name, make, index, total)
            for index, (name, step, make) in enumerate(plan)
        )
        _write_tokenizer_and_license(run)
        manifest = _manifest(run, parts, results)
        files = [path for entry in manifest.parts.values() for path in _files(entry)]
        return open_bundle(staging.publish(manifest, [*files, "tokenizer", "LICENSE-weights.txt"]))


def _export(run: _Run, name: str) -> tuple[list[str], tuple[dict[str, Any], ...]]:
    """Checkpoint -> part -> ``.pt2``; the file, read back, must equal the part exactly."""
    part = part_from_checkpoint(run.checkpoint, name)
    exported = exported_from_part(part, run.inputs(name, TRACED_SIZES))
    references = {}
    for index, sizes in enumerate(run.sample_sizes):
        inputs = run.inputs(name, sizes, seed=index + 1)
        references[_in_words(sizes)] = (inputs, part(inputs))
    artifact = f"parts/{name}/{name}.pt2"
    save_exported(exported, run.staging.path(artifact))
    # At full size there is no room for two copies of the weights.
    release([*part.module.parameters(), *part.module.buffers()])
    reloaded = exported_from_file(run.staging.path(artifact))
    figures = {
        words: compare_outputs(
            _arrays(outputs), _arrays(run_exported(reloaded, run.spec(name), inputs))
        )
        for words, (inputs, outputs) in references.items()
    }
    release(reloaded.state_dict.values())
    _check_gate("export", name, figures, run.recipe.gates.export_max_abs)
    samples = []
    for index, (inputs, outputs) in enumerate(references.values()):
        samples.append(f"work/{name}/sample-{index}.npz")
        np.savez(run.staging.path(samples[-1]), **_arrays(inputs), **_arrays(outputs))
    return [artifact, *samples], rows(figures)


def _convert(run: _Run, name: str) -> tuple[list[str], tuple[dict[str, Any], ...]]:
    """``.pt2`` -> ONNX; ONNX Runtime must give what the part gave."""
    spec = run.spec(name)
    exported = exported_from_file(run.staging.path(f"parts/{name}/{name}.pt2"))
    model = onnx_from_exported(exported, spec)
    artifact = f"parts/{name}/{name}.onnx"
    sides = save_onnx(model, run.staging.path(artifact))
    release_model(model)
    release([*exported.state_dict.values(), *exported.constants.values()])
    session = backend_from_name("onnxruntime").session_from_artifact(
        run.staging.path(artifact), spec
    )
    figures = {}
    for index, sizes in enumerate(run.sample_sizes):
        with np.load(run.staging.path(f"work/{name}/sample-{index}.npz")) as sample:
            inputs = {tensor.name: sample[tensor.name] for tensor in spec.inputs}
            reference = {tensor.name: sample[tensor.name] for tensor in spec.outputs}
        figures[_in_words(sizes)] = compare_outputs(reference, session.run(inputs))
    session.close()
    _check_gate("onnx", name, figures, run.recipe.gates.onnx_max_abs)
    return [artifact, *(f"parts/{name}/{side.name}" for side in sides)], rows(figures)


@dataclass(slots=True)
class _Run:
    """One build under way: what every step needs."""

    recipe: Recipe
    checkpoint: Sam3Checkpoint
    staging: Staging
    progress: Progress | None
    records: dict[str, StepRecord]
    versions: Mapping[str, str]
    digest: str

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Sam3Checkpoint,
        staging: Staging,
        progress: Progress | None,
    ) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.staging = staging
        self.progress = progress
        self.records = {}
        self.versions = {"python": sys.version.split()[0], "samforge": __version__} | {
            package: version(package) for package in PACKAGES
        }
        self.digest = checkpoint.source.digest()

    @property
    def sample_sizes(self) -> tuple[dict[str, int], ...]:
        """Sizes of the dynamic axes at which steps are compared."""
        if self.checkpoint.image.size > 448:
            # Explicit attention over 5184 tokens takes 3.2 GiB an image: one is enough.
            return ({"batch": 1, "prompts": 2, "boxes": 1},)
        return (
            {"batch": 1, "prompts": 1, "boxes": 1},
            {"batch": 2, "prompts": 3, "boxes": 2},
        )

    def spec(self, name: str) -> Any:
        """Interface of a part."""
        return part_spec(self.checkpoint.config, name)

    def inputs(self, name: str, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of a part."""
        return example_inputs(
            self.spec(name),
            sizes,
            vocabulary=self.checkpoint.config.text_config.vocab_size,
            eos_id=self.checkpoint.eos_id,
            seed=self.recipe.seed + seed,
        )

    def step(
        self,
        step: str,
        name: str,
        make: Callable[[_Run, str], tuple[list[str], tuple[dict[str, Any], ...]]],
        index: int,
        total: int,
    ) -> StepResult:
        """Run one step, or take over its result from an earlier build."""
        if self.progress:
            self.progress.started(step, name, index, total)
        full_name = f"{step}/{name}"
        key = step_key(
            full_name,
            inputs={"weights": self.digest},
            settings={
                "config": self.checkpoint.config.to_dict(),
                "eos_id": self.checkpoint.eos_id,
                "seed": self.recipe.seed,
                "gates": self.recipe.gates,
            },
            versions=self.versions,
        )
        record = self.staging.step(full_name, key)
        if record is None:
            start = time.perf_counter()
            outputs, figures = make(self, name)
            gc.collect()
            result = StepResult(
                name=step,
                part=name,
                seconds=round(time.perf_counter() - start, 3),
                bytes=sum(
                    self.staging.path(path).stat().st_size
                    for path in outputs
                    if path.startswith("parts/")  # samples for later steps are not counted
                ),
                peak_gib=_peak_gib(),
                resumed=False,
                fidelity=figures,
            )
            record = self.staging.record(full_name, key, outputs, result)
        self.records[full_name] = record
        if self.progress:
            self.progress.finished(record.result)
        return record.result


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


def _write_tokenizer_and_license(run: _Run) -> None:
    tokenizer = run.staging.path("tokenizer/tokenizer.json")
    if run.checkpoint.tokenizer is None:
        byte_tokenizer(run.checkpoint.config.text_config.vocab_size).save(str(tokenizer))
    else:
        shutil.copyfile(run.checkpoint.tokenizer, tokenizer)
    license_file = run.staging.path("LICENSE-weights.txt")
    license_file.write_text(run.checkpoint.license_text, encoding="utf-8")


def _manifest(run: _Run, parts: tuple[str, ...], results: tuple[StepResult, ...]) -> Manifest:
    stage = "export" if run.recipe.target == "torch" else "onnx"
    entries = {}
    for name in parts:
        artifact, *sides = run.records[f"{stage}/{name}"].outputs
        entries[name] = PartEntry(
            spec=run.spec(name),
            artifact=artifact,
            side_files=tuple(side for side in sides if side.startswith("parts/")),
        )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        samforge=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        family="sam3",
        model=run.recipe.model,
        recipe=run.recipe.to_dict(),
        image=run.checkpoint.image,
        text=TextSpec(
            context=run.checkpoint.context,
            pad_id=run.checkpoint.eos_id,
            tokenizer="tokenizer/tokenizer.json",
            synthetic=run.checkpoint.tokenizer is None,
        ),
        target=run.recipe.target,
        parts=entries,
        files={},
        parents={"weights": run.digest},
        versions=run.versions,
        steps=results,
        gates={key: float(value) for key, value in asdict(run.recipe.gates).items()},
        weights_license="LICENSE-weights.txt",
    )


def _files(entry: PartEntry) -> tuple[str, ...]:
    return (entry.artifact, *entry.side_files)


def _check_gate(
    step: str, name: str, figures: Mapping[str, tuple[TensorFidelity, ...]], limit: float
) -> None:
    for words, group in figures.items():
        figure = worst(group)
        if figure.gated > limit:
            raise FidelityError(
                f"{step} of {name} at {words}: {figure.tensor} differs by {figure.max_abs:.3g} "
                f"(values up to {figure.scale:.3g}), the gate is {limit:g}. Nothing was published."
            )


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())


def _peak_gib() -> float:
    """Highest memory use of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2 ** (30 if sys.platform == "darwin" else 20), 2)
