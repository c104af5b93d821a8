"""What ``samforge bench`` measures of a bundle: the calls, and the inputs they are made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from samforge.assembly import session_from_bundle, tokenizer_from_bundle
from samforge.core.bundle import Bundle
from samforge.core.errors import SettingError
from samforge.core.images import RgbImage
from samforge.core.session import Session
from samforge.measure import PIPELINE, PartsAlone, SegmentingBatch, Subject
from samforge.models import tiny

WHOLE, TEXT = "whole", "text"
"""What is measured of a bundle: the way from images to masks, and encoding the phrases."""

_NOISE_HW = (720, 1280)
# For models that read any word.
_NOUNS = ("person", "car", "dog", "tree", "chair", "bottle", "bicycle", "house")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One size of input."""

    batch: int
    """Images in a call."""
    prompts: int
    """Phrases asked of each."""


Key: TypeAlias = tuple[Case, str]


def subjects_from_bundle(
    bundle: Bundle,
    cases: Sequence[Case],
    image: RgbImage | None,
    *,
    threads: int | None = None,
) -> dict[Key, Subject]:
    """Load a bundle and prepare what is measured of it.

    A bundle with the parts of a segmenter is taken from images to masks; of others, each part runs
    by itself on made-up inputs.

    Raises:
        MissingExtra: Its runtime is not installed.
    """
    manifest = bundle.manifest
    whole = manifest.text is not None and set(PIPELINE) <= set(manifest.parts)
    names = PIPELINE if whole else tuple(manifest.parts)
    sessions: dict[str, Session] = {
        name: session_from_bundle(bundle, name, threads=threads) for name in names
    }
    subjects: dict[Key, Subject] = {}
    for case in cases:
        if manifest.text is None or not whole:
            alone = PartsAlone(sessions, batch=case.batch, prompts=case.prompts)
            subjects[case, WHOLE] = alone.run
            continue
        tokenizer = tokenizer_from_bundle(bundle)
        pipeline = SegmentingBatch(
            sessions,
            manifest.image,
            tokenizer,
            images=images_for(manifest.model, case.batch, image),
            phrases=phrases_for(manifest.model, case.prompts),
            reference=manifest.reference,
        )
        subjects[case, WHOLE], subjects[case, TEXT] = pipeline.segment, pipeline.encode_text
    return subjects


def images_for(model: str, count: int, image: RgbImage | None) -> list[RgbImage]:
    """The batch: the given image, drawn scenes for the tiny model, noise for others."""
    if image is not None:
        return [image] * count
    if model == "tiny":
        return [tiny.draw_scene(number, split="demo").image for number in range(count)]
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*_NOISE_HW, 3), np.uint8) for _ in range(count)]


def input_words(models: Sequence[str], image: Path | None) -> str:
    """Say what ``images_for`` gives."""
    if image is not None:
        return image.name
    drawn = {model == "tiny" for model in models}
    height, width = _NOISE_HW
    size = tiny.draw_scene(0).image.shape[0]
    scenes, noise = f"drawn scenes of {size} x {size}", f"noise of {width} x {height}"
    if len(drawn) == 2:
        return f"{scenes} (tiny), {noise} (others)"
    return scenes if True in drawn else noise


def phrases_for(model: str, count: int) -> list[str]:
    """Distinct phrases that the model can read."""
    known = list(tiny.vocabulary()) if model == "tiny" else list(_NOUNS)
    if model == "tiny" and count > len(known):
        raise SettingError(
            f"The tiny model knows {len(known)} phrases, {count} were asked for. Give fewer."
        )
    return [*known, *(f"object {number}" for number in range(len(known), count))][:count]
