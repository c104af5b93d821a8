"""What a bundle finds against what fp32 finds: the proof that nothing was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from samforge.backends import backend_from_name
from samforge.core.around import AroundSession
from samforge.core.axes import ONE_OF_EACH
from samforge.core.capabilities import BOXES, TEXT
from samforge.core.errors import FidelityError
from samforge.core.files import atomic_write_json
from samforge.core.labelled import LabelledImage
from samforge.core.manifest import PICTURES_NAME, PROOF_NAME
from samforge.core.session import Array, Session, Tensors
from samforge.core.timing import Timings
from samforge.measure import (
    OddPicture,
    SegmenterAccuracy,
    Verdict,
    check_verdict,
    failed_odd,
    finite,
    limit_of,
    odd_limits,
    odd_pictures,
    write_proof_pictures,
)
from samforge.measure.asking import ask
from samforge.measure.fidelity import compare_outputs
from samforge.measure.proof import proof_inputs, write_proof
from samforge.runtime import image_bchw_from_rgb
from samforge.steps.calibrate import float_sessions, segmenter_of
from samforge.steps.context import SMALL_IMAGE, BuildContext, StepOutput, arrays
from samforge.steps.images import (
    Gallery,
    Images,
    gallery_of,
    odd_images,
    verification_images,
    verified_on_others,
)
from samforge.steps.phrases import knows_scenes, more_phrases, tokenizer_of
from samforge.steps.pictures import FOLDER, Answers, write_pictures
from samforge.steps.rounds import (
    Both,
    Sessions,
    ask_both,
    built_sessions,
    takes_weak_evidence,
)

REPORT = "report/verification.json"
"""What was compared, and the figures; written before the gates are asked."""
NAMED = 5
"""Layers that a gate which failed names."""
RANDOM = "Weights are random: what is found has no meaning and was not compared."
SAME_IMAGES = "Verified on the calibration's own images: there were fewer than two for each sample."
PROOF_PICTURES = 2
"""Pictures that a bundle carries."""
PROOF_SIDE = 1024
"""Of their sides, pixels, at most."""
ALONE = {"images", "input_ids"}
"""What a part may take to be run on a picture without the others."""
NOT_ASKED = (
    "Not run on pictures, for vision and text were not built with it: {parts}. It was compared on "
    "random inputs."
)
NOT_VERIFIED = (
    "Not verified on hardware: there is no GPU here that can run it. Run samforge verify where it "
    "will be used."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """Two segmenters on the same images."""

    reference: SegmenterAccuracy
    """fp32, run by PyTorch."""
    measured: SegmenterAccuracy
    """What was built, with its fidelity to the reference."""
    labelled: bool
    """Whether the images have labels, so that accuracy means something."""
    verdict: Verdict
    """Every gate with its interval, and what it rests on."""
    odd: tuple[OddPicture, ...] = ()
    """Pictures with nothing to find: black, white, …"""


def verify_bundle(context: BuildContext) -> StepOutput:
    """Ask the built parts and the float parts the same questions, and hold the gates.

    Raises:
        FidelityError: Masks, boxes or scores differ, objects are lost or made up, an output is not
            finite, or what was asked is too little to tell; the figures are kept.
    """
    with _floating(context) as floating:
        return _verified(context, floating)


def _verified(context: BuildContext, floating: Sessions) -> StepOutput:
    """Do it with the float parts, as often as they are asked for."""
    # What random weights find has no meaning: tensors alone tell whether they are computed right.
    on_tensors = context.runs_on.elsewhere or context.recipe.random_weights
    proof = _proof(context, floating) if on_tensors else ()
    proof = (*proof, *_proof_pictures(context, floating))
    if backend_from_name(context.runtime).version() is None:
        return StepOutput(outputs=proof, figures=(), notes=(NOT_VERIFIED,))
    if context.recipe.random_weights:
        return StepOutput(outputs=proof, figures=(), notes=(RANDOM,))
    notes = () if verified_on_others(context) else (SAME_IMAGES,)
    if not TEXT.among(context.parts):
        return _features(context, proof, notes)
    try:
        built = partial(built_sessions, context)
        verified, answers = proven(context, gallery_of(context), floating, built)
        atomic_write_json(context.path(REPORT), verified)
        weak = check_verified(context, verified)
    except FidelityError as error:
        raise FidelityError(f"{error}{noisiest_layers(context)}") from error
    files = write_pictures(context.root / FOLDER, verification_images(context), *answers)
    pictures = (file.relative_to(context.root).as_posix() for file in files)
    return StepOutput(
        outputs=(REPORT, *proof, *pictures),
        figures=_figures(verified, weak=bool(weak)),
        gates=verified.verdict.measured
        | odd_limits(context.recipe.precision, context.recipe.gates),
        notes=(*notes, *weak),
    )


def noisiest_layers(context: BuildContext) -> str:
    """Words for a gate that failed: where quantization hurts most; empty in other precisions."""
    layers = []
    for part in context.parts:
        report = context.path(f"report/{part}/quantization.json")
        if report.is_file():
            rows = json.loads(report.read_text(encoding="utf-8"))["layers"]
            layers += [(float(row["sqnr_db"]), f"{part}/{row['path']}") for row in rows]
    named = ", ".join(f"{path} ({decibels:.1f} dB)" for decibels, path in sorted(layers)[:NAMED])
    return named and f" The noisiest layers, by signal to noise behind each: {named}."


@contextmanager
def _floating(context: BuildContext) -> Iterator[Sessions]:
    """Load the float parts, those of a small model once.

    Of a large model only one side's parts are in memory at a time, so each round loads them anew.
    """
    if context.model.image.size > SMALL_IMAGE:
        yield partial(float_sessions, context)
        return
    loaded: dict[str, Session] = {}

    def lend() -> Mapping[str, Session]:
        if not loaded:
            loaded.update(float_sessions(context))
        return {part: _Lent(session=session) for part, session in loaded.items()}

    try:
        yield lend
    finally:
        for session in loaded.values():
            session.close()


@dataclass(kw_only=True, slots=True)
class _Lent(AroundSession):
    """A session that others use after whoever closes it."""

    session: Session
    """Does the work."""

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part."""
        return self.session.run(tensors)

    def close(self) -> None:
        """Leave the weights to the next."""


