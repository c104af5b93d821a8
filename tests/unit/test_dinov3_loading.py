"""Where DINOv3 backbones come from: transformers folders, SAM 3D Body's file, the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTModel

from samforge.core.errors import (
    CheckpointError,
    CheckpointKeysError,
    GatedModel,
    SettingError,
    UnknownModel,
)
from samforge.models.dinov3.body_names import BodySource
from samforge.models.dinov3.checkpoint import state_shapes
from samforge.models.dinov3.config import named_config
from samforge.models.dinov3.loading import checkpoint_from_name, is_dinov3
from samforge.models.sources import TorchFileSource

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, LAYERS, HEADS = 64, 2, 2
# The other way round than in samforge, from transformers to Meta.
TO_META = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^model\.layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.up_proj\.", ".mlp.w2."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
]


def weights(seed: int = 0) -> dict[str, Any]:
    """A tiny backbone, rounded to what bfloat16 holds."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.1 + ("norm" in name))
        .to(torch.bfloat16)
        .float()
        for name, shape in state_shapes(named_config("dinov3-tiny")).items()
    }


def meta_name(name: str) -> str:
    """Meta's name of a tensor that is not packed."""
    for pattern, replacement in TO_META:
        name = re.sub(pattern, replacement, name)
    return name


def to_meta(state: dict[str, Any], *, junk: float = 3.0) -> dict[str, Any]:
    """As SAM 3D Body keeps it: packed, masked, in bfloat16, beside a decoder.

    Args:
        state: By transformers' names.
        junk: What stands in the masked third of the bias.
    """
    stored: dict[str, Any] = {
        "decoder.layers.0.weight": torch.zeros(2, 2),
        "backbone.encoder.rope_embed.periods": 100.0 ** torch.arange(0, 1, 4 * HEADS / WIDTH),
    }
    state = dict(state)
    for layer in range(LAYERS):
        own = f"model.layer.{layer}.attention"
        place = f"backbone.encoder.blocks.{layer}.attn.qkv"
        parts = [state.pop(f"{own}.{letter}_proj.weight") for letter in "qkv"]
        stored[f"{place}.weight"] = torch.cat(parts)
        bias = [
            state.pop(f"{own}.q_proj.bias"),
            torch.full((WIDTH,), junk),
            state.pop(f"{own}.v_proj.bias"),
        ]
        stored[f"{place}.bias"] = torch.cat(bias)
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        stored[f"{place}.bias_mask"] = mask
    for name, tensor in state.items():
        stored[f"backbone.encoder.{meta_name(name)}"] = tensor
    return {name: tensor.to(torch.bfloat16) for name, tensor in stored.items()}


def body_file(folder: Path, stored: dict[str, Any] | None = None) -> Path:
    path = folder / "model.ckpt"
    torch.save(to_meta(weights()) if stored is None else stored, path)
    return path


@pytest.fixture(scope="module")
def stock() -> Any:
    model = DINOv3ViTModel(named_config("dinov3-tiny")).eval().requires_grad_(False)
    model.load_state_dict(weights() | {"embeddings.mask_token": torch.zeros(1, 1, WIDTH)})
    return model


@pytest.fixture
def folder(stock: Any, tmp_path: Path) -> Path:
    """A folder that transformers itself wrote."""
    path = tmp_path / "dinov3"
    stock.save_pretrained(path)
    return path


def features(place: Path | str, **options: Any) -> Any:
    checkpoint = checkpoint_from_name(str(place), **options)
    inputs = checkpoint.inputs("backbone", {"batch": 1}, seed=5)
    return inputs["images"], checkpoint.part("backbone")(inputs)["features"]


def stock_features(stock: Any, images: Any, periods: Any = None) -> Any:
    if periods is not None:
        stock.rope_embeddings.inv_freq.copy_(1 / periods)
    with torch.inference_mode():
        tokens = stock(images).last_hidden_state[:, 5:]
    side = images.shape[-1] // 16
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def test_a_folder_of_transformers(folder: Path, stock: Any) -> None:
    images, found = features(folder)
    assert (found - stock_features(stock, images)).abs().max() <= 1e-5
    checkpoint = checkpoint_from_name(str(folder))
    assert checkpoint.source.digest().startswith("sha256:")
    assert "DINOv3 License" in checkpoint.license_text


