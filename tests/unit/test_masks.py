"""The mask head reorders sums of the stock mask decoder and changes none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.sam3.modeling_sam3 import Sam3MaskDecoder

from samforge.models.sam3.masks import MaskHead, upsampling_kernel


def normal(*shape: int, seed: int = 0) -> Any:
    """Random numbers in double precision: what differs then is not rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_kernel_by_hand() -> None:
    # One tap at a time. The middle tap of the convolution sees an input cell from two outputs.
    middle = torch.zeros(1, 1, 3, 3)
    middle[0, 0, 1, 1] = 1
    inner = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert upsampling_kernel(middle)[0, 0].tolist() == inner
    ones = upsampling_kernel(torch.ones(1, 1, 3, 3))[0, 0]
    assert ones.tolist() == [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]


@given(
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_kernel_is_upsampling_and_convolution(
    channels: int, filters: int, height: int, width: int, seed: int
) -> None:
    weight = normal(filters, channels, 3, 3, seed=seed)
    cells = normal(2, channels, height, width, seed=seed + 100)
    kernel = upsampling_kernel(weight)
    assert kernel.shape == (channels, filters, 4, 4)
    large = F.interpolate(cells, scale_factor=2, mode="nearest")
    expected = F.conv2d(large, weight, padding=1)
    found = F.conv_transpose2d(cells, kernel, stride=2, padding=1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize(("batch", "prompts"), [(1, 1), (1, 2), (3, 2)])
def test_head_is_the_stock_decoder(
    small_config: Callable[..., Any], batch: int, prompts: int
) -> None:
    decoder = Sam3MaskDecoder(small_config().mask_decoder_config).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(decoder.parameters()):
            scale = parameter[0].numel() ** -0.5
            parameter.copy_(normal(*parameter.shape, seed=index) * scale)
    queries = normal(batch * prompts, 5, 32, seed=1)
    fine, middle = normal(batch, 32, 16, 16, seed=2), normal(batch, 32, 8, 8, seed=3)
    encoded, prompt = normal(batch * prompts, 16, 32, seed=4), normal(batch * prompts, 6, 32)
    valid = torch.ones(batch * prompts, 6, dtype=torch.bool)
    valid[:, 4:] = False
    with torch.no_grad():
        stock = decoder(
            decoder_queries=queries,
            backbone_features=[
                level.repeat_interleave(prompts, 0)
                for level in (fine, middle, normal(batch, 32, 4, 4))
            ],
            encoder_hidden_states=encoded,
            prompt_features=prompt,
            prompt_mask=valid,
        )
        bias = torch.where(valid, 0.0, -1e4).double()[:, None, None]
        masks = MaskHead(decoder)(queries, [middle, fine], encoded, prompt, bias)
    assert masks.shape == (batch * prompts, 5, 16, 16)
    assert stock.pred_masks.abs().max() > 0.1
    assert (masks - stock.pred_masks).abs().max() <= 1e-12
