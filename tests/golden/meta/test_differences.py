"""The numbers can tell: each way in which transformers is not SAM 3 is far beyond the limits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.golden.meta.arrays import (
    BOX_CASES,
    LIMITS,
    TEXT_CASES,
    Arrays,
    ask_case,
    beyond,
    beyond_case,
    beyond_detections,
    boxes_in_pixels,
    images_of,
    kept,
    kept_features,
    picture_of,
    run,
    wanted,
)

from samforge.core.errors import PromptWarning
from samforge.runtime import PhraseTokenizer, Segmenter

Eager = Callable[..., Any]
OUTPUTS = {"pred_logits", "pred_boxes", "presence_logit", "pred_masks", "mask_signs"}


@pytest.fixture(scope="module")
def stock(eager: Eager) -> Eager:
    """The parts as transformers computes them."""
    return partial(eager, reference="transformers")


def test_the_epsilon_is_seen(stock: Eager, arrays: Arrays) -> None:
    """All that differs in part ``vision``."""
    maps = kept_features(run(stock("vision"), images_of(arrays["pictures"])))
    found = beyond(maps, wanted(arrays, "vision", maps))
    assert found.keys() == maps.keys()
    assert min(found.values()) > 100 * LIMITS["fpn_0"]


@pytest.mark.parametrize("case", BOX_CASES)
def test_the_epsilon_is_seen_in_every_case_with_boxes(
    stock: Eager, arrays: Arrays, case: str
) -> None:
    """Part ``detector_boxes`` has the class token there, too."""
    found = beyond_case(ask_case(stock, arrays, case), arrays, case)
    assert found.keys() >= OUTPUTS - {"mask_signs"}
    assert found["pred_logits"] > 10 * LIMITS["pred_logits"]


@pytest.mark.parametrize("case", TEXT_CASES)
def test_the_class_token_is_seen(eager: Eager, stock: Eager, arrays: Arrays, case: str) -> None:
    """With all parts but the detector as Meta has them."""

    def sessions(name: str) -> Any:
        return stock(name) if name == "detector" else eager(name)

    found = beyond_case(ask_case(sessions, arrays, case), arrays, case)
    assert found.keys() >= OUTPUTS
    assert found["pred_logits"] > 0.1
    assert found["pred_boxes"] > 0.05
    assert found["pred_masks"] > 1
    assert found["mask_signs"] > 0.01


@pytest.mark.parametrize("kind", ["text", "boxes"])
def test_probabilities_that_are_resized_are_seen(
    eager: Eager, segmenter: Callable[..., Segmenter], arrays: Arrays, kind: str
) -> None:
    """All that differs from Meta's order is a part of the masks' pixels."""
    whole = segmenter(eager, boxes=True, reference="transformers")
    boxes = {"boxes_xyxy": boxes_in_pixels(arrays), "box_labels": [1, 0, 1]}
    found = whole.predict(
        picture_of(whole, arrays),
        threshold=float(arrays[f"processor/{kind}/threshold"]),
        **({"text": "yellow school bus"} if kind == "text" else boxes),
    )
    found_beyond = beyond_detections(found, arrays, f"processor/{kind}")
    assert found_beyond.keys() == {"masks"}
    assert found_beyond["masks"] > 0.05


def test_a_phrase_that_is_not_cleaned_is_seen(
    phrase_tokenizer: Callable[[str], PhraseTokenizer], arrays: Arrays
) -> None:
    with pytest.warns(PromptWarning, match="does not know"):
        ids = phrase_tokenizer("transformers").encode(["yellow&nbsp;school bus"])[0]
    assert not np.array_equal(ids, arrays["text_bus/input_ids"])


def test_the_fifth_difference_cannot_be_seen_here(arrays: Arrays) -> None:
    """Presence is clamped beyond 10 only, and no phrase has token 0: unit tests hold those."""
    for case in (*TEXT_CASES, *BOX_CASES):
        assert np.abs(arrays[f"{case}/presence_logit"]).max() < 10
        ids = arrays[f"{case}/input_ids"].tolist()
        assert 0 not in ids[: ids.index(49407)]


def test_what_is_no_number_is_seen(eager: Eager, arrays: Arrays) -> None:
    answer = ask_case(eager, arrays, "text_cat")
    answer["pred_logits"] = answer["pred_logits"].copy()
    answer["pred_logits"][3] = np.nan
    found = kept(answer)
    assert beyond(found, wanted(arrays, "text_cat", found)).keys() == {"pred_logits"}
