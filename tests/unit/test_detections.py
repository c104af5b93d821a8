import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samforge.core.detections import Detections
from samforge.core.errors import MissingExtra, SettingError, ShapeError

NAMES = tuple(Detections.__dataclass_fields__)


def three() -> Detections:
    masks = np.zeros((3, 4, 6), np.bool_)
    masks[0, 1:3, 2:5] = True
    masks[1, 0, 0] = True
    return Detections(
        masks=masks,
        boxes_xyxy=np.array([[2, 1, 5, 3], [0, 0, 1, 1], [1.5, 0.5, 2, 2]], np.float32),
        scores=np.array([0.75, 0.5, 0.625], np.float32),
        labels=("circle", "circle", "star"),
        size_hw=(4, 6),
        best_scores={"circle": 0.75, "moon": 0.125, "star": 0.625},
    )


def test_areas_and_length() -> None:
    assert len(three()) == 3
    assert three().areas.tolist() == [6, 1, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"masks": np.zeros((3, 4, 5), np.bool_)},
            r"masks as bool \(3, 4, 6\), got bool \(3, 4, 5\)",
        ),
        ({"masks": np.zeros((3, 4, 6), np.uint8)}, r"got uint8"),
        ({"boxes_xyxy": np.zeros((3, 4))}, r"boxes_xyxy as float32 \(3, 4\), got float64"),
        ({"scores": np.zeros(2, np.float32)}, r"scores as float32 \(3,\), got float32 \(2,\)"),
        ({"size_hw": (0, 6)}, r"at least 1, got \(0, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    good = three()
    fields = {name: getattr(good, name) for name in Detections.__dataclass_fields__}
    with pytest.raises(ShapeError, match=words):
        Detections(**{**fields, **change})


def test_indexing_keeps_best_scores() -> None:
    found = three()
    assert found[2].labels == ("star",)
    assert found[-1].scores.tolist() == [0.625]
    assert found[[2, 0]].labels == ("star", "circle")
    assert found[1:].areas.tolist() == [1, 0]
    assert found[np.array([True, False, True])].scores.tolist() == [0.75, 0.625]
    assert len(found[[]]) == 0
    assert found[0].best_scores == found.best_scores
    assert [len(one) for one in found] == [1, 1, 1]
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(IndexError):
        found[[True, False]]


def test_filter() -> None:
    assert three().filter(min_score=0.625).scores.tolist() == [0.75, 0.625]
    assert three().filter(label="circle", min_score=0.6).areas.tolist() == [6]
    assert three().filter(min_area=1).labels == ("circle", "circle")
    assert len(three().filter(label="absent")) == 0
    assert len(Detections.empty((2, 2)).filter(label="x", min_area=1)) == 0


def test_the_best_over_all_phrases() -> None:
    best = three().best(2)
    assert best.scores.tolist() == [0.75, 0.625]
    assert best.labels == ("circle", "star")
    assert (best.cut_off, best.best(1).cut_off) == (1, 2)
    assert best[:1].cut_off == 1
    assert Detections.concatenate([best, three().best(1)]).cut_off == 3
    assert three().best(3).cut_off == three().best(None).cut_off == 0
    assert json.loads(json.dumps(best.to_dict()))["cut_off"] == 1


def test_masks_may_be_packed_already() -> None:
    found = three()
    assert Detections(**{name: getattr(found, name) for name in NAMES}).masks is found.masks
    assert found.compact().masks == found.masks
    with pytest.raises(ShapeError, match=r"masks of \(3, 4, 6\), got masks of \(2, 4, 6\)"):
        replace(found, masks=found.masks[:2])


def test_empty_keeps_what_was_seen() -> None:
    nothing = Detections.empty((5, 7), {"star": 0.25})
    assert nothing.masks.shape == (0, 5, 7)
    assert nothing.best_scores == {"star": 0.25}
    assert nothing.to_coco() == []


def test_concatenate() -> None:
    joined = Detections.concatenate([three(), Detections.empty((4, 6), {"moon": 0.5}), three()])
    assert joined.labels == ("circle", "circle", "star") * 2
    assert joined.areas.tolist() == [6, 1, 0, 6, 1, 0]
    assert joined.best_scores == {"circle": 0.75, "moon": 0.5, "star": 0.625}
    with pytest.raises(ShapeError, match=r"\(4, 6\), \(5, 5\)"):
        Detections.concatenate([three(), Detections.empty((5, 5))])
    with pytest.raises(ShapeError, match="got sizes"):
        Detections.concatenate([])


def test_coco_is_json_with_every_field() -> None:
    first, second, third = json.loads(json.dumps(three().to_coco(image_id=7)))
    assert first["image_id"] == 7
    assert first["bbox"] == [2.0, 1.0, 3.0, 2.0]
    assert first["area"] == 6
    assert first["score"] == 0.75
    assert first["category_name"] == "circle"
    assert first["iscrowd"] == 0
    assert first["segmentation"]["size"] == [4, 6]
    assert isinstance(first["segmentation"]["counts"], str)
    # Numbered by phrase, absent ones too, so that every image of a call numbers alike.
    assert (first["category_id"], second["category_id"], third["category_id"]) == (1, 1, 3)
    assert three().to_coco(category_ids={"circle": 9, "star": 4})[2]["category_id"] == 4
    with pytest.raises(SettingError, match=r"not \['star'\]"):
        three().to_coco(category_ids={"circle": 1})


@settings(max_examples=60, deadline=None)
@given(
    masks=hnp.arrays(
        np.bool_,
        st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 20)),
    ),
    data=st.data(),
)
def test_coco_round_trip(masks: np.ndarray, data: st.DataObject) -> None:
    count = len(masks)
    corners = data.draw(hnp.arrays(np.float32, (count, 4), elements=st.integers(0, 64)))
    before = Detections(
        masks=masks,
        boxes_xyxy=corners,
        scores=np.linspace(1, 0.5, count, dtype=np.float32),
        labels=tuple(data.draw(st.lists(st.text(), min_size=count, max_size=count))),
        size_hw=masks.shape[1:],
    )
    after = Detections.from_coco(json.loads(json.dumps(before.to_coco())), before.size_hw)
    assert np.array_equal(after.masks, before.masks)
    assert np.array_equal(after.boxes_xyxy, before.boxes_xyxy)
    assert np.array_equal(after.scores, before.scores)
    assert after.labels == before.labels


