"""The tracker's parts answer a batch of objects as transformers' tracker answers one by one.

Where transformers and Meta's code differ, the parts of the reference ``transformers`` are compared;
what Meta's own code computes stands in ``tests/golden/meta``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tracker_model import IMAGE, SIDE, WIDTH

from samforge.measure.fidelity import compare_outputs
from samforge.models.part import example_inputs
from samforge.models.sam3.tracker.mask_decoder import NO_OBJECT

Make = Callable[..., Any]
Tensors = dict[str, Tensor]

LIMIT = 1e-4
OBJECTS = (1, 2, 7, 32)


def inputs_of(part: Any, seed: int = 0, **sizes: int) -> Tensors:
    """Random inputs of a part."""
    return example_inputs(part.inputs, sizes, seed=seed)


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    """Within :data:`LIMIT`, relative where values exceed 1."""
    assert found.keys() == wanted.keys()
    figures = compare_outputs(
        {name: tensor.numpy() for name, tensor in wanted.items()},
        {name: tensor.numpy() for name, tensor in found.items()},
    )
    for figure in figures:
        assert figure.gated <= LIMIT, figure
        assert figure.scale > 1e-2, f"{figure.tensor} is nearly zero, and all such agree"


def one_by_one(answers: Iterable[Tensors]) -> Tensors:
    """Answers for single objects, together."""
    answers = list(answers)
    return {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}


def decoded(tracker: Any, features: Tensor, maps: tuple[Tensor, ...], **prompt: Any) -> Tensors:
    """transformers' answer to one prompt."""
    with torch.inference_mode():
        output = tracker._single_frame_forward(image_embeddings=[*maps, features], **prompt)
    return {
        "mask": output.pred_masks,
        "iou": output.iou_scores[0],
        "pointer": output.object_pointer[0],
        "object_score": output.object_score_logits[0],
    }


@pytest.fixture(scope="module")
def tracker(video_stock: Any) -> Any:
    """transformers' tracker."""
    return video_stock.tracker_model


@pytest.mark.parametrize("batch", [1, 3])
def test_vision(video_stock: Any, tracker_part: Make, batch: int) -> None:
    part = tracker_part("vision", "transformers")
    inputs = inputs_of(part, batch=batch)
    with torch.inference_mode():
        output = video_stock.detector_model.get_vision_features(inputs["images"])
        hidden = output.last_hidden_state.view(batch, SIDE, SIDE, -1).permute(0, 3, 1, 2)
        fine, middle, coarse, _ = video_stock.tracker_neck(hidden)[0]
        decoder = video_stock.tracker_model.mask_decoder
        own = (decoder.conv_s0(fine), decoder.conv_s1(middle), coarse)
    names = [tensor.name for tensor in part.spec.outputs]
    assert names[-3:] == ["high_res_0", "high_res_1", "tracker_features"]
    wanted = dict(zip(names, (*output.fpn_hidden_states[:-1], *own), strict=True))
    assert_equal(part(inputs), wanted)


def test_the_detectors_maps_are_those_of_part_vision(
    tracker_checkpoint: Make, tracker_part: Make
) -> None:
    from samforge.models.sam3.parts import part_from_checkpoint

    whole = tracker_part("vision")
    inputs = inputs_of(whole, batch=2)
    without = replace(tracker_checkpoint("meta"), tracker=None)
    found, alone = whole(inputs), part_from_checkpoint(without, "vision")(inputs)
    assert list(alone) == ["fpn_0", "fpn_1", "fpn_2", "class_token"]
    assert all(torch.equal(found[name], alone[name]) for name in alone)


