"""The geometry encoder's class token of an image: what stands behind every phrase.

Meta's code runs the geometry encoder for phrases alone, too. Without boxes its sequence is the
class token, which looks at the image and at nothing else: it depends on the image, not on the
phrase, so it is computed once an image. transformers leaves it off.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3GeometryEncoder, Sam3GeometryEncoderLayer


class ClassToken(nn.Module):
    """transformers' geometry encoder for a sequence that is its class token alone.

    One token asks 5,184 cells. So the projections of keys and values move to the side of the token
    (``q (K x) = (q K) x``): two products of the cells with a few rows, instead of two projections
    of every cell. Attention of a token to itself alone is a linear layer. All this only reorders
    sums; what depends on no image at all, up to the first question, is computed here.
    """

    def __init__(self, encoder: Sam3GeometryEncoder) -> None:
        super().__init__()
        layers = list(encoder.layers)
        with torch.no_grad():
            token = encoder.prompt_layer_norm(encoder.final_proj(encoder.cls_embed.weight[None]))
            token, question = Question(layers[0])(token)
        self.register_buffer("token", token.detach(), persistent=False)  # [1, 1, D]
        self.register_buffer("question", question.detach(), persistent=False)  # [1, heads, D]
        self.questions = nn.ModuleList(Question(layer) for layer in layers[1:])
        self.answers = nn.ModuleList(Answer(layer) for layer in layers)
        self.output_layer_norm = encoder.output_layer_norm

    def forward(self, coarse: Tensor, position: Tensor) -> Tensor:
        """Look at images.

        Args:
            coarse: (B, D, s, s), the coarsest feature map.
            position: (1, s * s, D), its position encoding.

        Returns:
            (B, 1, D).
        """
        cells = coarse.flatten(2).transpose(1, 2)  # [B, T, D]
        placed = cells + position
        token, question = cast(Tensor, self.token), cast(Tensor, self.question)
        for index, answer in enumerate(self.answers):
            if index:
                token, question = self.questions[index - 1](token)
            token = answer(token, question, cells, placed)
        return cast(Tensor, self.output_layer_norm(token))


class Question(nn.Module):
    """A layer up to its look at the image: the token attends to itself, then forms its question."""

    def __init__(self, layer: Sam3GeometryEncoderLayer) -> None:
        super().__init__()
        own, image = layer.self_attn, layer.cross_attn
        self.heads: int = image.num_attention_heads
        self.own_norm, self.norm = layer.layer_norm1, layer.layer_norm2
        self.own = joined(own.v_proj, own.o_proj)
        # The keys' bias adds the same to the score of every cell: softmax takes it away.
        query = _by_head(image.q_proj.weight, self.heads)
        key = _by_head(image.k_proj.weight, self.heads)
        query_bias = image.q_proj.bias.double().view(self.heads, -1, 1)
        self.question = _linear(
            (key.mT @ query * image.scaling).flatten(0, 1),
            (key.mT @ query_bias * image.scaling).flatten(),
        )

    def forward(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, D) to the token and to what each head asks the cells, (B, heads, D)."""
        token = token + self.own(self.own_norm(token))
        question = self.question(self.norm(token))  # [B, 1, heads * D]
        return token, question.view(token.shape[0], self.heads, token.shape[-1])


class Answer(nn.Module):
    """A layer from its look at the image on."""

    def __init__(self, layer: Sam3GeometryEncoderLayer) -> None:
        super().__init__()
        image = layer.cross_attn
        heads = image.num_attention_heads
        value, out = _by_head(image.v_proj.weight, heads), image.o_proj.weight.double()
        joint = out.unflatten(1, (heads, -1)).permute(1, 0, 2) @ value  # [heads, D, D]
        # Shares of a head add up to one, so the values' bias arrives as it is.
        bias = out @ image.v_proj.bias.double() + image.o_proj.bias.double()
        self.answer = _linear(joint.permute(1, 0, 2).flatten(1), bias)
        self.norm, self.mlp = layer.layer_norm3, layer.mlp

    def forward(self, token: Tensor, question: Tensor, cells: Tensor, placed: Tensor) -> Tensor:
        """Take in what the heads see.

        Args:
            token: (B or 1, 1, D).
            question: (B or 1, heads, D).
            cells: (B, T, D), features.
            placed: (B, T, D), features with their position encoding.

        Returns:
            (B, 1, D).
        """
        scores = torch.matmul(question, placed.transpose(1, 2))  # [B, heads, T]
        # A softmax between two products is attention to TensorRT, which then fuses this or not.
        share = (scores - scores.amax(-1, keepdim=True)).exp()
        share = share / share.sum(-1, keepdim=True)
        seen = torch.matmul(share, cells)  # [B, heads, D]
        token = token + self.answer(seen.flatten(1)[:, None])
        return cast(Tensor, token + self.mlp(self.norm(token)))


def joined(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Two linear layers as one."""
    weight = second.weight.double() @ first.weight.double()
    return _linear(weight, second.weight.double() @ first.bias.double() + second.bias.double())


def _by_head(weight: Tensor, heads: int) -> Tensor:
    """(heads * d, D) to (heads, d, D), in float64: products of weights are rounded once."""
    return weight.double().view(heads, -1, weight.shape[1])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.detach().float().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach().float().contiguous(), requires_grad=False)
    return linear
