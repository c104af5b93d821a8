"""Measures bundles on labelled data: the work behind ``samforge compare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samforge import Bundle, load
from samforge.apps.cli.data import LabelledData
from samforge.apps.cli.words import known_words
from samforge.core.errors import SettingError
from samforge.measure import SegmenterAccuracy, measure_segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleAccuracy:
    """One bundle's figures."""

    bundle: Path
    """Its folder."""
    target: str
    """Runtime."""
    precision: str
    """Number format."""
    bytes: int
    """Size of its files."""
    random_weights: bool
    """True when the figures mean nothing."""
    accuracy: SegmenterAccuracy
    """What was measured."""


def compare_bundles(
    bundles: Sequence[Bundle], data: LabelledData, *, done: Callable[[], None]
) -> tuple[BundleAccuracy, ...]:
    """Measure every bundle on the same data.

    Args:
        bundles: Opened and checked; ``require_words`` has passed.
        data: Gone through once for each bundle.
        done: Called after each image.
    """
    return tuple(accuracy_of(bundle, data, done=done) for bundle in bundles)


def accuracy_of(bundle: Bundle, data: LabelledData, *, done: Callable[[], None]) -> BundleAccuracy:
    """Measure one bundle."""
    manifest = bundle.manifest
    accuracy = measure_segmenter(
        load(bundle), data.images(), boxes="detector_boxes" in manifest.parts, done=done
    )
    return BundleAccuracy(
        bundle=bundle.root,
        target=manifest.target,
        precision=str(manifest.recipe.get("precision", "unknown")),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        random_weights=bool(manifest.recipe.get("random_weights")),
        accuracy=accuracy,
    )


def require_words(bundle: Bundle, data: LabelledData) -> None:
    """Make sure that a bundle's model understands what the data asks.

    Raises:
        SettingError: It has another vocabulary.
    """
    known = frozenset(known_words(bundle))
    if not data.words <= known:
        missing = ", ".join(sorted(data.words - known)[:5])
        reads = "any word, but was not taught these" if not known else f"{len(known)} other words"
        raise SettingError(
            f"{bundle.root} holds the model '{bundle.manifest.model}', which reads {reads}; "
            f"{data.name} asks for {missing} and more in drawn scenes. "
            "Compare bundles of the tiny model on them: samforge build tiny."
        )
