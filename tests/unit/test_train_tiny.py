"""The training tool: its forward is the stock model's, its losses and schedule do what they say."""

from __future__ import annotations

import importlib
import json
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samforge.models.tiny.scenes import COLOURS, MOST_INSTANCES, SHAPES, draw_scene, vocabulary

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")


@pytest.fixture(scope="module")
def tool(one_thread: None) -> Iterator[Any]:
    """``tools/train_tiny.py`` as a module; its folder is importable meanwhile only."""
    sys.path.insert(0, TOOLS)
    try:
        yield importlib.import_module("train_tiny")
    finally:
        sys.path.remove(TOOLS)


@pytest.fixture(scope="module")
def data(tool: Any) -> Any:
    return importlib.import_module("tiny_training.data")


@pytest.fixture(scope="module")
def losses(tool: Any) -> Any:
    return importlib.import_module("tiny_training.losses")


def test_training_forward_is_the_stock_forward_with_the_class_token(
    tool: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    roi_align_by_definition: Any,
) -> None:
    stock = importlib.import_module("transformers.models.sam3.modeling_sam3")
    # The one thing of torchvision that the stock model uses; it is not installed here.
    shim = types.SimpleNamespace(ops=types.SimpleNamespace(roi_align=roi_align_by_definition))
    monkeypatch.setattr(stock, "torchvision", shim, raising=False)
    parity = importlib.import_module("tiny_training.parity")
    parity.check(tool.new_model(), *tool.phrase_tokens(), images=2)
    assert capsys.readouterr().out.count("prompt") == 4


def test_one_step_gives_every_used_weight_a_gradient(tool: Any, data: Any, losses: Any) -> None:
    model = tool.new_model()
    forward = importlib.import_module("tiny_training.forward").TrainingForward(
        model, *tool.phrase_tokens()
    )
    alignment = tool.Alignment(model.config.detr_encoder_config.hidden_size)
    batch = data.make_batch(0, 2, split="train")
    phrases = forward.encode_phrases()
    outputs = forward(phrases, batch.images, batch.asked, batch.boxes, batch.labels)
    aligned = alignment(outputs.coarse, phrases, forward.phrase_mask, batch)
    parts = losses.training_loss(outputs, batch, aligned)
    assert set(parts) == {"total", *losses.WEIGHTS}
    assert all(torch.isfinite(loss) for loss in parts.values())
    assert parts["alignment"] == losses.WEIGHTS["alignment"] * aligned
    every = [parts[name].item() for name in losses.WEIGHTS]
    assert parts["total"].item() == pytest.approx(sum(every), rel=1e-5)
    parts["total"].backward()
    assert all(parameter.grad is not None for parameter in alignment.parameters())
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # Dead code of the stock model: the fourth pyramid level, the third mask stage, CLIP's pooling.
    dead = (
        "vision_encoder.neck.fpn_layers.3.",
        "mask_decoder.pixel_decoder.conv_layers.2.",
        "mask_decoder.pixel_decoder.norms.2.",
        "text_encoder.text_projection.",
    )
    assert {name for name in unused if not name.startswith(dead)} == set()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_batches_are_a_function_of_their_index(data: Any) -> None:
    first, again = data.make_batch(3, 2, split="train"), data.make_batch(3, 2, split="train")
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.boxes, again.boxes)
    stream = iter(data.TrainingBatches(3, 2))
    assert torch.equal(next(stream).images, first.images)
    assert torch.equal(next(stream).images, data.make_batch(4, 2, split="train").images)
    assert torch.equal(data.make_batch(0, 8, split="train").images[6:], first.images)