def _proof(context: BuildContext, floating: Sessions) -> tuple[str, ...]:
    """Keep what fp32 makes of one image, so that any GPU can be held to it later."""
    inputs = proof_inputs(
        [context.spec(part) for part in context.parts],
        lambda part: arrays(context.inputs(part, ONE_OF_EACH, seed=1)),
    )
    sessions = floating()
    write_proof(context.path(PROOF_NAME), sessions, inputs)
    for session in sessions.values():
        session.close()
    return (PROOF_NAME,)


def _proof_pictures(context: BuildContext, floating: Sessions) -> tuple[str, ...]:
    """Keep what fp32 finds in a few pictures: any machine's segmenter can be asked the same."""
    if context.recipe.random_weights or not TEXT.among(context.parts):
        return ()
    images = proof_images(context)
    sessions = floating()
    asking = ask(
        segmenter_of(context, sessions),
        images,
        timings=Timings(),
        boxes=BOXES.among(sessions),
    )
    answers = {asked.key: asked.found for asked in asking}
    write_proof_pictures(context.path(PICTURES_NAME), images, answers)
    for session in sessions.values():
        session.close()
    return (PICTURES_NAME,)


def proof_images(context: BuildContext) -> list[LabelledImage]:
    """The pictures that a bundle carries."""
    return [smaller(image) for image in islice(verification_images(context), PROOF_PICTURES)]