@pytest.mark.parametrize("memories", [1, 7, 10])
@pytest.mark.parametrize("objects", OBJECTS)
def test_memory_attention(tracker: Any, tracker_part: Make, objects: int, memories: int) -> None:
    part = tracker_part("memory_attention")
    pointers = memories + 2
    inputs = inputs_of(part, objects=objects, memories=memories, pointers=pointers)
    span = 15
    distances = torch.arange(1, pointers + 1)
    inputs["pointer_times"] = (distances / span).expand(objects, -1).contiguous()
    features = inputs["tracker_features"].flatten(2).permute(2, 0, 1)  # [L, 1, D]
    encoding = tracker.memory_encoder.position_encoding
    place = encoding(torch.Size((1, 64, SIDE, SIDE)), "cpu", torch.float32)
    own = tracker_stock_position(tracker)

    def alone(row: int) -> Tensors:
        stored = [
            (
                int(offset),
                {
                    "maskmem_features": memory.to(torch.bfloat16)[:, None],
                    "maskmem_pos_enc": place.flatten(2).permute(2, 0, 1),
                },
            )
            for offset, memory in zip(
                inputs["memory_offsets"][row], inputs["memory"][row], strict=True
            )
        ]
        with torch.inference_mode():
            keys, positions = tracker._build_memory_attention_inputs(stored, "cpu")
            tokens, token_positions = tracker._process_object_pointers(
                distances.tolist(),
                list(inputs["pointers"][row, :, None]),
                span + 1,
                1,
                WIDTH,
                "cpu",
            )
            seen = tracker.memory_attention(
                current_vision_features=features,
                current_vision_position_embeddings=own,
                memory=torch.cat([*keys, tokens]),
                memory_posision_embeddings=torch.cat([*positions, token_positions]),
                num_object_pointer_tokens=len(tokens),
            )
        return {"conditioned": seen.view(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)}

    assert_equal(part(inputs), one_by_one(alone(row) for row in range(objects)))


