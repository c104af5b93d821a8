"""Find a model by name, of whatever family."""

from __future__ import annotations

from pathlib import Path

from samforge.core.errors import CheckpointError, UnknownModel
from samforge.core.paths import checked_path
from samforge.core.reference import META
from samforge.models.families import Request, family_of
from samforge.models.family import Model


def model_from_name(  # noqa: PLR0913  # each a choice of its own, and all but one optional
    name: str,
    *,
    reference: str = META,
    image_size: int | None = None,
    random_weights: bool = False,
    seed: int = 0,
    tokenizer: Path | None = None,
    tracker: bool = False,
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
        tracker: Load SAM 3 with its video tracker, which clicks need too.

    Raises:
        UnknownModel: No such model.
        GatedModel: The id exists, but access was not granted.
        CheckpointError: Files are missing or damaged, or there is no tracker.
        CheckpointKeysError: Tensors are missing or unexpected.
        SettingError: The image size does not fit the patches, a tokenizer has no use, or the
            configuration contradicts the reference.
    """
    checked_path(name, UnknownModel)
    if tokenizer is not None:
        checked_path(tokenizer, CheckpointError)
    request = Request(
        name=name,
        reference=reference,
        image_size=image_size,
        random_weights=random_weights,
        seed=seed,
        tokenizer=tokenizer,
        tracker=tracker,
    )
    return family_of(name).load(request)
