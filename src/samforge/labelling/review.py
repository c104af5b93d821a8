"""What a person should look at first: pictures ranked by doubt, on a page, with their labels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from samforge.core.bundle import Bundle
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.files import atomic_write_text
from samforge.core.images import RgbImage
from samforge.core.words import json_text
from samforge.draw import overlay
from samforge.formats import LabelledPicture
from samforge.labelling.doubt import Doubts, RankedPicture, ScoreHistogram
from samforge.labelling.export import Pictures, labelled_pictures
from samforge.labelling.job import LabelJob
from samforge.labelling.ledger import NAME, Ledger
from samforge.labelling.ontology import Ontology
from samforge.labelling.review_page import Card, ReviewPage, review_html
from samforge.labelling.run import Sources, job_from
from samforge.labelling.settings import LabelSettings

FOLDER = "review"
"""In the output folder."""
SHOWN = 48
"""Pictures on the page."""
_CELL_PX = 480


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewResult:
    """What there is to look at."""

    page: Path
    """The contact sheet: one HTML file that loads nothing."""
    ranking: Path
    """Every picture, the most unsure first, one JSON object a line."""
    pictures: tuple[RankedPicture, ...]
    """The same."""
    histograms: dict[str, ScoreHistogram]
    """Scores of each class."""


def review_labels(  # noqa: PLR0913  # as samforge.label
    bundle: str | Path | Bundle,
    sources: Sources,
    ontology: Ontology,
    out: str | Path,
    *,
    settings: LabelSettings = LabelSettings(),  # noqa: B008  it is frozen
    against: str | Path | None = None,
    shown: int = SHOWN,
) -> ReviewResult:
    """Rank what :func:`samforge.label` labelled by how unsure it is, and show the most unsure.

    Args:
        bundle: As it was labelled with.
        sources: What was labelled.
        ontology: By which.
        out: Where to.
        settings: As it was labelled with.
        against: Output folder of another run on the same source, of another bundle: where both
            disagree comes first.
        shown: Pictures on the page.

    Returns:
        The page and the ranking, in the folder ``review`` of the output.

    Raises:
        SettingError: Nothing was labelled there, or the other run has other classes.
        OtherRun: It was labelled in another way.
        OutputError: The page cannot be written.
    """
    job = job_from(bundle, sources, ontology, out, settings)
    with ExitStack() as stack:
        ledger = stack.enter_context(_opened(job.out))
        ledger.identify(job.identity())
        other = None if against is None else stack.enter_context(_opened(Path(against)))
        if other is not None:
            _check_classes(other, ontology, Path(str(against)))
        doubts = Doubts(ontology)
        for picture, twin in _pairs(job, ledger, other):
            doubts.add(picture, twin)
        ranked = doubts.most_unsure_first()
        cards = _cards(job, ledger, other, ranked[:shown], ontology)
    page = ReviewPage(
        title=job.out.name,
        about=job.provenance(),
        pictures=len(ranked),
        cards=cards,
        histograms=doubts.histograms,
        compared=other is not None,
    )
    folder = job.out / FOLDER
    ranking, file = folder / "ranking.jsonl", folder / "index.html"
    lines = "".join(json_text(one, indent=None) + "\n" for one in ranked)
    atomic_write_text(ranking, lines)
    atomic_write_text(file, review_html(page))
    return ReviewResult(
        page=file, ranking=ranking, pictures=tuple(ranked), histograms=doubts.histograms
    )


def _opened(out: Path) -> Ledger:
    if not (out / NAME).is_file():
        raise SettingError(f"{out} holds no labels: it has no {NAME}. Run samforge label first.")
    return Ledger(out / NAME)


def _check_classes(other: Ledger, ontology: Ontology, place: Path) -> None:
    known = other.identity() or {}
    names = [one["name"] for one in known.get("ontology", {}).get("classes", [])]
    if names != list(ontology.names):
        raise SettingError(
            f"{place} has the classes {', '.join(names)}, and this ontology "
            f"{', '.join(ontology.names)}. Compare runs of the same classes."
        )


def _pairs(
    job: LabelJob, ledger: Ledger, other: Ledger | None
) -> Iterator[tuple[LabelledPicture, LabelledPicture | None]]:
    """Pictures with what the other run says of them; None where it has not labelled them."""
    for picture in labelled_pictures(ledger, job.items, job.chosen):
        twin = None if other is None else other.picture(picture.name)
        # By the same name another source may have another picture.
        same = twin is not None and (twin.sha256, twin.size_hw) == (picture.sha256, picture.size_hw)
        yield picture, twin if same else None


def _cards(
    job: LabelJob,
    ledger: Ledger,
    other: Ledger | None,
    ranked: Sequence[RankedPicture],
    ontology: Ontology,
) -> tuple[Card, ...]:
    """Pictures with their labels drawn, read in the order of the source."""
    wanted = {one.name: one for one in ranked}
    drawn: dict[str, tuple[str, ...]] = {}
    with Pictures(job.items) as pictures:
        for picture, twin in _pairs(job, ledger, other):
            if picture.name in wanted:
                rgb = pictures.rgb(picture.name)
                sides = [picture] if twin is None else [picture, twin]
                drawn[picture.name] = tuple(
                    _data_uri(_shown(rgb, side, ontology)) for side in sides
                )
    return tuple(Card(ranked=one, images=drawn[one.name]) for one in ranked if one.name in drawn)


def _shown(rgb: RgbImage, picture: LabelledPicture, ontology: Ontology) -> RgbImage:
    masks = picture.masks()
    found = Detections(
        masks=masks,
        boxes_xyxy=masks.boxes.astype(np.float32),
        scores=np.array([one.score for one in picture.objects], np.float32),
        labels=tuple(ontology.names[one.category] for one in picture.objects),
        size_hw=picture.size_hw,
        best_scores=dict.fromkeys(ontology.names, 0.0),
    )
    return overlay(rgb, found, min_side=_CELL_PX, color_by_phrase=True)


def _data_uri(rgb: RgbImage) -> str:
    image = Image.fromarray(rgb)
    image.thumbnail((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
