"""The contact sheet of a review: one HTML page without a script, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samforge.core.markup import Markup, joined, key, section, tag
from samforge.labelling.doubt import BINS, RankedPicture, ScoreHistogram

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = Path(__file__).with_name("review.css")
_WIDTH, _HEIGHT, _FOOT = 300, 96, 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One picture on the sheet."""

    ranked: RankedPicture
    """What is said of it."""
    images: tuple[str, ...]
    """It with its labels, as data URIs; a second one with those of the other run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewPage:
    """What the page shows."""

    title: str
    """Name of the output folder."""
    about: Mapping[str, Any]
    """Provenance of the labels."""
    pictures: int
    """In the data set."""
    cards: tuple[Card, ...]
    """The most unsure first."""
    histograms: Mapping[str, ScoreHistogram]
    """By class."""
    compared: bool
    """Whether there is another run."""


def review_html(page: ReviewPage) -> str:
    """Lay out the page: a whole HTML document."""
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'),
        tag("title", f"{page.title} · labels to review"),
        tag("style", style),
    )
    about = page.about
    made = (
        f"Labelled by samforge {about['samforge']} with {about['model']}, {about['precision']} for "
        f"{about['target']}, bundle {str(about['bundle'])[:16]}…"
    )
    body = tag(
        "main",
        tag("p", "Labels to review", class_="eyebrow"),
        tag("h1", page.title),
        tag("p", f"{page.pictures:,} pictures. ", made, class_="lead"),
        section(
            "Scores by class",
            "Blue are labels by their score, orange are pictures without a label of the class, by "
            "the best score there. The line is the threshold: what stands near it decides itself "
            "by little.",
            key(("labels", "objects"), ("pictures without", "misses")),
            tag("div", [_histogram(*one) for one in page.histograms.items()], class_="plots"),
        ),
        section(
            "Most unsure first",
            _order(page),
            tag(
                "div",
                [_card(number, one) for number, one in enumerate(page.cards, 1)],
                class_="cards two" if page.compared else "cards",
            ),
        ),
        tag("footer", f"Written by samforge {about['samforge']}. This page loads nothing."),
    )
    return joined(Markup("<!doctype html>\n"), tag("html", head, tag("body", body), lang="en"))


def _order(page: ReviewPage) -> str:
    first = "By disagreement with the other run, then by doubt. " if page.compared else ""
    return (
        f"{first}Doubt is 1 where a score stands at its threshold, and 0 where it could not be "
        f"further off. {len(page.cards):,} of {page.pictures:,} pictures are shown; ranking.jsonl "
        "beside this page lists all."
    )


def _card(number: int, card: Card) -> Markup:
    one = card.ranked
    said = [f"doubt {one.doubt:.2f}"]
    if one.disagreement is not None:
        said.insert(0, f"disagreement {one.disagreement:.2f}")
    said.append(f"{one.objects} {'label' if one.objects == 1 else 'labels'}")
    if one.cut_off:
        said.append(f"{one.cut_off} left out by the limit")
    near = f"nearest: {one.near} {one.near_score:.3f}" if one.near else "nothing near a threshold"
    names = ("this run", "the other run") if len(card.images) > 1 else ("",)
    sides = [
        tag(
            "div",
            tag("span", name) if name else None,
            tag("img", src=image, alt=f"{one.name} with its labels {name}", loading="lazy"),
        )
        for name, image in zip(names, card.images, strict=True)
    ]
    caption = tag(
        "figcaption",
        tag("b", f"{number}. {one.name}"),
        tag("span", " · ".join(said)),
        tag("span", near),
    )
    return tag("figure", tag("div", sides, class_="sides"), caption)


def _histogram(name: str, counts: ScoreHistogram) -> Markup:
    highest = max(1, *counts.objects, *counts.misses)
    step = _WIDTH / BINS
    bars = []
    for number, (objects, misses) in enumerate(zip(counts.objects, counts.misses, strict=True)):
        for kind, count, offset in (("objects", objects, 0.0), ("misses", misses, step / 2)):
            high = (_HEIGHT - 14) * count / highest
            if count:
                high = max(high, 1.5)
            bars.append(
                tag(
                    "rect",
                    tag("title", f"{number / BINS:.2f} to {(number + 1) / BINS:.2f}: {count}"),
                    x=round(number * step + offset, 2),
                    y=round(_HEIGHT - high, 2),
                    width=round(step / 2 - 1, 2),
                    height=round(high, 2),
                    class_=kind,
                )
            )
    at = round(counts.threshold * _WIDTH, 2)
    svg = tag(
        "svg",
        bars,
        tag("line", x1=0, x2=_WIDTH, y1=_HEIGHT, y2=_HEIGHT, class_="axis"),
        tag("line", x1=at, x2=at, y1=0, y2=_HEIGHT, class_="threshold"),
        [
            tag("text", label, x=x, y=_HEIGHT + 14, text_anchor=anchor)
            for label, x, anchor in (("0", 0, "start"), ("0.5", _WIDTH / 2, "middle"),
                                     ("1", _WIDTH, "end"))
        ],
        viewBox=f"0 0 {_WIDTH} {_HEIGHT + _FOOT}",
        role="img",
        aria_label=f"Scores of {name}",
    )  # fmt: skip
    labels, without = sum(counts.objects), sum(counts.misses)
    return tag(
        "figure",
        tag("figcaption", tag("b", name), tag("span", f"{labels:,} labels, {without:,} without")),
        svg,
    )
