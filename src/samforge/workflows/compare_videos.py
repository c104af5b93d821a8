"""Measures how bundles follow objects through labelled videos, and each against the first."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samforge.assembly import load
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import TRACK
from samforge.core.devices import AUTO
from samforge.core.errors import FidelityError, SettingError
from samforge.core.native import Report, isolated
from samforge.measure.video_accuracy import (
    VideoAccuracy,
    VideoVerdict,
    accuracy_from_counts,
    check_video_verdict,
    verdict_from_counts,
)
from samforge.measure.videos import VideoAnswer, VideoCount, ask_video, count_video
from samforge.workflows.compare import GateCheck, gates_of, require_words
from samforge.workflows.labelled_data import LabelledVideos, videos_from_text
from samforge.workflows.watching import Done, unseen


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleTracking:
    """One bundle's figures on videos."""

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
    accuracy: VideoAccuracy
    """What was measured."""
    reference: bool = False
    """Whether the others were compared with this one."""
    verdict: VideoVerdict | None = None
    """Every gate on tracks; None of the reference, or where no gates were asked for."""


def compare_videos(
    bundles: Sequence[str | Path | Bundle],
    data: str | LabelledVideos = "clips:20",
    *,
    gates: bool = False,
    device: str = AUTO,
    done: Done = unseen,
    report: Report | None = None,
) -> tuple[BundleTracking, ...]:
    """Follow the objects of labelled videos with every bundle, the others against the first.

    Each phrase of a video is asked in a session of its own, and the objects of the first frame are
    clicked on in another. One bundle is loaded at a time, and each runs once. The tracks of the
    first are kept with their masks deflated, as long as others are compared with them.

    Args:
        bundles: Folders, or bundles that are open; the first says what is right.
        data: ``clips:N``, ``videos:FILE.json``, or what ``videos_from_text`` made of one.
        gates: Whether to hold each bundle to the gates of its own recipe: see ``verdict`` of the
            rows, and :func:`check_tracking`.
        device: Where to run, as ``samforge.load`` takes it.
        done: Called after each frame.
        report: Takes videos that a bundle cannot follow; they count for no bundle, and the others
            go on.
            None raises at the first.

    Raises:
        SettingError: There is no bundle or no such data, a bundle has no tracker, its model does
            not know the phrases, or no video could be followed.
        BundleError: A folder is no bundle, or is damaged.
    """
    if not bundles:
        raise SettingError("compare_videos got no bundle. Name at least one.")
    data = videos_from_text(data, report=report) if isinstance(data, str) else data
    opened = [one if isinstance(one, Bundle) else open_bundle(one) for one in bundles]
    for bundle in opened:
        _require_tracker(bundle)
        require_words(bundle, data)
    answers: dict[int, VideoAnswer] = {}
    counted: list[dict[int, VideoCount]] = []
    for bundle in opened:
        record = answers if len(opened) > 1 and not counted else None
        reference = answers if counted else {}
        counted.append(_counted(bundle, data, device, record, reference, done, report))
    both = [number for number in counted[0] if all(number in one for one in counted)]
    first, *_ = counts = [[one[number] for number in both] for one in counted]
    return tuple(
        _row(
            bundle,
            own,
            None if own is first else (first, own),
            gates=gates,
            several=len(opened) > 1,
        )
        for bundle, own in zip(opened, counts, strict=True)
    )


def check_tracking(bundles: Sequence[Bundle], rows: Sequence[BundleTracking]) -> GateCheck:
    """Hold each bundle to the gates of its own recipe.

    Args:
        bundles: The reference, then those compared with it.
        rows: What ``compare_videos(…, gates=True)`` measured of each.
    """
    failed, notes = [], []
    for bundle, row in zip(bundles[1:], rows[1:], strict=True):
        if row.verdict is None:
            raise SettingError(f"{row.bundle} was measured without its gates. Give gates=True.")
        try:
            weak = check_video_verdict(row.verdict, row.precision, gates_of(bundle))
        except FidelityError as error:
            failed.append(f"{row.bundle}: {error}")
        else:
            notes += [f"{row.bundle}: {note}" for note in weak]
    return GateCheck(failed=tuple(failed), notes=tuple(notes))


def _counted(  # noqa: PLR0913, PLR0917  what is measured, against what, and who is told
    bundle: Bundle,
    data: LabelledVideos,
    device: str,
    record: MutableMapping[int, VideoAnswer] | None,
    reference: MutableMapping[int, VideoAnswer],
    done: Done,
    report: Report | None,
) -> dict[int, VideoCount]:
    """What one bundle did, by the number of the video."""
    counts = {}
    with load(bundle, device=device) as segmenter:
        parts = segmenter.tracker_parts()
        for number, video in enumerate(data.videos()):
            with isolated(report, video.name):
                answer = ask_video(parts, video, done)
                counts[number] = count_video(video, answer, reference.get(number))
                if record is not None:
                    record[number] = answer.compact()
    return counts


def _row(
    bundle: Bundle,
    counts: list[VideoCount],
    shared: tuple[list[VideoCount], list[VideoCount]] | None,
    *,
    gates: bool,
    several: bool,
) -> BundleTracking:
    manifest = bundle.manifest
    precision = str(manifest.recipe.get("precision", "unknown"))
    verdict = None
    if gates and shared is not None:
        verdict = verdict_from_counts(*shared, precision, gates_of(bundle))
    return BundleTracking(
        bundle=bundle.root,
        target=manifest.target,
        precision=precision,
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        random_weights=bool(manifest.recipe.get("random_weights")),
        accuracy=accuracy_from_counts(counts, shared),
        reference=several and shared is None,
        verdict=verdict,
    )


def _require_tracker(bundle: Bundle) -> None:
    if not TRACK.among(bundle.manifest.parts):
        raise SettingError(
            f"{bundle.root} cannot follow objects: it was built without the tracker's parts. Build "
            "it with --tracker, or compare it on images: --data scenes:1000."
        )
