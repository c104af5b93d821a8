"""Ontologies: what they may say, and what becomes of what their phrases found, case by case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hand_made import box, detections, drawn

from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.labelling import LabelClass, Ontology
from samforge.labelling.resolve import resolve

TOML = """
threshold = 0.4
overlap = "order"

[[classes]]
name = "car"
phrases = ["car", "automobile"]
threshold = 0.6
negatives = ["toy car"]

[[classes]]
name = "person"
min_area = 30

[[classes.exemplars]]
picture = "a/1.jpg"
boxes_xyxy = [[10, 20, 30.5, 40]]
"""


def ontology(*texts: str, **settings: object) -> Ontology:
    return Ontology.from_texts(texts, **settings)


def outcome(found: Detections, wanted: Ontology) -> list[tuple[int, str, float, int]]:
    """Class, phrase, score and pixels of each object."""
    resolved = resolve(found, wanted)
    return [
        (int(number), label, round(float(score), 3), int(area))
        for number, label, score, area in zip(
            resolved.classes,
            resolved.found.labels,
            resolved.found.scores,
            resolved.found.areas,
            strict=True,
        )
    ]


def test_a_file_says_it_all(tmp_path: Path) -> None:
    path = tmp_path / "ontology.toml"
    path.write_text(TOML)
    read = Ontology.from_toml(path)
    car, person = read.classes
    assert (car.sought, person.sought) == (("car", "automobile"), ("person",))
    assert read.phrases == {"car": 0.6, "automobile": 0.6, "person": 0.4, "toy car": 0.6}
    assert (read.min_area_of(car), read.min_area_of(person)) == (1, 30)
    ((number, shown),) = read.exemplar_pictures["a/1.jpg"]
    assert (number, shown.boxes_xyxy) == (1, ((10, 20, 30.5, 40),))
    assert read.digest != ontology("car=car,automobile", "person").digest


def test_the_command_line_says_it_too() -> None:
    short = ontology("car=car, automobile", "person")
    assert short.names == ("car", "person")
    assert list(short.phrases) == ["car", "automobile", "person"]
    assert short.with_settings(threshold=0.3, overlap=None).threshold == 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thresold = 0.4\n[[classes]]\nname = 'a'", "did you mean 'threshold'"),
        ("[[classes]]\nname = 'a'\nphrase = 'b'", r"classes\[0\] has keys that are unknown"),
        ("classes = []", "at least one class"),
        ("[[classes]]\nname = 'a'\n[[classes]]\nname = 'a'", "Two classes have the name 'a'"),
        (
            "[[classes]]\nname = 'a'\nphrases = ['Red  dog']\n[[classes]]\nname = 'red dog'",
            "'a' and 'red dog' have one phrase",
        ),
        ("threshold = 1.5\n[[classes]]\nname = 'a'", "threshold is 0 to 1, got 1.5"),
        ("overlap = 'best'\n[[classes]]\nname = 'a'", "one of score, order, both"),
        ("[[classes]]\nname = 'a'\nnegatives = ['A ']", "both seeks and rules out 'a'"),
        ("[[classes]]\nname = 'a'\nphrases = [' ']", "empty phrase"),
        ("exclusive = true\noverlap = 'both'\n[[classes]]\nname = 'a'", "leaves a pixel to one"),
        ("[[classes]\nname = 'a'", "cannot be read"),
    ],
)
def test_what_it_may_not_say(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SettingError, match=message) as told:
        Ontology.from_toml(path)
    assert "bad.toml" in str(told.value)


@pytest.mark.parametrize("text", ["", "=a", "a=", "a=b,,c"])
def test_texts_that_are_no_class(text: str) -> None:
    with pytest.raises(SettingError, match="A class is 'name' or"):
        Ontology.from_texts([text])


def test_synonyms_find_one_object_once() -> None:
    found = detections(
        ("car", 0.7, box(0, 0, 10, 10)),
        ("automobile", 0.9, box(0, 0, 10, 9)),
        ("car", 0.6, box(12, 0, 20, 10)),
    )
    assert outcome(found, ontology("car=car,automobile")) == [
        (0, "automobile", 0.9, 90),
        (0, "car", 0.6, 80),
    ]
    assert len(outcome(found, ontology("car=car,automobile", nms_within=None))) == 3


def test_the_limit_itself_counts() -> None:
    # IoU of 50 and 100 pixels, one inside the other: exactly a half.
    found = detections(("a", 0.9, box(0, 0, 10, 10)), ("a", 0.8, box(0, 0, 10, 5)))
    assert len(outcome(found, ontology("a", nms_within=0.5))) == 1
    assert len(outcome(found, ontology("a", nms_within=0.500001))) == 2


@pytest.mark.parametrize(
    ("overlap", "kept"),
    [
        ("score", [(1, "lorry", 0.9, 90)]),
        ("order", [(0, "car", 0.6, 100)]),
        ("both", [(0, "car", 0.6, 100), (1, "lorry", 0.9, 90)]),
    ],
)
def test_two_classes_claim_one_thing(overlap: str, kept: list[object]) -> None:
    found = detections(("car", 0.6, box(0, 0, 10, 10)), ("lorry", 0.9, box(0, 0, 10, 9)))
    assert outcome(found, ontology("car", "lorry", overlap=overlap)) == kept


def test_of_equal_scores_the_first_class_wins() -> None:
    found = detections(("b", 0.5, box(0, 0, 10, 10)), ("a", 0.5, box(0, 0, 10, 10)))
    assert outcome(found, ontology("a", "b")) == [(0, "a", 0.5, 100)]


def test_what_is_suppressed_suppresses_nothing() -> None:
    # A chain: the first takes the second, which would have taken the third.
    found = detections(
        ("a", 0.9, box(0, 0, 10, 10)),
        ("a", 0.8, box(3, 0, 13, 10)),
        ("a", 0.7, box(6, 0, 16, 10)),
    )
    assert [row[2] for row in outcome(found, ontology("a", nms_within=0.5))] == [0.9, 0.7]


def test_a_negative_takes_what_it_claims_better() -> None:
    wanted = Ontology(
        classes=(
            LabelClass(name="car", negatives=("toy car",)),
            LabelClass(name="toy", phrases=("toy car",)),
            LabelClass(name="wheel"),
        ),
        nms_across=None,
    )
    found = detections(
        ("car", 0.6, box(0, 0, 10, 10)),
        ("toy car", 0.7, box(0, 0, 10, 9)),  # claims the first car
        ("car", 0.8, box(10, 10, 20, 20)),
        ("toy car", 0.7, box(10, 10, 20, 19)),  # claims it less
        ("wheel", 0.6, box(0, 0, 10, 10)),  # of no class that it rules out
    )
    assert outcome(found, wanted) == [
        (0, "car", 0.8, 100),
        (1, "toy car", 0.7, 90),
        (1, "toy car", 0.7, 90),
        (2, "wheel", 0.6, 100),
    ]


def test_a_negative_of_its_own_is_no_object() -> None:
    wanted = Ontology(classes=(LabelClass(name="car", negatives=("shadow",)),))
    found = detections(("car", 0.9, box(0, 0, 5, 5)), ("shadow", 0.9, box(9, 9, 12, 12)))
    assert outcome(found, wanted) == [(0, "car", 0.9, 25)]


def test_small_objects_go_first() -> None:
    wanted = Ontology(
        classes=(LabelClass(name="a", min_area=26), LabelClass(name="b")), min_area=25
    )
    found = detections(
        ("a", 0.9, box(0, 0, 5, 5)), ("b", 0.8, box(0, 0, 5, 5)), ("b", 0.7, box(9, 9, 13, 15))
    )
    assert outcome(found, wanted) == [(1, "b", 0.8, 25)]


def test_a_ring_and_what_is_in_its_hole() -> None:
    ring = drawn("""
        ######
        #....#
        #....#
        #....#
        #....#
        ######
    """)
    inside = np.zeros_like(ring)
    inside[1:5, 1:5] = True
    found = detections(("ring", 0.6, ring), ("disc", 0.9, inside))
    both = outcome(found, ontology("ring", "disc", nms_across=0.01, exclusive=True))
    assert both == [(0, "ring", 0.6, 20), (1, "disc", 0.9, 16)]


def test_pixels_go_to_the_winner() -> None:
    left, right = box(0, 0, 10, 4, side=16), box(8, 0, 16, 4, side=16)
    found = detections(("a", 0.6, left), ("b", 0.9, right))
    by_score = resolve(found, ontology("a", "b", exclusive=True))
    assert by_score.found.areas.tolist() == [32, 32]
    assert np.array_equal(by_score.found.masks[0], left & ~right)
    by_order = resolve(found, ontology("a", "b", exclusive=True, overlap="order"))
    assert by_order.found.areas.tolist() == [40, 24]
    assert np.array_equal(by_order.found.masks[1], right & ~left)
    # Who is too small to stay takes nothing; what is left of a loser may be too small, too.
    assert outcome(found, ontology("a", "b", exclusive=True, min_area=33)) == [(0, "a", 0.6, 40)]
    wide = detections(("a", 0.6, left), ("b", 0.9, box(1, 0, 16, 4, side=16)))
    kept = outcome(wide, ontology("a", "b", exclusive=True, min_area=10, nms_across=None))
    assert kept == [(1, "b", 0.9, 60)]


def test_a_crowd_keeps_its_neighbours() -> None:
    # 100 boxes of 4 x 4 at a distance of 2: neighbours share a half of each, an IoU of a third.
    rows = [
        ("person", 0.5 + 0.001 * (10 * y + x), box(2 * x, 2 * y, 2 * x + 4, 2 * y + 4, side=24))
        for y in range(10)
        for x in range(10)
    ]
    kept = outcome(detections(*rows), ontology("person"))
    assert len(kept) == 100
    assert [row[2] for row in kept] == sorted((row[2] for row in kept), reverse=True)
    # From a third on, a chessboard of them stays: corners share a seventh.
    assert len(outcome(detections(*rows), ontology("person", nms_within=1 / 3))) == 50


def test_nothing_found() -> None:
    nothing = Detections.empty((4, 4), {"a": 0.2})
    resolved = resolve(nothing, ontology("a"))
    assert (len(resolved.found), resolved.found.best_scores) == (0, {"a": 0.2})


def test_phrases_are_text() -> None:
    """Bytes of a command line that are no UTF-8 would end the run where they are encoded."""
    with pytest.raises(SettingError, match="no UTF-8"):
        Ontology.from_texts(["star=caf\udce9"])


def test_each_format_is_written_once() -> None:
    from samforge.labelling import LabelSettings

    assert LabelSettings(formats=("coco", "yolo", "coco")).formats == ("coco", "yolo")