def test_batch_targets_are_the_instances_asked_for(data: Any) -> None:
    batch = data.make_batch(0, 6, split="held-out")
    table = data.phrase_table()
    assert batch.asked.shape == (6, 4)
    assert len(table) == len(set(table))
    for scene in range(6):
        for prompt in range(4):
            for number, box in zip(
                batch.target_numbers[scene, prompt], batch.target_boxes[scene, prompt], strict=True
            ):
                if number:
                    rows, columns = (batch.instances[scene] == number).nonzero(as_tuple=True)
                    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    assert (box * 224).tolist() == pytest.approx([float(e) for e in edges])
                else:
                    assert box.abs().sum() == 0


def test_batches_ask_by_text_first_and_by_boxes_last(data: Any) -> None:
    assert (data.TEXT_PROMPTS, data.BOX_PROMPTS) == (3, 1)
    batch = data.make_batch(0, 8, split="held-out")
    visual = data.phrase_table().index("visual")
    assert batch.asked.shape == (8, 4)
    assert not (batch.asked[:, :3] == visual).any()
    assert (batch.asked[:, 3] == visual).any()
    assert batch.boxes.shape == (8, 1, 4, 4)
    assert batch.labels.shape == (8, 1, 4)
    assert (batch.labels != -10).any(-1).all()


def test_kinds_name_every_instance(data: Any) -> None:
    batch = data.make_batch(0, 4, split="train")
    for index in range(4):
        scene = draw_scene(index, split="train")
        wanted = [
            SHAPES.index(shape) * len(COLOURS) + COLOURS.index(colour)
            for shape, colour in zip(scene.shapes, scene.colours, strict=True)
        ]
        assert batch.kinds[index].tolist() == wanted + [-1] * (MOST_INSTANCES - len(wanted))


def test_phrases_know_their_members(tool: Any) -> None:
    members = importlib.import_module("tiny_training.alignment").phrase_members()
    assert members.shape == (len(SHAPES) * len(COLOURS), len(vocabulary()))
    kind = SHAPES.index("star") * len(COLOURS) + COLOURS.index("blue")
    named = {phrase for phrase, yes in zip(vocabulary(), members[kind], strict=True) if yes}
    assert named == {"object", "star", "blue object", "blue star"}


def test_alignment_by_hand(tool: Any, data: Any) -> None:
    alignment = tool.Alignment(2)
    kind = SHAPES.index("star") * len(COLOURS) + COLOURS.index("blue")
    instances = torch.zeros(1, 4, 4, dtype=torch.uint8)
    instances[0, :2, :2] = 1  # the first of 2 x 2 cells, and nothing else
    batch = data.Batch(
        images=torch.zeros(1),
        instances=instances,
        kinds=torch.tensor([[kind, -1]]),
        **dict.fromkeys(
            ("asked", "boxes", "labels", "target_numbers", "target_boxes"), torch.zeros(1)
        ),
    )
    with torch.no_grad():
        alignment.region.weight.copy_(torch.eye(2))
        alignment.region.bias.zero_()
        alignment.bias.fill_(0.0)
    coarse = torch.zeros(1, 4, 2)
    coarse[0, 0] = torch.tensor([1.0, 0.0])
    coarse[0, 1:] = 50.0  # ground: no matter
    named = alignment.members[kind].float()
    phrases = torch.zeros(len(named), 2, 2)
    phrases[:, 0, 0] = 3 * 2**0.5 * (2 * named - 1)  # logits of 3 and -3 after the scale
    phrases[:, 1] = 99.0  # padding
    mask = torch.tensor([[True, False]]).expand(len(named), -1)
    loss = alignment(coarse, phrases, mask, batch).item()
    assert loss == pytest.approx(math.log1p(math.exp(-3)), rel=1e-5)
    opposite = alignment(coarse, -phrases, mask, batch).item()
    assert opposite == pytest.approx(loss + 3, rel=1e-5)


def test_matching_is_the_cheapest_assignment(losses: Any) -> None:
    cost = np.full((1, 3, 2, 4), 9.0, np.float32)
    cost[0, 0, :, :2] = [[1, 2], [1, 5]]  # 2 + 1 beats 1 + 5
    cost[0, 1, 0, 3] = 0
    matched = losses.match(cost, np.array([2, 1, 0]))
    assert matched.tolist() == [[[1, 0], [3, 4], [4, 4]]]


