"""transformers' own video model with the tiny model's weights, as it is and with faults mended.

Nothing of transformers is changed for the process: what differs is overridden in subclasses. The
numbers of the faults are those of ``docs/what-equals-what.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import Sam3Config, Sam3VideoConfig
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoModel,
)
from transformers.models.sam3_video.modeling_sam3_video import (
    Sam3VideoInferenceSession,
    Sam3VideoModel,
    mask_iou,
)

from samforge.core.capabilities import TRACK
from samforge.core.images import ImageSpec
from samforge.core.reference import TRANSFORMERS as REFERENCE
from samforge.measure.overlaps import Frame
from samforge.media import read_image
from samforge.models import tiny
from samforge.models.eager import EagerSession
from samforge.models.loading import model_from_name
from samforge.models.sam3.checkpoint import feature_sizes, with_image_size
from samforge.models.sam3.tracker.configuration import tracker_config
from samforge.runtime import (
    PhraseTokenizer,
    Segmenter,
    TrackingSettings,
    image_bchw_from_rgb,
    segmenter_from_sessions,
)
from samforge.runtime.tracking import TRANSFORMERS, Rules, filled_holes

IMAGE = ImageSpec(size=tiny.SIZE)
FAULTS = frozenset({1, 2, 3, 4})
FLOOR = 0.98
"""Temporal IoU of every track, with the faults mended."""
GROUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "lively": (
        {
            "recondition_every_nth_frame": 3,
            "hotstart_unmatch_thresh": 2,
            "hotstart_dup_thresh": 2,
        },
        {"recondition_every": 3, "hot_start_unmatched": 2, "hot_start_duplicates": 2},
    ),
}
"""Settings of transformers and of samforge: with the second more is conditioned and removed."""


def rules_with(faults: AbstractSet[int], **changes: Any) -> Rules:
    """Rules of samforge for a model with these faults; 2 is no rule, and cannot be had."""
    memory = replace(TRANSFORMERS.memory, all_conditioning_pointers=4 in faults)
    quick = {"nms_iou": 0.0, "hole_area": 0} if 1 in faults else {}
    return replace(TRANSFORMERS, shifts_rows=3 in faults, memory=memory, **quick, **changes)


class StockTracker(Sam3TrackerVideoModel):
    """transformers' tracker, for pointers as wide as memories: those of the tiny model."""

    faults: AbstractSet[int] = FAULTS

    def _process_object_pointers(
        self, offsets: Any, pointers: Any, most: int, batch: int, channels: int, device: Any
    ) -> Any:
        found, positions = super()._process_object_pointers(
            offsets, pointers, most, batch, channels, device
        )
        return (None, None) if found is None else (found.flatten(1, -2), positions)

    def _get_object_pointers(
        self, inference_session: Any, obj_idx: int, frame_idx: int, *others: Any
    ) -> Any:
        """Fault 4: pointers are of all conditioning frames, and not of those attended to."""
        outputs = inference_session.output_dict_per_obj[obj_idx]
        before = dict(outputs)
        if 4 not in self.faults:
            chosen, left = self._select_closest_cond_frames(
                frame_idx, before["cond_frame_outputs"], self.config.max_cond_frame_num
            )
            outputs["cond_frame_outputs"] = chosen
            outputs["non_cond_frame_outputs"] = {**before["non_cond_frame_outputs"], **left}
        try:
            return super()._get_object_pointers(inference_session, obj_idx, frame_idx, *others)
        finally:
            outputs.update(before)


