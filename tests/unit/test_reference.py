"""Whose SAM 3 it is: what a checkpoint, a recipe and a bundle say, and what follows from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import samforge
from samforge.core.errors import SettingError, UnknownModel
from samforge.core.recipe import Recipe
from samforge.models.loading import model_from_name
from samforge.models.sam3.class_token import ClassToken, joined
from samforge.models.sam3.configuration import FIXED, config_for_reference
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.meta_names import is_sam3_1
from samforge.models.sam3.modules import geometry_encoder
from samforge.models.sam3.positions import sine_grid

Make = Callable[..., Any]


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint, to bend."""
    return Path(shutil.copytree(small_folder, tmp_path / "checkpoint"))


def bend(folder: Path, path: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    table = config
    *places, last = path.split(".")
    for place in places:
        table = table[place]
    table[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def epsilons(module: torch.nn.Module) -> set[float]:
    return {one.eps for one in module.modules() if isinstance(one, torch.nn.LayerNorm)}


def test_metas_norms_have_another_epsilon(folder: Path) -> None:
    """transformers' default stands in the file, as in facebook/sam3's own: Meta's is taken."""
    vit = "vision_config.backbone_config.layer_norm_eps"
    assert epsilons(checkpoint_vision(folder, "meta").layers) == {1e-5}
    assert epsilons(checkpoint_vision(folder, "transformers").layers) == {1e-6}
    bend(folder, vit, 1e-3)
    assert epsilons(checkpoint_vision(folder, "transformers").layers) == {1e-3}


def checkpoint_vision(folder: Path, reference: str) -> Any:
    return model_from_name(str(folder), reference=reference).part("vision").module


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_config.backbone_config.layer_norm_eps", 1e-3),
        ("vision_config.backbone_config.hidden_act", "relu"),
        ("vision_config.backbone_config.layer_scale_init_value", 0.1),
        ("text_config.hidden_act", "quick_gelu"),
        ("text_config.layer_norm_eps", 1e-6),
        ("geometry_encoder_config.hidden_act", "gelu"),
        ("detr_encoder_config.hidden_act", "gelu"),
        ("detr_decoder_config.hidden_act", "gelu"),
    ],
)
def test_a_configuration_that_contradicts_meta(folder: Path, path: str, value: object) -> None:
    bend(folder, path, value)
    with pytest.raises(SettingError) as error:
        checkpoint_from_name(str(folder))
    assert path in str(error.value)
    assert repr(value) in str(error.value)
    assert "--reference transformers" in str(error.value)
    assert checkpoint_from_name(str(folder), reference="transformers").reference == "transformers"


def test_every_fixed_setting_is_one_of_the_configuration(small_config: Make) -> None:
    config = small_config()
    assert config_for_reference(config, "meta", "small") is config
    for path, allowed in FIXED:
        value: Any = config
        for name in path.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        assert value in allowed, path


def test_other_references_are_refused() -> None:
    with pytest.raises(SettingError, match="reference is unknown: 'facebook'"):
        Recipe(reference="facebook")


def test_a_reference_changes_the_keys_of_the_steps(folder: Path) -> None:
    meta, stock = (model_from_name(str(folder), reference=one) for one in ("meta", "transformers"))
    assert meta.settings() != stock.settings()