def test_generalized_iou_by_hand(losses: Any) -> None:
    one = torch.tensor([0.0, 0.0, 2.0, 2.0])
    other = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 4.0, 2.0]])
    # Same; overlap 2 of 6 in a hull of 6; apart by 1 in a hull of 8.
    expected = [1.0, 1 / 3, -2 / 8]
    assert losses.generalized_iou(one, other).tolist() == pytest.approx(expected, abs=1e-5)


def test_upsampling_is_the_post_processing_interpolation(losses: Any) -> None:
    masks = torch.rand(3, 64, 64)
    expected = torch.nn.functional.interpolate(masks[None], size=(224, 224), mode="bilinear")[0]
    assert torch.allclose(losses.upsampled(masks, 224), expected, atol=1e-5)
    full = torch.rand(2, 8, 8)
    means = torch.nn.functional.avg_pool2d(full[None], 2)[0]
    assert torch.allclose(losses.averaged(full, 4), means, atol=1e-6)


def test_perfect_answers_cost_almost_nothing(data: Any, losses: Any) -> None:
    outputs_type = importlib.import_module("tiny_training.forward").Outputs
    batch = data.make_batch(0, 3, split="train")
    there = batch.target_numbers.flatten(0, 1) > 0  # [N, 8]
    prompts, slots = there.shape
    truth = (
        batch.instances.repeat_interleave(4, 0)[:, None]
        == batch.target_numbers.flatten(0, 1)[:, :, None, None]
    )
    masks = losses.averaged((truth & there[..., None, None]).float().flatten(0, 1), 64)
    masks = masks.unflatten(0, (prompts, slots))
    outputs = outputs_type(
        torch.where(there, 12.0, -12.0)[None],
        batch.target_boxes.flatten(0, 1)[None],
        torch.where(there.any(1), 10.0, -10.0)[None],
        masks.clamp(1e-4, 1 - 1e-4).logit(),
        masks.sum(1).clamp(1e-4, 1 - 1e-4).logit(),
        torch.zeros(3, 256, 64),
    )
    parts = losses.training_loss(outputs, batch, torch.tensor(0.25))
    assert float(parts["alignment"]) == 0.25 * losses.WEIGHTS["alignment"]
    assert float(parts["class"] + parts["box_l1"] + parts["presence"]) < 0.01
    assert float(parts["box_giou"]) < 0.01
    # What is left of the mask losses is edges: a cell half covered is half right.
    assert float(parts["mask_dice"]) / losses.WEIGHTS["mask_dice"] < 0.12
    worse = outputs._replace(presence=-outputs.presence)
    assert losses.training_loss(worse, batch, torch.tensor(0.0))["presence"] > 5


def test_rate_warms_up_holds_and_decays(tool: Any) -> None:
    rates = [tool.rate_at(step, 10_000) for step in (0, 249, 499, 4000, 7250, 10_000)]
    assert rates == pytest.approx([0.002, 0.5, 1.0, 1.0, 0.505, 0.01], abs=1e-3)
    assert tool.rate_at(3000, None) == 1.0


@pytest.mark.slow
def test_two_segments_end_where_one_run_ends(tool: Any, tmp_path: Path) -> None:
    common = ["--batch", "1", "--device", "cpu", "--workers", "0", "--final-scenes", "1"]
    tool.main(["--steps", "4", "--out", str(tmp_path / "whole"), *common])
    state = ["--state", str(tmp_path / "state.pt"), "--out", str(tmp_path / "parts")]
    tool.Run(tool.parsed(["--steps", "4", *state, *common])).train(until=2)
    tool.main(["--steps", "4", *state, *common])
    from safetensors.torch import load_file

    whole = load_file(tmp_path / "whole" / "model.safetensors")
    parts = load_file(tmp_path / "parts" / "model.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "finished"
