"""What a benchmark repeats: bundles at sizes of input, taken from images to masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from samforge.assembly import load, session_from_bundle
from samforge.core import capabilities
from samforge.core.bundle import Bundle
from samforge.core.capabilities import TEXT_ENCODER
from samforge.core.devices import AUTO, checked_device
from samforge.core.images import RgbImage
from samforge.core.session import Session
from samforge.core.timing import Timings
from samforge.measure import PartsAlone, Subject
from samforge.runtime import Segmenter
from samforge.workflows.bench_inputs import images_for, phrases_for
from samforge.workflows.vocabulary import knows_scenes

WHOLE, TEXT = "whole", TEXT_ENCODER
"""What is measured of a bundle: the way from images to masks, and encoding the phrases."""


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
    device: str = AUTO,
    threads: int | None = None,
) -> dict[Key, Subject]:
    """Load a bundle and prepare what is measured of it.

    A bundle with the parts of a segmenter is taken from images to masks by ``Segmenter.predict``;
    of others, each part runs by itself on made-up inputs.

    Raises:
        MissingExtra: Its runtime is not installed.
        SettingError: It does not run on ``device``.
    """
    manifest = bundle.manifest
    if manifest.text is None or not capabilities.TEXT.among(manifest.parts):
        where = checked_device(device)
        sessions: dict[str, Session] = {
            name: session_from_bundle(bundle, name, device=where, threads=threads)
            for name in manifest.parts
        }
        return {
            (case, WHOLE): PartsAlone(sessions, batch=case.batch, prompts=case.prompts).run
            for case in cases
        }
    segmenter = load(bundle, device=device, threads=threads)
    taught = knows_scenes(bundle)
    known = phrases_for(max(case.prompts for case in cases), taught=taught)
    segmenter.encode_phrases(known)
    subjects: dict[Key, Subject] = {}
    for case in cases:
        subject = _Predicting(
            segmenter=segmenter,
            images=images_for(case.batch, image, taught=taught),
            phrases=phrases_for(case.prompts, taught=taught),
            known=known,
        )
        subjects[case, WHOLE], subjects[case, TEXT] = subject.predict, subject.encode_phrases
    return subjects


@dataclass(frozen=True, kw_only=True, slots=True)
class _Predicting:
    """Images and phrases asked of a segmenter again and again."""

    segmenter: Segmenter
    images: list[RgbImage]
    phrases: list[str]
    known: list[str]

    def predict(self, timings: Timings) -> None:
        """Take the images to masks; the phrases are known, as in use."""
        self.segmenter.predict(self.images, text=self.phrases, timings=timings)

    def encode_phrases(self, timings: Timings) -> None:
        """Encode the phrases, as for their first image."""
        self.segmenter.forget_phrases()
        self.segmenter.encode_phrases(self.phrases, timings=timings)
        self.segmenter.encode_phrases(self.known)  # of the other cases: their time is not counted
