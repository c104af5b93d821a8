"""The tracker's parts, one by one, compute what Meta's code computes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.golden.meta.arrays import Arrays, beyond, images_of
from tests.golden.meta.tracker_session import (
    FILE,
    IMAGE,
    SIDES,
    VIDEO_HW,
    Parts,
    answer,
    as_maps,
    ask_points,
    fill_holes,
    floats_from_bfloat16,
    look_back,
    maps_of,
)
from tools import meta_weights
from torch.nn.functional import interpolate

from samforge.runtime.tracking import META, attended_frames

README = Path(__file__).with_name("README.md").read_text()
POINT_CASES = (
    *("point", "point_negative", "two_points", "box", "box_and_point", "five_points", "none"),
    *("refined", "refined_one_point", "point_single", "batch", "other_frame"),
)
ATTENTION_CASES = (
    *("memories_1", "memories_3", "memories_7", "memories_7_batch_2", "pointers_16"),
    *("short_video_8_frames", "conditioning_6", "reverse", "gap"),
)
IMAGE_CASES = (
    *("point", "point_single", "box", "box_and_point", "refined", "mask_only", "two_boxes"),
)

HOLE = 256
"""Cells of a hole that Meta's predictor for images fills, at most."""


def test_the_file_and_its_weights(
    tracker_arrays: Arrays, tracker_layout: dict[str, list[int]]
) -> None:
    assert re.search(rf"`{hashlib.sha256(FILE.read_bytes()).hexdigest()}`", README)
    assert len(tracker_layout) == 309
    digest = hashlib.sha256()
    for name in sorted(tracker_layout):
        digest.update(meta_weights.tensor(name, tracker_layout[name]).astype("<f4").tobytes())
    assert digest.digest() == tracker_arrays["weights_sha256"].tobytes()
    assert digest.hexdigest() in README
    groups = {name.rsplit("/", 1)[0] for name in tracker_arrays}
    assert groups >= {f"prompt/{case}" for case in POINT_CASES}
    assert groups >= {f"attention/{case}" for case in ATTENTION_CASES}
    assert groups >= {f"image_predictor/{case}" for case in IMAGE_CASES}


def test_levels_of_the_neck(tracker: Parts, arrays: Arrays) -> None:
    part = tracker("vision").module
    images = torch.from_numpy(images_of(arrays["pictures"])["images"])
    with torch.inference_mode():
        spatial = part.vision.trunk(images)
        features = part.vision.features(spatial)[:3]
        maps = [level(spatial) for level in part.neck.levels]
    for prefix, found in (("", features), ("tracker_", maps)):
        kept = {
            f"fpn_{level}": found[level][:, ::4, ::step, ::step].numpy()
            for level, step in enumerate((4, 2, 1))
        }
        wanted = {name: arrays[f"vision/{prefix}{name}"] for name in kept}
        assert beyond(kept, wanted) == {}


def test_maps_for_masks(tracker: Parts, tracker_arrays: Arrays) -> None:
    maps = maps_of(tracker, 0)
    found = {
        "conv_s0": maps["high_res_0"][0, ::4, ::4, ::4].numpy(),
        "conv_s1": maps["high_res_1"][0, ::8, ::4, ::4].numpy(),
    }
    assert beyond(found, {name: tracker_arrays[f"sparse_check/{name}"] for name in found}) == {}


@pytest.mark.parametrize("case", POINT_CASES)
def test_points_and_boxes(tracker: Parts, tracker_arrays: Arrays, case: str) -> None:
    arrays = {
        name.rsplit("/", 1)[1]: array
        for name, array in tracker_arrays.items()
        if name.startswith(f"prompt/{case}/")
    }
    points = arrays.get("points", np.zeros((1, 1, 2), np.float32))
    labels = arrays.get("labels", np.full((1, 1), -1))
    earlier = None
    if case.startswith("refined"):
        earlier = torch.from_numpy(tracker_arrays["memory_encoder/low_res_mask"][:1]).clamp(-32, 32)
    maps = maps_of(tracker, 5 if case == "other_frame" else 0)
    whole = ask_points(tracker, maps, points, labels, mask_input=earlier)
    multimask = bool(arrays["multimask"])
    chosen = answer(whole, multimask=multimask)
    kept = {
        "mask": chosen["mask"][:, :, ::2, ::2],
        "pred_masks": whole["mask_logits"][:, 1:, ::2, ::2],
        "iou": whole["iou"][:, 1:] if multimask else chosen["iou"],
        "pointer": chosen["pointer"],
        "object_score": chosen["object_score"],
    }
    wanted = {
        "mask": arrays["mask"],
        "pred_masks": arrays["all_masks"][:, 1:],
        "iou": arrays["ious"],
        "pointer": arrays["pointer"],
        "object_score": arrays["object_score"],
    }
    assert beyond({name: tensor.numpy() for name, tensor in kept.items()}, wanted) == {}