def test_a_bundle_says_whose_computation_it_is(tiny_bundle: samforge.Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest.reference == manifest.recipe["reference"] == "meta"
    assert [t.name for t in manifest.parts["vision"].spec.outputs][-1] == "class_token"
    assert "class_token" in [t.name for t in manifest.parts["detector"].spec.inputs]
    boxes = [t.name for t in manifest.parts["detector_boxes"].spec.inputs]
    assert "class_token" not in boxes


def test_a_bundle_held_to_transformers_runs_as_transformers_does(
    part: Make, checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    """Three maps, no class token, probabilities resized, phrases as they are: in a bundle, too."""
    names = ("vision", "text", "detector")
    recipe = Recipe(model=str(folder), reference="transformers", parts=names)
    # What random weights find in pictures is no evidence: the build stops before it asks.
    bundle = samforge.build(recipe, until="export", out=tmp_path / "stock")
    assert bundle.manifest.reference == "transformers"
    assert len(bundle.manifest.parts["vision"].spec.outputs) == 3
    rgb = np.random.default_rng(0).integers(0, 256, (90, 131, 3), np.uint8)
    found = samforge.load(bundle).predict(rgb, text="A", threshold=0.0)
    assert len(found) == 10
    images = torch.from_numpy(_preprocessed(bundle, rgb))
    parts = {name: part(name, reference="transformers") for name in names}
    tensors = parts["vision"]({"images": images})
    own = checkpoint("small", "transformers")
    ids = torch.full((1, own.context), own.eos_id)
    ids[0, :3] = torch.tensor(_ids(bundle, "A")[:3])
    tensors |= parts["text"]({"input_ids": ids})
    out = parts["detector"](tensors)
    best = int(out["pred_logits"].argmax())
    wide = torch.nn.functional.interpolate(
        out["pred_masks"][0, 0, best].sigmoid()[None, None], size=(90, 131), mode="bilinear"
    )[0, 0]
    differing = (found.masks[0] != (wide > 0.5).numpy()).mean()
    assert differing < 1e-3


def _preprocessed(bundle: samforge.Bundle, rgb: Any) -> Any:
    from samforge.runtime import image_bchw_from_rgb

    return image_bchw_from_rgb(rgb, bundle.manifest.image)


def _ids(bundle: samforge.Bundle, phrase: str) -> list[int]:
    from samforge.assembly import tokenizer_from_bundle

    return list(tokenizer_from_bundle(bundle).encode([phrase])[0])


# --- the class token ------------------------------------------------------------------------------


def test_folding_the_projections_only_reorders_sums(small_config: Make) -> None:
    """Against the stock layers, run on a sequence that is the class token alone."""
    config = small_config()
    encoder = geometry_encoder(config).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + ("norm" in name and name.endswith("weight")))
    coarse = torch.randn(2, 32, 8, 8, generator=generator)
    position = sine_grid(32, 8, 8)
    cells = coarse.flatten(2).transpose(1, 2)
    with torch.no_grad():
        token = encoder.prompt_layer_norm(encoder.final_proj(encoder.cls_embed.weight[None]))
        token = token.expand(2, -1, -1)
        for layer in encoder.layers:
            token = layer(
                prompt_feats=token,
                vision_feats=cells,
                vision_pos_encoding=position,
                prompt_mask=None,
            )
        wanted = encoder.output_layer_norm(token)
        found = ClassToken(encoder)(coarse, position)
    assert (found - wanted).abs().max() < 2e-6
    assert wanted.abs().max() > 1


def test_two_linears_as_one() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)
    x = torch.randn(4, 5)
    assert torch.allclose(joined(first, second)(x), second(first(x)), atol=1e-6)


# --- SAM 3.1 --------------------------------------------------------------------------------------

VISION = "detector.backbone.vision_backbone"


@pytest.mark.parametrize(
    "names",
    [
        (f"{VISION}.convs.0.conv_1x1.weight", f"{VISION}.interactive_convs.0.conv_1x1.weight"),
        (f"{VISION}.propagation_convs.2.conv_3x3.bias",),
        ("sam3_model.backbone.vision_backbone.trunk.pos_embed",),
        ("sam2_predictor.sam_mask_decoder.iou_token.weight",),
        ("tracker.model.maskmem_tpos_enc",),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_sam3_1_is_refused_by_its_name(
    names: tuple[str, ...], nested: bool, tmp_path: Path, small_folder: Path
) -> None:
    tensors = {name: torch.zeros(1) for name in names}
    torch.save({"model": tensors} if nested else tensors, tmp_path / "sam3.1_multiplex.pt")
    shutil.copy(small_folder / "tokenizer.json", tmp_path)
    with pytest.raises(UnknownModel, match=r"this is SAM 3\.1, whose neck") as error:
        checkpoint_from_name(str(tmp_path / "sam3.1_multiplex.pt"))
    assert "missing" not in str(error.value)


def test_sam3_1_in_a_folder(small_folder: Path, tmp_path: Path) -> None:
    shutil.copy(small_folder / "config.json", tmp_path)
    shutil.copy(small_folder / "tokenizer.json", tmp_path)
    save_file({"sam3_model.a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnknownModel, match=r"this is SAM 3\.1"):
        checkpoint_from_name(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        f"{VISION}.convs.0.conv_1x1.weight",
        f"{VISION}.sam2_convs.0.conv_1x1.weight",
        "tracker.maskmem_tpos_enc",
        "tracker_model.mask_decoder.iou_token.weight",
        "detector_model.vision_encoder.neck.fpn_layers.0.proj1.weight",
    ],
)
def test_names_of_sam3_are_not_taken_for_it(name: str) -> None:
    assert not is_sam3_1([name])
