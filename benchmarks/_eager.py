"""The tiny model's parts as they are trained, without export or runtime: in fp32."""

from __future__ import annotations

from samforge.core.capabilities import TRACK
from samforge.core.errors import SettingError
from samforge.media import read_image
from samforge.models import tiny
from samforge.models.eager import EagerSession
from samforge.models.loading import model_from_name
from samforge.runtime import PhraseTokenizer, Segmenter, segmenter_from_sessions


def eager_segmenter(device: str = "cpu") -> Segmenter:
    """A segmenter of the tiny model with its tracker, which reads phrases as its bundles do."""
    model = model_from_name(tiny.NAME, tracker=True)
    text = model.text
    if text is None or text.tokenizer is None:
        raise SettingError(f"{tiny.NAME} reads no phrases.")
    return segmenter_from_sessions(
        {name: EagerSession(model.part(name), device) for name in TRACK.parts},
        model.image,
        PhraseTokenizer(text.tokenizer, text.context, text.eos_id),
        read_image,
    )