def test_places_that_are_padding_have_no_part_in_the_answer(
    tracker: Parts, tracker_arrays: Arrays
) -> None:
    """Objects with one, two and five points in one batch are answered as each alone."""
    cases = ("point_single", "two_points", "five_points")
    points = torch.zeros(3, 5, 2)
    labels = torch.full((3, 5), -10)
    for row, case in enumerate(cases):
        own = tracker_arrays[f"prompt/{case}/points"][0]
        points[row, : len(own)] = torch.from_numpy(own)
        labels[row, : len(own)] = torch.from_numpy(tracker_arrays[f"prompt/{case}/labels"][0])
    whole = ask_points(tracker, maps_of(tracker, 0), points, labels)
    for row, case in enumerate(cases):
        masks = {"mask": whole["mask_logits"][row : row + 1, :1, ::2, ::2].numpy()}
        assert beyond(masks, {"mask": tracker_arrays[f"prompt/{case}/mask"]}) == {}


def test_a_frame_without_memory_by_the_tracking_decoder(
    tracker: Parts, tracker_arrays: Arrays
) -> None:
    """What tracking asks, an empty point, is one of the prompts."""
    maps = maps_of(tracker, 0)
    none = tracker("point_decoder").module.no_memory.view(1, -1, 1, 1)
    found = tracker("tracking_decoder")(maps | {"conditioned": maps["tracker_features"] + none})
    kept = {
        "mask": found["mask_logits"][:, :, ::2, ::2].numpy(),
        "pointer": found["object_pointer"].numpy(),
        "object_score": found["object_score"].numpy(),
    }
    assert beyond(kept, {name: tracker_arrays[f"prompt/none/{name}"] for name in kept}) == {}
    assert found["iou"].item() == pytest.approx(
        float(tracker_arrays["prompt/none/ious"].max()), abs=1e-5
    )


@pytest.mark.parametrize("case", ["disc", "small", "empty"])
def test_masks_that_are_given(tracker: Parts, tracker_arrays: Arrays, case: str) -> None:
    packed = tracker_arrays[f"mask_prompt/{case}/mask"]
    mask = torch.from_numpy(np.unpackbits(packed, axis=-1)).float()[None, None]
    found = tracker("mask_prompt")(maps_of(tracker, 0) | {"mask": mask})
    kept = {
        "pointer": found["object_pointer"].numpy(),
        "object_score": found["object_score"].numpy(),
    }
    assert beyond(kept, {name: tracker_arrays[f"mask_prompt/{case}/{name}"] for name in kept}) == {}


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_clicks_on_one_picture(tracker: Parts, tracker_arrays: Arrays, case: str) -> None:
    """Meta's predictor for images: points in pixels of the picture, masks in its size."""
    arrays = {
        name.rsplit("/", 1)[1]: array
        for name, array in tracker_arrays.items()
        if name.startswith(f"image_predictor/{case}/")
    }
    boxes = arrays["box"].reshape(-1, 2, 2) if "box" in arrays else np.zeros((1, 0, 2))
    points = arrays.get("point_coords", np.zeros((0, 2)))[None].repeat(len(boxes), 0)
    labels = arrays.get("point_labels", np.zeros(0, np.int64))[None].repeat(len(boxes), 0)
    corners = np.tile([2, 3][: boxes.shape[1]], (len(boxes), 1))
    points, labels = np.concatenate([boxes, points], 1), np.concatenate([corners, labels], 1)
    if not labels.size:  # a mask alone, which has no point that is none behind it
        points, labels = np.zeros((1, 1, 2)), np.full((1, 1), -10)
    pixels = torch.from_numpy(points * np.array([IMAGE / VIDEO_HW[1], IMAGE / VIDEO_HW[0]]))
    earlier = torch.from_numpy(arrays["mask_input"])[None] if "mask_input" in arrays else None
    whole = ask_points(tracker, maps_of(tracker, 0), pixels, labels, mask_input=earlier)
    rows = slice(1, None) if arrays["multimask_output"] else slice(1)
    masks = whole["mask_logits"][:, rows]
    filled = fill_holes(masks.flatten(0, 1), HOLE)[:, None]
    large = interpolate(filled, size=VIDEO_HW, mode="bilinear") > 0
    packed = np.unpackbits(arrays["mask"], axis=-1)[..., : VIDEO_HW[1]].astype(np.bool_)
    shape = packed.shape
    found = {
        "iou": whole["iou"][:, rows].numpy().reshape(arrays["ious"].shape),
        "mask": masks.clamp(-32, 32)[..., ::2, ::2].numpy().reshape(arrays["low_res"].shape),
        "video_mask": large.numpy().reshape(shape),
    }
    wanted = {"iou": arrays["ious"], "mask": arrays["low_res"], "video_mask": packed}
    assert beyond(found, wanted) == {}


