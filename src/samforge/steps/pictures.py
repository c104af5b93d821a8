"""A few answers drawn twice, by the reference and by the bundle, for the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from samforge.core.detections import Detections
from samforge.core.files import atomic_write_json
from samforge.core.labelled import LabelledImage, Question
from samforge.draw import overlay
from samforge.measure.predictions import compare_detections, in_reference_order
from samforge.media import read_image, write_png
from samforge.report import OverlayPair

FOLDER = "work/overlays"
MOST = 6
"""Answers in the report."""
SIDE_PX = 320
"""Small images are enlarged until tags are readable."""

Answers = Mapping[tuple[int, int], Detections]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One prompt and the files of its two pictures."""

    prompt: str
    """What was asked."""
    reference: str
    """File of the reference's answer, beside the index."""
    picture: str
    """File of the bundle's answer."""
    note: str
    """How alike they are."""


def write_pictures(
    folder: Path, images: Iterable[LabelledImage], reference: Answers, answers: Answers
) -> list[Path]:
    """Draw the first answers in which anything was found.

    Returns:
        The files, the index first.
    """
    index: list[Shown] = []
    files: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for image, question, key in _questions(images):
        if len(index) == MOST:
            break
        if key not in reference:  # boxes, of a bundle that takes none
            continue
        wanted = reference[key]
        found = in_reference_order(wanted, answers[key])  # one colour, one object
        if not len(wanted) and not len(found):
            continue
        fidelity = compare_detections(wanted, found)
        iou = f", mask IoU {min(fidelity.ious):.3f}" if fidelity.ious else ""
        number = f"{len(index):02d}"
        shown = Shown(
            prompt=question.text or "the exemplar box",
            reference=f"{number}-reference.png",
            picture=f"{number}-bundle.png",
            note=f"{len(found)} of {len(wanted)} objects{iou}",
        )
        index.append(shown)
        for name, detections in ((shown.reference, wanted), (shown.picture, found)):
            drawn = overlay(image.image_rgb, detections, min_side=SIDE_PX, opacity=0.4)
            files.append(write_png(folder / name, drawn))
    atomic_write_json(folder / "index.json", index)
    return [folder / "index.json", *files]


def pictures_from_folder(folder: Path) -> tuple[OverlayPair, ...]:
    """Read what :func:`write_pictures` wrote; nothing where it wrote nothing."""
    file = folder / "index.json"
    if not file.is_file():
        return ()
    return tuple(
        OverlayPair(
            prompt=one["prompt"],
            reference_rgb=read_image(folder / one["reference"]),
            rgb=read_image(folder / one["picture"]),
            note=one["note"],
        )
        for one in json.loads(file.read_text(encoding="utf-8"))
    )


def _questions(
    images: Iterable[LabelledImage],
) -> Iterator[tuple[LabelledImage, Question, tuple[int, int]]]:
    """One question an image: the first with a phrase, and of every third image one with a box."""
    for number, image in enumerate(images):
        with_box = number % 3 == 2
        for place, question in enumerate(image.questions):
            if (question.boxes_xyxy is not None) == with_box:
                yield image, question, (number, place)
                break
