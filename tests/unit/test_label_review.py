"""Reviews: which pictures come first, what the page shows, and that it loads nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hand_made import box
from PIL import Image

import samforge
from samforge.core.errors import SettingError
from samforge.core.masks import Masks
from samforge.formats import LabelledObject, LabelledPicture
from samforge.labelling import Ontology, OtherRun, label, review_labels
from samforge.labelling.doubt import Doubts, disagreement, doubt_of

ONTOLOGY = Ontology.from_texts(["car=car,automobile", "person"], threshold=0.4)


def picture(
    name: str, *objects: tuple[int, float, tuple[int, int, int, int]], **best: float
) -> LabelledPicture:
    made = []
    for category, score, edges in objects:
        masks = Masks.from_dense(box(*edges)[None])
        left, top, right, bottom = edges
        made.append(
            LabelledObject(
                category=category,
                phrase=("car", "person")[category],
                score=score,
                bbox=(left, top, right - left, bottom - top),
                area=int(masks.areas[0]),
                counts=masks.rle(0)["counts"],
            )
        )
    return LabelledPicture(
        id=len(name),
        name=name,
        uri=name,
        sha256="",
        size_hw=(20, 20),
        objects=tuple(made),
        best_scores=best,
    )


@pytest.mark.parametrize(
    ("score", "threshold", "doubt"),
    [(0.4, 0.4, 1.0), (0.7, 0.4, 0.5), (1.0, 0.4, 0.0), (0.1, 0.4, 0.25), (0.0, 0.4, 0.0),
     (1.0, 1.0, 1.0), (0.0, 0.0, 1.0)],
)  # fmt: skip
def test_doubt_is_nearness_to_the_threshold(score: float, threshold: float, doubt: float) -> None:
    assert doubt_of(score, threshold) == pytest.approx(doubt)


def test_the_most_unsure_come_first() -> None:
    doubts = Doubts(ONTOLOGY)
    doubts.add(picture("sure", (0, 0.99, (0, 0, 5, 5)), car=0.99, person=0.01))
    doubts.add(picture("nearly found", car=0.02, automobile=0.39, person=0.1))
    doubts.add(picture("just found", (1, 0.46, (0, 0, 5, 5)), car=0.1, person=0.46))
    doubts.add(picture("no phrase of a class", shadow=0.4))
    ranked = doubts.most_unsure_first()
    assert [(one.name, one.near, one.near_score) for one in ranked] == [
        ("nearly found", "automobile", 0.39),
        ("just found", "person", 0.46),
        ("sure", "person", 0.01),
        ("no phrase of a class", "", 0.0),
    ]
    assert [one.doubt for one in ranked] == pytest.approx([0.975, 0.9, 0.025, 0.0])


def test_histograms_count_labels_and_near_misses() -> None:
    doubts = Doubts(ONTOLOGY)
    doubts.add(picture("a", (0, 0.99, (0, 0, 5, 5)), (0, 1.0, (9, 9, 12, 12)), car=1.0, person=0.3))
    doubts.add(picture("b", car=0.02, automobile=0.39, person=0.31))
    car, person = doubts.histograms["car"], doubts.histograms["person"]
    assert {i: n for i, n in enumerate(car.objects) if n} == {19: 2}
    assert {i: n for i, n in enumerate(car.misses) if n} == {7: 1}  # the best of its phrases
    assert {i: n for i, n in enumerate(person.misses) if n} == {6: 2}
    assert (sum(person.objects), car.threshold) == (0, 0.4)


def test_disagreement_of_two_runs() -> None:
    one = picture("p", (0, 0.9, (0, 0, 10, 10)), (1, 0.9, (10, 10, 20, 20)))
    assert disagreement(one, one) == 0
    assert disagreement(picture("p"), picture("p")) == 0
    assert disagreement(one, picture("p")) == 1
    # The same masks under the other class's name.
    swapped = picture("p", (1, 0.9, (0, 0, 10, 10)), (0, 0.9, (10, 10, 20, 20)))
    assert disagreement(one, swapped) == 1
    # One of two objects at an IoU of 0.8: 1 - 2 * 0.8 / 3.
    partly = picture("p", (0, 0.9, (0, 0, 10, 8)))
    assert disagreement(one, partly) == pytest.approx(1 - 1.6 / 3)
    # Below an IoU of a half they are different things.
    assert disagreement(one, picture("p", (0, 0.9, (0, 0, 10, 4)))) == 1


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.images += [str(value) for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


EVIL = "<script>alert(1)</script>&.png"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(["one.png", "two.png", EVIL.replace("/", "_")]):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def test_the_page_shows_pictures_and_loads_nothing(
    fake_bundle: Callable[..., samforge.Bundle], pictures: Path, tmp_path: Path
) -> None:
    wanted = Ontology.from_texts(["circle", "<b>star</b>=star"], threshold=0.2)
    bundles = [fake_bundle("one"), fake_bundle("two", precision="int8")]
    outs = [tmp_path / "out one", tmp_path / "out two"]
    for bundle, out in zip(bundles, outs, strict=True):
        label(bundle, pictures, wanted, out)
    result = review_labels(bundles[0], pictures, wanted, outs[0], shown=2)
    assert result.page == outs[0] / "review" / "index.html"
    page = Page(result.page.read_text())
    assert len(page.images) == 2
    assert all(one.startswith("data:image/jpeg;base64,") for one in page.images)
    assert not page.tags & {"script", "link", "iframe", "b>star</b"}
    lines = [json.loads(line) for line in result.ranking.read_text().splitlines()]
    assert [line["name"] for line in lines] == [one.name for one in result.pictures]
    assert len(lines) == 3
    assert lines == sorted(lines, key=lambda line: -line["doubt"])

    compared = review_labels(bundles[0], pictures, wanted, outs[0], against=outs[1])
    page = Page(compared.page.read_text())
    assert len(page.images) == 6
    assert any(EVIL.replace("/", "_") in word for word in page.words)  # as text
    assert {one.disagreement for one in compared.pictures} == {0.0}  # both have the same graphs


def test_another_picture_of_the_same_name_is_not_compared(
    fake_bundle: Callable[..., samforge.Bundle], pictures: Path, tmp_path: Path
) -> None:
    bundle, wanted = fake_bundle("one"), Ontology.from_texts(["circle"], threshold=0.2)
    label(bundle, pictures, wanted, tmp_path / "out")
    others = Path(shutil.copytree(pictures, tmp_path / "others"))
    noise = np.random.default_rng(9).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(others / "two.png")
    label(bundle, others, wanted, tmp_path / "other")
    found = review_labels(bundle, pictures, wanted, tmp_path / "out", against=tmp_path / "other")
    compared = {one.name: one.disagreement for one in found.pictures}
    assert compared.pop("two.png") is None
    assert set(compared.values()) == {0.0}


def test_what_cannot_be_reviewed(
    fake_bundle: Callable[..., samforge.Bundle], pictures: Path, tmp_path: Path
) -> None:
    bundle, wanted = fake_bundle("one"), Ontology.from_texts(["star"])
    with pytest.raises(SettingError, match=r"holds no labels.*Run samforge label first"):
        review_labels(bundle, pictures, wanted, tmp_path / "none")
    label(bundle, pictures, wanted, tmp_path / "out")
    with pytest.raises(OtherRun):
        review_labels(bundle, pictures, Ontology.from_texts(["circle"]), tmp_path / "out")
    label(bundle, pictures, Ontology.from_texts(["circle"]), tmp_path / "other")
    with pytest.raises(SettingError, match=r"has the classes circle, and this ontology star"):
        review_labels(bundle, pictures, wanted, tmp_path / "out", against=tmp_path / "other")