class StockVideo(Sam3VideoModel):
    """transformers' model, for more tokens a side than the tracker has cells; faults may go."""

    def __init__(self, config: Sam3VideoConfig, faults: AbstractSet[int] = FAULTS) -> None:
        super().__init__(config)
        self.tracker_model = StockTracker(config.tracker_config, remove_vision_encoder=True)
        self.tracker_model.faults = self.faults = faults
        self.known: tuple[int, ...] = ()  # objects that live before the frame

    def get_vision_features_for_tracker(self, vision_embeds: Any) -> Any:
        """The same, with the sides that the tokens have."""
        hidden = vision_embeds.last_hidden_state
        side = round(hidden.shape[1] ** 0.5)
        hidden = hidden.view(len(hidden), side, side, -1).permute(0, 3, 1, 2)
        maps, positions = self.tracker_neck(hidden)
        decoder = self.tracker_model.mask_decoder
        maps = [decoder.conv_s0(maps[0]), decoder.conv_s1(maps[1]), *maps[2:-1]]
        return tuple(
            [one.flatten(2).permute(2, 0, 1) for one in kind] for kind in (maps, positions[:-1])
        )

    def run_detection(self, inference_session: Any, vision_embeds: Any) -> Any:
        """Fault 1: what is doubled stays, without an optional package."""
        found = super().run_detection(inference_session, vision_embeds)
        if 1 in self.faults:
            return found
        return {
            phrase: {name: values[self._kept(one)] for name, values in one.items()}
            for phrase, one in found.items()
        }

    def _kept(self, found: Mapping[str, torch.Tensor]) -> list[int]:
        masks = found["mask"] > 0
        overlaps = mask_iou(masks, masks)
        kept: list[int] = []
        for row in torch.argsort(found["scores"], descending=True, stable=True).tolist():
            if all(overlaps[row, other] <= self.det_nms_thresh for other in kept):
                kept.append(row)
        return sorted(kept)

    def run_tracker_propagation(self, inference_session: Any, *args: Any, **named: Any) -> Any:
        """Fault 1: holes are not filled, without an optional package."""
        self.known = tuple(inference_session.obj_ids)
        masks, scores = super().run_tracker_propagation(inference_session, *args, **named)
        return self._filled(masks), scores

    def _tracker_add_new_objects(
        self, inference_session: Any, frame_idx: int, *args: Any, **named: Any
    ) -> None:
        """Fault 2: older objects are remembered anew, unsuppressed and without shades."""
        kinds = ("cond_frame_outputs", "non_cond_frame_outputs")
        remembered = inference_session.output_dict_per_obj
        before = {
            place: {kind: dict(one[kind].get(frame_idx, {})) for kind in kinds}
            for place, one in remembered.items()
        }
        super()._tracker_add_new_objects(inference_session, frame_idx, *args, **named)
        for place, outputs in {} if 2 in self.faults else before.items():
            for kind, output in outputs.items():
                remembered[place][kind].pop(frame_idx, None)
                if output:
                    remembered[place][kind][frame_idx] = output

    def build_outputs(
        self,
        inference_session: Any,
        det_out: Any,
        tracker_low_res_masks_global: Any,
        tracker_update_plan: Any,
        reconditioned_obj_ids: Any = None,
    ) -> dict[int, torch.Tensor]:
        """Fault 3: masks go to the ids that are left, and not to those they were made for."""
        shown: dict[int, torch.Tensor] = super().build_outputs(
            inference_session,
            det_out,
            tracker_low_res_masks_global,
            tracker_update_plan,
            reconditioned_obj_ids,
        )
        for number in tracker_update_plan["new_det_obj_ids"]:
            shown[number] = self._filled(shown[number])
        if 3 in self.faults:
            return shown
        gone = tracker_update_plan["obj_ids_newly_removed"]
        kept = {*tracker_update_plan["new_det_obj_ids"], *(reconditioned_obj_ids or ())}
        for number, mask in zip(self.known, tracker_low_res_masks_global, strict=True):
            if number not in kept:
                shown[number] = mask[None]
        return {number: mask for number, mask in shown.items() if number not in gone}

    def _filled(self, masks: torch.Tensor) -> torch.Tensor:
        if 1 in self.faults:
            return masks
        return torch.from_numpy(filled_holes(masks.numpy(), self.fill_hole_area))


