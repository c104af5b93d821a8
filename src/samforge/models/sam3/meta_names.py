"""Meta's own checkpoint (``sam3.pt``) under transformers' names.

The correspondence of names is a fact of the two public implementations; it was read off
transformers' ``convert_sam3_to_hf.py`` and Meta's ``model_builder.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from samforge.models.sam3.tracker.names import (
    NECK_RULES,
    is_tracker,
)
from samforge.models.sam3.tracker.names import (
    transformers_names as tracker_names,
)
from samforge.models.sources import WeightSource

DETECTOR = "detector."
"""Prefix of everything below; the tracker's weights stand beside it."""

UNUSED = re.compile(
    r"^detector\.transformer\.decoder\.instance_"  # interactive queries
    r"|^detector\.geometry_encoder\.(points_|mask_encoder\.)"  # point and mask prompts
    r"|^detector\.inst_interactive_predictor\."
    r"|\.attn\.freqs_cis$"  # rotary tables: computed from the configuration
)
"""What the text and box prompted detector has no use for. Beside it only the tracker is skipped,
where nobody asks for it."""

NEXT_VERSION = re.compile(
    r"\.(interactive_convs|propagation_convs)\."  # a neck for each of three uses
    r"|^(sam3_model|sam2_predictor)\."  # the first files of it
    r"|^tracker\.model\."
)
"""Names that only SAM 3.1's checkpoint has: another neck and another tracker."""


def is_sam3_1(names: Iterable[str]) -> bool:
    """Whether a checkpoint is of SAM 3.1, told by the names of its tensors."""
    return any(NEXT_VERSION.search(name) for name in names)


SECTIONS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "backbone.vision_backbone.trunk.",
        "vision_encoder.backbone.",
        (
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            ("ln_pre.", "layer_norm."),
            ("blocks.", "layers."),
            (".norm1.", ".layer_norm1."),
            (".norm2.", ".layer_norm2."),
            (".attn.qkv.", ".attention.in_proj_"),
            (".attn.proj.", ".attention.o_proj."),
        ),
    ),
    (
        "backbone.vision_backbone.convs.",
        "vision_encoder.neck.fpn_layers.",
        NECK_RULES,
    ),
    ("backbone.language_backbone.resizer.", "text_projection.", ()),
    (
        "backbone.language_backbone.encoder.",
        "text_encoder.",
        (
            ("token_embedding.", "text_model.embeddings.token_embedding."),
            ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
            ("ln_final.", "text_model.final_layer_norm."),
            ("text_projection", "text_projection.weight"),
            ("transformer.resblocks.", "text_model.encoder.layers."),
            (".attn.", ".self_attn."),
            (".ln_1.", ".layer_norm1."),
            (".ln_2.", ".layer_norm2."),
            (".mlp.c_fc.", ".mlp.fc1."),
            (".mlp.c_proj.", ".mlp.fc2."),
        ),
    ),
    (
        "geometry_encoder.",
        "geometry_encoder.",
        (
            ("encode_norm.", "output_layer_norm."),
            ("img_pre_norm.", "vision_layer_norm."),
            ("encode.", "layers."),
            (".cross_attn_image.", ".cross_attn."),
            (".linear1.", ".mlp.fc1."),
            (".linear2.", ".mlp.fc2."),
            (".norm1.", ".layer_norm1."),
            (".norm2.", ".layer_norm2."),
            (".norm3.", ".layer_norm3."),
        ),
    ),
    (
        "transformer.encoder.",
        "detr_encoder.",
        (
            (".cross_attn_image.", ".cross_attn."),
            (".linear1.", ".mlp.fc1."),
            (".linear2.", ".mlp.fc2."),
            (".norm1.", ".layer_norm1."),
            (".norm2.", ".layer_norm2."),
            (".norm3.", ".layer_norm3."),
        ),
    ),
    (
        "transformer.decoder.",
        "detr_decoder.",
        (
            ("presence_token_head.layers.", "presence_head.layers."),
            ("presence_token_out_norm.", "presence_layer_norm."),
            ("bbox_embed.layers.", "box_head.layers."),
            ("boxRPB_embed_", "box_rpb_embed_"),
            (".cross_attn.", ".vision_cross_attn."),
            (".ca_text.", ".text_cross_attn."),
            (".catext_norm.", ".text_cross_attn_layer_norm."),
            (".norm1.", ".vision_cross_attn_layer_norm."),
            (".norm2.", ".self_attn_layer_norm."),
            (".norm3.", ".mlp_layer_norm."),
            (".linear1.", ".mlp.fc1."),
            (".linear2.", ".mlp.fc2."),
        ),
    ),
    (
        "dot_prod_scoring.",
        "dot_product_scoring.",
        (
            ("prompt_mlp.out_norm.", "text_mlp_out_norm."),
            ("prompt_mlp.", "text_mlp."),
            ("prompt_proj.", "text_proj."),
            ("hs_proj.", "query_proj."),
        ),
    ),
    (
        "segmentation_head.",
        "mask_decoder.",
        (
            ("mask_predictor.mask_embed.", "mask_embedder."),
            ("mask_embed.", "mask_embedder."),
            ("instance_seg_head.", "instance_projection."),
            ("semantic_seg_head.", "semantic_projection."),
            ("cross_attend_prompt.", "prompt_cross_attn."),
            ("cross_attn_norm.", "prompt_cross_attn_norm."),
        ),
    ),
)
"""Meta's prefix, transformers' prefix, and what is replaced behind it, in this order."""

