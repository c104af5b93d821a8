"""Position encodings kept as constants are those that the stock modules compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.sam3.modeling_sam3 import Sam3SinePositionEmbedding, Sam3ViTLayer

from samforge.models.sam3.positions import rope_tables, sine_encode, sine_grid, sine_wavelengths


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("image_size", [112, 140])
def test_rope_tables_are_the_layers_own(
    small_config: Callable[..., Any], window: int, image_size: int
) -> None:
    vit = small_config(image_size).vision_config.backbone_config
    layer = Sam3ViTLayer(vit, window)
    stock = layer.rotary_emb(torch.zeros(1), layer.position_ids)
    tables = rope_tables(vit, window)
    tokens = window**2 or (image_size // 14) ** 2
    for table, wanted in zip(tables, stock, strict=True):
        assert table.shape == (1, tokens, 16)  # 64 wide, 4 heads
        assert table.dtype == torch.float32
        assert torch.equal(table, wanted)


def test_rope_by_hand(small_config: Callable[..., Any]) -> None:
    vit = small_config().vision_config.backbone_config
    cos, sin = rope_tables(vit, 0)
    # 8 x 8 tokens of global attention count in steps of window / 8: row 2, column 5.
    step = 3 / 8
    x, y = 5 * step, 2 * step
    frequencies = [10000 ** (-2 * index / 8) for index in range(4)]
    angles = [x * f for f in frequencies for _ in "ab"] + [y * f for f in frequencies for _ in "ab"]
    token = 2 * 8 + 5
    assert cos[0, token].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-6)
    assert sin[0, token].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-6)
    assert torch.equal(cos[0, 0], torch.ones(16))
    assert torch.equal(sin[0, 0], torch.zeros(16))
    # Inside a window the step is 1.
    assert rope_tables(vit, 3)[0][0, 1, 0].item() == pytest.approx(math.cos(1.0))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 3)])
def test_sine_grid_is_the_stock_encoding(height: int, width: int) -> None:
    stock = Sam3SinePositionEmbedding(16, normalize=True)
    wanted = stock(torch.Size((1, 32, height, width)), "cpu", torch.float32)
    assert torch.equal(sine_grid(32, height, width), wanted.flatten(2).transpose(1, 2))


def test_sine_grid_by_hand() -> None:
    grid = sine_grid(8, 4, 2)
    assert grid.shape == (1, 8, 8)
    # Row 3 of 4, column 1 of 2, counted from 1 and scaled to a whole turn; y comes before x.
    y, x = 3 / 4 * 2 * math.pi, 1 / 2 * 2 * math.pi
    expected = [
        f(angle / wavelength)
        for angle in (y, x)
        for wavelength in (1, 100)
        for f in (math.sin, math.cos)
    ]
    assert grid[0, 2 * 2 + 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_wavelengths() -> None:
    assert sine_wavelengths(4).tolist() == [1.0, 1.0, 100.0, 100.0]
    assert sine_wavelengths(8).tolist() == pytest.approx([1, 1, 10, 10, 100, 100, 1000, 1000])
    assert sine_wavelengths(4, temperature=16.0).tolist() == [1.0, 1.0, 4.0, 4.0]


def test_sine_encode_is_the_stock_encoding() -> None:
    stock = Sam3SinePositionEmbedding(16, normalize=True)
    boxes = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    encoded = sine_encode(boxes, sine_wavelengths(16))
    assert encoded.shape == (2, 5, 4, 16)
    x, y, width, height = encoded.unbind(2)
    assert torch.equal(torch.cat([y, x, width, height], -1), stock.encode_boxes(boxes))
    across, down = stock.encode_1d_positions(boxes[0, :, 0], boxes[0, :, 1])
    assert torch.equal(x[0], across)
    assert torch.equal(y[0], down)


def test_sine_encode_by_hand() -> None:
    encoded = sine_encode(torch.tensor(0.25), sine_wavelengths(4))
    angle = math.pi / 2
    expected = [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
    assert encoded.tolist() == pytest.approx(expected, abs=1e-6)
