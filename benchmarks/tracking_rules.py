"""What the host does of a frame of text video at SAM 3's size: rules, holes, masks at 1080p.

    python benchmarks/tracking_rules.py --out FILE [--objects 1 16 64] [--frames 12]

The network is left out: its answers are discs, so that what remains is the time of the host. To
compare two versions of samforge, run both on one machine by turns (PYTHONPATH chooses).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _conditions import conditions
from _discs import SIZE_HW, FarMasks, bits_of, discs, found_discs

from samforge.core.masks import Masks
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.pending import Pending
from samforge.runtime.tracking.drawn import drawn_masks, require_finite
from samforge.runtime.tracking.parts import FoundInFrame, TrackerFacts
from samforge.runtime.tracking.session import VideoSession
from samforge.runtime.tracking.settings import TrackingSettings
from samforge.runtime.tracking.stacks import HostMasks, MaskStack

SIDE = 288
WIDTH = 256
PHRASE = "a disc"
WARM_UP = 3


class Discs:
    """Answers of a network that follows discs: ``TrackerParts`` without any work."""

    def __init__(self, count: int, *, on_device: bool = False) -> None:
        self.discs, self.on_device = discs(count, SIDE), on_device
        self.drawn: Masks | None = None
        self.bits = bits_of(self.discs)
        self.facts = TrackerFacts(
            image_size=1008, mask_side=SIDE, prompt_side=4 * SIDE, memory_side=4 * SIDE, digest=""
        )

    def encode(self, image: Any) -> EncodedImage:  # noqa: ARG002  # as the protocol has it
        """Nothing."""
        names = ("tracker_features", "high_res_0", "high_res_1")
        features = {name: np.zeros((1, 1, 1, 1), np.float32) for name in names}
        return EncodedImage(features=features, size_hw=SIZE_HW, image_size=1008)

    def begin_detect(
        self,
        encoded: EncodedImage,  # noqa: ARG002
        phrases: tuple[str, ...],  # noqa: ARG002
        thresholds: Sequence[float],  # noqa: ARG002
    ) -> Pending[FoundInFrame]:
        """All discs."""
        return Pending.of(found_discs(self.masks(self.discs), PHRASE))

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The discs that are asked for."""
        if part == "memory_attention":
            return {"conditioned": np.zeros((len(inputs["pointers"]), 1), np.float32)}
        key = {"tracking_decoder": "conditioned", "mask_prompt": "mask"}.get(part, "mask_logits")
        count = len(inputs[key])
        logits = self.discs[:count, None]
        return {
            "mask_logits": logits if self.on_device else logits.copy(),
            "iou": np.ones((count, 1), np.float32),
            "object_pointer": np.zeros((count, WIDTH), np.float32),
            "object_score": np.full((count, 1), 5, np.float32),
            "memory": np.zeros((count, 1, 64), np.float32),
        }

    def to_host(self, array: Any) -> Any:
        """They are there."""
        return array

    def begin_to_host(self, arrays: Mapping[str, Any]) -> Pending[dict[str, Any]]:
        """They are there."""
        return Pending.of(dict(arrays))

    def masks(self, logits: Any) -> MaskStack:
        """The first discs: on a device, of which the host gets bits, or here."""
        if self.on_device:
            return FarMasks(self.bits[: len(logits)], (SIDE, SIDE))
        return HostMasks(logits)

    def begin_draw(self, masks: MaskStack, size_hw: tuple[int, int]) -> Pending[Masks]:
        """At the frame's size, by the host, as a bundle for a processor does."""
        if self.on_device:
            if self.drawn is None:
                self.drawn = drawn_masks(self.discs, size_hw)
            return Pending.of(self.drawn)
        require_finite(bool(masks.outline.finite.all()))
        return Pending.of(drawn_masks(masks.values, size_hw))

    def give(self, masks: MaskStack, size_hw: tuple[int, int]) -> tuple[Any, Any]:  # noqa: ARG002
        """As they are: on a device this is done there."""
        return masks.values, masks

    def keep(self, memory: Any) -> list[Any]:
        """One for each object."""
        return [one.copy() for one in memory]

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:  # noqa: ARG002
        """Nobody looks."""
        return None

    def saved(self, kept: Any) -> Any:
        """As it is."""
        return kept

    def restored(self, array: Any) -> Any:
        """As it is."""
        return array


def frame_ms(count: int, frames: int, *, on_device: bool = False) -> dict[str, float]:
    """Times of a frame with so many objects, milliseconds; a device draws masks by itself."""
    session = VideoSession(
        Discs(count, on_device=on_device), text=PHRASE, settings=TrackingSettings(delay=0)
    )
    times = []
    for _ in range(WARM_UP + frames):
        begin = time.perf_counter()
        (frame,) = session.step(None)
        times.append(1e3 * (time.perf_counter() - begin))
        if len(frame.detections) != count:
            raise SystemExit(f"{len(frame.detections)} objects where {count} are drawn")
    times = times[WARM_UP:]
    return {"min": round(min(times), 2), "median": round(statistics.median(times), 2)}


def main() -> None:
    """Time every number of objects."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--frames", type=int, default=12)
    options = parser.parse_args()
    rows = {str(count): frame_ms(count, options.frames) for count in options.objects}
    beside = {
        str(count): frame_ms(count, options.frames, on_device=True) for count in options.objects
    }
    found = {
        "conditions": conditions(),
        "ms a frame by objects": rows,
        "the same beside a device": beside,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps([rows, beside]))


if __name__ == "__main__":
    main()
