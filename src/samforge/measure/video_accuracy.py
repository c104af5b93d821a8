"""Figures of a bundle on labelled videos, and the gates they are held to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samforge.core.errors import FidelityError, SettingError
from samforge.measure.cgf1 import CgF1, cgf1_from_outcomes
from samforge.measure.clips import Followed, summed_ways
from samforge.measure.decisions import DecisionAgreement, summed_decisions
from samforge.measure.gates import limit_of
from samforge.measure.sums import Floats, Interval, drawn_again, interval_from_draws, ratio
from samforge.measure.tracker_fidelity import TrackFidelity, fidelity_of_tracks
from samforge.measure.verdict import Judged

if TYPE_CHECKING:
    from samforge.core.recipe import Gates
    from samforge.measure.videos import VideoCount

LEAST = {"videos": 8, "tracks": 30}
"""Least evidence that a gate is decided on."""
WAYS = ("text", "clicks")
"""How objects are asked for; fields of a count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WayAccuracy:
    """How right objects were followed that were asked for in one way; means are over objects."""

    objects: int
    """True ones."""
    j_and_f: float
    """Mean of both, 0 to 1."""
    j: float
    """Region similarity."""
    f: float
    """Boundary F."""
    idf1: float
    """Share of masks with the right identity."""
    switches: int
    """Times a true object went on under another id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFidelity:
    """Tracks and decisions against those of the reference, on the videos that both followed."""

    tracks: TrackFidelity
    """Temporal IoU of every track."""
    decisions: Mapping[str, DecisionAgreement]
    """``born``, ``removed``, ``matched``."""
    j_and_f_drop: Mapping[str, float]
    """J&F of the reference minus that of the bundle, by ``text`` and ``clicks``."""
    switches: int
    """Identity switches of the bundle, in both ways."""
    reference_switches: int
    """Those of the reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoAccuracy:
    """What one bundle did on all videos."""

    videos: int
    """Videos that were followed."""
    frames: int
    """Their frames."""
    text: WayAccuracy | None
    """Objects that phrases name; None where there was none."""
    clicks: WayAccuracy | None
    """Objects that one click on the first frame showed."""
    cgf1: CgF1 | None
    """Of (video, phrase) pairs; None without a question."""
    frame_ms: float
    """Wall clock for a frame, every question in a session of its own, vision once."""
    fidelity: VideoFidelity | None
    """Against the reference; None of the reference itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoVerdict:
    """Every gate on tracks, and what they rest on."""

    videos: int
    """Videos that both followed."""
    tracks: int
    """Tracks of the reference, in both ways."""
    judged: tuple[Judged, ...]
    """One a gate, and one a way of ``j_and_f_drop``."""

    @property
    def lacking(self) -> tuple[str, ...]:
        """Of what there is too little, in words."""
        counts = {"videos": self.videos, "tracks": self.tracks}
        return tuple(
            f"{counts[name]} {name}, at least {least} are needed"
            for name, least in LEAST.items()
            if counts[name] < least
        )

    def in_words(self) -> str:
        """What it rests on."""
        return f"{self.videos} videos, {self.tracks} tracks of the reference"


def accuracy_from_counts(
    counts: Sequence[VideoCount], shared: tuple[Sequence[VideoCount], Sequence[VideoCount]] | None
) -> VideoAccuracy:
    """Sum up what was counted.

    Args:
        counts: Of one bundle, one a video.
        shared: The reference's and the bundle's counts of the videos that both followed; None of
            the reference itself.

    Raises:
        SettingError: No video was followed.
    """
    if not counts:
        raise SettingError("No video could be followed: nothing was measured.")
    frames = sum(one.frames for one in counts)
    outcomes = [outcome for one in counts for outcome in one.outcomes]
    return VideoAccuracy(
        videos=len(counts),
        frames=frames,
        text=_way(counts, "text"),
        clicks=_way(counts, "clicks"),
        cgf1=cgf1_from_outcomes(outcomes) if outcomes else None,
        frame_ms=1000 * sum(one.seconds for one in counts) / frames,
        fidelity=_fidelity(*shared) if shared is not None and shared[0] else None,
    )


def verdict_from_counts(
    reference: Sequence[VideoCount], measured: Sequence[VideoCount], precision: str, gates: Gates
) -> VideoVerdict:
    """Hold tracks against the gates of a recipe.

    The smallest temporal IoU and the switches are held as they are; the loss of J&F at the worse
    end of the interval that 95 of 100 draws of the videos lie in.

    Args:
        reference: Counts of the videos that both followed.
        measured: Those of the bundle, of the same videos.
        precision: Of the bundle.
        gates: Of its recipe.
    """
    found = _fidelity(reference, measured)
    rise = found.switches - found.reference_switches
    figures = [
        ("track_iou", _exactly(found.tracks.track_iou), ""),
        *(
            ("j_and_f_drop", _drop(reference, measured, way), way)
            for way in WAYS
            if way in found.j_and_f_drop
        ),
        ("switch_rise", _exactly(rise / max(1, found.reference_switches)), ""),
    ]
    return VideoVerdict(
        videos=len(measured),
        tracks=found.tracks.tracks,
        judged=tuple(
            Judged(gate=gate, limit=limit_of(gate, precision, gates), interval=one, where=where)
            for gate, one, where in figures
        ),
    )


def check_video_verdict(verdict: VideoVerdict, precision: str, gates: Gates) -> tuple[str, ...]:
    """Stop below a gate, or where there are too few videos to tell.

    Returns:
        A note where the evidence is weak and the recipe takes it.

    Raises:
        FidelityError: A gate does not hold, or nobody can tell whether it does.
    """
    failed = [str(one) for one in verdict.judged if not one.likely]
    if failed:
        raise FidelityError(
            f"{precision} against the reference does not hold its gates. {'; '.join(failed)} "
            f"({verdict.in_words()})."
        )
    missing = [*verdict.lacking, *(str(one) for one in verdict.judged if not one.held)]
    if not missing:
        return ()
    weak = f"Weak evidence ({verdict.in_words()}): {'; '.join(missing)}."
    if gates.weak_evidence:
        return (weak,)
    raise FidelityError(
        f"{precision} may hold its gates, and what was asked is too little to tell. {weak} Give "
        "more videos: --data clips:50, or a larger --limit. A recipe with weak_evidence = true in "
        "[gates] is content with less."
    )


def _way(counts: Sequence[VideoCount], way: str) -> WayAccuracy | None:
    found = _followed(counts, way)
    if found is None or not found.objects:
        return None
    j = float(np.mean([one.j for one in found.objects]))
    f = float(np.mean([one.f for one in found.objects]))
    return WayAccuracy(
        objects=len(found.objects),
        j_and_f=(j + f) / 2,
        j=j,
        f=f,
        idf1=found.identities.idf1,
        switches=found.identities.switches,
    )


def _followed(counts: Sequence[VideoCount], way: str) -> Followed | None:
    return summed_ways([getattr(one, way) for one in counts])


def _fidelity(reference: Sequence[VideoCount], measured: Sequence[VideoCount]) -> VideoFidelity:
    drops = {}
    for way in WAYS:
        wanted, found = _way(reference, way), _way(measured, way)
        if wanted is not None and found is not None:
            drops[way] = wanted.j_and_f - found.j_and_f
    return VideoFidelity(
        tracks=fidelity_of_tracks(one for count in measured for one in count.comparisons),
        decisions=summed_decisions(one for count in measured for one in count.decisions),
        j_and_f_drop=drops,
        switches=_switches(measured),
        reference_switches=_switches(reference),
    )


def _switches(counts: Sequence[VideoCount]) -> int:
    ways = [_followed(counts, way) for way in WAYS]
    return sum(one.identities.switches for one in ways if one is not None)


def _drop(reference: Sequence[VideoCount], measured: Sequence[VideoCount], way: str) -> Interval:
    """Loss of J&F, with the interval of draws of the videos."""
    rows = np.array(
        [
            [*_summed(one, way), *_summed(other, way)]
            for one, other in zip(reference, measured, strict=True)
        ]
    )

    def loss(sums: Floats) -> Floats:
        before, objects, after, found = np.moveaxis(sums, -1, 0)
        return ratio(before, objects) - ratio(after, found)

    return interval_from_draws(loss(rows.sum(0)), loss(drawn_again(rows)))


def _summed(count: VideoCount, way: str) -> tuple[float, int]:
    """J&F of all objects of a video together, and their number."""
    found: Followed | None = getattr(count, way)
    objects = () if found is None else found.objects
    return math.fsum(one.j_and_f for one in objects), len(objects)


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)
