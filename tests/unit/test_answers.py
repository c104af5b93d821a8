"""What several callers ask in one call is answered apart, on the host and on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from computed import Computed, Rig

from samforge.core.errors import ImageError, ShapeError
from samforge.core.session import TensorFormat
from samforge.media import read_image
from samforge.runtime import EncodedImage, Question, Segmenter, joined, question_from
from samforge.runtime.device import DeviceExecutor

IMAGE = np.full((20, 40, 3), 255, np.uint8)
DARK = np.zeros((8, 8, 3), np.uint8)


class OnDevice:
    """One of the parts behind the door of a device session."""

    runtime, processor, device, captures = "computed", "CPU", "cpu", False

    def __init__(self, part: Computed) -> None:
        self.part, self.spec = part, part.spec
        self.formats = {one.name: TensorFormat(dtype=one.dtype) for one in part.spec.inputs}

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.part.run(tensors)

    def run_on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return {name: torch.from_numpy(one) for name, one in self.part.run(arrays).items()}

    def close(self) -> None:
        pass


@pytest.fixture(params=["host", "device"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    if request.param == "device":
        host = rig.segmenter._executor
        executor = DeviceExecutor(
            {name: OnDevice(part) for name, part in rig.sessions.items()},
            host._image,  # type: ignore[attr-defined]
            rig.tokenizer,
            read_image,
        )
        rig.segmenter = Segmenter(executor, image_size=16, parts=rig.sessions)
    return rig


def test_each_caller_gets_what_it_would_get_alone(rig: Rig) -> None:
    """Two callers ask about one picture, one phrase both of them."""
    one, two = question_from(["star", "red"], 0.2, max_detections=1), question_from("star", 0.999)
    both = Question(phrases=one.phrases + two.phrases, thresholds=one.thresholds + two.thresholds)
    for image in (IMAGE, DARK):
        (encoded,) = rig.segmenter.encode_images([image])
        rig.calls("detector").clear()
        ((star, red, strict),) = rig.segmenter.answers([encoded], both)
        assert len(rig.calls("detector")) == 1
        assert (star.labels, red.labels, strict.labels) == (("star",), ("red",), ())
        assert list(strict.best_scores) == ["star"]
        found = joined([star, red], 1)
        alone = rig.segmenter.predict(image, text=["star", "red"], threshold=0.2, max_detections=1)
        assert (found.labels, found.cut_off) == (alone.labels, alone.cut_off) == (("star",), 1)
        assert found.scores.tolist() == alone.scores.tolist()
        assert found.best_scores == alone.best_scores
        assert np.array_equal(found.masks, alone.masks)


def test_what_one_phrase_has_too_many_of_is_counted_with_it(rig: Rig) -> None:
    """All three queries score above 0: one phrase keeps one of them, the other all."""
    few, all_of = question_from("red", 0.0, max_detections=1), question_from("star", 0.0)
    both = Question(
        phrases=few.phrases + all_of.phrases, thresholds=few.thresholds + all_of.thresholds
    )
    ((red, star),) = rig.segmenter.answers([rig.segmenter.encode(IMAGE)], both)
    assert (len(red), red.cut_off) == (1, 2)
    assert (len(star), star.cut_off) == (3, 0)


def test_pictures_of_a_batch_are_encoded_apart(rig: Rig) -> None:
    first, second = rig.segmenter.encode_images([IMAGE, DARK])
    assert (first.size_hw, second.size_hw) == ((20, 40), (8, 8))
    assert (first.features["fpn_0"].max(), second.features["fpn_0"].max()) == (1, -1)
    with pytest.raises(ImageError, match="Image 1 of the list"):
        rig.segmenter.encode_images([IMAGE, np.zeros((0, 4, 3), np.uint8)])
    with pytest.raises(ImageError, match="Image 1 of the list"):  # none is left out in silence
        rig.segmenter.encode_images([IMAGE, first, DARK])  # type: ignore[list-item]


def test_pictures_of_one_call_are_answered_apart(rig: Rig) -> None:
    encoded = rig.segmenter.encode_images([IMAGE, DARK])
    answers = rig.segmenter.answers(encoded, question_from("star"))
    for image, (found,) in zip((IMAGE, DARK), answers, strict=True):
        alone = rig.segmenter.predict(image, text="star")
        assert (found.size_hw, found.labels) == (image.shape[:2], ("star",))
        assert np.array_equal(found.masks, alone.masks)


def test_a_picture_of_another_segmenter_is_refused(rig: Rig) -> None:
    strange = EncodedImage(features={}, size_hw=(2, 2), image_size=99)
    with pytest.raises(ShapeError, match="encoded at 99"):
        rig.segmenter.answers([strange], question_from("star"))
