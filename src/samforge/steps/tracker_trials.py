"""One part of the tracker quantized and the others in float, held to the tracker's own gates."""

from __future__ import annotations

from samforge.measure.gates import limit_of, within
from samforge.measure.tracker_questions import TrackerFidelity, ask_tracker, compare_answers
from samforge.steps.calibrate import segmenter_of
from samforge.steps.calibrate_tracker import (
    calibration_tracks,
    sessions_that_track,
    tracking_parts,
)
from samforge.steps.context import BuildContext
from samforge.steps.trials import trial_session
from samforge.transform.quantize import Programs


class TrackerTrials:
    """Asks what is asked of the finished bundle, of clicks and clips of calibration's own."""

    def __init__(self, context: BuildContext, programs: Programs) -> None:
        """Load the other parts; fp32's answers are there.

        Args:
            context: Of the build, behind the step that calibrates the tracker.
            programs: Of the part that is tried.
        """
        self._context, self._programs = context, programs
        self._part = programs.calibrated.part
        others = [name for name in tracking_parts(context) if name != self._part]
        self._others = sessions_that_track(context, others)
        self._proof = calibration_tracks(context)

    def fidelity(self, kept: tuple[str, ...]) -> TrackerFidelity:
        """How close clicks and tracks come to fp32's.

        Args:
            kept: Names of the groups that stay in float.
        """
        session = trial_session(self._context, self._programs, kept)
        segmenter = segmenter_of(self._context, {**self._others, self._part: session})
        said = ask_tracker(segmenter, self._proof.questions)
        session.close()  # the others serve the next trial
        return compare_answers(self._proof.said, said)

    def holds(self, kept: tuple[str, ...]) -> bool:
        """Whether every figure is on the right side of its gate."""
        recipe = self._context.recipe
        return all(
            within(gate, value, limit_of(gate, recipe.precision, recipe.gates))
            for gate, value in self.fidelity(kept).measured.items()
        )