@pytest.mark.parametrize("case", ["logits", "binary"])
def test_memories(tracker: Parts, tracker_arrays: Arrays, case: str) -> None:
    memory = tracker("memory_encoder")(
        {
            "tracker_features": maps_of(tracker, 1)["tracker_features"],
            "mask_logits": torch.from_numpy(tracker_arrays["memory_encoder/low_res_mask"]),
            "object_score": torch.tensor([[3.0], [-3.0]]),
            "from_prompt": torch.full((2,), case == "binary"),
        }
    )["memory"]
    wanted = tracker_arrays[f"memory_encoder/{case}"]
    assert beyond({"memory": as_maps(memory)[:, ::4]}, {"memory": wanted}) == {}
    # Rounded as they are stored, they are equal but where a value lies on an edge.
    stored = as_maps(memory.to(torch.bfloat16).float())[:, ::4]
    assert (
        stored != floats_from_bfloat16(tracker_arrays[f"memory_encoder/{case}_bf16"])
    ).mean() < 0.002


@pytest.mark.parametrize("case", ATTENTION_CASES)
def test_memory_attention(tracker: Parts, tracker_arrays: Arrays, case: str) -> None:
    arrays = {
        name.rsplit("/", 1)[1]: array
        for name, array in tracker_arrays.items()
        if name.startswith(f"attention/{case}/")
    }
    frame, objects = int(arrays["frame"]), len(arrays["output"])
    choice = attended_frames(
        arrays["conditioning"].tolist(),
        dict.fromkeys(arrays["ordinary"].tolist(), 1.0),
        frame,
        replace(META.memory, least_score=None),
        length=int(arrays["num_frames"]),
        reverse=bool(arrays["reverse"]),
    )
    cells = SIDES[2] ** 2
    pointer_tokens = 4 * len(choice.pointers)
    assert arrays["tokens"].tolist() == [
        cells * len(choice.memories) + pointer_tokens,
        pointer_tokens,
    ]

    def drawn(kind: str, frame: int, shape: tuple[int, ...]) -> torch.Tensor:
        rows = [meta_weights.normal(f"input.{kind}.{frame}.{row}", shape) for row in range(objects)]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    memory = {
        other: drawn("memory", other, (64, SIDES[2], SIDES[2])).flatten(2).mT
        for other, _ in choice.memories
    }
    pointer = {other: drawn("pointer", other, (256,)) for other, _ in choice.pointers}
    found = look_back(tracker, maps_of(tracker, frame), choice, memory, pointer)
    kept = {"conditioned": found["conditioned"][:, ::8].numpy()}
    assert beyond(kept, {"conditioned": arrays["output"]}) == {}
