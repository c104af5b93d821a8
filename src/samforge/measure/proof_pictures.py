"""Pictures, what they are asked and what fp32 finds in them: a proof of the whole way.

A bundle's other proof runs part after part on tensors. What users call also reads and squashes a
picture, admits by score, resizes masks and cuts them off at a probability, and on a GPU it does so
in kernels of its own. This one is asked of the very segmenter that ``samforge.load`` gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samforge.core.detections import Detections
from samforge.core.errors import DamagedBundle
from samforge.core.files import output_errors
from samforge.core.labelled import LabelledImage, Question
from samforge.core.strict_json import strict_json
from samforge.measure.answers import detections_from_table, table_from_detections
from samforge.measure.asking import Key
from samforge.measure.segmentation import AccuracyTally, measure_segmenter, tally_from_answers
from samforge.measure.sums import sums_from_tallies
from samforge.measure.verdict import Verdict, check_verdict, verdict_from_sums

if TYPE_CHECKING:
    from samforge.core.recipe import Gates
    from samforge.runtime import Segmenter

PROVEN_GATES = ("mask_iou", "agreement", "box_iou", "score_shift", "absent_score_shift")
"""Gates that a segmenter's answers alone are held to."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProofPictures:
    """Pictures with their questions, and what fp32 answers."""

    images: tuple[LabelledImage, ...]
    """The pictures; masks of their questions are fp32's."""
    answers: Mapping[Key, Detections]
    """What fp32 finds, by picture and question."""


def write_proof_pictures(
    path: Path, images: Iterable[LabelledImage], answers: Mapping[Key, Detections]
) -> None:
    """Keep pictures and fp32's answers.

    Args:
        path: File to write.
        images: The pictures.
        answers: To their questions; questions without an answer are left out.

    Raises:
        OutputError: The file cannot be written.
    """
    arrays: dict[str, Any] = {}
    table = []
    for number, image in enumerate(images):
        arrays[f"picture/{number}"] = image.image_rgb
        asked = [
            {
                "phrase": question.text,
                "boxes_xyxy": _listed(question.boxes_xyxy),
                "box_labels": _listed(question.box_labels),
                "answer": table_from_detections(answers[number, place]),
            }
            for place, question in enumerate(image.questions)
            if (number, place) in answers
        ]
        table.append({"name": image.name, "questions": asked})
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(file, questions=np.array(json.dumps(table)), **arrays)


def proof_pictures_from_file(path: Path) -> ProofPictures:
    """Read what :func:`write_proof_pictures` wrote.

    Raises:
        DamagedBundle: The file is none of these.
    """
    answers: dict[Key, Detections] = {}
    images = []
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for number, one in enumerate(strict_json(str(file["questions"]))):
                questions = []
                for place, asked in enumerate(one["questions"]):
                    answer = detections_from_table(asked["answer"])
                    answers[number, place] = answer
                    questions.append(_question(asked, answer))
                picture = file[f"picture/{number}"]
                images.append(
                    LabelledImage(name=one["name"], image_rgb=picture, questions=tuple(questions))
                )
    except Exception as error:  # zip, header, JSON and OS errors alike
        raise DamagedBundle(f"{path} cannot be read as a proof: {error}. Build again.") from error
    return ProofPictures(images=tuple(images), answers=answers)


def check_proof_pictures(
    proof: ProofPictures, segmenter: Segmenter, *, boxes: bool, precision: str, gates: Gates
) -> Verdict:
    """Ask a segmenter what fp32 was asked, and hold the gates on answers.

    Args:
        proof: Pictures, questions and fp32's answers.
        segmenter: What ``samforge.load`` gives.
        boxes: Whether it takes boxes.
        precision: Of the bundle.
        gates: Of its recipe. A few pictures say whether this machine computes what was proven, on
            many, where it was built: weak evidence is taken here.

    Raises:
        FidelityError: A gate does not hold.
    """
    answers = {
        key: answer
        for key, answer in proof.answers.items()
        if boxes or proof.images[key[0]].questions[key[1]].boxes_xyxy is None
    }
    tally = AccuracyTally()
    measure_segmenter(segmenter, proof.images, boxes=boxes, reference=answers, tally=tally)
    sums = sums_from_tallies(tally_from_answers(proof.images, answers), tally)
    verdict = verdict_from_sums(sums, PROVEN_GATES, precision, gates)
    check_verdict(verdict, precision, replace(gates, weak_evidence=True))
    return verdict


def _question(asked: Mapping[str, Any], answer: Detections) -> Question:
    boxes, labels = asked["boxes_xyxy"], asked["box_labels"]
    return Question(
        text=asked["phrase"],
        boxes_xyxy=None if boxes is None else np.array(boxes, np.float32).reshape(-1, 4),
        box_labels=None if labels is None else np.array(labels, np.int64),
        masks=answer.masks.dense(),
    )


def _listed(array: Any) -> Any:
    return None if array is None else array.tolist()
