"""A session comes to every decision of Meta's planning step, on a tracker that plays the story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tests.golden.meta.tracking import StoryFrame, story

from samforge.runtime import EncodedImage
from samforge.runtime.pending import Pending
from samforge.runtime.tracking import FoundInFrame, TrackerFacts, VideoSession
from samforge.runtime.tracking.host_parts import OnHost

SIDE, FINE = 64, 256


def enlarge(mask: np.ndarray) -> np.ndarray:
    """A mask of cells as a detection's is given to the tracker: soft logits of 4, made hard."""
    import torch

    logits = torch.from_numpy(np.where(mask, 4, -4).astype(np.float32))[None, None]
    size = (FINE, FINE)
    return (torch.nn.functional.interpolate(logits, size=size, mode="bilinear")[0, 0] > 0).numpy()


class StoryParts(OnHost):
    """A pointer is the id of its object, and the story says where that is on a frame."""

    facts = TrackerFacts(
        image_size=224, mask_side=SIDE, prompt_side=FINE, memory_side=FINE, digest="story"
    )

    def __init__(self, frames: Sequence[StoryFrame]) -> None:
        self.frames = frames

    def encode(self, image: int) -> EncodedImage:
        names = ("tracker_features", "high_res_0", "high_res_1")
        features = dict.fromkeys(names, np.array([image]))
        return EncodedImage(features=features, size_hw=(SIDE, SIDE), image_size=224)

    def begin_detect(
        self, encoded: EncodedImage, phrases: Any, thresholds: Any
    ) -> Pending[FoundInFrame]:
        frame = self._frame(encoded.features)
        found = FoundInFrame.from_masks(
            masks=np.where(frame.found, 4, -4).astype(np.float32),
            scores=frame.detected.scores,
            phrases=frame.detected.phrases,
            boxes_xyxy=np.zeros((len(frame.detected), 4), np.float32),
        )
        return Pending.of(found)

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return dict(getattr(self, f"_{part}")(inputs))

    def keep(self, memory: Any) -> list[Any]:
        return list(memory)

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:
        return np.stack([np.stack(row) for row in kept])

    saved = restored = OnHost.to_host

    def _frame(self, inputs: Mapping[str, Any]) -> StoryFrame:
        return self.frames[int(inputs["high_res_0"][0])]

    def _mask_prompt(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        frame = self._frame(inputs)
        kept = frame.said["kept_detections"]
        given = {int(one): row for one, row in frame.said["born"].items()}
        given |= dict(frame.said["reconditioned"])
        ids = []
        for mask in inputs["mask"][:, 0] > 0:
            ids += [
                number
                for number, row in given.items()
                if np.array_equal(enlarge(frame.found[kept[row]]), mask)
            ]
        assert len(ids) == len(inputs["mask"])
        pointers = np.array(ids, np.float32)[:, None]
        return {"object_pointer": pointers, "object_score": np.full_like(pointers, 10)}

    def _memory_attention(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"conditioned": inputs["pointers"][:, 0]}

    def _tracking_decoder(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        frame = self._frame(inputs)
        rows = [frame.said["tracks"].index(int(one)) for one in inputs["conditioned"][:, 0]]
        return {
            "mask_logits": np.where(frame.unfilled[rows], 4, -4).astype(np.float32)[:, None],
            "iou": np.full((len(rows), 1), 0.9, np.float32),
            "object_pointer": inputs["conditioned"],
            "object_score": frame.tracked.scores[rows][:, None],
        }

    def _memory_encoder(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"memory": np.zeros((len(inputs["mask_logits"]), 1, 1), np.float32)}

    _memory_encoder_text = _memory_encoder


def test_every_decision_is_metas_in_a_session() -> None:
    frames = list(story())
    session = VideoSession(StoryParts(frames), text="thing")
    left = []
    for number, frame in enumerate(frames):
        before = session.ids
        assert list(before) == frame.said["tracks"]
        left += session.step(number)
        assert list(session.ids) == frame.said["living_after"], number
        assert sorted(set(session.ids) - set(before)) == sorted(map(int, frame.said["born"]))
        for track in session._state.tracking.tracks:
            assert track.keep_alive == frame.said["keep_alive"][str(track.id)], number
            last = frame.said["last_occluded"].get(str(track.id))
            assert track.last_occluded == last, number
        conditioned = {one for one, bank in session.banks.items() if number in bank.conditioning}
        # All that were born with a corrected one.
        corrected = {one for one, _ in frame.said["reconditioned"]}
        assert corrected | set(map(int, frame.said["born"])) <= conditioned
    left += session.finish()
    assert [frame.index for frame in left] == list(range(40))
    # Nothing that is ever removed was shown, and each removal is said.
    shown = {number for frame in left for number in frame.detections.ids.tolist()}
    assert shown == {0, 1, 4, 5, 8, 9}
    removed = {frame.index: list(frame.removed) for frame in left if frame.removed}
    assert removed == {
        number: frame.said["removed"]
        for number, frame in enumerate(frames)
        if frame.said["removed"]
    }
    # What a frame shows is what is tracked, at the frame's size.
    for number, frame in enumerate(frames):
        rows = {one: row for row, one in enumerate(frame.said["tracks"])}
        suppressed = set(frame.said["suppressed_by_recent_occlusion"])
        for one, mask in zip(
            left[number].detections.ids.tolist(), left[number].detections.masks, strict=True
        ):
            assert one not in suppressed
            if one in rows:
                assert not (mask & ~frame.filled[rows[one]]).any()
