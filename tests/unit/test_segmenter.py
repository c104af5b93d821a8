import threading
from pathlib import Path

import numpy as np
import pytest
from computed import (
    PREDICTIONS,
    PYRAMID,
    SIZE,
    TEXT,
    WORDS,
    Rig,
)

from samforge.core.errors import PromptError, PromptWarning, SettingError, ShapeError
from samforge.core.images import ImageSpec
from samforge.core.session import PartSpec, Session, TensorSpec
from samforge.core.timing import Timings
from samforge.media import read_image
from samforge.runtime import (
    EncodedImage,
    PhraseTokenizer,
    segmenter_from_sessions,
)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


IMAGE = np.full((20, 40, 3), 255, np.uint8)


def logistic(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_fakes_are_sessions(rig: Rig) -> None:
    assert all(isinstance(session, Session) for session in rig.sessions.values())


def test_one_phrase(rig: Rig) -> None:
    found = rig.segmenter.predict(IMAGE, text="star")
    score = logistic(7 - 4) * logistic(10)
    assert found.labels == ("star",)
    assert found.scores == pytest.approx([score])
    assert found.best_scores == pytest.approx({"star": score})
    assert found.boxes_xyxy.tolist() == [[10, 10, 30, 20]]
    expected = np.zeros((20, 40), np.bool_)
    expected[10:, 10:30] = True
    expected[10, [10, 29]] = False  # bilinear: 0.7 down times 0.6 across
    assert np.array_equal(found.masks[0], expected)
    assert rig.calls("vision")[0]["images"].max() == 1.0
    assert rig.calls("text")[0]["input_ids"].tolist() == [[1, 7, 2, 0, 0, 0, 0, 0]]


def test_several_phrases_are_one_call_in_their_order(rig: Rig) -> None:
    found = rig.segmenter.predict(IMAGE, text=["star", "red", "circle", "star"])
    assert len(rig.calls("text")) == len(rig.calls("detector")) == 1
    assert found.labels == ("star", "circle")  # red scores exactly half of its presence
    assert list(found.best_scores) == ["star", "red", "circle"]
    assert found.best_scores["red"] == pytest.approx(0.5 * logistic(10))
    text = rig.calls("detector")[0]["text_features"]
    assert text[:, 1, 0].tolist() == [7, 4, 6]


def test_prompt_batch_splits_without_changing_the_answer(rig: Rig, tmp_path: Path) -> None:
    split = Rig(tmp_path, prompt_batch=2)
    phrases = ["star", "red", "circle"]
    found, whole = (one.segmenter.predict(IMAGE, text=phrases) for one in (split, rig))
    assert [len(call["text_mask"]) for call in split.calls("detector")] == [2, 1]
    assert found.labels == whole.labels
    assert found.scores.tolist() == whole.scores.tolist()
    assert np.array_equal(found.masks, whole.masks)
    assert found.best_scores == whole.best_scores


def test_masks_of_one_call_stay_within_512_mib(rig: Rig, tmp_path: Path) -> None:
    detector = rig.sessions["detector"]
    outputs = list(PREDICTIONS)
    outputs[2] = TensorSpec(
        name="pred_masks", dtype="float32", shape=("batch", "prompts", 200, 1024, 512)
    )
    detector.spec = PartSpec(
        name="detector", inputs=detector.spec.inputs, outputs=tuple(outputs)
    )  # 400 MiB a phrase
    rig.segmenter.predict(IMAGE, text=["star", "red"])
    assert [len(call["text_mask"]) for call in rig.calls("detector")] == [1, 1]


def test_text_runs_once_for_a_phrase(rig: Rig) -> None:
    timings = Timings()
    rig.segmenter.predict(IMAGE, text="star", timings=timings)
    rig.segmenter.predict(IMAGE, text=["star", "red"])
    assert [call["input_ids"][:, 1].tolist() for call in rig.calls("text")] == [[7], [4]]
    again = Timings()
    rig.segmenter.predict(IMAGE, text=["red", "star"], timings=again)
    assert len(rig.calls("text")) == 2
    assert rig.calls("detector")[-1]["text_features"][:, 1, 0].tolist() == [4, 7]
    stages = {stage.stage: stage for stage in again.stages()}
    assert (stages["text"].calls, stages["text"].milliseconds) == (0, 0.0)
    assert stages["text"].processor == "test processor"


def test_the_cache_forgets_the_least_recent(rig: Rig) -> None:
    text = rig.segmenter._executor._text  # type: ignore[attr-defined]
    text._kept = 2
    for phrase in ("star", "red", "star", "blue", "star", "red"):
        rig.segmenter.predict(IMAGE, text=phrase)
    assert [call["input_ids"][0, 1] for call in rig.calls("text")] == [7, 4, 5, 4]


def test_stages(rig: Rig) -> None:
    timings = Timings()
    encoded = rig.segmenter.encode(IMAGE, timings=timings)
    rig.segmenter.predict(encoded, text="star", timings=timings)
    named = {stage.stage: stage.processor for stage in timings.stages()}
    assert named == {
        "decode": "CPU",
        "preprocess": "CPU",
        "vision": "test processor",
        "text": "test processor",
        "detector": "test processor",
        "post-process": "CPU",
    }


def test_an_encoded_image_is_encoded_once(rig: Rig) -> None:
    encoded = rig.segmenter.encode(IMAGE)
    assert encoded.size_hw == (20, 40)
    first = rig.segmenter.predict(encoded, text="star")
    second = rig.segmenter.predict(encoded, text="star", mask_threshold=0.9)
    assert len(rig.calls("vision")) == 1
    assert first.masks.shape == second.masks.shape == (1, 20, 40)


def test_list_of_images(rig: Rig) -> None:
    encoded = rig.segmenter.encode(IMAGE)
    found = rig.segmenter.predict([IMAGE[:, :10], encoded], text="star")
    assert [one.size_hw for one in found] == [(20, 10), (20, 40)]
    assert [one.labels for one in found] == [("star",), ("star",)]
    assert len(rig.calls("text")) == 1
    assert rig.segmenter.predict([], text="star") == []


def test_encoded_at_another_size_is_refused(rig: Rig) -> None:
    good = rig.segmenter.encode(IMAGE)
    other = EncodedImage(features=good.features, size_hw=good.size_hw, image_size=1008)
    with pytest.raises(ShapeError, match=r"size of 16, the image was encoded at 1008"):
        rig.segmenter.predict(other, text="star")


def test_boxes_alone_ask_for_visual(rig: Rig) -> None:
    found = rig.segmenter.predict(IMAGE, boxes_xyxy=[[10, 5, 30, 15], [0, 0, 40, 20]])
    call = rig.calls("detector_boxes")[0]
    assert call["boxes_cxcywh"].tolist() == [[[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]]]
    assert call["box_labels"].tolist() == [[[1, 1]]]
    assert found.labels == ("visual",)
    assert rig.calls("text")[0]["input_ids"][0, 1] == WORDS.index("visual")


def test_boxes_with_a_phrase(rig: Rig) -> None:
    found = rig.segmenter.predict(
        IMAGE, text="star", boxes_xyxy=np.array([[4, 4, 8, 8], [0, 0, 2, 2]]), box_labels=[0, 1]
    )
    call = rig.calls("detector_boxes")[0]
    assert call["box_labels"].tolist() == [[[0, 1]]]
    assert call["boxes_cxcywh"][0, 0, 0] == pytest.approx([6 / 40, 6 / 20, 4 / 40, 4 / 20])
    assert found.labels == ("star",)
    assert not rig.calls("detector")


def test_fixed_slots_are_padded(rig: Rig) -> None:
    session = rig.sessions["detector_boxes"]
    fixed = (
        TensorSpec(name="boxes_cxcywh", dtype="float32", shape=("batch", "prompts", 3, 4)),
        TensorSpec(name="box_labels", dtype="int64", shape=("batch", "prompts", 3)),
    )
    session.spec = PartSpec(
        name="detector_boxes", inputs=(*PYRAMID, *TEXT, *fixed), outputs=PREDICTIONS
    )
    rig.segmenter.predict(IMAGE, boxes_xyxy=[[0, 0, 4, 4]])
    assert rig.calls("detector_boxes")[0]["box_labels"].tolist() == [[[1, -10, -10]]]
    with pytest.raises(PromptError, match="at most 3 boxes, got 4"):
        rig.segmenter.predict(IMAGE, boxes_xyxy=[[0, 0, 4, 4]] * 4)


@pytest.mark.parametrize(
    ("boxes", "labels", "words"),
    [
        ([[0, 0, 4, 4], [0, 0, 41, 4]], None, r"Box 1 \(0, 0, 41, 4\) leaves the image.*40 wide"),
        ([[-1, 0, 4, 4]], None, r"Box 0 .* leaves the image"),
        ([[5, 0, 4, 4]], None, r"Box 0 .* has no area"),
        ([[4, 0, 4, 4]], None, r"Box 0 .* has no area"),
        ([[0, 0, np.nan, 4]], None, r"Box 0 .* is not finite"),
        ([0, 0, 4, 4], None, r"got \(4,\).*\[\[left"),
        ([], None, r"got \(0,\)"),
        ([["a", 0, 4, 4]], None, r"Boxes are numbers"),
        ([[0, 0, 4, 4]], [2], r"label of box 0 is 2"),
        ([[0, 0, 4, 4]], [1, 1], r"1 boxes and labels of the shape \(2,\)"),
        ([[0, 0, 4, 4]], ["yes"], r"Box labels are 1 or 0"),
        (None, [1], r"without boxes_xyxy"),
    ],
)
def test_boxes_refused(rig: Rig, boxes: list[object], labels: list[object], words: str) -> None:
    with pytest.raises(PromptError, match=words):
        rig.segmenter.predict(IMAGE, text="star", boxes_xyxy=boxes, box_labels=labels)


def test_prompts_refused(rig: Rig) -> None:
    with pytest.raises(PromptError, match="Say what to find"):
        rig.segmenter.predict(IMAGE)
    with pytest.raises(PromptError, match="list of phrases is empty"):
        rig.segmenter.predict(IMAGE, text=[])
    with pytest.raises(PromptError, match=r"got ' '"):
        rig.segmenter.predict(IMAGE, text=["star", " "])
    with pytest.raises(PromptError, match="one phrase, got 2"):
        rig.segmenter.predict(IMAGE, text=["star", "red"], boxes_xyxy=[[0, 0, 4, 4]])
    with pytest.raises(PromptError, match="one image, got a list of 2"):
        rig.segmenter.predict([IMAGE, IMAGE], boxes_xyxy=[[0, 0, 4, 4]])
    with pytest.raises(SettingError, match="threshold is 2"):
        rig.segmenter.predict(IMAGE, text="star", threshold=2)
    assert not rig.calls("detector")


def test_unknown_words_warn(rig: Rig) -> None:
    with pytest.warns(PromptWarning, match="'moon'"):
        rig.segmenter.predict(IMAGE, text="moon")


def test_boxes_without_their_part(tmp_path: Path) -> None:
    rig = Rig(tmp_path, boxes=False)
    with pytest.raises(SettingError, match=r"detector_boxes, this bundle has detector, text"):
        rig.segmenter.predict(IMAGE, boxes_xyxy=[[0, 0, 4, 4]])
    assert not rig.calls("vision")  # refused before the slow part


def test_parts_are_checked_when_put_together(rig: Rig, tmp_path: Path) -> None:
    spec = ImageSpec(size=SIZE)
    without_text = {name: rig.sessions[name] for name in ("vision", "detector")}
    with pytest.raises(SettingError, match=r"\['text'\] are missing"):
        segmenter_from_sessions(without_text, spec, rig.tokenizer, read_image)
    with pytest.raises(ShapeError, match="image size of 16, got 32"):
        segmenter_from_sessions(rig.sessions, ImageSpec(size=32), rig.tokenizer, read_image)
    short = PhraseTokenizer(tmp_path / "tokenizer.json", 5, 0)
    with pytest.raises(ShapeError, match="text context of 8, got 5"):
        segmenter_from_sessions(rig.sessions, spec, short, read_image)
    with pytest.raises(SettingError, match="prompt_batch is 0"):
        segmenter_from_sessions(rig.sessions, spec, rig.tokenizer, read_image, prompt_batch=0)


def test_threads_share_one_segmenter(rig: Rig) -> None:
    answers: list[tuple[str, ...]] = []

    def work() -> None:
        answers.extend(rig.segmenter.predict(IMAGE, text=["star", "circle"]).labels for _ in "abc")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [("star", "circle")] * 12
