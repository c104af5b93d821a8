"""A checkpoint fits its architecture exactly, or says what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Sam3Config

from samforge.core.errors import CheckpointError, CheckpointKeysError, SettingError
from samforge.models.sam3.checkpoint import (
    LISTED,
    Sam3Checkpoint,
    feature_sizes,
    state_shapes,
    with_image_size,
)
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import PARTS, part_from_checkpoint, part_spec
from samforge.models.sources import RandomSource, TorchFileSource
from samforge.models.tiny import CONFIG_PATH
from samforge.transform.export import release

Make = Callable[..., Any]


class Tensors:
    """Tensors in memory."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def tensor(self, name: str) -> Any:
        return self.tensors[name]

    def digest(self) -> str:
        return "sha256:0"


@pytest.fixture
def state(checkpoint: Make) -> dict[str, Any]:
    """The small model's tensors, to bend."""
    source = checkpoint("small").source
    return {name: source.tensor(name) for name in source.names()}


@pytest.fixture
def holding(checkpoint: Make) -> Callable[[dict[str, Any]], Sam3Checkpoint]:
    """The small checkpoint with other tensors."""
    return lambda tensors: replace(checkpoint("small"), source=Tensors(tensors))


def test_a_checkpoint_describes_its_model(checkpoint: Make) -> None:
    small, tiny = checkpoint("small"), checkpoint("tiny")
    assert (small.image.size, small.context, small.eos_id) == (112, 12, 299)
    assert (tiny.image.size, tiny.context, tiny.eos_id) == (224, 32, 2)


def test_state_shapes_are_the_stock_models(small_config: Make, stock_model: Make) -> None:
    stock = {
        name: tuple(tensor.shape) for name, tensor in stock_model("small").state_dict().items()
    }
    assert state_shapes(small_config()) == stock


