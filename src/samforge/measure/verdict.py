"""Whether a bundle holds its gates, and whether what was asked is enough to say so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from samforge.core.errors import FidelityError
from samforge.measure.gates import GATES, limit_of, within
from samforge.measure.sums import (
    Evidence,
    Floats,
    Interval,
    evidence_from_sums,
    intervals_from_sums,
)

if TYPE_CHECKING:
    from samforge.core.recipe import Gates
    from samforge.measure.feature_maps import Worst

LEAST = {"images": 8, "objects": 60, "present": 8, "absent": 8}
"""Least evidence. Where none of 60 objects is lost, no more than 1 in 20 is, at 95 % (the rule of
three): what ``agreement`` asks for. No interval can say so, for all draws of no loss are alike."""
ON_PICTURES = (
    *("mask_iou", "agreement", "box_iou", "score_shift", "absent_score_shift"),
    *("logit_shift", "presence_shift", "cgf1_alike"),
)
"""Gates that need no labels."""
LABELLED = (*ON_PICTURES, "cgf1_drop")
"""Gates where labels are known."""
ANSWERED = tuple(name for name in LABELLED if name not in ("logit_shift", "presence_shift"))
"""Gates on what a segmenter answers, where nobody sees what its parts give."""
PUBLISHING = (
    "Give more pictures (--calibration, --samples) or more phrases (--prompt); --weak-evidence "
    "publishes all the same and says so in the bundle."
)
"""What a build can do where the evidence is weak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One gate against its figure."""

    gate: str
    """Its name in a recipe."""
    limit: float
    """The limit."""
    interval: Interval
    """What was reached."""
    where: str = ""
    """Where, of the worst of several."""

    @property
    def worse_end(self) -> float:
        """The end of the interval that is nearer to the limit or beyond it."""
        return self.interval.low if GATES[self.gate].at_least else self.interval.high

    @property
    def better_end(self) -> float:
        """The other end."""
        return self.interval.high if GATES[self.gate].at_least else self.interval.low

    @property
    def held(self) -> bool:
        """Whether the worse end holds."""
        return within(self.gate, self.worse_end, self.limit) and self.likely

    @property
    def likely(self) -> bool:
        """Whether the figure itself holds."""
        return within(self.gate, self.interval.value, self.limit)

    @property
    def lost(self) -> bool:
        """Whether even the better end does not hold: more pictures would change nothing."""
        return not self.likely and not within(self.gate, self.better_end, self.limit)

    @property
    def enough(self) -> float:
        """How many times as many pictures would bring the worse end to the limit."""
        margin = abs(self.interval.value - self.limit)
        width = abs(self.interval.value - self.worse_end)
        return (width / margin) ** 2 if margin and math.isfinite(width) else math.inf

    def __str__(self) -> str:
        one = self.interval
        ends = f" ({one.low:.4f} to {one.high:.4f})" if one.low < one.high else ""
        where = f" ({self.where})" if self.where else ""
        return (
            f"{self.gate}: {GATES[self.gate].words} is {one.value:.4f}{ends}{where}, the gate is "
            f"{self.limit:g}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """All gates, and what they rest on."""

    evidence: Evidence
    """What was asked."""
    judged: tuple[Judged, ...]
    """One a gate."""

    @property
    def lacking(self) -> dict[str, int]:
        """Of what there is less than ``LEAST``, and how much there is."""
        counted = asdict(self.evidence)
        return {name: counted[name] for name, least in LEAST.items() if counted[name] < least}

    @property
    def held(self) -> bool:
        """Whether every gate holds at the worse end of its interval, on evidence enough."""
        return not self.lacking and all(one.held for one in self.judged)

    @property
    def likely(self) -> bool:
        """Whether every figure that could be measured holds."""
        return all(one.likely for one in self.judged if not math.isnan(one.interval.value))

    @property
    def lost(self) -> bool:
        """Whether a gate fails so clearly that more pictures would not help."""
        return not any(name in self.lacking for name in ("images", "objects")) and any(
            one.lost for one in self.judged
        )

    @property
    def measured(self) -> dict[str, float]:
        """The limit of each gate whose figure could be measured."""
        return {one.gate: one.limit for one in self.judged if not _unknown(one)}

    def in_words(self) -> str:
        """What it rests on."""
        one = self.evidence
        return (
            f"{one.images} pictures, {one.questions} questions, {one.objects} objects; "
            f"{one.present} phrases present, {one.absent} absent"
        )

    def what_is_missing(self) -> str:
        """Why the evidence is weak, and what would be enough."""
        evidence = asdict(self.evidence)
        reasons = [
            f"{count} {_COUNTED[name]}, at least {LEAST[name]} are needed"
            for name, count in self.lacking.items()
        ]
        reasons += [str(one) for one in self.judged if one.likely and not one.held]
        reasons += [
            f"{one.gate} is not measurable" for one in self.judged if math.isnan(one.interval.value)
        ]
        factors = [LEAST[name] / max(1, evidence[name]) for name in self.lacking]
        factors += [one.enough for one in self.judged if one.likely and not one.held]
        factors = [one for one in factors if math.isfinite(one)]
        wanted = math.ceil(self.evidence.images * max(factors, default=2.0))
        more = f"About {max(wanted, self.evidence.images + 1)} pictures like these would be enough"
        kinds = [name for name in ("present", "absent") if name in self.lacking]
        if kinds:
            more += f", with at least 8 phrases that are {' and 8 that are '.join(kinds)} in them"
        return f"{'; '.join(reasons)}. {more}."


_COUNTED = {
    "images": "pictures",
    "objects": "objects that fp32 finds",
    "present": "phrases that are there",
    "absent": "phrases that are not there",
}


def verdict_from_sums(
    sums: Floats,
    names: Iterable[str],
    precision: str,
    gates: Gates,
    *,
    worst: Mapping[str, Worst] | None = None,
) -> Verdict:
    """Hold every figure against its limit.

    Args:
        sums: (images, ``sums.COLUMNS``).
        names: Gates to hold: ``LABELLED`` or ``ON_PICTURES``.
        precision: Of what was measured.
        gates: The recipe's.
        worst: Figures of the worst picture or channel, which have no interval.
    """
    intervals = intervals_from_sums(sums)
    extremes = {
        name: Interval(value=one.value, low=one.value, high=one.value)
        for name, one in (worst or {}).items()
    }
    return Verdict(
        evidence=evidence_from_sums(sums),
        judged=tuple(
            Judged(
                gate=name,
                limit=limit_of(name, precision, gates),
                interval=(intervals | extremes)[name],
                where=worst[name].where if worst and name in worst else "",
            )
            for name in (*names, *extremes)
        ),
    )


def check_verdict(
    verdict: Verdict,
    precision: str,
    gates: Gates,
    *,
    also: Iterable[str] = (),
    advice: str = PUBLISHING,
) -> tuple[str, ...]:
    """Stop below a gate, or where the evidence is too weak to tell.

    Args:
        verdict: From :func:`verdict_from_sums`.
        precision: Of what was measured.
        gates: The recipe's.
        also: What does not hold besides, in words.
        advice: What to do where the evidence is weak.

    Returns:
        A note where the evidence is weak and the recipe takes it.

    Raises:
        FidelityError: A gate does not hold, or nobody can tell whether it does.
    """
    if not verdict.evidence.questions:
        raise FidelityError("Verification asked nothing. Give at least one phrase or image.")
    failed = [str(one) for one in verdict.judged if not one.likely and not _unknown(one)]
    failed += also
    if failed:
        raise FidelityError(
            f"{precision} against the reference does not hold its gates. {'; '.join(failed)} "
            f"({verdict.in_words()}; {verdict.evidence.made_up} answers made up)."
        )
    if verdict.held:
        return ()
    weak = f"Weak evidence ({verdict.in_words()}): {verdict.what_is_missing()}"
    if gates.weak_evidence:
        return (weak,)
    raise FidelityError(
        f"{precision} may hold its gates, and what was asked is too little to tell. {weak} {advice}"
    )


def _unknown(one: Judged) -> bool:
    return math.isnan(one.interval.value)
