"""Measures bundles on labelled data, and each against the first."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samforge.assembly import load
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import BOXES
from samforge.core.detections import Detections
from samforge.core.devices import AUTO
from samforge.core.errors import FidelityError, SettingError
from samforge.core.native import Report, error_of_item
from samforge.core.recipe import Gates, Recipe
from samforge.measure import SegmenterAccuracy, Verdict, check_verdict, measure_segmenter
from samforge.measure.gates import require_cgf1, require_objects
from samforge.measure.segmentation import AccuracyTally, asked_of_both
from samforge.measure.sums import sums_from_tallies
from samforge.measure.verdict import ANSWERED, verdict_from_sums
from samforge.workflows.labelled_data import LabelledData, LabelledVideos, images_from_text
from samforge.workflows.vocabulary import known_words
from samforge.workflows.watching import Done, unseen

MORE_DATA = (
    "Give more data: --data scenes:1000, more pictures in the COCO file, or a larger --limit. A "
    "recipe with weak_evidence = true in [gates] is content with less."
)
"""What to do where the evidence is weak."""


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
    verdict: Verdict | None = None
    """Every gate of the bundle's recipe with the interval of its figure, and what they rest on;
    None of the reference, or where no gates were asked for."""


def compare(
    bundles: Sequence[str | Path | Bundle],
    data: str | LabelledData = "scenes:1000",
    *,
    gates: bool = False,
    device: str = AUTO,
    done: Done = unseen,
    report: Report | None = None,
) -> tuple[BundleAccuracy, ...]:
    """Measure every bundle on the same data, the others against the first.

    One bundle is loaded at a time, and each runs once: the answers of the first are kept with
    their masks deflated, so memory grows neither with bundles nor much with images.

    Args:
        bundles: Folders, or bundles that are open; the first says what is right.
        data: ``scenes:N``, ``coco:FILE.json``, or what ``images_from_text`` made of one. Gone
            through once for each bundle.
        gates: Whether to hold each bundle to the gates of its own recipe: see ``verdict`` of the
            rows, and :func:`failed_gates`.
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
    data = images_from_text(data, report=report) if isinstance(data, str) else data
    opened = [one if isinstance(one, Bundle) else open_bundle(one) for one in bundles]
    for bundle in opened:
        require_words(bundle, data)
    answers: dict[tuple[int, int], Detections] = {}
    tallies = [AccuracyTally() for _ in opened]
    rows: list[BundleAccuracy] = []
    for bundle, tally in zip(opened, tallies, strict=True):
        row = accuracy_of(
            bundle,
            data,
            device=device,
            record=answers if len(opened) > 1 and not rows else None,
            reference=rows[0] if rows else None,
            answers=answers if rows else None,
            done=done,
            report=report,
            tally=tally,
        )
        if gates and rows:
            row = replace(row, verdict=_verdict(bundle, row.precision, (tallies[0], tally)))
        rows.append(row)
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
    tally: AccuracyTally | None = None,
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
        tally: Takes each answer as it was counted.
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
        tally=tally,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class GateCheck:
    """Whether bundles hold their gates."""

    failed: tuple[str, ...]
    """Which do not, or cannot be proven to, and why."""
    notes: tuple[str, ...]
    """Which hold on evidence that their recipes call weak and enough."""


def check_gates(bundles: Sequence[Bundle], rows: Sequence[BundleAccuracy]) -> GateCheck:
    """Hold each bundle to the gates of its own recipe, at the worse end of each interval.

    Args:
        bundles: The reference, then those compared with it.
        rows: What ``compare(…, gates=True)`` measured of each.
    """
    failed, notes = [], []
    for bundle, row in zip(bundles[1:], rows[1:], strict=True):
        try:
            weak = _check(rows[0], row, gates_of(bundle))
        except (FidelityError, SettingError) as error:
            failed.append(f"{row.bundle}: {error}")
        else:
            notes += [f"{row.bundle}: {note}" for note in weak]
    return GateCheck(failed=tuple(failed), notes=tuple(notes))


def _check(reference: BundleAccuracy, row: BundleAccuracy, gates: Gates) -> tuple[str, ...]:
    if row.accuracy.fidelity is None or row.verdict is None:
        raise SettingError(f"{row.bundle} shares no question with the reference.")
    require_objects(row.accuracy.fidelity, row.precision)
    if reference.accuracy.cgf1 is not None:
        require_cgf1(reference.accuracy.cgf1)
    return check_verdict(row.verdict, row.precision, gates, advice=MORE_DATA)


def _verdict(
    bundle: Bundle, precision: str, tallies: tuple[AccuracyTally, AccuracyTally]
) -> Verdict | None:
    """Hold the gates to what both were asked; None where that is nothing."""
    reference, measured = asked_of_both(*tallies)
    if not measured.answered:
        return None
    sums = sums_from_tallies(reference, measured)
    # Without a phrase among the questions nothing is known of cgF1, by whatever truth.
    phrases = any(one.by_phrase for one in measured.answered)
    names = [name for name in ANSWERED if phrases or not name.startswith("cgf1")]
    return verdict_from_sums(sums, names, precision, gates_of(bundle))


def gates_of(bundle: Bundle) -> Gates:
    """The gates of a bundle's recipe."""
    return Recipe.from_dict({"gates": bundle.manifest.recipe.get("gates", {})}).gates


def _drop(reference: BundleAccuracy | None, accuracy: SegmenterAccuracy) -> float | None:
    if reference is None or reference.accuracy.cgf1 is None or accuracy.cgf1 is None:
        return None
    return reference.accuracy.cgf1.cgf1 - accuracy.cgf1.cgf1


def require_words(bundle: Bundle, data: LabelledData | LabelledVideos) -> None:
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
