"""What is found in a picture that is not square: scores, boxes in pixels, masks pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.golden.meta.arrays import (
    LIMITS,
    Array,
    Arrays,
    ask,
    beyond,
    beyond_detections,
    boxes_in_pixels,
    pair,
    picture_of,
    wanted_detections,
)

from samforge.core.capabilities import BOXES
from samforge.core.images import ImageSpec
from samforge.core.session import TensorFormat
from samforge.media import read_image
from samforge.runtime import (
    PhraseTokenizer,
    RawDetections,
    Segmenter,
    Thresholds,
    detections_from_raw,
)
from samforge.runtime.device import DeviceExecutor
from samforge.runtime.postprocess import sigmoid

Eager = Callable[..., Any]
KINDS = ("text", "boxes")
PHRASE = "yellow school bus"
SIZE_HW = (200, 300)


@pytest.fixture(scope="module")
def whole(eager: Eager, segmenter: Callable[..., Segmenter]) -> Segmenter:
    return segmenter(eager, boxes=True)


@pytest.fixture(scope="module")
def answers(eager: Eager, arrays: Arrays) -> dict[str, dict[str, Array]]:
    """The detector's raw output for the phrase and for the boxes."""
    picture = arrays["processor/resized"][None]
    phrase, visual = (arrays[f"{case}/input_ids"][None] for case in ("text_bus", "boxes_mixed"))
    exemplars = arrays["text_mixed/boxes"][None, None], np.array([[[1, 0, 1]]])
    return {
        "text": pair(ask(eager, picture, phrase), 0, 0),
        "boxes": pair(ask(eager, picture, visual, *exemplars), 0, 0),
    }


def prompt(kind: str, arrays: Arrays) -> dict[str, Any]:
    """Arguments of ``predict``."""
    if kind == "text":
        return {"text": PHRASE}
    return {"boxes_xyxy": boxes_in_pixels(arrays), "box_labels": [1, 0, 1]}


def threshold(kind: str, arrays: Arrays) -> float:
    return float(arrays[f"processor/{kind}/threshold"])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_all_queries(
    answers: dict[str, dict[str, Array]], arrays: Arrays, kind: str
) -> None:
    answer, reference = answers[kind], arrays[f"processor/{kind}/all_scores"]
    scores = {"scores": sigmoid(answer["pred_logits"]) * sigmoid(answer["presence_logit"])}
    assert beyond(scores, {"scores": reference}) == {}
    # The threshold lies in a gap: no rounding admits another query.
    assert np.abs(reference - threshold(kind, arrays)).min() > 100 * LIMITS["scores"]


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_equal_where_rounding_does_not_decide(
    answers: dict[str, dict[str, Array]], arrays: Arrays, kind: str
) -> None:
    raw = RawDetections(
        logits=answers[kind]["pred_logits"],
        boxes=answers[kind]["pred_boxes"],
        masks=answers[kind]["pred_masks"],
        presence_logit=float(answers[kind]["presence_logit"]),
    )
    thresholds = Thresholds(score=threshold(kind, arrays))
    found = detections_from_raw(raw, label=kind, size_hw=SIZE_HW, thresholds=thresholds)
    assert beyond_detections(found, arrays, f"processor/{kind}") == {}
    order = np.argsort(-raw.logits, kind="stable")[: len(found)]
    logits = torch.nn.functional.interpolate(
        torch.from_numpy(raw.masks[order])[None], SIZE_HW, mode="bilinear", align_corners=False
    )[0].numpy()
    decided = np.abs(logits) > LIMITS["pred_masks"]
    assert decided.mean() > 0.9998
    masks = wanted_detections(arrays, f"processor/{kind}")["masks"]
    assert np.array_equal(found.masks.dense()[decided], masks[decided])


@pytest.mark.parametrize("mask_threshold", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_other_thresholds_of_masks(
    whole: Segmenter, arrays: Arrays, kind: str, mask_threshold: float
) -> None:
    """Meta's processor resizes logits, then takes the sigmoid: here its pixels, one in 64."""
    found = whole.predict(
        picture_of(whole, arrays),
        **prompt(kind, arrays),
        threshold=threshold(kind, arrays),
        mask_threshold=mask_threshold,
    )
    order = np.argsort(-arrays[f"processor/{kind}/scores"], kind="stable")
    probabilities = arrays[f"processor/{kind}/mask_probabilities"][order]
    decided = np.abs(probabilities - mask_threshold) > 1e-4
    assert decided.mean() > 0.999
    masks = found.masks.dense()[:, ::8, ::8]
    assert np.array_equal(masks[decided], (probabilities > mask_threshold)[decided])


class OnDevice:
    """A part behind the door of a session that takes tensors."""

    runtime, processor, device, captures = "torch", "CPU", "cpu", False

    def __init__(self, session: Any) -> None:
        self.part, self.spec = session.part, session.spec
        self.formats = {one.name: TensorFormat(dtype=one.dtype) for one in self.spec.inputs}

    def run_on_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(self.part(tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_of_a_device(
    eager: Eager, phrase_tokenizer: Callable[[str], PhraseTokenizer], arrays: Arrays, kind: str
) -> None:
    executor = DeviceExecutor(
        {name: OnDevice(eager(name)) for name in ("vision", "text", "detector", "detector_boxes")},
        ImageSpec(size=224),
        phrase_tokenizer("meta"),
        read_image,
    )
    device = Segmenter(executor, image_size=224, parts=BOXES.parts)
    encoded = replace(device.encode(arrays["processor/resized"]), size_hw=SIZE_HW)
    found = device.predict(encoded, **prompt(kind, arrays), threshold=threshold(kind, arrays))
    assert not isinstance(found, list)
    assert beyond_detections(found, arrays, f"processor/{kind}") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_picture_on(whole: Segmenter, arrays: Arrays, kind: str) -> None:
    """With Pillow's resize: one grey level in 0.2 % of the values, and what comes of it."""
    found = whole.predict(
        arrays["processor/picture"], **prompt(kind, arrays), threshold=threshold(kind, arrays)
    )
    reference = wanted_detections(arrays, f"processor/{kind}")
    assert np.abs(found.scores - reference["scores"]).max() < 0.01
    assert np.abs(found.boxes_xyxy - reference["boxes"]).max() < 1.5
    masks = found.masks.dense()
    common = (masks & reference["masks"]).sum((1, 2))
    assert (common / (masks | reference["masks"]).sum((1, 2))).min() > 0.97


@pytest.mark.parametrize(
    "typed", [PHRASE, "  Yellow \u00a0school\tBUS\n", "yellow&nbsp;school&amp;nbsp;bus"]
)
def test_a_phrase_as_people_type_it(
    whole: Segmenter,
    phrase_tokenizer: Callable[[str], PhraseTokenizer],
    arrays: Arrays,
    typed: str,
) -> None:
    assert np.array_equal(phrase_tokenizer("meta").encode([typed])[0], arrays["text_bus/input_ids"])
    found = whole.predict(
        picture_of(whole, arrays), text=typed, threshold=threshold("text", arrays)
    )
    assert beyond_detections(found, arrays, "processor/text") == {}
