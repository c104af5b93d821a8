"""The tracker's weights: read on request, every name checked, every tensor accounted for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from samforge.core.errors import CheckpointError, CheckpointKeysError, SettingError
from samforge.models import tiny
from samforge.models.sam3.family import Sam3
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.meta_names import MetaSource
from samforge.models.sam3.parts import TRACKER_PARTS, part_from_checkpoint
from samforge.models.sam3.tracker.names import is_tracker, transformers_names

Make = Callable[..., Any]


@pytest.fixture
def folder(video_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return Path(shutil.copytree(video_folder, tmp_path / "copy"))


def change_config(folder: Path, **settings: object) -> None:
    """Change settings of the tracker."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["tracker_config"] |= settings
    file.write_text(json.dumps(config))


def test_without_a_request_it_is_left_alone(video_folder: Path) -> None:
    found = checkpoint_from_name(str(video_folder))
    assert found.tracker is None
    with pytest.raises(SettingError, match=r"was loaded without its tracker.*tracker=True"):
        part_from_checkpoint(found, "memory_encoder")


def test_a_model_that_has_none(tmp_path: Path) -> None:
    """The detector's files of the tiny model, in a folder of their own."""
    for file in (tiny.CONFIG_PATH, tiny.TOKENIZER_PATH, tiny.WEIGHTS_PATH):
        (tmp_path / file.name).symlink_to(file)
    assert checkpoint_from_name(str(tmp_path)).tracker is None
    with pytest.raises(CheckpointError, match="has no tracker: it is the detector alone"):
        checkpoint_from_name(str(tmp_path), tracker=True)


def test_the_tiny_model_has_one() -> None:
    found = checkpoint_from_name("tiny", tracker=True)
    assert found.tracker is not None
    assert found.tracker.memory_attention_hidden_size == 64
    stored = load_file(tiny.TRACKER_WEIGHTS_PATH)
    detector = load_file(tiny.WEIGHTS_PATH)
    assert not stored.keys() & detector.keys()
    assert found.source.names() == stored.keys() | detector.keys()
    assert all(name.startswith(("tracker_model.", "tracker_neck.")) for name in stored)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in stored.values())
    for name in ("vision", *TRACKER_PARTS):
        part = part_from_checkpoint(found, name)
        for source, place in part.origins.items():
            wanted = (stored | detector).get(source)
            if wanted is not None:
                assert torch.equal(part.module.state_dict()[place], wanted.float()), source


def test_the_tiny_detector_does_not_change_with_its_tracker() -> None:
    alone = checkpoint_from_name("tiny")
    assert alone.tracker is None
    assert alone.source.names() == load_file(tiny.WEIGHTS_PATH).keys()
    assert tiny.weights_digest() == f"sha256:{alone.source.digest().removeprefix('sha256:')}"


def test_an_unknown_part(tracker_checkpoint: Make) -> None:
    with pytest.raises(
        SettingError, match=r"no part 'x'\. Its parts: vision, .*, memory_encoder_t"
    ):
        part_from_checkpoint(tracker_checkpoint("meta"), "x")


def test_what_is_missing_or_unknown_is_listed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["tracker_model.no_object_pointer"]
    tensors["tracker_neck.fpn_layers.7.proj1.bias"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointKeysError) as error:
        checkpoint_from_name(str(folder), tracker=True)
    assert "1 missing: tracker_model.no_object_pointer" in str(error.value)
    assert "1 unexpected: tracker_neck.fpn_layers.7.proj1.bias" in str(error.value)
    assert checkpoint_from_name(str(folder)).tracker is None


@pytest.mark.parametrize("name", ["vision", *TRACKER_PARTS])
@pytest.mark.parametrize("reference", ["meta", "transformers"])
def test_every_tensor_of_a_part_is_accounted_for(
    tracker_part: Make, video_folder: Path, name: str, reference: str
) -> None:
    part = tracker_part(name, reference)
    stored, state = load_file(video_folder / "model.safetensors"), part.module.state_dict()
    assert not part.origins.keys() & part.folded.keys()
    for source, place in part.origins.items():
        assert torch.equal(state[place], stored[source]), source
    # What the module holds and no file does was made from what is folded.
    made = {place.rsplit(".", 2)[-2] for place in state.keys() - set(part.origins.values())}
    assert made <= {"value", "questions", "answers", "own", "question", "answer"}
    assert all(reason for reason in part.folded.values())


def test_all_parts_together_read_the_whole_tracker(tracker_part: Make, video_folder: Path) -> None:
    parts = [tracker_part(name) for name in ("vision", *TRACKER_PARTS)]
    read = {name for part in parts for name in (*part.origins, *part.folded)}
    wanted = {name for name in load_file(video_folder / "model.safetensors") if "tracker" in name}
    assert wanted - read == {
        # Read by nobody, in Meta's code and in transformers: features get no position there.
        "tracker_model.no_memory_positional_encoding",
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"num_maskmem": 5}, "num_maskmem = 5"),
        ({"sigmoid_bias_for_mem_enc": -6.0}, "sigmoid_bias_for_mem_enc = -6.0"),
    ],
)
def test_what_meta_knows_nothing_of(folder: Path, settings: dict[str, Any], found: str) -> None:
    change_config(folder, **settings)
    with pytest.raises(SettingError, match=f"{found} in its tracker, and Meta's code computes"):
        checkpoint_from_name(str(folder), tracker=True)
    other = checkpoint_from_name(str(folder), tracker=True, reference="transformers")
    assert other.tracker is not None


