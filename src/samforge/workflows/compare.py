"""Measures bundles on labelled data, and each against the first."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samforge.assembly import load
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import BOXES
from samforge.core.detections import Detections
from samforge.core.devices import AUTO
from samforge.core.errors import FidelityError, SettingError
from samforge.core.native import Report, error_of_item
from samforge.core.recipe import Gates, Recipe
from samforge.measure import (
    SegmenterAccuracy,
    check_cgf1,
    check_predictions,
    measure_segmenter,
)
from samforge.workflows.labelled_data import LabelledData, data_from_text
from samforge.workflows.vocabulary import known_words
from samforge.workflows.watching import Done, unseen


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
    reference: bool = False
    """Whether the others were compared with this one."""
    cgf1_drop: float | None = None
    """How far cgF1 fell against the reference; None for the reference itself, or without one."""


def compare(
    bundles: Sequence[str | Path | Bundle],
    data: str | LabelledData = "scenes:1000",
    *,
    device: str = AUTO,
    done: Done = unseen,
    report: Report | None = None,
) -> tuple[BundleAccuracy, ...]:
    """Measure every bundle on the same data, the others against the first.

    One bundle is loaded at a time, and each runs once: the answers of the first are kept with
    their masks deflated, so memory grows neither with bundles nor much with images.

    Args:
        bundles: Folders, or bundles that are open; the first says what is right.
        data: ``scenes:N``, ``coco:FILE.json``, or what ``data_from_text`` made of one. Gone through
            once for each bundle.
        device: Where to run, as ``samforge.load`` takes it: ``auto`` runs each bundle on what it
            was built for.
        done: Called after each image.
        report: Takes images that cannot be measured; they count for nobody, and the others go on.
            None raises at the first.

    Raises:
        SettingError: There is no bundle or no such data, or a model does not know its phrases.
        BundleError: A folder is no bundle, or is damaged.
    """
    if not bundles:
        raise SettingError("compare got no bundle. Name at least one.")
    data = data_from_text(data, report=report) if isinstance(data, str) else data
    opened = [one if isinstance(one, Bundle) else open_bundle(one) for one in bundles]
    for bundle in opened:
        require_words(bundle, data)
    answers: dict[tuple[int, int], Detections] = {}
    first, *others = opened
    if not others:
        return (accuracy_of(first, data, device=device, done=done, report=report),)
    rows = [accuracy_of(first, data, device=device, record=answers, done=done, report=report)]
    rows += [
        accuracy_of(
            bundle,
            data,
            device=device,
            reference=rows[0],
            answers=answers,
            done=done,
            report=report,
        )
        for bundle in others
    ]
    return tuple(rows)


def accuracy_of(  # noqa: PLR0913  what is measured, against what, and who is told
    bundle: Bundle,
    data: LabelledData,
    *,
    device: str = AUTO,
    record: MutableMapping[tuple[int, int], Detections] | None = None,
    reference: BundleAccuracy | None = None,
    answers: Mapping[tuple[int, int], Detections] | None = None,
    done: Done = unseen,
    report: Report | None = None,
) -> BundleAccuracy:
    """Measure one bundle.

    Args:
        bundle: Opened and checked.
        data: Gone through once.
        device: Where to run.
        record: Takes the bundle's answers: it is the reference of others.
        reference: The figures to compare with.
        answers: What the reference answered.
        done: Called after each image.
        report: Takes images that cannot be measured.
    """
    manifest = bundle.manifest
    accuracy = measure_segmenter(
        load(bundle, device=device),
        data.images(),
        boxes=BOXES.among(manifest.parts),
        record=record,
        reference=answers,
        done=done,
        failed=report,
    )
    return BundleAccuracy(
        bundle=bundle.root,
        target=manifest.target,
        precision=str(manifest.recipe.get("precision", "unknown")),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        random_weights=bool(manifest.recipe.get("random_weights")),
        accuracy=accuracy,
        reference=record is not None,
        cgf1_drop=_drop(reference, accuracy),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """One item of the data that could not be measured."""

    item: str
    """The picture, or the place in the file."""
    kind: str
    """Class of the error."""
    message: str
    """Its message."""
    exit_code: int
    """Exit status of its kind."""


class Problems:
    """Collects what cannot be measured, each item once however many bundles meet it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], LeftOut] = {}

    def __call__(self, item: str, error: Exception) -> None:
        """Take one."""
        told = error_of_item(error)
        self._found.setdefault(
            (item, str(told)),
            LeftOut(
                item=item,
                kind=type(told).__name__,
                message=str(told),
                exit_code=told.exit_code,
            ),
        )

    @property
    def all(self) -> tuple[LeftOut, ...]:
        """In the order they were met."""
        return tuple(self._found.values())


def require_reference(bundles: Sequence[Bundle]) -> None:
    """Make sure that there is something to compare.

    Raises:
        SettingError: There is one bundle.
    """
    if len(bundles) < 2:
        raise SettingError(
            "--gate compares bundles with a reference, got one bundle. Name the fp32 bundle too: "
            f"--reference BUNDLE, or before {bundles[0].root}."
        )


def failed_gates(bundles: Sequence[Bundle], rows: Sequence[BundleAccuracy]) -> tuple[str, ...]:
    """Say which bundles do not hold the gates of their own recipes, or cannot be proven to.

    Args:
        bundles: The reference, then those compared with it.
        rows: What was measured of each.
    """
    problems = []
    for bundle, row in zip(bundles[1:], rows[1:], strict=True):
        gates = _gates(bundle)
        for check in (_check_predictions, _check_cgf1):
            try:
                check(rows[0], row, gates)
            except (FidelityError, SettingError) as error:
                problems.append(f"{row.bundle}: {error}")
    return tuple(problems)


def _check_predictions(_: BundleAccuracy, row: BundleAccuracy, gates: Gates) -> None:
    if row.accuracy.fidelity is None:
        raise SettingError(f"{row.bundle} shares no question with the reference.")
    check_predictions(row.accuracy.fidelity, row.precision, gates)


def _check_cgf1(reference: BundleAccuracy, row: BundleAccuracy, gates: Gates) -> None:
    before, after = reference.accuracy.cgf1, row.accuracy.cgf1
    if before is not None and after is not None:
        check_cgf1(before, after, row.precision, gates)


def _gates(bundle: Bundle) -> Gates:
    return Recipe.from_dict({"gates": bundle.manifest.recipe.get("gates", {})}).gates


def _drop(reference: BundleAccuracy | None, accuracy: SegmenterAccuracy) -> float | None:
    if reference is None or reference.accuracy.cgf1 is None or accuracy.cgf1 is None:
        return None
    return reference.accuracy.cgf1.cgf1 - accuracy.cgf1.cgf1


def require_words(bundle: Bundle, data: LabelledData) -> None:
    """Make sure that a bundle's model understands what the data asks.

    Raises:
        SettingError: It has another vocabulary.
    """
    known = frozenset(known_words(bundle))
    if not known and not data.taught:
        return
    if not data.words <= known:
        missing = ", ".join(sorted(data.words - known)[:5])
        reads = "any word, but was not taught these" if not known else f"{len(known)} other words"
        raise SettingError(
            f"{bundle.root} holds the model '{bundle.manifest.model}', which reads {reads}; "
            f"{data.name} asks for {missing} and more{' in drawn scenes' if data.taught else ''}. "
            + (
                "Compare bundles of the tiny model on them: samforge build tiny."
                if data.taught
                else "Compare it on drawn scenes: --data scenes:1000."
            )
        )