@pytest.mark.parametrize("prefix", ["layer.", "model.layer."])
def test_names_of_both_generations(folder: Path, stock: Any, prefix: str) -> None:
    file = folder / "model.safetensors"
    renamed = {
        re.sub(r"^(model\.)?layer\.", prefix, name): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed, file)
    images, found = features(folder)
    assert (found - stock_features(stock, images)).abs().max() <= 1e-5


def test_the_licence_of_the_folder_goes_along(folder: Path) -> None:
    (folder / "LICENSE.md").write_text("Own terms.")
    assert checkpoint_from_name(str(folder)).license_text.endswith("\nOwn terms.")


def test_random_weights_of_a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    checkpoint = checkpoint_from_name(str(folder), random_weights=True, seed=3)
    assert checkpoint.config.hidden_size == WIDTH
    assert checkpoint.source.digest() == "random:seed=3"


def test_the_body_checkpoint(tmp_path: Path, stock: Any) -> None:
    images, found = features(body_file(tmp_path), image_size=64)
    exact = 100.0 ** torch.arange(0, 1, 4 * HEADS / WIDTH)
    rounded = exact.to(torch.bfloat16).float()
    try:
        wanted = stock_features(stock, images, rounded)
        # Rounded periods are part of the model: the exact ones miss it.
        missed = stock_features(stock, images, exact)
    finally:
        stock.rope_embeddings.inv_freq.copy_(1 / exact)
    assert (found - wanted).abs().max() <= 1e-5
    assert (found - missed).abs().max() > 1e-4


def test_its_configuration_is_read_off_the_shapes(tmp_path: Path) -> None:
    checkpoint = checkpoint_from_name(str(body_file(tmp_path)))
    config = checkpoint.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 2)
    assert (config.intermediate_size, config.num_register_tokens) == (128, 4)
    assert config.use_gated_mlp
    assert config.hidden_act == "silu"
    assert checkpoint.image.size == 512
    assert "SAM License" in checkpoint.license_text
    assert checkpoint.periods is not None
    assert checkpoint.periods.dtype == torch.bfloat16


def test_a_folder_of_sam_3d_body(tmp_path: Path) -> None:
    body_file(tmp_path)
    assert checkpoint_from_name(str(tmp_path)).config.hidden_size == WIDTH
    assert is_dinov3(str(tmp_path))


def test_a_mask_token_may_be_there(tmp_path: Path) -> None:
    stored = to_meta(weights()) | {"backbone.encoder.mask_token": torch.ones(1, WIDTH)}
    source = BodySource(TorchFileSource(body_file(tmp_path, stored)))
    assert source.tensor("embeddings.mask_token").shape == (1, 1, WIDTH)
    checkpoint_from_name(str(tmp_path / "model.ckpt")).check()


def test_a_key_bias_that_counts_is_refused(tmp_path: Path) -> None:
    stored = to_meta(weights())
    del stored["backbone.encoder.blocks.1.attn.qkv.bias_mask"]
    checkpoint = checkpoint_from_name(str(body_file(tmp_path, stored)), image_size=64)
    with pytest.raises(CheckpointKeysError, match=r"blocks\.1\.attn\.qkv\.bias has a key bias"):
        checkpoint.part("backbone")


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("blocks.1.mlp.w3.weight", "1 missing: model.layer.1.mlp.down_proj.weight"),
        ("norm.bias", "1 missing: norm.bias"),
        ("cls_token", "The checkpoint has no embeddings.cls_token"),
        ("storage_tokens", "The checkpoint has no embeddings.register_tokens"),
        ("blocks.0.mlp.w2.weight", "The checkpoint has no model.layer.0.mlp.up_proj.weight"),
    ],
)
def test_missing_keys(tmp_path: Path, gone: str, named: str) -> None:
    stored = to_meta(weights())
    del stored[f"backbone.encoder.{gone}"]
    with pytest.raises(CheckpointKeysError, match=re.escape(named)):
        checkpoint_from_name(str(body_file(tmp_path, stored)))


