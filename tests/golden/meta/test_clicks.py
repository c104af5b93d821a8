"""Clicks on one picture, asked as users ask: what Meta's predictor for images answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.golden.meta.arrays import Arrays
from tests.golden.meta.tracker_session import IMAGE, VIDEO_HW, Parts, maps_of

from samforge.core.detections import Detections
from samforge.models.eager import EagerSession
from samforge.runtime import ObjectPrompt
from samforge.runtime.clicks import clicked
from samforge.runtime.tracking.host_parts import HostTrackerParts, facts_from_sessions

CASES = ("point", "box", "box_and_point", "refined", "two_boxes")
"""Meta's names; ``point_single`` and ``mask_only`` are forms that predict_objects does not ask."""
HOLE_AREA = 256
"""Cells: what Meta's predictor fills, whatever the size of a mask; here they are 64 x 64."""


@pytest.fixture(scope="module")
def ask(tracker: Parts) -> Callable[..., Detections]:
    """Ask about the first frame of the tracker's arrays."""
    sessions = {"point_decoder": EagerSession(tracker("point_decoder"))}
    parts = HostTrackerParts(
        sessions,
        facts_from_sessions(sessions, ("point_decoder",), image_size=IMAGE, digest=""),
        encode=lambda _: pytest.fail("nothing is encoded"),
        detect=lambda *_: pytest.fail("nothing is detected"),
    )
    features = {name: tensor.numpy() for name, tensor in maps_of(tracker, 0).items()}
    return lambda prompts, **more: clicked(parts, features, prompts, VIDEO_HW, **more)


def arrays_of(tracker_arrays: Arrays, case: str) -> dict[str, Any]:
    stem = f"image_predictor/{case}/"
    return {
        name.removeprefix(stem): array
        for name, array in tracker_arrays.items()
        if name.startswith(stem)
    }


def known(logits: np.ndarray) -> Detections:
    """An earlier answer of which the logits alone count."""
    return Detections(
        masks=np.ones((1, *VIDEO_HW), np.bool_),
        boxes_xyxy=np.float32([[0, 0, VIDEO_HW[1], VIDEO_HW[0]]]),
        scores=np.float32([1]),
        labels=("object 1",),
        size_hw=VIDEO_HW,
        logits=logits,
    )


@pytest.mark.parametrize("case", CASES)
def test_answers_are_metas(
    ask: Callable[..., Detections], tracker_arrays: Arrays, case: str
) -> None:
    arrays = arrays_of(tracker_arrays, case)
    boxes = arrays["box"].reshape(-1, 4) if "box" in arrays else [None]
    prompts = [
        ObjectPrompt(
            points=arrays.get("point_coords"), labels=arrays.get("point_labels"), box_xyxy=box
        )
        for box in boxes
    ]
    earlier = known(arrays["mask_input"]) if "mask_input" in arrays else None
    candidates = bool(arrays["multimask_output"])
    found = ask(prompts, earlier=earlier, candidates=candidates, hole_area=HOLE_AREA)
    ious = arrays["ious"].reshape(-1)
    order = np.argsort(-ious, kind="stable") if candidates else np.arange(len(ious))
    masks = np.unpackbits(arrays["mask"], axis=-1)[..., : VIDEO_HW[1]].astype(np.bool_)
    assert np.abs(found.scores - ious[order].clip(0, 1)).max() <= 1e-5
    low = arrays["low_res"].reshape(len(ious), 32, 32)[order]
    assert np.abs(found.logits[:, ::2, ::2] - low).max() <= 3e-4
    assert (found.masks.dense() != masks.reshape(-1, *VIDEO_HW)[order]).mean() <= 1e-5
    if candidates:
        best = ask(prompts, hole_area=HOLE_AREA)
        assert len(best) == 1
        assert np.array_equal(best.masks.dense()[0], found.masks.dense()[0])


def test_prompts_of_one_call_do_not_meet(
    ask: Callable[..., Detections], tracker_arrays: Arrays
) -> None:
    """Prompts of different length go in one call, filled up: each is answered as it is alone."""
    box = arrays_of(tracker_arrays, "box")["box"]
    prompts = [
        ObjectPrompt(points=[[133.9, 46.9]]),
        ObjectPrompt(points=[[133.9, 46.9], [30, 120], [100, 75]], labels=[1, 0, 1]),
        ObjectPrompt(box_xyxy=box, points=[[20, 20]], labels=[0]),
    ]
    together = ask(prompts)
    for row, prompt in enumerate(prompts):
        alone = ask([prompt])
        assert together.scores[row] == pytest.approx(float(alone.scores[0]), abs=1e-5)
        assert np.abs(together.logits[row] - alone.logits[0]).max() <= 1e-4