def test_what_the_parts_are_not_written_for(folder: Path) -> None:
    change_config(folder, memory_attention_num_attention_heads=2)
    for reference in ("meta", "transformers"):
        with pytest.raises(SettingError, match="samforge's tracker is written for 1"):
            checkpoint_from_name(str(folder), tracker=True, reference=reference)


def test_a_configuration_that_is_none(folder: Path) -> None:
    change_config(folder, num_maskmem="seven")
    with pytest.raises(CheckpointError, match="no configuration of SAM 3"):
        checkpoint_from_name(str(folder), tracker=True)


def test_sizes_of_the_published_model() -> None:
    """At 1008 pixels; nothing of its 3.4 GB is drawn for that."""
    found = checkpoint_from_name("facebook/sam3", random_weights=True, tracker=True)
    names = [name for name in found.source.names() if name.startswith("tracker_model.")]
    assert len(names) == 307
    specs = [Sam3(found).spec(name) for name in ("vision", *TRACKER_PARTS)]
    shapes = {
        f"{spec.name}/{tensor.name}": tensor.shape
        for spec in specs
        for tensor in spec.inputs + spec.outputs
    }
    assert shapes["vision/tracker_features"] == ("batch", 256, 72, 72)
    assert shapes["memory_attention/memory"] == ("objects", "memories", 5184, 64)
    assert shapes["tracking_decoder/high_res_0"] == (1, 32, 288, 288)
    assert shapes["point_decoder/mask_logits"] == ("objects", 4, 288, 288)
    assert shapes["mask_prompt/mask"] == ("objects", 1, 1152, 1152)
    assert shapes["memory_encoder/memory"] == ("objects", 5184, 64)


class Names:
    """A file of nothing but names; every tensor is its own name's number."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def names(self) -> frozenset[str]:
        return frozenset(self._names)

    def tensor(self, name: str) -> torch.Tensor:
        return torch.full((1, 2), float(self._names.index(name)))

    def digest(self) -> str:
        return "none"


@pytest.mark.parametrize(
    ("meta_side", "transformers_side"),
    [
        ("tracker.maskmem_tpos_enc", "memory_temporal_positional_encoding"),
        ("tracker.no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
        (
            "tracker.maskmem_backbone.mask_downsampler.encoder.9.weight",
            "memory_encoder.mask_downsampler.layers.3.conv.weight",
        ),
        (
            "tracker.maskmem_backbone.mask_downsampler.encoder.10.bias",
            "memory_encoder.mask_downsampler.layers.3.layer_norm.bias",
        ),
        (
            "tracker.maskmem_backbone.mask_downsampler.encoder.12.weight",
            "memory_encoder.mask_downsampler.final_conv.weight",
        ),
        (
            "tracker.maskmem_backbone.fuser.layers.1.norm.weight",
            "memory_encoder.memory_fuser.layers.1.layer_norm.weight",
        ),
        ("tracker.transformer.encoder.norm.bias", "memory_attention.layer_norm.bias"),
        (
            "tracker.transformer.encoder.layers.2.cross_attn_image.out_proj.weight",
            "memory_attention.layers.2.cross_attn_image.o_proj.weight",
        ),
        ("tracker.obj_ptr_proj.layers.1.weight", "object_pointer_proj.layers.0.weight"),
        (
            "tracker.sam_mask_decoder.output_hypernetworks_mlps.2.layers.2.bias",
            "mask_decoder.output_hypernetworks_mlps.2.proj_out.bias",
        ),
        (
            "tracker.sam_mask_decoder.transformer.layers.1.mlp.lin1.bias",
            "mask_decoder.transformer.layers.1.mlp.proj_in.bias",
        ),
        (
            "tracker.sam_prompt_encoder.mask_downscaling.4.weight",
            "prompt_encoder.mask_embed.layer_norm2.weight",
        ),
    ],
)
def test_names(meta_side: str, transformers_side: str) -> None:
    assert is_tracker(meta_side)
    assert transformers_names(meta_side) == (f"tracker_model.{transformers_side}",)


def test_names_of_the_neck() -> None:
    neck = "detector.backbone.vision_backbone.sam2_convs.0."
    assert is_tracker(neck + "conv_1x1.bias")
    assert transformers_names(neck + "dconv_2x2_1.bias") == (
        "tracker_neck.fpn_layers.0.scale_layers.2.bias",
    )


def test_a_tensor_that_is_kept_twice_and_one_that_is_kept_in_rows() -> None:
    encoder = "tracker.sam_prompt_encoder."
    matrix = f"{encoder}pe_layer.positional_encoding_gaussian_matrix"
    points = [f"{encoder}point_embeddings.{row}.weight" for row in range(4)]
    source = Names(matrix, *reversed(points))
    assert MetaSource(source).names() == frozenset()
    found = MetaSource(source, tracker=True)
    tied = {
        "tracker_model.prompt_encoder.shared_embedding.positional_embedding",
        "tracker_model.shared_image_embedding.positional_embedding",
    }
    rows = "tracker_model.prompt_encoder.point_embed.weight"
    assert found.names() == tied | {rows}
    assert all(torch.equal(found.tensor(name), source.tensor(matrix)) for name in tied)
    assert found.tensor(rows)[:, 0].tolist() == [4.0, 3.0, 2.0, 1.0]
