"""Find a model by name, of whatever family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from samforge.core.errors import SettingError
from samforge.core.reference import META
from samforge.models.dinov3 import loading as dinov3
from samforge.models.family import Model
from samforge.models.sam3 import loading as sam3
from samforge.models.sam3.family import Sam3
from samforge.models.tiny.stress import StressedSource

STRESSED = "tiny-stressed"
"""The tiny model with outlier channels and the same function: as hard to quantize as real ViTs."""


def model_from_name(
    name: str,
    *,
    reference: str = META,
    image_size: int | None = None,
    random_weights: bool = False,
    seed: int = 0,
    tokenizer: Path | None = None,
) -> Model:
    """Find a checkpoint, check every name in it, and set the image size.

    Args:
        name: ``tiny``, ``tiny-stressed``, a local folder, a ``.pt`` or ``.ckpt`` file of Meta's, or
            a Hugging Face id.
        reference: Whose computation the parts of SAM 3 are: ``meta`` or ``transformers``. Of
            DINOv3 both compute the same.
        image_size: Side in pixels; None keeps the model's own.
        random_weights: Use the architecture with random weights; nothing is downloaded.
        seed: Of the random weights.
        tokenizer: A ``tokenizers`` JSON, where the checkpoint has none (Meta's SAM 3 file).

    Raises:
        UnknownModel: No such model.
        GatedModel: The id exists, but access was not granted.
        CheckpointError: Files are missing or damaged.
        CheckpointKeysError: Tensors are missing or unexpected.
        SettingError: The image size does not fit the patches, a tokenizer has no use, or the
            configuration contradicts the reference.
    """
    if name == STRESSED:
        plain = sam3.checkpoint_from_name(
            "tiny", reference=reference, image_size=image_size, tokenizer=tokenizer
        )
        return Sam3(replace(plain, name=name, source=StressedSource(plain.source, seed=seed)))
    if not dinov3.is_dinov3(name):
        return Sam3(
            sam3.checkpoint_from_name(
                name,
                reference=reference,
                image_size=image_size,
                random_weights=random_weights,
                seed=seed,
                tokenizer=tokenizer,
            )
        )
    if tokenizer is not None:
        raise SettingError(f"{name} takes no phrases: leave the tokenizer {tokenizer} out.")
    return dinov3.checkpoint_from_name(
        name, image_size=image_size, random_weights=random_weights, seed=seed
    )
