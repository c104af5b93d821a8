"""The tiny model's parts as they are trained, without export or runtime: fp32 on the processor."""

from __future__ import annotations

import torch

from samforge.core.capabilities import TEXT, TRACKER_PARTS
from samforge.core.images import ImageSpec
from samforge.core.session import Array, PartSpec, Tensors, checked_tensors
from samforge.media import read_image
from samforge.models import tiny
from samforge.models.part import Part
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import part_from_checkpoint
from samforge.runtime import PhraseTokenizer, Segmenter, segmenter_from_sessions


class EagerSession:
    """A part as it stands, behind the door of a session."""

    runtime = "eager"
    processor = "CPU"

    def __init__(self, part: Part) -> None:
        self.part = part

    @property
    def spec(self) -> PartSpec:
        """What goes in and comes out."""
        return self.part.spec

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part on arrays of the host."""
        inputs = checked_tensors(self.spec, tensors)
        results = self.part({name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: result.numpy() for name, result in results.items()}

    def close(self) -> None:
        """Nothing is held."""


def eager_segmenter() -> Segmenter:
    """A segmenter of the tiny model with its tracker."""
    checkpoint = checkpoint_from_name(tiny.NAME, tracker=True)
    names = dict.fromkeys((*TEXT.parts, *TRACKER_PARTS))
    return segmenter_from_sessions(
        {name: EagerSession(part_from_checkpoint(checkpoint, name)) for name in names},
        ImageSpec(size=tiny.SIZE),
        PhraseTokenizer(
            tiny.TOKENIZER_PATH,
            checkpoint.config.text_config.max_position_embeddings,
            checkpoint.config.text_config.pad_token_id,
        ),
        read_image,
    )
