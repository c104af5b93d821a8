"""The tracker's tensors of Meta's checkpoint (``sam3.pt``) under transformers' names.

The correspondence of names is a fact of the two public implementations. That no tensor is lost or
swapped is held by the numbers of Meta's own code (``tests/golden/meta``).
"""

from __future__ import annotations

import re

NECK = "detector.backbone.vision_backbone.sam2_convs."
"""Prefix of the tracker's neck in Meta's file: it stands among the detector's tensors."""
MODEL = "tracker."
"""Prefix of the rest."""
NECK_RULES = (
    (".dconv_2x2_0.", ".scale_layers.0."),
    (".dconv_2x2_1.", ".scale_layers.2."),
    (".dconv_2x2.", ".scale_layers.0."),
    (".conv_1x1.", ".proj1."),
    (".conv_3x3.", ".proj2."),
)
"""What is replaced in a neck, the detector's or the tracker's."""
RULES: tuple[tuple[str, str], ...] = (
    # Memory encoder.
    (r"^maskmem_backbone\.mask_downsampler\.", "memory_encoder.mask_downsampler."),
    (r"mask_downsampler\.encoder\.12\.", "mask_downsampler.final_conv."),
    (r"mask_downsampler\.encoder\.", "mask_downsampler.layers."),
    (r"^maskmem_backbone\.fuser\.", "memory_encoder.memory_fuser."),
    (r"^maskmem_backbone\.out_proj\.", "memory_encoder.projection."),
    (r"^maskmem_backbone\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv([12])\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    # Memory attention.
    (r"^transformer\.encoder\.", "memory_attention."),
    (r"\.norm\.", ".layer_norm."),
    # Learned vectors, and how pointers are made.
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    # Prompt encoder.
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    # Mask decoder.
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm([1-4])\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.mlp\.lin1\.", ".mlp.proj_in."),
    (r"\.mlp\.lin2\.", ".mlp.proj_out."),
)
"""Pattern and what replaces it, in this order."""
STAGES = re.compile(r"(mask_downsampler\.layers)\.(\d+)\.")
"""Convolution, norm, activation in one list at Meta's; transformers has a layer of each three."""
HEADS = re.compile(
    r"(object_pointer_proj|iou_prediction_head|pred_obj_score_head"
    r"|output_hypernetworks_mlps\.\d)\.layers\.([012])\."
)
"""MLPs of three layers: a list at Meta's; transformers names the first and the last."""
_HEAD_LAYERS = ("proj_in", "layers.0", "proj_out")
_STAGE_LAYERS = ("conv", "layer_norm")
_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_POINTS = re.compile(r"^prompt_encoder\.point_embeddings\.\d\.weight$")


def is_tracker(name: str) -> bool:
    """Whether a tensor of Meta's file belongs to the tracker or its neck."""
    return name.startswith((MODEL, NECK))


def transformers_names(name: str) -> tuple[str, ...]:
    """Names in transformers of one of the tracker's tensors in Meta's file.

    Several names hold the same tensor where transformers keeps it twice. Several tensors of one
    name are its rows, in the order of Meta's names.
    """
    if name.startswith(NECK):
        name = name.removeprefix(NECK)
        for old, new in NECK_RULES:
            name = name.replace(old, new)
        return ("tracker_neck.fpn_layers." + name,)
    name = name.removeprefix(MODEL)
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    name = STAGES.sub(_stage, name)
    name = HEADS.sub(lambda m: f"{m[1]}.{_HEAD_LAYERS[int(m[2])]}.", name)
    if name == _MATRIX:
        return (
            "tracker_model.prompt_encoder.shared_embedding.positional_embedding",
            "tracker_model.shared_image_embedding.positional_embedding",
        )
    return ("tracker_model." + _POINTS.sub("prompt_encoder.point_embed.weight", name),)


def _stage(match: re.Match[str]) -> str:
    layer, member = divmod(int(match[2]), 3)
    # An activation has no tensors: such a name is foreign, and stays so.
    return f"{match[1]}.{layer}.{_STAGE_LAYERS[member]}." if member < 2 else match[0]