def test_unexpected_keys(tmp_path: Path) -> None:
    stored = to_meta(weights()) | {"backbone.encoder.local_cls_norm.weight": torch.ones(WIDTH)}
    with pytest.raises(CheckpointKeysError, match=r"1 unexpected: local_cls_norm\.weight"):
        checkpoint_from_name(str(body_file(tmp_path, stored)))


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    stored = to_meta(weights())
    stored["backbone.encoder.norm.weight"] = torch.ones(3)
    checkpoint = checkpoint_from_name(str(body_file(tmp_path, stored)), image_size=64)
    with pytest.raises(CheckpointKeysError, match=r"norm.weight \(3,\), not \(64,\)"):
        checkpoint.part("backbone")


def test_the_checkpoint_of_another_model(tmp_path: Path) -> None:
    path = body_file(tmp_path, {"detector.backbone.x": torch.zeros(2)})
    expected = "holds no tensor behind 'backbone.encoder.' (it begins with detector.backbone.x)"
    with pytest.raises(CheckpointKeysError, match=re.escape(expected)):
        checkpoint_from_name(str(path))


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"backbone.encoder.cls_token": Path("x")}, path)
    with pytest.raises(CheckpointError, match="reading it would run code"):
        checkpoint_from_name(str(path))


def test_a_folder_of_another_model(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "dinov2"}))
    with pytest.raises(UnknownModel, match="a model of type 'dinov2', not 'dinov3_vit'"):
        checkpoint_from_name(str(folder))


def test_a_folder_without_anything(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"has neither a config\.json nor a model\.ckpt"):
        checkpoint_from_name(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": "wide"}, "is no configuration of a DINOv3 ViT"),
        ({"num_attention_heads": 5}, "a width of 64 in 5 heads"),
        ({"patch_size": [16, 8]}, r"patches of \(16, 8\) pixels. samforge takes square ones"),
    ],
)
def test_a_damaged_configuration(folder: Path, change: dict[str, Any], named: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(CheckpointError, match=named):
        checkpoint_from_name(str(folder))


def test_an_architecture_that_nobody_trained() -> None:
    with pytest.raises(SettingError, match=r"it has no weights\. Add --random-weights"):
        checkpoint_from_name("dinov3-tiny")


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(UnknownModel, match="There is no model 'dinov3 huge'"):
        checkpoint_from_name("dinov3 huge")


def test_a_gated_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        answer: Any = SimpleNamespace(headers={}, request=None)
        raise GatedRepoError("Access is restricted", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        GatedModel, match=r"Accept its licence at https://huggingface\.co/facebook/"
    ):
        checkpoint_from_name("facebook/sam-3d-body-dinov3")
    # The body model beside it is 700 MB that nobody needs here.
    assert asked == [("facebook/sam-3d-body-dinov3", ["model.ckpt", "LICENSE*"])]


def test_which_names_mean_dinov3(folder: Path, tmp_path: Path) -> None:
    assert is_dinov3(str(folder))
    assert is_dinov3(str(body_file(tmp_path)))
    assert is_dinov3("facebook/sam-3d-body-dinov3")
    assert is_dinov3("facebook/dinov3-vits16-pretrain-lvd1689m")
    assert is_dinov3("dinov3-tiny")
    assert not is_dinov3("facebook/sam3")
    assert not is_dinov3("tiny")
    (tmp_path / "sam3").mkdir()
    (tmp_path / "sam3" / "config.json").write_text('{"model_type": "sam3_video"}')
    assert not is_dinov3(str(tmp_path / "sam3"))
    (tmp_path / "sam3.pt").touch()
    assert not is_dinov3(str(tmp_path / "sam3.pt"))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    stored = to_meta(weights())
    name = "backbone.encoder.blocks.1.mlp.w3.bias"
    stored[name] = stored[name].clone()
    stored[name][3] = float("nan")
    checkpoint = checkpoint_from_name(str(body_file(tmp_path, stored)), image_size=64)
    with pytest.raises(
        CheckpointError, match=r"1 not finite: model\.layer\.1\.mlp\.down_proj\.bias"
    ):
        checkpoint.part("backbone")