def smaller(image: LabelledImage) -> LabelledImage:
    """A picture of at most about a megapixel, for bundles carry it along: every Nth pixel of it."""
    step = -(-max(image.image_rgb.shape[:2]) // PROOF_SIDE)
    if step == 1:
        return image
    rgb = np.ascontiguousarray(image.image_rgb[::step, ::step])
    height, width = rgb.shape[:2]
    none = np.zeros((0, height, width), np.bool_)
    questions = (
        replace(
            question,
            masks=none,
            boxes_xyxy=None
            if question.boxes_xyxy is None
            else (question.boxes_xyxy / step).clip(0, [width, height, width, height]),
        )
        for question in image.questions
    )
    return replace(image, image_rgb=rgb, questions=tuple(questions))


def proven(
    context: BuildContext, gallery: Gallery, reference: Sessions, measured: Sessions
) -> tuple[Verified, tuple[Answers, Answers]]:
    """Ask both sides about as many pictures as it takes to tell.

    Args:
        context: Of the build.
        gallery: What to ask about.
        reference: Loads what says what is right.
        measured: Loads what is held to it.

    Returns:
        The figures, and what each side answered about the first pictures.

    Raises:
        FidelityError: An output is not finite.
    """
    both, odd = Both(), Both()
    labelled = context.recipe.calibration.source is None and knows_scenes(context)
    batches: list[tuple[Both, Images]] = [(odd, gallery.odd)]
    done, count, shown = 0, gallery.first, None
    while True:
        images = partial(gallery.some, done, count)
        answers = ask_both(context, (reference, measured), [*batches, (both, images)])
        shown = shown or answers
        batches.clear()
        verdict = both.verdict(context, labelled=labelled)
        done, count = done + count, min(done + count, gallery.most - done - count)
        if verdict.held or verdict.lost or count <= 0:
            break
    verified = Verified(
        reference=both.reference.tally.accuracy(),
        measured=both.measured.tally.accuracy(),
        labelled=labelled,
        verdict=verdict,
        odd=odd_pictures(odd.reference.witness, odd.measured.witness, gallery.odd()),
    )
    return verified, shown


def check_verified(context: BuildContext, verified: Verified) -> tuple[str, ...]:
    """Hold every gate.

    Returns:
        A note where the evidence is weak and the recipe takes it.

    Raises:
        FidelityError: A gate does not hold, or nobody can tell.
    """
    precision, gates = context.recipe.precision, context.recipe.gates
    gates = replace(gates, weak_evidence=takes_weak_evidence(context))
    odd = failed_odd(verified.odd, precision, gates)
    return check_verdict(verified.verdict, precision, gates, also=odd)


def _figures(verified: Verified, *, weak: bool) -> tuple[dict[str, Any], ...]:
    """What the manifest keeps: the figures, what they rest on, and how sure they are."""
    verdict, fidelity = verified.verdict, verified.measured.fidelity
    figures: dict[str, Any] = asdict(verdict.evidence)
    if fidelity is not None:
        figures |= fidelity.to_dict()
    wanted, found = verified.reference.cgf1, verified.measured.cgf1
    if verified.labelled and wanted is not None and found is not None:
        figures |= {"cgf1": found.cgf1, "cgf1_reference": wanted.cgf1}
    figures |= {one.gate: one.interval.value for one in verdict.judged}
    figures["intervals"] = {
        one.gate: [one.interval.low, one.interval.high] for one in verdict.judged
    }
    figures["weak_evidence"] = weak
    return (figures, *map(asdict, verified.odd))


def _features(context: BuildContext, proof: tuple[str, ...], notes: tuple[str, ...]) -> StepOutput:
    """Of parts that cannot segment by themselves: how close what they give is, picture by picture.

    Raises:
        FidelityError: It is not close enough, or not finite.
    """
    parts = [part for part in context.parts if {t.name for t in context.spec(part).inputs} <= ALONE]
    if left := [part for part in context.parts if part not in parts]:
        notes = (*notes, NOT_ASKED.format(parts=", ".join(left)))
    sides = (float_sessions(context, parts), built_sessions(context, parts))
    rows: list[dict[str, Any]] = []
    for name, odd, tensors in _inputs(context):
        for part in parts:
            own = {tensor.name: tensors[tensor.name] for tensor in context.spec(part).inputs}
            wanted, found = (finite(part, name, side[part].run(own)) for side in sides)
            rows += [
                {"part": part, "picture": name, "odd": odd, **one.to_dict()}
                for one in compare_outputs(wanted, found)
            ]
    for session in (*sides[0].values(), *sides[1].values()):
        session.close()
    atomic_write_json(context.path(REPORT), {"features": rows})
    limits = {
        gate: limit_of(gate, context.recipe.precision, context.recipe.gates)
        for gate in ("feature_cosine", "odd_cosine")
        if rows
    }
    for gate, limit in limits.items():
        own_rows = [row for row in rows if row["odd"] == (gate == "odd_cosine")]
        low = min(own_rows, key=lambda row: row["cosine"])
        if not low["cosine"] >= limit:
            raise FidelityError(
                f"Features of {context.recipe.precision} against fp32: the cosine of "
                f"{low['tensor']} of {low['part']} is {low['cosine']:.4f} for {low['picture']}, "
                f"the gate {gate} is {limit:g}. Nothing was published.{noisiest_layers(context)}"
            )
    return StepOutput(
        outputs=(REPORT, *proof), figures=_worst_rows(rows), gates=limits, notes=notes
    )


def _inputs(context: BuildContext) -> Iterator[tuple[str, bool, dict[str, Array]]]:
    """Name of each picture, whether it holds nothing to find, and what parts take of it."""
    ids = {}
    if context.model.text is not None:
        phrases = (*context.recipe.calibration.prompts[:1], *more_phrases(context)[:2])
        ids = {"input_ids": tokenizer_of(context).encode(phrases)}
    for odd, images in ((False, verification_images(context)), (True, odd_images(context))):
        for one in images:
            image_bchw = np.ascontiguousarray(
                image_bchw_from_rgb(one.image_rgb, context.model.image)
            )
            yield one.name, odd, {"images": image_bchw, **ids}


def _worst_rows(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Of every tensor the picture with the smallest cosine, those with nothing to find apart."""
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["part"], row["tensor"], str(row["odd"]))
        kept[key] = min(kept.get(key, row), row, key=lambda one: one["cosine"])
    ordinary = ({**row, "feature_cosine": row["cosine"]} for row in kept.values() if not row["odd"])
    odd = (
        {("odd_cosine" if name == "cosine" else name): value for name, value in row.items()}
        for row in kept.values()
        if row["odd"]
    )
    return (*ordinary, *odd)
