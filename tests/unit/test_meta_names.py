"""Meta's ``sam3.pt``: written here from a small model, and read back as that model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samforge.core.errors import CheckpointError, CheckpointKeysError
from samforge.models.sam3 import loading
from samforge.models.sam3.checkpoint import Sam3Checkpoint, with_image_size
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.meta_names import MetaSource, transformers_name
from samforge.models.sources import TorchFileSource

Tensors = dict[str, Any]

# The other way round than in samforge, one rule a name, from transformers to Meta.
MLP = [(r"\.mlp\.fc(\d)\.", r".linear\1.")]
LAYER = [*MLP, (r"\.layer_norm(\d)\.", r".norm\1."), (r"\.o_proj\.", ".out_proj.")]
HEAD = [(r"\.layer(\d)\.", lambda match: f".layers.{int(match[1]) - 1}.")]
TO_META: dict[str, list[tuple[str, Any]]] = {
    "vision_encoder.backbone.": [
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^layer_norm\.", "ln_pre."),
        (r"^layers\.", "blocks."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
        (r"\.attention\.qkv\.", ".attn.qkv."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"^", "backbone.vision_backbone.trunk."),
    ],
    "vision_encoder.neck.fpn_layers.": [
        (r"^0\.scale_layers\.0\.", "0.dconv_2x2_0."),
        (r"^0\.scale_layers\.2\.", "0.dconv_2x2_1."),
        (r"^1\.scale_layers\.0\.", "1.dconv_2x2."),
        (r"\.proj1\.", ".conv_1x1."),
        (r"\.proj2\.", ".conv_3x3."),
        (r"^", "backbone.vision_backbone.convs."),
    ],
    "text_projection.": [(r"^", "backbone.language_backbone.resizer.")],
    "text_encoder.": [
        (r"^text_projection\.weight$", "text_projection"),
        (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
        (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
        (r"^text_model\.final_layer_norm\.", "ln_final."),
        (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
        (r"\.self_attn\.", ".attn."),
        (r"\.layer_norm(\d)\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"^", "backbone.language_backbone.encoder."),
    ],
    "geometry_encoder.": [
        (r"^layers\.", "encode."),
        (r"^vision_layer_norm\.", "img_pre_norm."),
        (r"^prompt_layer_norm\.", "norm."),
        (r"^output_layer_norm\.", "encode_norm."),
        (r"\.cross_attn\.", ".cross_attn_image."),
        *LAYER,
        (r"^", "geometry_encoder."),
    ],
    "detr_encoder.": [
        (r"\.cross_attn\.", ".cross_attn_image."),
        *LAYER,
        (r"^", "transformer.encoder."),
    ],
    "detr_decoder.": [
        (r"^presence_head\.", "presence_token_head."),
        (r"^presence_layer_norm\.", "presence_token_out_norm."),
        (r"^output_layer_norm\.", "norm."),
        (r"^box_head\.", "bbox_embed."),
        (r"^box_rpb_embed_", "boxRPB_embed_"),
        (r"\.vision_cross_attn\.", ".cross_attn."),
        (r"\.text_cross_attn\.", ".ca_text."),
        (r"\.text_cross_attn_layer_norm\.", ".catext_norm."),
        (r"\.vision_cross_attn_layer_norm\.", ".norm1."),
        (r"\.self_attn_layer_norm\.", ".norm2."),
        (r"\.mlp_layer_norm\.", ".norm3."),
        *LAYER,
        *HEAD,
        (r"^", "transformer.decoder."),
    ],
    "dot_product_scoring.": [
        (r"^text_mlp_out_norm\.", "prompt_mlp.out_norm."),
        (r"^text_mlp\.", "prompt_mlp."),
        (r"^text_proj\.", "prompt_proj."),
        (r"^query_proj\.", "hs_proj."),
        *HEAD,
        (r"^", "dot_prod_scoring."),
    ],
    "mask_decoder.": [
        (r"^mask_embedder\.", "mask_predictor.mask_embed."),
        (r"^instance_projection\.", "instance_seg_head."),
        (r"^semantic_projection\.", "semantic_seg_head."),
        (r"^prompt_cross_attn_norm\.", "cross_attn_norm."),
        (r"^prompt_cross_attn\.", "cross_attend_prompt."),
        (r"\.o_proj\.", ".out_proj."),
        (r"^", "segmentation_head."),
    ],
}


def meta_name(name: str) -> str:
    prefix = max((prefix for prefix in TO_META if name.startswith(prefix)), key=len)
    name = name.removeprefix(prefix)
    for pattern, replacement in TO_META[prefix]:
        name = re.sub(pattern, replacement, name)
    return f"detector.{name}"


def packed(tensors: Tensors) -> Tensors:
    """Queries, keys and values in one tensor, as both of Meta's attentions keep them."""
    result = {}
    for name, tensor in tensors.items():
        match = re.search(r"\.([qkv])_proj\.(weight|bias)$", name)
        if match is None:
            result[name] = tensor
        elif match[1] == "q":
            stem = name[: match.start()]
            three = [tensors[f"{stem}.{letter}_proj.{match[2]}"] for letter in "qkv"]
            vision = stem.startswith("vision_encoder.")
            result[f"{stem}.qkv.{match[2]}" if vision else f"{stem}.in_proj_{match[2]}"] = (
                torch.cat(three)
            )
    return result


