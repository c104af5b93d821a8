"""Masks that are given to the tracker, by a detection or by a user."""

from __future__ import annotations

import numpy as np

from samforge.core.reference import META
from samforge.runtime.tracking.parts import TrackerFacts
from samforge.runtime.tracking.resize import enlarged, resampled
from samforge.runtime.tracking.state import Floats

FAR = np.float32(1024)
"""Logit of a mask that is given, in Meta's code."""
NEAR = np.float32(10)
"""The same in transformers'."""


def masks_to_give(logits: Floats, facts: TrackerFacts) -> Floats:
    """Masks of detections as part ``mask_prompt`` takes them, 0 to 1, (N, S, S).

    Meta enlarges logits and asks which are above 0; transformers asks which are 0.5 or more, and
    enlarges that.

    Args:
        logits: (N, 4s, 4s).
        facts: Of the tracker.
    """
    size = (facts.prompt_side, facts.prompt_side)
    if facts.reference == META:
        return (enlarged(logits, size) > 0).astype(np.float32)
    return enlarged((logits >= 0.5).astype(np.float32), size)


def given_logits(masks: Floats, facts: TrackerFacts, size_hw: tuple[int, int]) -> Floats:
    """What stands for the tracker's own answer where a mask is given.

    Meta brings every mask to the frame's size first, and draws its edge there anew.

    Args:
        masks: (N, H, W), 0 to 1, of any size.
        facts: Of the tracker.
        size_hw: Height and width of the frame, pixels.

    Returns:
        (N, 4s, 4s), logits: sure on both sides, and soft along the edge.
    """
    size = (facts.mask_side, facts.mask_side)
    if facts.reference == META:
        at_frame = masks if masks.shape[1:] == size_hw else resampled(masks, size_hw)
        return resampled(np.where(at_frame > 0.5, FAR, -FAR), size)
    return resampled(masks * 2 * NEAR - NEAR, size)
