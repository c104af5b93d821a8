"""What comes of an item: its labels as bytes for the ledger, or why there are none."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from samforge.core.detections import Detections
from samforge.core.errors import ItemError
from samforge.core.native import error_of_item
from samforge.core.words import encodable
from samforge.formats import MOST_OBJECTS, LabelledObject, LabelledPicture
from samforge.labelling.ontology import Ontology
from samforge.labelling.resolve import resolve

_LEVEL = 1  # of zlib: more takes longer than the labels took


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemFailure:
    """Why an item has no labels."""

    name: str
    """The item."""
    kind: str
    """Class of the error: ``ImageError``."""
    message: str
    """What came, what is allowed, what to do."""
    exit_code: int
    """Of the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one item, or of a stretch of a video."""

    number: int
    """The item, by its place in the source."""
    first: int = 0
    """Frame of the first body; 0 of a picture."""
    bodies: tuple[bytes, ...] = ()
    """Labels, a picture or frame each: see :func:`body_from_picture`."""
    ended: bool = True
    """Whether nothing more comes of the item."""
    failure: ItemFailure | None = None
    """Why nothing came."""


def failure_of(name: str, error: Exception) -> ItemFailure:
    """Keep what went wrong with one item."""
    told = error_of_item(error)
    return ItemFailure(
        name=name,
        kind=type(told).__name__,
        message=encodable(str(told)),
        exit_code=told.exit_code,
    )


def picture_from_detections(
    found: Detections, ontology: Ontology, *, name: str, uri: str, sha256: str
) -> LabelledPicture:
    """Labels of one picture, numbered later.

    Raises:
        ItemError: There are more than can be numbered.
    """
    resolved = resolve(found, ontology)
    if len(resolved.classes) > MOST_OBJECTS:
        raise ItemError(
            f"{uri} holds {len(resolved.classes):,} objects, and at most {MOST_OBJECTS:,} of a "
            "picture can be numbered. Raise the threshold, or cut the picture into several."
        )
    masks, found_objects = resolved.found.masks, resolved.found
    boxes, areas = masks.boxes.tolist(), masks.areas.tolist()
    objects = []
    for row, category in enumerate(resolved.classes.tolist()):
        left, top, right, bottom = boxes[row]
        objects.append(
            LabelledObject(
                category=category,
                phrase=found_objects.labels[row],
                score=round(float(found_objects.scores[row]), 6),
                bbox=(left, top, right - left, bottom - top),
                area=areas[row],
                counts=str(masks.rle(row)["counts"]),
                track_id=None if found_objects.ids is None else int(found_objects.ids[row]),
            )
        )
    return LabelledPicture(
        id=0,
        name=name,
        uri=uri,
        sha256=sha256,
        size_hw=found.size_hw,
        objects=tuple(objects),
        best_scores={phrase: round(float(score), 6) for phrase, score in found.best_scores.items()},
        cut_off=found.cut_off,
    )


def body_from_picture(picture: LabelledPicture) -> bytes:
    """Labels as a few hundred bytes."""
    text = json.dumps(picture.to_table(), separators=(",", ":"))
    return zlib.compress(text.encode("ascii"), _LEVEL)


def picture_from_body(body: bytes) -> LabelledPicture:
    """The labels again."""
    return LabelledPicture.from_table(json.loads(zlib.decompress(body)))
