"""The training forward: one vision pass an image, several prompts on it, every decoder layer out.

It composes the submodules of a stock ``transformers.Sam3Model`` into what Meta's code computes, in
training as in evaluation: the geometry encoder's class token stands behind every phrase, with boxes
or without, and the presence logit is not clamped. What differs in form: spatial sizes are Python
integers, text is encoded once per distinct phrase, several prompts share an image, the answers of
all decoder layers are kept for deep supervision, and exemplar boxes are pooled with matrix
products. ``--check`` proves it equal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy, inverse_sigmoid

from samforge.models.sam3.geometry import PADDING
from samforge.models.sam3.roi_align import roi_align


class Outputs(NamedTuple):
    """What the detector says to N = B * P questions, of L decoder layers with Q queries each."""

    logits: Tensor
    """(L, N, Q)"""
    boxes_xyxy: Tensor
    """(L, N, Q, 4), 0 to 1."""
    presence: Tensor
    """(L, N) logits."""
    masks: Tensor
    """(N, Q, h, w) logits of the last layer."""
    semantic: Tensor
    """(N, h, w) logits."""
    coarse: Tensor
    """(B, s * s, C), the feature map the detector looks at."""


class TrainingForward(nn.Module):
    """Answers P prompts on each of B images with a stock model's layers."""

    phrase_ids: Tensor
    phrase_mask: Tensor
    position: Tensor

    def __init__(self, model: Any, phrase_ids: Tensor, phrase_mask: Tensor) -> None:
        """Wrap a model.

        Args:
            model: A ``transformers.Sam3Model``; its parameters are used, not copied.
            phrase_ids: (V, S) token ids of every phrase that can be asked.
            phrase_mask: (V, S) True where a token is no padding.
        """
        super().__init__()
        self.model = model
        vision = model.config.vision_config
        self.grid = vision.image_size // vision.backbone_config.patch_size
        # The detector looks at the third map, the coarsest in use, of side * side cells.
        self.side = int(self.grid * vision.scale_factors[2])
        self.register_buffer("phrase_ids", phrase_ids, persistent=False)
        self.register_buffer("phrase_mask", phrase_mask.bool(), persistent=False)
        neck = model.vision_encoder.neck
        # In float32 once: under autocast the model would compute it in bfloat16.
        shape = torch.Size((1, vision.fpn_hidden_size, self.side, self.side))
        position = neck.position_encoding(shape, torch.device("cpu"), torch.float32)
        self.register_buffer("position", position.flatten(2).transpose(1, 2), persistent=False)

    def encode_phrases(self) -> Tensor:
        """(V, S, C) features of every phrase."""
        hidden = self.model.text_encoder(
            input_ids=self.phrase_ids, attention_mask=self.phrase_mask.long()
        ).last_hidden_state
        # Hundreds of prompts gather from few phrases: in bfloat16 their gradients would not add up.
        features: Tensor = self.model.text_projection(hidden).float()
        return features

    def forward(
        self, phrases: Tensor, images: Tensor, asked: Tensor, boxes: Tensor, labels: Tensor
    ) -> Outputs:
        """Answer every prompt.

        Args:
            phrases: (V, S, C) from :meth:`encode_phrases`.
            images: (B, H, W, 3) bytes.
            asked: (B, P) index of each prompt's phrase.
            boxes: (B, G, K, 4) exemplars of the last G prompts, centre and size, 0 to 1.
            labels: (B, G, K), 1, 0, or -10 for padding.
        """
        prompts = asked.shape[1]
        features = self._vision(images)
        flat = features[-1].flatten(2).transpose(1, 2)  # [B, hw, C]
        # Prompts of text alone come first and share one group of boxes that are all padding: what
        # is left of it is the class token.
        geometry, geometry_mask = self._geometry(
            features[-1],
            flat,
            F.pad(boxes, (0, 0, 0, 0, 1, 0), value=0.5),
            F.pad(labels, (0, 0, 1, 0), value=PADDING),
        )
        groups = boxes.shape[1]
        group = [0] * (prompts - groups) + list(range(1, groups + 1))
        geometry = geometry[:, group].flatten(0, 1)  # [N, K+1, C]
        geometry_mask = geometry_mask[:, group].flatten(0, 1)
        asked = asked.flatten()
        prompt = torch.cat([phrases[asked], geometry], 1)  # [N, S+K+1, C]
        prompt_mask = torch.cat([self.phrase_mask[asked], geometry_mask], 1)
        attended = prompt_mask[:, None, None, :]
        hidden = _repeat(flat, prompts)
        for layer in self.model.detr_encoder.layers:
            hidden = layer(
                hidden,
                prompt_feats=prompt,
                vision_pos_encoding=self.position,
                prompt_cross_attn_mask=attended,
            )
        queries, boxes_xyxy, presence = self._decode(hidden, prompt, attended)
        logits = self.model.dot_product_scoring(
            decoder_hidden_states=queries, text_features=prompt, text_mask=prompt_mask
        ).squeeze(-1)
        masks, semantic = self._masks(
            queries[-1], [_repeat(f, prompts) for f in features], hidden, prompt, attended
        )
        return Outputs(
            logits.float(),
            boxes_xyxy.float(),
            presence.float(),
            masks.float(),
            semantic.float(),
            flat,
        )

    def _vision(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, 4s, 4s], [B, C, 2s, 2s] and [B, C, s, s]; the fourth is unused."""
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = self.model.vision_encoder.backbone(pixels).last_hidden_state
        grid = tokens.view(len(images), self.grid, self.grid, -1).permute(0, 3, 1, 2)
        return [layer(grid) for layer in self.model.vision_encoder.neck.fpn_layers[:3]]

    def _geometry(
        self, coarse: Tensor, flat: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (B, G, K + 1, C) of exemplar boxes and a CLS token, and which are there."""
        encoder = self.model.geometry_encoder
        batch, groups, count = labels.shape
        channels = coarse.shape[1]
        normalized = encoder.vision_layer_norm(coarse.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        flat_boxes = boxes.flatten(1, 2)  # [B, G*K, 4]
        pooled = roi_align(normalized, _corners(flat_boxes) * self.side, encoder.roi_size).flatten(
            0, 1
        )
        encode = encoder._encode_box_coordinates  # noqa: SLF001 (a layer in all but name)
        coordinates = encode(*flat_boxes.flatten(0, 1).unbind(-1))
        tokens = (
            encoder.boxes_direct_project(flat_boxes.flatten(0, 1))
            + encoder.boxes_pool_project(pooled).flatten(1)
            + encoder.boxes_pos_enc_project(coordinates)
            + encoder.label_embed(labels.flatten().clamp(min=0))
        ).view(batch * groups, count, channels)
        cls = encoder.cls_embed.weight[None].expand(batch * groups, -1, -1)
        tokens = encoder.prompt_layer_norm(encoder.final_proj(torch.cat([tokens, cls], 1)))
        there = labels.flatten(0, 1) != PADDING
        own_mask = F.pad(there, (0, 1), value=True)  # the CLS token never is padding
        for layer in encoder.layers:
            tokens = layer(
                prompt_feats=tokens,
                vision_feats=_repeat(flat, groups),
                vision_pos_encoding=self.position,
                prompt_mask=own_mask[:, None, None, :],
            )
        tokens = encoder.output_layer_norm(tokens).view(batch, groups, count + 1, channels)
        return tokens, own_mask.view(batch, groups, count + 1)

    def _decode(
        self, hidden: Tensor, prompt: Tensor, attended: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [L, N, Q, C], boxes [L, N, Q, 4] and presence logits [L, N] of every layer."""
        decoder = self.model.detr_decoder
        count = len(hidden)
        reference = decoder.reference_points.weight.sigmoid()[None].expand(count, -1, -1)
        states = torch.cat([decoder.presence_token.weight, decoder.query_embed.weight])
        states = states[None].expand(count, -1, -1)
        queries, boxes, presence = [], [], []
        for layer in decoder.layers:
            query_pos = decoder.ref_point_head(decoder.position_encoding.encode_boxes(reference))
            bias = decoder._get_rpb_matrix(reference, (self.side, self.side))  # noqa: SLF001
            states = layer(
                states,
                query_pos=query_pos,
                text_features=prompt,
                vision_features=hidden,
                vision_pos_encoding=self.position,
                text_cross_attn_mask=attended,
                vision_cross_attn_mask=F.pad(bias, (0, 0, 1, 0)),
            )
            normed = decoder.output_layer_norm(states[:, 1:])
            refined = (decoder.box_head(normed) + inverse_sigmoid(reference)).sigmoid()
            reference = refined.detach()
            token = decoder.presence_head(decoder.presence_layer_norm(states[:, 0]))
            queries.append(normed)
            boxes.append(refined)
            presence.append(token.squeeze(-1))
        return torch.stack(queries), _corners(torch.stack(boxes)), torch.stack(presence)

    def _masks(
        self,
        queries: Tensor,
        features: list[Tensor],
        hidden: Tensor,
        prompt: Tensor,
        attended: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Instance mask logits [N, Q, h, w] and semantic logits [N, h, w]."""
        decoder = self.model.mask_decoder
        found, _ = decoder.prompt_cross_attn(
            query=decoder.prompt_cross_attn_norm(hidden),
            key=prompt,
            value=prompt,
            attention_mask=attended,
        )
        pixels = decoder._embed_pixels(  # noqa: SLF001
            backbone_features=features, encoder_hidden_states=hidden + found
        )
        masks = torch.einsum(
            "nqc,nchw->nqhw", decoder.mask_embedder(queries), decoder.instance_projection(pixels)
        )
        return masks, decoder.semantic_projection(pixels).squeeze(1)


def _corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to left, top, right, bottom."""
    corners: Tensor = box_cxcywh_to_xyxy(boxes)  # type: ignore[no-untyped-call]
    return corners


def _repeat(tensor: Tensor, prompts: int) -> Tensor:
    """(B, ...) to (B * prompts, ...), the prompts of an image next to each other."""
    return tensor[:, None].expand(-1, prompts, *tensor.shape[1:]).flatten(0, 1)
