"""What an artifact says of itself, stamped in when it is made and compared when it is loaded.

A manifest is a text that anybody can write again, digest included. The files it names carry the
same facts inside, under their own hashes: a manifest that says something else is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

from samforge.core.errors import DamagedBundle
from samforge.core.images import ImageSpec
from samforge.core.manifest import Manifest, what_to_do
from samforge.core.session import TensorSpec
from samforge.core.strict_json import StrictJsonError, strict_json
from samforge.core.structure import json_from_value
from samforge.core.targets import TORCH

FACTS_KEY = "samforge.facts"
"""Name of the stamp: a key of ONNX's ``metadata_props``, a file in a ``.pt2`` archive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What decides whether an artifact is the one that a manifest describes."""

    part: str
    """Name of the part."""
    target: str
    """Runtime it is for."""
    precision: str
    """Number format, as the recipe names it."""
    reference: str
    """Whose computation it is held to; prompts and masks follow it."""
    inputs: tuple[TensorSpec, ...]
    """In the order of the part's arguments."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the part's results."""
    image: ImageSpec
    """Size and normalization of the model's images."""
    text: tuple[int, int] | None
    """Context length and padding token of the model's phrases."""

    def to_text(self) -> str:
        """The stamp: one line of JSON, the same for equal facts."""
        return json.dumps(json_from_value(self), sort_keys=True, separators=(",", ":"))


def facts_of_manifest(manifest: Manifest, part: str) -> Facts:
    """What the artifact of a part has to say."""
    entry, text = manifest.parts[part], manifest.text
    # A build that stops at the export publishes the float program, whatever its recipe asks for.
    exported = manifest.target == TORCH.name and PurePosixPath(entry.artifact).name == f"{part}.pt2"
    return Facts(
        part=part,
        target=manifest.target,
        precision="fp32" if exported else str(manifest.recipe.get("precision", "fp32")),
        reference=manifest.reference,
        inputs=entry.spec.inputs,
        outputs=entry.spec.outputs,
        image=manifest.image,
        text=None if text is None else (text.context, text.pad_id),
    )


def check_facts(path: Path, found: str | None, manifest: Manifest, part: str) -> None:
    """Hold what an artifact says of itself against its manifest.

    Args:
        path: The artifact, for the message.
        found: Its stamp; None where it has none.
        manifest: Of its bundle.
        part: Which part it should be.

    Raises:
        DamagedBundle: It says something else, or nothing.
    """
    wanted = facts_of_manifest(manifest, part)
    if found == wanted.to_text():
        return
    if found is None:
        raise DamagedBundle(
            f"{path} does not say what it is: it has no stamp of samforge. {what_to_do()}"
        )
    raise DamagedBundle(f"{path} {_difference(found, wanted)} {what_to_do()}")


def _difference(found: str, wanted: Facts) -> str:
    try:
        said = strict_json(found)
    except StrictJsonError:
        said = None
    table = strict_json(wanted.to_text())
    if isinstance(said, dict):
        for field in fields(wanted):
            if said.get(field.name) != table[field.name]:
                return (
                    f"says of itself that its {field.name} is "
                    f"{json.dumps(said.get(field.name)):.200}, and the manifest says "
                    f"{json.dumps(table[field.name]):.200}."
                )
    return "has a stamp that is not one of this samforge."