def test_from_coco_reads_the_other_forms() -> None:
    polygon = {"category_id": 3, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}
    plain = {"category_name": "x", "segmentation": {"size": [4, 6], "counts": [4, 2, 18]}}
    found = Detections.from_coco([polygon, plain], (4, 6))
    assert found.labels == ("3", "x")
    assert found.scores.tolist() == [1.0, 1.0]
    assert found.best_scores == {"3": 1.0, "x": 1.0}
    assert found.boxes_xyxy.tolist() == [[1, 1, 4, 3], [1, 0, 2, 2]]
    assert found.areas.tolist() == [6, 2]
    assert found.masks[1][:2, 1].tolist() == [True, True]  # RLE runs down the columns
    with pytest.raises(ShapeError, match=r"\(4, 6\) \(H, W\), the image is \(6, 4\)"):
        Detections.from_coco([plain], (6, 4))
    with pytest.raises(SettingError, match="annotation 0"):
        Detections.from_coco([{"bbox": [0, 0, 1, 1]}], (4, 6))


@pytest.mark.parametrize(
    "segmentation",
    [{"size": [4, 6]}, {}, "counts", 7, {"size": [4, 6], "counts": [4, 2]}],
)
def test_malformed_segmentation(segmentation: object) -> None:
    with pytest.raises(SettingError, match=r"RLE"):
        Detections.from_coco([{"category_name": "x", "segmentation": segmentation}], (4, 6))


# supervision tells at import that it works without OpenCV; that is what we want.
@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_to_supervision() -> None:
    theirs = three().to_supervision()
    assert theirs.xyxy.tolist() == three().boxes_xyxy.tolist()
    assert theirs.mask.sum(axis=(1, 2)).tolist() == [6, 1, 0]
    assert theirs.confidence.tolist() == [0.75, 0.5, 0.625]
    assert theirs.class_id.tolist() == [0, 0, 2]
    assert theirs["class_name"].tolist() == ["circle", "circle", "star"]
    assert len(Detections.empty((2, 3)).to_supervision()) == 0
    compact = three().to_supervision(compact=True)
    assert compact.mask.area.tolist() == [6, 1, 0]
    assert np.array_equal(np.asarray(compact.mask), theirs.mask)
    assert len(Detections.empty((2, 3)).to_supervision(compact=True)) == 0


def test_missing_supervision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(MissingExtra, match=r"pip install 'samforge\[supervision\]'"):
        three().to_supervision()


def test_summary_has_no_masks() -> None:
    summary = json.loads(json.dumps(three().to_dict()))
    assert summary["count"] == 3
    assert summary["size_hw"] == [4, 6]
    assert summary["best_scores"]["moon"] == 0.125
    assert summary["detections"][0] == {
        "label": "circle",
        "score": 0.75,
        "box_xyxy": [2.0, 1.0, 5.0, 3.0],
        "area": 6,
    }


def test_ids_go_with_their_detections() -> None:
    found = replace(three(), ids=np.array([4, 7, 9]))
    assert found[[2, 0]].ids.tolist() == [9, 4]
    assert found.filter(label="circle").ids.tolist() == [4, 7]
    assert [one["id"] for one in found.to_dict()["detections"]] == [4, 7, 9]
    assert "id" not in three().to_dict()["detections"][0]
    assert three().ids is None
    joined = Detections.concatenate([found[:1], found[2:], Detections.empty((4, 6))])
    assert joined.ids.tolist() == [4, 9]
    with pytest.raises(ShapeError, match="Some of the detections have ids and others have none"):
        Detections.concatenate([found, three()])
    with pytest.raises(ShapeError, match=r"ids as int64 \(3,\), got int64 \(2,\)"):
        replace(three(), ids=np.array([1, 2]))


def test_ids_are_supervisions_trackers() -> None:
    pytest.importorskip("supervision")
    assert replace(three(), ids=np.array([4, 7, 9])).to_supervision().tracker_id.tolist() == [
        4,
        7,
        9,
    ]
    assert three().to_supervision().tracker_id is None
