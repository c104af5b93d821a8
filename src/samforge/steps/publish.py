"""Finished steps -> manifest and the files that go into the bundle."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from samforge.core.manifest import SCHEMA_VERSION, Manifest, PartEntry, TextSpec
from samforge.core.staging import StepRecord
from samforge.core.targets import TARGETS
from samforge.core.version import __version__
from samforge.models.family import Model
from samforge.steps.assets import LICENSE_NAME, TOKENIZER_NAME
from samforge.steps.context import BuildContext
from samforge.steps.options import options_of
from samforge.steps.plan import Stage

PACKAGES = (
    *("numpy", "torchao", "transformers", "onnx", "onnxscript", "onnx-ir"),
    *dict.fromkeys(name for target in TARGETS.values() for name in target.distributions),
)
"""Packages whose versions decide what a build makes; those that are not installed are left out."""


def origin_of(model: Model) -> dict[str, dict[str, str]]:
    """What a bundle is made from and with: hashes of its parents, versions of the packages."""
    packages = {package: found for package in PACKAGES if (found := _version(package))}
    return {
        "parents": {"weights": model.source.digest()},
        "versions": {"python": sys.version.split()[0], "samforge": __version__, **packages},
    }


def manifest_of(
    context: BuildContext,
    planned: Sequence[Stage],
    records: Mapping[str, StepRecord],
    origin: Mapping[str, Mapping[str, str]],
) -> Manifest:
    """Everything known about the bundle but the hashes of its files."""
    text = context.model.text
    return Manifest(
        schema_version=SCHEMA_VERSION,
        samforge=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        family=context.model.family,
        model=context.recipe.model,
        reference=context.recipe.reference,
        recipe=context.recipe.to_dict(),
        image=context.model.image,
        text=None
        if text is None
        else TextSpec(
            context=text.context,
            pad_id=text.eos_id,
            tokenizer=TOKENIZER_NAME,
            synthetic=text.tokenizer is None,
        ),
        target=context.runtime,
        parts=_entries(context, planned, records),
        files={},
        parents=origin["parents"],
        versions=origin["versions"],
        steps=tuple(record.result for record in records.values()),
        gates={
            gate: limit
            for record in records.values()
            for gate, limit in record.result.gates.items()
        },
        weights_license=LICENSE_NAME,
    )


def published_files(
    manifest: Manifest, records: Mapping[str, StepRecord], extra: Sequence[str]
) -> list[str]:
    """What of the staging folder goes into the bundle: what runs, and what proves it."""
    parts = [path for one in manifest.parts.values() for path in (one.artifact, *one.side_files)]
    made = (path for record in records.values() for path in record.outputs)
    return [*parts, *(path for path in made if path.startswith(("report/", "verify/"))), *extra]


def _entries(
    context: BuildContext, planned: Sequence[Stage], records: Mapping[str, StepRecord]
) -> dict[str, PartEntry]:
    """What runs each part: the artifact of the last step that made one."""
    entries = {}
    for stage in planned:
        for chain in stage:
            for step in chain:
                made = [path for path in records[str(step)].outputs if path.startswith("parts/")]
                if step.part is not None and made:
                    entries[step.part] = PartEntry(
                        spec=context.spec(step.part),
                        artifact=made[0],
                        side_files=tuple(made[1:]),
                        options=options_of(context.recipe, context.runs_on),
                    )
    return entries


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
