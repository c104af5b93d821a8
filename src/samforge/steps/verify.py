"""What a bundle finds against what fp32 finds: the proof that nothing was lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from samforge.backends import backend_from_name
from samforge.core.errors import FidelityError
from samforge.core.files import atomic_write_json
from samforge.core.manifest import PROOF_NAME
from samforge.core.session import Session
from samforge.measure import (
    CgF1,
    PackedDetections,
    SegmenterAccuracy,
    check_cgf1,
    check_predictions,
    feature_cosine_limit,
    mask_iou_limit,
    measure_segmenter,
)
from samforge.measure.fidelity import TensorFidelity, compare_outputs
from samforge.measure.proof import write_proof
from samforge.runtime import image_bchw_from_rgb
from samforge.steps.calibrate import float_sessions, segmenter_of
from samforge.steps.images import DRAWN, verification_images, verified_on_others
from samforge.steps.options import options_of
from samforge.steps.pictures import FOLDER, Answers, write_pictures
from samforge.steps.workshop import Made, Workshop, arrays

REPORT = "report/verification.json"
"""What was compared, and the figures; written before the gates are asked."""
NAMED = 5
"""Layers that a gate which failed names."""
ONE_OF_EACH = {"batch": 1, "prompts": 1, "boxes": 1}
ELSEWHERE = ("tensorrt", "tensorrt-rtx", "inductor")
"""Targets whose bundles may run on another machine than the one that built them."""
RANDOM = "Weights are random: what is found has no meaning and was not compared."
SAME_IMAGES = "Verified on the calibration's own images: there were fewer than two for each sample."
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


def verify_bundle(shop: Workshop) -> Made:
    """Ask the built parts and the float parts the same questions, and hold the gates.

    Raises:
        FidelityError: Masks differ, or objects are lost or made up; the figures are kept.
    """
    proof = _proof(shop) if shop.runtime in ELSEWHERE else ()
    if backend_from_name(shop.runtime).version() is None:
        return Made(outputs=proof, figures=(), notes=(NOT_VERIFIED,))
    if shop.recipe.random_weights:
        return Made(outputs=proof, figures=(), notes=(RANDOM,))
    notes = () if verified_on_others(shop) else (SAME_IMAGES,)
    if not {"vision", "text", "detector"} <= set(shop.parts):
        return _features(shop, proof, notes)
    verified, pictures = _asked(shop)
    atomic_write_json(shop.path(REPORT), verified)
    try:
        gates = _held(shop, verified)
    except FidelityError as error:
        raise FidelityError(f"{error}{noisiest_layers(shop)}") from error
    return Made(
        outputs=(REPORT, *proof, *pictures),
        figures=_figures(verified),
        gates=gates,
        notes=notes,
    )


def noisiest_layers(shop: Workshop) -> str:
    """Words for a gate that failed: where quantization hurts most; empty in other precisions."""
    layers = []
    for part in shop.parts:
        report = shop.path(f"report/{part}/quantization.json")
        if report.is_file():
            rows = json.loads(report.read_text(encoding="utf-8"))["layers"]
            layers += [(float(row["sqnr_db"]), f"{part}/{row['path']}") for row in rows]
    named = ", ".join(f"{path} ({decibels:.1f} dB)" for decibels, path in sorted(layers)[:NAMED])
    return named and f" The noisiest layers, by signal to noise behind each: {named}."


def _proof(shop: Workshop) -> tuple[str, ...]:
    """Keep what fp32 makes of one image, so that any GPU can be held to it later."""
    inputs = {
        name: array
        for part in shop.parts
        for name, array in arrays(shop.inputs(part, ONE_OF_EACH, seed=1)).items()
        if name not in _given(shop)
    }
    sessions = float_sessions(shop)
    write_proof(shop.path(PROOF_NAME), sessions, inputs)
    for session in sessions.values():
        session.close()
    return (PROOF_NAME,)


def _given(shop: Workshop) -> set[str]:
    """Tensors that a part of the bundle gives."""
    return {tensor.name for part in shop.parts for tensor in shop.spec(part).outputs}


def built_sessions(shop: Workshop) -> dict[str, Session]:
    """The built parts, run by the target."""
    backend = backend_from_name(shop.runtime)
    options = options_of(shop.recipe, shop.runtime)
    return {
        part: backend.session_from_artifact(
            shop.path(shop.artifact(part)), shop.spec(part), options=options
        )
        for part in shop.parts
    }


def _asked(shop: Workshop) -> tuple[Verified, list[str]]:
    """The figures, and files of a few answers drawn twice."""
    reference, wanted = _answers(shop, float_sessions(shop), None)
    measured, found = _answers(shop, built_sessions(shop), wanted)
    files = write_pictures(shop.root / FOLDER, verification_images(shop), wanted, found)
    labelled = shop.recipe.model in DRAWN and shop.recipe.calibration.source is None
    verified = Verified(reference=reference, measured=measured, labelled=labelled)
    return verified, [file.relative_to(shop.root).as_posix() for file in files]


def _answers(
    shop: Workshop, sessions: Mapping[str, Session], reference: Answers | None
) -> tuple[SegmenterAccuracy, Answers]:
    answers: dict[tuple[int, int], PackedDetections] = {}
    measured = measure_segmenter(
        segmenter_of(shop, sessions),
        verification_images(shop),
        boxes="detector_boxes" in shop.parts,
        reference=reference,
        record=answers,
    )
    for session in sessions.values():
        session.close()
    return measured, answers


def _held(shop: Workshop, verified: Verified) -> dict[str, float]:
    recipe, fidelity = shop.recipe, verified.measured.fidelity
    if fidelity is None:
        raise FidelityError("Verification asked nothing. Give at least one phrase or image.")
    check_predictions(fidelity, recipe.precision, recipe.gates)
    gates = {
        "mask_iou": mask_iou_limit(recipe.precision, recipe.gates),
        "agreement": recipe.gates.agreement,
    }
    wanted, found = _cgf1(verified)
    if verified.labelled and wanted is not None and found is not None:
        check_cgf1(wanted, found, recipe.precision, recipe.gates)
        gates["cgf1_drop"] = recipe.gates.cgf1_drop
    return gates


def _figures(verified: Verified) -> tuple[dict[str, Any], ...]:
    fidelity = verified.measured.fidelity
    figures: dict[str, Any] = {"images": verified.measured.images}
    if fidelity is not None:
        figures |= fidelity.to_dict()
    wanted, found = _cgf1(verified)
    if verified.labelled and wanted is not None and found is not None:
        figures |= {"cgf1": found.cgf1, "cgf1_reference": wanted.cgf1}
    return (figures,)


def _cgf1(verified: Verified) -> tuple[CgF1 | None, CgF1 | None]:
    return verified.reference.cgf1, verified.measured.cgf1


def _features(shop: Workshop, proof: tuple[str, ...], notes: tuple[str, ...]) -> Made:
    """Of parts that give features and no detections: how close the features are."""
    parts = [part for part in shop.parts if len(shop.spec(part).inputs) == 1]
    images = [
        image_bchw_from_rgb(one.image_rgb, shop.model.image)
        for one in verification_images(shop)
        if "images" in {tensor.name for part in parts for tensor in shop.spec(part).inputs}
    ]
    reference, built = float_sessions(shop), built_sessions(shop)
    worst: list[TensorFidelity] = []
    for part in parts:
        names = [tensor.name for tensor in shop.spec(part).inputs]
        if names != ["images"]:
            continue
        for image in images:
            tensors = {"images": np.ascontiguousarray(image)}
            worst += compare_outputs(reference[part].run(tensors), built[part].run(tensors))
    figures = tuple(asdict(one) for one in worst)
    atomic_write_json(shop.path(REPORT), {"features": figures})
    gates = {}
    if worst:
        limit = feature_cosine_limit(shop.recipe.precision, shop.recipe.gates)
        low = min(worst, key=lambda one: one.cosine)
        if low.cosine < limit:
            raise FidelityError(
                f"Features of {shop.recipe.precision} against fp32: the cosine of {low.tensor} is "
                f"{low.cosine:.4f}, the gate is {limit:g}. Nothing was published."
                f"{noisiest_layers(shop)}"
            )
        gates = {"feature_cosine": limit}
    return Made(outputs=(REPORT, *proof), figures=figures, gates=gates, notes=notes)