HEADS = re.compile(
    r"^(detr_decoder\.(?:box_head|presence_head|ref_point_head|box_rpb_embed_[xy])"
    r"|dot_product_scoring\.text_mlp)\.layers\.(\d)\."
)
"""Small MLPs: a list of layers at Meta's, ``layer1``, ``layer2``, … in transformers."""


def transformers_name(name: str) -> str:
    """Name of one of Meta's tensors in transformers; packed projections keep ``in_proj_``."""
    name = name.removeprefix(DETECTOR)
    for source, target, replacements in SECTIONS:
        if name.startswith(source):
            name = name.removeprefix(source)
            # The decoder's final norm and the geometry encoder's prompt norm stand at the top.
            if name.startswith("norm."):
                top = (
                    "prompt_layer_norm." if target == "geometry_encoder." else "output_layer_norm."
                )
                name = top + name.removeprefix("norm.")
            for old, new in replacements:
                name = name.replace(old, new)
            if target != "text_encoder.":  # CLIP keeps the name
                name = name.replace(".out_proj.", ".o_proj.")
            name = target + name
            break
    return HEADS.sub(lambda m: f"{m[1]}.layer{int(m[2]) + 1}.", name)


class MetaSource:
    """Meta's checkpoint seen through transformers' names.

    Args:
        source: The file.
        tracker: Whether to show the tracker's tensors too.
    """

    def __init__(self, source: WeightSource, *, tracker: bool = False) -> None:
        self._source = source
        self._origin: dict[str, tuple[str, int | None]] = {}
        self._rows: dict[str, list[str]] = {}
        for name in sorted(source.names()):
            if UNUSED.search(name):
                continue
            if is_tracker(name):
                for target in tracker_names(name) if tracker else ():
                    self._rows.setdefault(target, []).append(name)
                continue
            target = transformers_name(name)
            if "in_proj_" in target:
                for third, letter in enumerate("qkv"):
                    split = target.replace("in_proj_", f"{letter}_proj.")
                    self._origin[split] = (name, third)
            else:
                self._origin[target] = (name, None)

    def names(self) -> frozenset[str]:
        """Transformers' names."""
        return frozenset((*self._origin, *self._rows))

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in transformers' layout."""
        if name in self._rows:
            rows = [self._source.tensor(row) for row in self._rows[name]]
            return torch.cat(rows) if len(rows) > 1 else rows[0]
        origin, third = self._origin[name]
        tensor = self._source.tensor(origin)
        if third is not None:
            return tensor.chunk(3)[third]
        if name.endswith("embeddings.position_embeddings"):
            return tensor[:, 1:]  # the class token's position: the model has none
        if name == "text_encoder.text_projection.weight":
            return tensor.T
        return tensor

    def digest(self) -> str:
        """Hash over the file."""
        return self._source.digest()