def tracker_stock_position(tracker: Any) -> Tensor:
    """transformers' position encoding of the frame's features, (L, 1, D)."""
    kind = type(tracker.memory_encoder.position_encoding)
    encoding = kind(num_position_features=WIDTH // 2, normalize=True)
    grid = encoding(torch.Size((1, WIDTH, SIDE, SIDE)), "cpu", torch.float32)
    return grid.flatten(2).permute(2, 0, 1)


@pytest.mark.parametrize("objects", OBJECTS)
def test_tracking_decoder(tracker: Any, tracker_part: Make, objects: int) -> None:
    part = tracker_part("tracking_decoder")
    inputs = inputs_of(part, objects=objects)
    maps = (inputs["high_res_0"], inputs["high_res_1"])
    rows = inputs["conditioned"].split(1)
    wanted = one_by_one(decoded(tracker, row, maps, multimask_output=True) for row in rows)
    wanted["iou"] = wanted["iou"].amax(1, keepdim=True)
    found = part(inputs)
    names = {"mask_logits": "mask", "object_pointer": "pointer"}
    assert_equal({names.get(name, name): found[name] for name in found}, wanted)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("objects", OBJECTS)
def test_point_decoder(tracker: Any, tracker_part: Make, objects: int, earlier: bool) -> None:
    part = tracker_part("point_decoder")
    inputs = inputs_of(part, seed=objects, objects=objects, points=3)
    inputs["has_mask"] = torch.full((objects,), earlier)
    inputs["point_labels"][::2, -1] = -1  # none, as Meta's code fills up
    maps = (inputs["high_res_0"], inputs["high_res_1"])
    features = inputs["tracker_features"] + tracker.no_memory_embedding.view(1, -1, 1, 1)
    found = part(inputs)
    rows = torch.arange(objects)
    best = 1 + found["iou"][:, 1:].argmax(1)
    for multimask, chosen in ((False, torch.zeros_like(best)), (True, best)):
        wanted = one_by_one(
            decoded(
                tracker,
                features,
                maps,
                input_points=inputs["points"][row, None, None],
                input_labels=inputs["point_labels"][row, None, None],
                input_masks=inputs["mask_input"][row, None] if earlier else None,
                multimask_output=multimask,
            )
            for row in range(objects)
        )
        masks = found["mask_logits"][rows, chosen][:, None]
        present = (found["object_score"] > 0)[..., None, None]
        own = {
            "mask": torch.where(present, masks, NO_OBJECT),
            "iou": found["iou"][:, 1:] if multimask else found["iou"][:, :1],
            "pointer": found["object_pointers"][rows, chosen],
            "object_score": found["object_score"],
        }
        assert_equal(own, wanted)


@pytest.mark.parametrize("objects", OBJECTS)
def test_mask_prompt(tracker: Any, tracker_part: Make, objects: int) -> None:
    part = tracker_part("mask_prompt", "transformers")
    inputs = inputs_of(part, objects=objects)
    assert inputs["mask"].shape[2:] == (IMAGE, IMAGE)
    inputs["mask"][0] = 0 if objects > 1 else inputs["mask"][0]
    maps = [inputs["high_res_0"], inputs["high_res_1"]]

    def alone(mask: Tensor) -> Tensors:
        with torch.inference_mode():
            output = tracker._use_mask_as_output(inputs["tracker_features"], maps, mask)
        return {
            "object_pointer": output.object_pointer[0],
            "object_score": output.object_score_logits[0],
        }

    assert_equal(part(inputs), one_by_one(alone(mask) for mask in inputs["mask"].split(1)))


@pytest.mark.parametrize("objects", OBJECTS)
def test_mask_prompt_as_meta_has_it(tracker: Any, tracker_part: Make, objects: int) -> None:
    """transformers' decoder gives it when it is asked for one mask, with a mask of Meta's size."""
    part = tracker_part("mask_prompt")
    inputs = inputs_of(part, objects=objects)
    maps = (inputs["high_res_0"], inputs["high_res_1"])

    def alone(mask: Tensor) -> Tensors:
        small = tracker.mask_downsample(mask)
        found = decoded(
            tracker, inputs["tracker_features"], maps, input_masks=small, multimask_output=False
        )
        return {"object_pointer": found["pointer"], "object_score": torch.full((1, 1), 10.0)}

    assert_equal(part(inputs), one_by_one(alone(mask) for mask in inputs["mask"].split(1)))


@pytest.mark.parametrize("name", ["memory_encoder", "memory_encoder_text"])
@pytest.mark.parametrize("objects", OBJECTS)
def test_memory_encoder(tracker: Any, tracker_part: Make, objects: int, name: str) -> None:
    part = tracker_part(name, "transformers")
    inputs = inputs_of(part, objects=objects)
    features = inputs["tracker_features"]

    def alone(row: int) -> Tensors:
        mask, prompted = inputs["mask_logits"][row, None], bool(inputs["from_prompt"][row])
        if name == "memory_encoder":
            mask = interpolate(mask, size=(IMAGE, IMAGE), mode="bilinear")
        with torch.inference_mode():
            rounded, _ = tracker._encode_new_memory(
                features.flatten(2).permute(2, 0, 1),
                mask,
                inputs["object_score"][row, None],
                prompted,
            )
            mask = interpolate(mask, size=(16 * SIDE, 16 * SIDE), mode="bilinear")
            share = (mask > 0).float() if prompted else mask.sigmoid()
            memory, _ = tracker.memory_encoder(features, share * 20 - 10)
        absent = inputs["object_score"][row] <= 0
        memory = memory.flatten(2).mT + absent * tracker.occlusion_spatial_embedding_parameter
        # What transformers stores, within a step of bfloat16.
        stored = rounded.permute(1, 0, 2).float()
        assert (stored - memory).abs().le(memory.abs() * 2**-7 + 1e-4).all()
        return {"memory": memory}

    assert_equal(part(inputs), one_by_one(alone(row) for row in range(objects)))


def test_objects_that_are_prompted_together_share_no_pixel(tracker_part: Make) -> None:
    """As in Meta's session, and only there; what is tracked keeps what it has."""
    part = tracker_part("memory_encoder")
    inputs = inputs_of(part, objects=3)
    inputs["object_score"] = torch.ones(3, 1)
    inputs["mask_logits"] = torch.tensor([5.0, 9.0, 20.0]).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    inputs["from_prompt"] = torch.tensor([True, True, False])
    found = part(inputs)["memory"]
    inside = part(inputs | {"from_prompt": torch.tensor([False, True, True])})["memory"]
    outside = part(
        inputs
        | {"mask_logits": -inputs["mask_logits"], "from_prompt": torch.tensor([True, True, True])}
    )["memory"]
    # The first loses all pixels to the second; the third is tracked and takes none.
    assert torch.allclose(found[0], outside[0], atol=1e-5)
    assert not torch.allclose(found[1], outside[1], atol=0.1)
    # Beside the third, which is prompted now, the second loses them.
    assert torch.allclose(inside[1], outside[1], atol=1e-5)


def test_memories_are_rounded_where_they_are_read(tracker_part: Make) -> None:
    part = tracker_part("memory_attention")
    inputs = inputs_of(part, objects=2, memories=3, pointers=2)
    stored = inputs["memory"].to(torch.bfloat16).float()
    assert not torch.equal(stored, inputs["memory"])
    found = part(inputs)["conditioned"]
    assert torch.equal(part(inputs | {"memory": stored})["conditioned"], found)