def stock_video(faults: AbstractSet[int] = FAULTS, **settings: Any) -> StockVideo:
    """The tiny model in transformers' class, with its trained weights.

    Args:
        faults: Those that it is left with.
        settings: Of ``Sam3VideoConfig``.
    """
    detector = with_image_size(Sam3Config(**json.loads(tiny.CONFIG_PATH.read_text())), None)
    tracker = tracker_config(
        json.loads(tiny.TRACKER_CONFIG_PATH.read_text()), detector, REFERENCE, tiny.NAME
    )
    sides = feature_sizes(detector)
    config = Sam3VideoConfig(
        detector_config=detector.to_dict(),
        tracker_config=tracker.to_dict(),
        low_res_mask_size=4 * sides[-1],
        **settings,
    )
    own = config.tracker_config
    # transformers' configuration sets these back to those of 1008 pixels.
    own.memory_attention_rope_feat_sizes = [sides[-1]] * 2
    own.vision_config.backbone_feature_sizes = [[side, side] for side in sides]
    own.prompt_encoder_config.image_size = tiny.SIZE
    own.prompt_encoder_config.patch_size = tiny.SIZE // sides[-1]
    model = StockVideo(config, faults)
    model.tracker_model.image_size = tiny.SIZE
    weights = {f"detector_model.{k}": v for k, v in load_file(tiny.WEIGHTS_PATH).items()}
    weights |= load_file(tiny.TRACKER_WEIGHTS_PATH)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval().requires_grad_(False)


def stock_frames(
    model: StockVideo, clip: Sequence[Any], phrases: Sequence[str]
) -> Iterator[dict[int, np.ndarray]]:
    """Masks (H, W) by id of each frame, as ``Sam3VideoProcessor`` draws them with torchvision."""
    tokenizer = PhraseTokenizer(tiny.TOKENIZER_PATH, 32, 0)
    pixels = np.concatenate([image_bchw_from_rgb(image, IMAGE) for image in clip])
    height, width = clip[0].shape[:2]
    session = Sam3VideoInferenceSession(
        video=torch.from_numpy(pixels),
        video_height=height,
        video_width=width,
        dtype=torch.float32,
    )
    for phrase in phrases:
        number = session.add_prompt(phrase)
        ids = torch.from_numpy(tokenizer.encode([phrase]))
        session.prompt_input_ids[number] = ids
        session.prompt_attention_masks[number] = (ids != 0).long()
    for out in model.propagate_in_video_iterator(session):
        yield _processed(out, session, (height, width))


def _processed(out: Any, session: Any, size_hw: tuple[int, int]) -> dict[int, np.ndarray]:
    hidden = set(out.suppressed_obj_ids or ()) | session.hotstart_removed_obj_ids
    masks = {}
    for number, mask in sorted(out.obj_id_to_mask.items()):
        drawn = F.interpolate(mask[None], size=size_hw, mode="bilinear", align_corners=False)
        if number not in hidden and bool((drawn > 0).any()):
            masks[number] = (drawn[0, 0] > 0).numpy()
    # Where two of a phrase meet, the pixel belongs to the one that the tracker is surer of.
    ranks = {number: float(out.obj_id_to_tracker_score.get(number, 0.0)) for number in masks}
    for phrase in set(session.obj_id_to_prompt_id.values()):
        own = [one for one in masks if session.obj_id_to_prompt_id[one] == phrase]
        taken = np.zeros(size_hw, np.bool_)
        for number in sorted(own, key=lambda one: -ranks[one]):
            masks[number] = masks[number] & ~taken
            taken |= masks[number]
    return masks


def transformers_segmenter() -> Segmenter:
    """Parts of samforge with the same weights, which compute what transformers does."""
    model = model_from_name(tiny.NAME, reference=REFERENCE, tracker=True)
    return segmenter_from_sessions(
        {name: EagerSession(model.part(name)) for name in TRACK.parts},
        model.image,
        PhraseTokenizer(tiny.TOKENIZER_PATH, 32, 0),
        read_image,
        reference=REFERENCE,
    )


def samforge_frames(
    segmenter: Segmenter, clip: Sequence[Any], phrases: Sequence[str], rules: Rules
) -> list[Frame]:
    """Detections with ids of each frame."""
    settings = TrackingSettings(rules=rules)
    found = segmenter.track_video(clip, text=list(phrases), settings=settings)
    return [one.detections for one in found]