@pytest.fixture(scope="module")
def original(checkpoint: Callable[[str], Any]) -> Tensors:
    """The small model under transformers' names."""
    source = checkpoint("small").source
    return {name: source.tensor(name) for name in sorted(source.names())}


@pytest.fixture(scope="module")
def meta(original: Tensors) -> Tensors:
    """The same as Meta writes it, with what the detector has no use for."""
    tensors = {meta_name(name): tensor for name, tensor in packed(original).items()}
    position = tensors["detector.backbone.vision_backbone.trunk.pos_embed"]
    tensors["detector.backbone.vision_backbone.trunk.pos_embed"] = torch.cat(
        [torch.full_like(position[:, :1], 77), position], 1
    )
    projection = "detector.backbone.language_backbone.encoder.text_projection"
    tensors[projection] = tensors[projection].T.contiguous()
    for name in (
        "tracker.maskmem_tpos_enc",
        "tracker.transformer.encoder.layers.0.norm1.weight",
        "detector.backbone.vision_backbone.sam2_convs.0.conv_1x1.weight",
        "detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis",
        "detector.transformer.decoder.instance_query_embed.weight",
        "detector.transformer.decoder.instance_bbox_embed.layers.0.weight",
        "detector.geometry_encoder.points_direct_project.weight",
        "detector.geometry_encoder.mask_encoder.mask_downsampler.encoder.0.weight",
        "detector.inst_interactive_predictor.model.no_mem_embed",
    ):
        tensors[name] = torch.full((3,), 99.0)
    return tensors


@pytest.mark.parametrize(
    ("meta_side", "transformers_side"),
    [
        # Read off transformers' convert_sam3_to_hf.py and Meta's model_builder.py.
        (
            "detector.backbone.vision_backbone.trunk.blocks.31.attn.proj.bias",
            "vision_encoder.backbone.layers.31.attention.o_proj.bias",
        ),
        (
            "detector.backbone.vision_backbone.convs.0.dconv_2x2_1.weight",
            "vision_encoder.neck.fpn_layers.0.scale_layers.2.weight",
        ),
        (
            "detector.backbone.language_backbone.encoder.transformer.resblocks.5.attn.out_proj.weight",
            "text_encoder.text_model.encoder.layers.5.self_attn.out_proj.weight",
        ),
        (
            "detector.transformer.decoder.layers.2.norm1.weight",
            "detr_decoder.layers.2.vision_cross_attn_layer_norm.weight",
        ),
        (
            "detector.transformer.decoder.layers.2.ca_text.out_proj.bias",
            "detr_decoder.layers.2.text_cross_attn.o_proj.bias",
        ),
        ("detector.transformer.decoder.norm.bias", "detr_decoder.output_layer_norm.bias"),
        (
            "detector.transformer.decoder.presence_token_head.layers.2.weight",
            "detr_decoder.presence_head.layer3.weight",
        ),
        (
            "detector.transformer.decoder.boxRPB_embed_x.layers.0.weight",
            "detr_decoder.box_rpb_embed_x.layer1.weight",
        ),
        ("detector.geometry_encoder.norm.weight", "geometry_encoder.prompt_layer_norm.weight"),
        (
            "detector.geometry_encoder.encode.1.cross_attn_image.out_proj.weight",
            "geometry_encoder.layers.1.cross_attn.o_proj.weight",
        ),
        (
            "detector.dot_prod_scoring.prompt_mlp.layers.1.bias",
            "dot_product_scoring.text_mlp.layer2.bias",
        ),
        (
            "detector.segmentation_head.mask_predictor.mask_embed.layers.2.weight",
            "mask_decoder.mask_embedder.layers.2.weight",
        ),
        (
            "detector.segmentation_head.pixel_decoder.conv_layers.1.weight",
            "mask_decoder.pixel_decoder.conv_layers.1.weight",
        ),
    ],
)
def test_names(meta_side: str, transformers_side: str) -> None:
    assert transformers_name(meta_side) == transformers_side
    assert meta_name(transformers_side) == meta_side


