"""What lowering makes of a ViT's blocks: rotary encoding in attention, sums with their norms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from samforge.core.session import PartSpec, TensorSpec
from samforge.transform.lower import Lowering, fp8_scales_from_samples, lower
from samforge.transform.lower.e4m3 import E4M3
from samforge.transform.lower.linear import Fp8Linear
from samforge.transform.lower.normalization import TypedLayerNorm
from samforge.transform.lower.residual import SumNorm, sum_norm
from samforge.transform.lower.streamed_attention import attend, rotated_pairs

F32, BF16 = torch.float32, torch.bfloat16


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative difference in the 2-norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def test_pairs_turn_by_their_angle() -> None:
    quarter = torch.tensor([[torch.pi / 2, 0.0]])
    x = torch.tensor([[1.0, 0.0, 3.0, 4.0]])
    found = rotated_pairs(x, quarter.cos(), quarter.sin())
    assert found.tolist() == [pytest.approx([0.0, 1.0, 3.0, 4.0], abs=1e-6)]


def test_attention_turns_its_queries() -> None:
    q, k, v = (drawn(2, 3, 5, 8, seed=seed) for seed in range(3))
    angle = drawn(5, 4, seed=4)
    found = attend(q, k, v, 0.5, angle.cos(), angle.sin())
    turned = rotated_pairs(q, angle.cos(), angle.sin())
    wanted = F.scaled_dot_product_attention(turned, k, v, scale=0.5).transpose(1, 2)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_sum_and_its_norm(scaled: bool) -> None:
    residual, product = drawn(3, 16), drawn(3, 16, seed=1)
    weight, shift, scale, bias = (drawn(16, seed=seed) for seed in (2, 3, 4, 5))
    total, normed = sum_norm(
        residual, product, weight, shift, 1e-5, *((scale, bias) if scaled else (None, None))
    )
    wanted = residual + (product * scale + bias if scaled else product)
    assert torch.equal(total, wanted)
    assert torch.equal(normed, F.layer_norm(wanted, (16,), weight, shift, 1e-5))


def test_a_norm_quantizes_for_the_linear_behind_it() -> None:
    norm = TypedLayerNorm((16,), drawn(16), drawn(16, seed=1), 1e-5, BF16)
    residual, product = drawn(2, 3, 16).to(BF16), drawn(2, 3, 16, seed=3).to(BF16)
    total, normed = SumNorm(norm, None, 40.0)(residual, product)
    assert (total.dtype, normed.dtype) == (BF16, E4M3)
    wanted = norm(residual.float() + product.float())
    assert error(normed.float() / 40, wanted.float()) < 0.04


def test_a_linear_may_leave_its_scales_to_the_sum() -> None:
    linear = Fp8Linear(drawn(16, 32), drawn(16, seed=1), 0.01, F32, "channel")
    x, residual = drawn(2, 3, 32, seed=2), drawn(2, 3, 16, seed=3)
    norm = TypedLayerNorm((16,), None, None, 1e-5, F32)
    wanted = residual + linear(x)
    linear.raw = True
    total, normed = SumNorm(norm, linear, None)(residual, linear(x))
    assert error(total, wanted) < 1e-6
    assert error(normed, F.layer_norm(wanted, (16,))) < 1e-5


class Block(torch.nn.Module):
    """Rotary attention and an MLP as a ViT has them, queries in pairs of neighbours."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
        self.first, self.second = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(32) for _ in range(3))
        angle = drawn(80, 8).repeat_interleave(2, 1) if pairs else drawn(80, 16)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        even, odd = x.reshape(*x.shape[:-1], 8, 2).unbind(-1)
        return x * self.cos + torch.stack([-odd, even], -1).flatten(-2) * self.sin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.out(x)
        q, k, v = self.qkv(self.norms[0](x)).reshape(-1, 80, 3, 2, 16).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        x = x + self.out(attended.transpose(1, 2).reshape(-1, 80, 32))
        x = x + self.second(F.gelu(self.first(self.norms[1](x))))
        return self.norms[2](x) + x


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("pairs", [True, False])
def test_a_block_for_a_gpu_computes_what_it_did(precision: str, pairs: bool) -> None:
    tensor = TensorSpec(name="x", dtype="float32", shape=("batch", 80, 32))
    spec = PartSpec(name="block", inputs=(tensor,), outputs=(tensor,))
    block, x = Block(pairs).eval(), drawn(2, 80, 32, seed=7)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    scales = fp8_scales_from_samples(program, spec, [{"x": x}])
    settings = Lowering.for_gpu(precision, scales if precision == "fp8" else None)
    settings = replace(settings, attention="triton", half_features=False)
    made = lower(program, spec, settings=settings)
    with torch.no_grad():
        (found,) = made.program.module(check_guards=False)(x)
        assert error(found, block(x)) < (0.01 if precision == "bf16" else 0.05)


class Attending(torch.nn.Module):
    """Attention and the projection behind it, under the name that it has in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.o_proj = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.reshape(-1, 80, 3, 2, 16).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(attended.transpose(1, 2).reshape(-1, 80, 32))


@pytest.mark.parametrize(("kernel", "wanted"), [("triton", "fp8"), ("explicit", "bf16")])
def test_a_projection_is_fp8_where_attention_quantizes_for_it(kernel: str, wanted: str) -> None:
    given = TensorSpec(name="x", dtype="float32", shape=("batch", 80, 96))
    result = TensorSpec(name="y", dtype="float32", shape=("batch", 80, 32))
    spec = PartSpec(name="block", inputs=(given,), outputs=(result,))
    block, x = Attending().eval(), drawn(2, 80, 96, seed=7)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    scales = fp8_scales_from_samples(program, spec, [{"x": x}])
    settings = Lowering(precision="fp8", scales=scales, attention=kernel)
    made = lower(program, spec, settings=settings)
    assert made.layers == (("o_proj", wanted),)
    with torch.no_grad():
        (found,) = made.program.module(check_guards=False)(x)
        assert 0 < error(found, block(x)) < (0.05 if wanted == "fp8" else 0.01)


def test_attention_quantizes_its_result() -> None:
    q, k, v = (drawn(2, 3, 5, 8, seed=seed) for seed in range(3))
    found = attend(q, k, v, 0.5, inverse=torch.tensor([100.0]))
    assert (found.dtype, found.shape) == (E4M3, (2, 5, 3, 8))
    assert error(found.float() / 100, attend(q, k, v, 0.5)) < 0.04


def test_the_settings_for_a_gpu() -> None:
    assert Lowering.for_gpu("bf16").residual == "half"
    assert Lowering.for_gpu("fp16").residual == "fp32"
    made = Lowering.for_gpu("fp8", {"a": 1.0})
    assert (made.sums, made.attention, made.half_features) == ("joined", "fastest", True)
    assert made.linear_precision("a") == "fp8"


def test_only_pairs_with_one_angle_are_read_as_rotary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from samforge.transform.lower import streamed_attention

    tensor = TensorSpec(name="x", dtype="float32", shape=("batch", 80, 32))
    spec = PartSpec(name="block", inputs=(tensor,), outputs=(tensor,))
    turns = []
    kept = streamed_attention.StreamedAttention.forward

    def forward(self: Any, *tensors: torch.Tensor) -> torch.Tensor:
        turns.append(self.cos is not None)
        return kept(self, *tensors)

    monkeypatch.setattr(streamed_attention.StreamedAttention, "forward", forward)
    for pairs in (True, False):
        block, x = Block(pairs).eval(), drawn(2, 80, 32, seed=7)
        program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        lower(program, spec, settings=Lowering(attention="triton"))
    assert turns == [True, False]
