"""Part ``text``: token ids -> features of the phrase."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, Sam3Config

# Added to attention scores of masked keys. exp(-1e4) is exactly 0 in float32 and, unlike -inf,
# it stays finite in half precision.
MASKED = -1.0e4


class Text(nn.Module):
    """CLIP text encoder and the projection to the detector's width.

    The mask is found in the ids themselves: tokens up to and with the first end-of-text are valid.
    So the pad value does not matter (Meta's tokenizer pads with 0, transformers' with end-of-text).
    Meta's code masks every token 0, which is an exclamation mark, wherever it stands.
    """

    def __init__(
        self,
        encoder: CLIPTextModelWithProjection,
        projection: nn.Linear,
        config: Sam3Config,
        eos_id: int,
        *,
        masks_zero: bool,
    ) -> None:
        super().__init__()
        self.masks_zero = masks_zero
        context = config.text_config.max_position_embeddings
        self.eos_id = eos_id
        self.context: int = context
        self.token_embedding = encoder.text_model.embeddings.token_embedding
        self.position_embedding = encoder.text_model.embeddings.position_embedding
        self.layers = encoder.text_model.encoder.layers
        self.final_layer_norm = encoder.text_model.final_layer_norm
        self.projection = projection
        self.register_buffer("positions", torch.arange(context), persistent=False)
        causal = torch.full((context, context), MASKED).triu(1)[None, None]
        self.register_buffer("causal_mask", causal, persistent=False)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode phrases.

        Args:
            input_ids: (P, context) with begin and end tokens, anything after the end.

        Returns:
            Features (P, context, D) and the mask of valid tokens (P, context).
        """
        positions = cast(Tensor, self.positions)
        end = torch.where(input_ids == self.eos_id, positions, self.context - 1).amin(-1)
        mask = positions <= end[:, None]
        if self.masks_zero:
            mask = mask & (input_ids != 0)
        hidden = self.token_embedding(input_ids) + self.position_embedding.weight
        for layer in self.layers:
            # Causal attention never looks at what follows, so padding needs no mask here.
            hidden = layer(hidden, self.causal_mask)
        return self.projection(self.final_layer_norm(hidden)), mask


def text_encoder(config: Sam3Config) -> tuple[CLIPTextModelWithProjection, nn.Linear]:
    """Make transformers' text encoder and projection without weights (on the meta device)."""
    text = config.text_config
    with torch.device("meta"):
        encoder = CLIPTextModelWithProjection(text)
        projection = nn.Linear(text.hidden_size, config.detr_encoder_config.hidden_size)
    return encoder, projection
