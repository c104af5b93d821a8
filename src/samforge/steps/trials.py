"""One part quantized and the others in float, held to the gates of the finished bundle."""

from __future__ import annotations

from functools import partial

from torch.export import ExportedProgram

from samforge.backends.torch import TorchSession
from samforge.core.capabilities import BOXES, DETECTORS, TEXT, VISION
from samforge.core.session import Session
from samforge.measure import Verdict
from samforge.measure.segmentation import tally_from_answers
from samforge.measure.witness import witness_from_file
from samforge.steps.calibrate import WITNESS, Remembering, calibration_answers, float_sessions
from samforge.steps.context import BuildContext
from samforge.steps.images import first_tried, most_tried, trial_images
from samforge.steps.phrases import knows_scenes
from samforge.steps.pictures import Answers
from samforge.steps.rounds import Both, Seen, asked
from samforge.transform.quantize import Programs, e4m3_program


class Trials:
    """Asks what verification asks, of calibration's own images."""

    def __init__(self, context: BuildContext, programs: Programs) -> None:
        """Load the other parts; fp32's answers to the first images are there.

        Args:
            context: Of the build.
            programs: Of the part that is tried.
        """
        part = programs.calibrated.part
        self._context, self._programs, self._part = context, programs, part
        # Only phrases go through the detector without boxes: boxes would find no difference.
        self._boxes = BOXES.among(context.parts) and part != TEXT.detector
        others = [name for name in context.parts if name not in (part, VISION)]
        if not self._boxes:
            others = [name for name in others if name != BOXES.detector]
        self._others: dict[str, Session] = dict(float_sessions(context, others))
        if part != VISION:
            self._others[VISION] = self._vision()
        self._answers: list[Answers] = []
        self._reference = Seen()

    def verdict(self, kept: tuple[str, ...]) -> Verdict:
        """Hold the gates with some groups kept, on more images until they can tell.

        Args:
            kept: Names of the groups.
        """
        context = self._context
        labelled = context.recipe.calibration.source is None and knows_scenes(context)
        session = trial_session(context, self._programs, kept)
        measured, most, number = Seen(), most_tried(context), 0
        while True:
            first, count = self._batch(number, most)
            if number == len(self._answers):
                self._ask_reference(first, count)
            images = trial_images(context, first, count)
            sessions = {**self._others, self._part: session}
            asked(context, measured, sessions, images, self._answers[number], boxes=self._boxes)
            both = Both(reference=self._first(measured.tally.images), measured=measured)
            # What the detector gives has no features.
            features = self._part not in DETECTORS
            verdict = both.verdict(context, labelled=labelled, features=features)
            number += 1
            if verdict.held or verdict.lost or first + count >= most:
                session.close()
                return verdict

    def _batch(self, number: int, most: int) -> tuple[int, int]:
        """Number of the first image and how many: each batch as many as all before it."""
        begin = first_tried(self._context)
        first = 0 if number == 0 else begin << (number - 1)
        return first, min(begin if number == 0 else first, most - first)

    def _first(self, images: int) -> Seen:
        """What fp32 answered about the first images: another trial may have asked more."""
        seen = Seen()
        seen.tally.images = images
        seen.tally.answered += [o for o in self._reference.tally.answered if o.image < images]
        for name in ("readings", "features"):
            own = getattr(self._reference.witness, name)
            getattr(seen.witness, name).extend(one for one in own if one.image < images)
        return seen

    def _ask_reference(self, first: int, count: int) -> None:
        """Ask fp32 about more images; the first were asked when it was calibrated."""
        context = self._context
        if first == 0:
            answers = calibration_answers(context)
            images = list(trial_images(context, 0, count))
            if not self._boxes:
                answers = {
                    key: one
                    for key, one in answers.items()
                    if images[key[0]].questions[key[1]].boxes_xyxy is None
                }
            tally, witness = (
                tally_from_answers(images, answers),
                witness_from_file(context.path(WITNESS)),
            )
            if not self._boxes:
                witness.readings = [one for one in witness.readings if one.part == TEXT.detector]
            self._reference = Seen(tally=tally, witness=witness)
        else:
            floating: Session = (
                self._vision()
                if self._part == VISION
                else float_sessions(context, [self._part])[self._part]
            )
            sessions = {**self._others, self._part: floating}
            more = trial_images(context, first, count)
            answers = asked(context, self._reference, sessions, more, boxes=self._boxes)
            floating.close()
        self._answers.append(answers)

    def _vision(self) -> Remembering:
        context = self._context
        load = partial(float_sessions, context, [VISION])
        return Remembering(spec=context.spec(VISION), context=context, load=lambda: load()[VISION])


def trial_session(context: BuildContext, programs: Programs, kept: tuple[str, ...]) -> Session:
    """The part with some groups kept, run by PyTorch."""
    part = programs.calibrated.part
    program = computing(context, programs.with_kept(kept), part)
    return TorchSession(program, context.spec(part), f"a trial of {part}")


def computing(context: BuildContext, program: ExportedProgram, part: str) -> ExportedProgram:
    """The program in the number format of the recipe; Q/DQ is int8, other flavours follow it."""
    return e4m3_program(program, part) if context.recipe.precision == "fp8" else program