def test_missing_and_unexpected_names_are_listed(holding: Make, state: dict[str, Any]) -> None:
    holding(state).check()
    del state["text_projection.bias"], state["detr_decoder.query_embed.weight"]
    state["detr_decoder.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointKeysError) as error:
        holding(state).check()
    assert str(error.value).splitlines()[1:] == [
        "2 missing: detr_decoder.query_embed.weight, text_projection.bias",
        "1 unexpected: detr_decoder.extra",
    ]


def test_a_long_list_is_cut(holding: Make, state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointKeysError) as error:
        holding({}).check()
    line = str(error.value).splitlines()[1]
    assert line.startswith(f"{len(state)} missing: detr_decoder.box_head.layer1.bias, ")
    assert line.endswith(f" and {len(state) - LISTED} more")
    assert line.count(", ") == LISTED - 1


def test_a_video_checkpoint_brings_its_tracker(holding: Make, state: dict[str, Any]) -> None:
    video = {f"detector_model.{name}": tensor for name, tensor in state.items()}
    video |= {
        "tracker_model.mask_decoder.iou_token.weight": torch.zeros(1),
        "tracker_neck.fpn_layers.0.proj1.weight": torch.zeros(1),
    }
    holding(video).check()
    for name in PARTS:
        loaded = part_from_checkpoint(holding(video), name).module.state_dict()
        plain = part_from_checkpoint(holding(state), name).module.state_dict()
        assert all(torch.equal(loaded[key], plain[key]) for key in plain)
    video["tracker.mask_decoder"] = torch.zeros(1)
    with pytest.raises(CheckpointKeysError, match=r"1 unexpected: tracker\.mask_decoder"):
        holding(video).check()


def test_wrong_shapes_are_listed(holding: Make, state: dict[str, Any]) -> None:
    state["text_projection.weight"] = state["text_projection.weight"].T
    state["text_encoder.text_model.final_layer_norm.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointKeysError) as error:
        part_from_checkpoint(holding(state), "text")
    assert "2 of another shape: " in str(error.value)
    assert "text_projection.weight (48, 32), not (32, 48)" in str(error.value)
    assert "text_model.final_layer_norm.bias (7,), not (48,)" in str(error.value)
    # Other parts do not read them.
    part_from_checkpoint(holding(state), "detector")


def test_a_part_without_its_weights(holding: Make, state: dict[str, Any]) -> None:
    del state["geometry_encoder.cls_embed.weight"]
    with pytest.raises(
        CheckpointKeysError, match=r"1 missing: geometry_encoder\.cls_embed\.weight"
    ):
        part_from_checkpoint(holding(state), "detector_boxes")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parts_are_float32_whatever_is_stored(
    holding: Make, state: dict[str, Any], dtype: Any
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in state.items()}
    module = part_from_checkpoint(holding(stored), "grounding").module
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    weight = "text_projection.weight"
    assert torch.equal(module.text.projection.weight, stored[weight].float())
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_no_weight_is_left_on_the_meta_device(part: Make) -> None:
    for name in PARTS:
        module = part(name).module
        devices = {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}
        assert devices == {"cpu"}


def test_freeing_a_part_leaves_the_checkpoint_alone(
    holding: Make, state: dict[str, Any], tmp_path: Any
) -> None:
    torch.save({name: torch.nn.Parameter(state[name]) for name in state}, tmp_path / "sam3.pt")
    own = replace(holding({}), source=TorchFileSource(tmp_path / "sam3.pt"))
    for _ in range(2):
        module = part_from_checkpoint(own, "text").module
        assert torch.equal(module.projection.weight, state["text_projection.weight"])
        release(module.parameters())


def test_an_unknown_part(checkpoint: Make) -> None:
    with pytest.raises(SettingError, match=r"sam3 has no part 'tracker'\. Its parts: vision, text"):
        part_from_checkpoint(checkpoint("small"), "tracker")


@pytest.mark.parametrize("size", [14, 112, 224, 924, 1008])
def test_image_sizes(small_config: Make, size: int) -> None:
    config = with_image_size(small_config(), size)
    assert config.vision_config.backbone_config.image_size == size
    cells = size // 14
    assert feature_sizes(config) == [4 * cells, 2 * cells, cells]
    assert config.vision_config.backbone_feature_sizes == [[n, n] for n in feature_sizes(config)]
    spec = part_spec(config, "vision", "meta")
    maps = [("batch", 32, n, n) for n in feature_sizes(config)]
    assert [tensor.shape for tensor in spec.outputs] == [*maps, ("batch", 1, 32)]
    assert spec.inputs[0].shape == ("batch", 3, size, size)
    stock = part_spec(config, "vision", "transformers")
    assert [tensor.shape for tensor in stock.outputs] == maps


def test_the_real_model_at_its_own_size() -> None:
    assert feature_sizes(with_image_size(Sam3Config(), None)) == [288, 144, 72]
    assert feature_sizes(with_image_size(Sam3Config(), 924)) == [264, 132, 66]


def test_the_tiny_model_counts_in_smaller_patches() -> None:
    config = with_image_size(Sam3Config(**json.loads(CONFIG_PATH.read_text())), 308)
    assert feature_sizes(config) == [88, 44, 22]


@pytest.mark.parametrize(
    ("size", "nearest"),
    [(1000, "994 and 1008"), (113, "112 and 126"), (13, "14 and 28"), (0, "14 and 28")],
)
def test_a_size_that_does_not_fit_names_the_nearest(
    small_config: Make, size: int, nearest: str
) -> None:
    with pytest.raises(SettingError, match=f"size {size} is no multiple of 14 .*are {nearest}"):
        with_image_size(small_config(), size)


def test_only_detector_boxes_takes_boxes(checkpoint: Make) -> None:
    axes = {}
    for name in PARTS:
        spec = part_spec(checkpoint("small").config, name, "meta")
        own = part_from_checkpoint(checkpoint("small"), name)
        assert own.spec == spec
        assert all(limits == (1, None) for limits in own.axis_limits.values())
        axes[name] = set(own.axis_limits)
    assert axes == {
        "vision": {"batch"},
        "text": {"prompts"},
        "detector": {"batch", "prompts"},
        "detector_boxes": {"batch", "prompts", "boxes"},
        "grounding": {"batch", "prompts"},
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vision_encoder.backbone.layers.1.mlp.fc1.bias", {"vision", "grounding"}),
        ("text_encoder.text_model.embeddings.token_embedding.weight", {"text", "grounding"}),
        ("detr_decoder.box_head.layer1.weight", {"detector", "detector_boxes", "grounding"}),
        # The class token is made of it.
        (
            "geometry_encoder.cls_embed.weight",
            {"vision", "detector_boxes", "grounding", "detector"},
        ),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    holding: Make, state: dict[str, Any], name: str, parts: set[str], value: float
) -> None:
    """Calibration need not meet them: a word of the vocabulary that nobody asks for."""
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = value
    refused = set()
    for part in PARTS:
        try:
            part_from_checkpoint(holding(state), part)
        except CheckpointError as error:
            refused.add(part)
            assert str(error).splitlines()[1:] == [f"1 not finite: {name}"]  # noqa: PT017
    assert refused == parts


def test_weights_too_large_for_float32_are_refused(holding: Make, state: dict[str, Any]) -> None:
    state["text_projection.bias"] = torch.full((32,), 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="1 not finite: text_projection"):
        part_from_checkpoint(holding(state), "text")


def test_random_weights_go_through_the_same_check(holding: Make, state: dict[str, Any]) -> None:
    checkpoint = holding(state)
    source = RandomSource(state_shapes(checkpoint.config), 0, deviation=1e38 * 10)
    with pytest.raises(CheckpointError, match=r"\n\d+ not finite: "):
        part_from_checkpoint(replace(checkpoint, source=source), "text")


def test_random_weights_open_no_file(small_folder: Path, tmp_path: Path) -> None:
    """What is wrong with the weights that they stand in for is not found, as the docs say."""
    folder = Path(shutil.copytree(small_folder, tmp_path / "broken"))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        checkpoint_from_name(str(folder))
    drawn = checkpoint_from_name(str(folder), random_weights=True)
    loaded = part_from_checkpoint(drawn, "text").module.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in loaded.values())
