"""Whether two runs of a clip decide alike: what is born, removed and matched, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samforge.runtime.tracking import VideoFrame

KINDS = ("born", "removed", "matched")
"""Decisions of the rules that are compared: fields of ``VideoFrame``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionAgreement:
    """How often two runs decide one kind of thing, and how often both the same."""

    reference: int
    """Decisions of the run that is held for right."""
    measured: int
    """Decisions of the other run."""
    alike: int
    """Those that both take: of the same object on the same frame."""

    @property
    def share(self) -> float:
        """``alike`` of all, 0 to 1: F1 of the decisions; 1 where there is none."""
        both = self.reference + self.measured
        return 2 * self.alike / both if both else 1.0


def compare_decisions(
    reference: Sequence[VideoFrame], measured: Sequence[VideoFrame], pairs: Mapping[int, int]
) -> dict[str, DecisionAgreement]:
    """Compare what the rules decided, frame by frame.

    Args:
        reference: Frames of the run that is held for right.
        measured: The same frames of the other run.
        pairs: Ids of the reference to ids of the other, by their masks. Objects that are never
            shown have no mask to be paired by: they are alike where both runs have one on the
            frame. One that is shown and has no partner is like no other.

    Returns:
        An agreement for each of :data:`KINDS`.
    """
    partners = {other: one for one, other in pairs.items()}
    agreements = {}
    for kind in KINDS:
        wanted = _decided(reference, kind, {one: one for one in pairs}, "lost")
        found = _decided(measured, kind, partners, "made up")
        agreements[kind] = DecisionAgreement(
            reference=wanted.total(), measured=found.total(), alike=(wanted & found).total()
        )
    return agreements


def summed_decisions(
    runs: Iterable[Mapping[str, DecisionAgreement]],
) -> dict[str, DecisionAgreement]:
    """Agreements of several runs as one."""
    counted = tuple(runs)
    return {
        kind: DecisionAgreement(
            reference=sum(one[kind].reference for one in counted),
            measured=sum(one[kind].measured for one in counted),
            alike=sum(one[kind].alike for one in counted),
        )
        for kind in KINDS
    }


def _decided(
    frames: Sequence[VideoFrame], kind: str, names: Mapping[int, int], alone: str
) -> Counter[tuple[int, Hashable]]:
    """Frame and object of every decision; None stands for an object that is never shown."""
    shown = {number for frame in frames for number in ids_of(frame)}
    alone_of = {number: (alone, number) for number in shown}
    return Counter(
        (frame.index, names.get(number, alone_of.get(number)))
        for frame in frames
        for number in getattr(frame, kind)
    )


def ids_of(frame: VideoFrame) -> list[int]:
    """Ids that a frame shows."""
    ids = frame.detections.ids
    return [] if ids is None else [int(number) for number in ids]