@pytest.mark.parametrize("nested", [False, True])
def test_every_tensor_comes_back(
    original: Tensors, meta: Tensors, tmp_path: Path, nested: bool
) -> None:
    torch.save({"model": meta} if nested else meta, tmp_path / "sam3.pt")
    source = MetaSource(TorchFileSource(tmp_path / "sam3.pt"))
    assert source.names() == frozenset(original)
    for name, tensor in original.items():
        found = source.tensor(name)
        assert found.shape == tensor.shape, name
        assert torch.equal(found, tensor), name
    assert source.digest() == TorchFileSource(tmp_path / "sam3.pt").digest()


@pytest.fixture
def small_default(
    monkeypatch: pytest.MonkeyPatch, small_config: Callable[..., Any], small_folder: Path
) -> Callable[[Tensors, Path], str]:
    """Writes a ``sam3.pt`` of the small architecture, which then is the one expected of it.

    The real one takes 3.4 GB; the file itself does not tell its configuration.
    """
    stock = loading.Sam3Config

    def config(**settings: Any) -> Any:
        # Of no settings it is the default; other checkpoints may be loaded meanwhile.
        return stock(**settings) if settings else small_config()

    monkeypatch.setattr(loading, "Sam3Config", config)

    def write(tensors: Tensors, folder: Path) -> str:
        torch.save(tensors, folder / "sam3.pt")
        content = (small_folder / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").write_bytes(content)
        return str(folder / "sam3.pt")

    return write


def test_parts_of_both_files_agree(
    small_default: Callable[[Tensors, Path], str],
    meta: Tensors,
    tmp_path: Path,
    part: Callable[..., Any],
    example: Callable[..., Any],
) -> None:
    from samforge.models.sam3.parts import part_from_checkpoint

    own = checkpoint_from_name(small_default(meta, tmp_path))
    assert own.eos_id == 299
    assert own.tokenizer == tmp_path / "tokenizer.json"
    assert "SAM License" in own.license_text
    inputs = example("grounding", {"batch": 1, "prompts": 2})
    stock, mine = part("grounding"), part_from_checkpoint(own, "grounding")
    weights, found = stock.module.state_dict(), mine.module.state_dict()
    assert weights.keys() == found.keys()
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    results, others = stock(inputs), mine(inputs)
    assert all(torch.equal(results[name], others[name]) for name in results)


def test_what_is_missing_or_unknown_is_listed(
    small_default: Callable[[Tensors, Path], str], meta: Tensors, tmp_path: Path
) -> None:
    changed = dict(meta)
    del changed["detector.transformer.decoder.norm.bias"]
    changed["detector.segmentation_head.new_head.weight"] = torch.zeros(2)
    with pytest.raises(CheckpointKeysError) as error:
        checkpoint_from_name(small_default(changed, tmp_path))
    assert "1 missing: detr_decoder.output_layer_norm.bias" in str(error.value)
    assert "1 unexpected: mask_decoder.new_head.weight" in str(error.value)


def test_a_tokenizer_has_to_lie_beside_it(
    small_default: Callable[[Tensors, Path], str],
    meta: Tensors,
    tmp_path: Path,
    small_folder: Path,
) -> None:
    place = small_default(meta, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"sam3\.pt comes without a tokenizer.*--tokenizer"):
        checkpoint_from_name(place)
    elsewhere = small_folder / "tokenizer.json"
    assert checkpoint_from_name(place, tokenizer=elsewhere).tokenizer == elsewhere


def test_a_torch_file_under_transformers_names(
    small_config: Callable[..., Any], original: Tensors, tmp_path: Path
) -> None:
    torch.save(original, tmp_path / "detector.pt")
    own = Sam3Checkpoint(
        name="detector.pt",
        reference="meta",
        config=with_image_size(small_config(), None),
        source=loading._source((tmp_path / "detector.pt",)),
        tokenizer=None,
        eos_id=299,
        license_text="",
    )
    own.check()
    assert isinstance(own.source, TorchFileSource)
