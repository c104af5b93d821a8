"""Triton kernels on a GPU, against their meaning in plain torch."""

from __future__ import annotations

import pytest
import torch

from samforge.transform.lower import (
    biased_attention,
    few_keys,
    float_linear,
    gelu_kernels,
    grid_bias,
    streamed_attention,
)
from samforge.transform.lower.linear import TypedLinear
from samforge.transform.lower.relu import ReluLinear
from samforge.transform.lower.residual import sum_norm, sum_norm_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(("rows", "columns"), [(5184, 4736), (70, 200), (1, 16)])
def test_gelu_to_e4m3(rows: int, columns: int) -> None:
    product, inverse = drawn(rows, columns) * 2, torch.tensor([20.0], device="cuda")
    scale = torch.rand(columns, device="cuda") + 0.5
    bias = torch.randn(columns, device="cuda")
    found = gelu_kernels.gelu_to_e4m3(product, scale, bias, inverse)
    wanted = gelu_kernels.gelu_to_e4m3_reference(product, scale, bias, inverse)
    assert error(found.float(), wanted.float()) < 0.005
    assert found.float().isfinite().all()


@pytest.mark.parametrize("shape", [(5184, 4736), (3, 7), (2, 5, 11)])
def test_gelu_half(shape: tuple[int, ...]) -> None:
    value = drawn(*shape) * 2
    found, wanted = gelu_kernels.gelu_half(value), gelu_kernels.gelu_half_reference(value)
    assert error(found, wanted) < 0.003


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "size"),
    [(9, 16, 576, 64), (1, 16, 5184, 64), (1, 8, 5184, 32), (2, 8, 201, 32), (1, 2, 7, 64)],
)
def test_attend(batch: int, heads: int, tokens: int, size: int) -> None:
    qkv = drawn(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    found = streamed_attention.attend(q, k, v, 0.17)
    wanted = streamed_attention.attend_reference(q.float(), k.float(), v.float(), 0.17)
    assert error(found, wanted) < 0.01


def angles(tokens: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.rand(tokens, pairs, device="cuda") * 6.28
    return angle.cos(), angle.sin()


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "size"), [(9, 16, 576, 64), (2, 3, 100, 32), (1, 2, 7, 64)]
)
def test_attend_turns_queries(batch: int, heads: int, tokens: int, size: int) -> None:
    qkv = drawn(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    cos, sin = angles(tokens, size // 2)
    found = streamed_attention.attend(q, k, v, size**-0.5, cos, sin)
    q = streamed_attention.rotated_pairs(q, cos, sin).float()
    wanted = streamed_attention.attend_reference(q, k.float(), v.float(), size**-0.5)
    assert error(found, wanted) < 0.01


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "size"),
    [(9, 16, 576, 64), (1, 8, 5184, 32), (2, 3, 100, 32), (1, 2, 7, 64)],
)
def test_attend_quantizes(batch: int, heads: int, tokens: int, size: int) -> None:
    q, k, v = drawn(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    inverse = torch.tensor([300.0], device="cuda")
    found = streamed_attention.attend(q, k, v, size**-0.5, inverse=inverse)
    wanted = streamed_attention.attend_reference(q.float(), k.float(), v.float(), size**-0.5)
    assert found.dtype == torch.float8_e4m3fn
    assert error(found.float() / 300, wanted.clamp(-448 / 300, 448 / 300)) < 0.04


@pytest.mark.parametrize(("rows", "columns"), [(5184, 1024), (1029, 1280), (3, 40), (1, 256)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("inverse", [None, 60.0])
@pytest.mark.parametrize("residual_type", [torch.float32, torch.bfloat16])
def test_sum_norm(
    rows: int,
    columns: int,
    scaled: bool,
    inverse: float | None,
    residual_type: torch.dtype,
) -> None:
    residual, product = drawn(rows, columns).to(residual_type) * 3, drawn(rows, columns)
    weight, shift, scale, bias = (torch.randn(columns, device="cuda") for _ in range(4))
    wanted = sum_norm_reference(
        residual.double(),
        product.double(),
        weight,
        shift,
        1e-6,
        *((scale, bias) if scaled else (None, None)),
    )
    made = None if inverse is None else torch.tensor([inverse], device="cuda")
    total, normed = sum_norm(
        residual, product, weight, shift, 1e-6, *((scale, bias) if scaled else (None, None)), made
    )
    assert total.dtype == residual_type
    assert error(total, wanted[0]) < (1e-6 if residual_type == torch.float32 else 0.004)
    assert error(normed.float() / (inverse or 1.0), wanted[1]) < (
        0.004 if inverse is None else 0.04
    )


def grid_inputs(
    batch: int, queries: int, heads: int, height: int, width: int
) -> tuple[torch.Tensor, ...]:
    """Query, key and value of head size 32, as views of what projections give, and edges."""
    q = drawn(batch, 1 + queries, heads, 32).transpose(1, 2)
    k, v = drawn(batch, height * width, 2, heads, 32).permute(2, 0, 3, 1, 4).unbind(0)
    down = drawn(batch, queries, height, heads).permute(0, 3, 1, 2) * 3
    across = drawn(batch, queries, width, heads).permute(0, 3, 1, 2) * 3
    return q, k, v, grid_bias.edges_from_bias(down, across, 1, torch.bfloat16)


@pytest.mark.parametrize(
    ("batch", "queries", "heads", "height", "width"),
    [(1, 200, 8, 72, 72), (16, 200, 8, 72, 72), (2, 10, 4, 8, 8), (3, 37, 2, 9, 13)],
)
def test_attend_grid(batch: int, queries: int, heads: int, height: int, width: int) -> None:
    q, k, v, edges = grid_inputs(batch, queries, heads, height, width)
    found = biased_attention.attend_grid(q, k, v, edges, height, width, 0.17)
    wanted = biased_attention.attend_grid_reference(
        q.float(), k.float(), v.float(), edges, height, width, 0.17
    )
    assert found.is_contiguous()
    assert error(found, wanted) < 0.01


# torch's compiler uses what torch deprecates (torch.jit.script_method).
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_attend_grid_compiles_with_a_dynamic_batch(batch: int) -> None:
    compiled = torch.compile(biased_attention.attend_grid, dynamic=True)
    for count in (2, batch):
        q, k, v, edges = grid_inputs(count, 37, 4, 24, 24)
        found = compiled(q, k, v, edges, 24, 24, 0.17)
        wanted = biased_attention.attend_grid_reference(q, k, v, edges, 24, 24, 0.17)
        assert error(found, wanted) < 0.01


@pytest.mark.parametrize(
    ("batch", "queries", "heads", "height", "width", "hidden"),
    [
        (1, 200, 8, 72, 72, 256),
        (16, 200, 8, 72, 72, 256),
        (2, 10, 4, 8, 8, 32),
        (3, 7, 3, 9, 13, 100),
    ],
)
def test_embed_edges(
    batch: int, queries: int, heads: int, height: int, width: int, hidden: int
) -> None:
    rows = torch.randn(batch, queries, height, 2, device="cuda")
    columns = torch.randn(batch, queries, width, 2, device="cuda")
    weights = [
        tensor
        for _ in range(2)
        for tensor in (
            drawn(hidden, 2),
            drawn(hidden),
            drawn(heads, hidden) / hidden**0.5,
            drawn(heads),
        )
    ]
    found = grid_bias.embed_edges(rows, columns, *weights, 1)
    wanted = grid_bias.embed_edges_reference(rows, columns, *weights, 1)
    assert found.shape == wanted.shape
    assert error(found, wanted) < 0.005
    assert not found[:, :, 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(5184, 256, 2048), (201, 256, 256), (1, 256, 256)]
)
def test_a_linear_with_relu(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    weight, bias = drawn(outputs, inputs).float() / 16, drawn(outputs).float()
    linear = TypedLinear(weight, bias, dtype)
    x = drawn(rows, inputs)
    found = ReluLinear(linear)(x)
    assert error(found, linear(x).relu()) < (0.003 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sum_norm_compiles() -> None:
    residual, product = drawn(64, 96), drawn(64, 96)
    weight, shift = (torch.randn(96, device="cuda") for _ in range(2))
    compiled = torch.compile(lambda *given: sum_norm(*given, 1e-6))
    found = compiled(residual, product, weight, shift)
    wanted = sum_norm_reference(residual, product, weight, shift, 1e-6)
    assert error(found[0], wanted[0]) < 0.004
    assert error(found[1], wanted[1]) < 0.004


@pytest.mark.parametrize(("batch", "heads", "tokens", "size"), [(9, 16, 576, 64), (2, 3, 5, 32)])
def test_turned(batch: int, heads: int, tokens: int, size: int) -> None:
    qkv = drawn(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    angles = torch.rand(tokens, size // 2, device="cuda") * 7
    found = streamed_attention.turned(qkv[1], angles.cos(), angles.sin())
    wanted = streamed_attention.turned_reference(qkv[1], angles.cos(), angles.sin())
    assert found.stride() == wanted.stride()
    assert error(found, wanted) < 0.001


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(200, 256, 256), (200, 512, 256), (3200, 256, 4), (1, 40, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_linear(rows: int, inputs: int, outputs: int, relu: bool, dtype: torch.dtype) -> None:
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    weight = torch.randn(outputs, inputs, device="cuda") / inputs**0.5
    bias = torch.randn(outputs, device="cuda")
    found = float_linear.float_linear(x, weight, bias, relu)
    wanted = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    wanted = wanted.relu() if relu else wanted
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "length", "size"),
    [(1, 8, 5184, 33, 32), (3, 8, 201, 32, 32), (2, 2, 5, 7, 16), (2, 4, 70, 17, 16)],
)
def test_attend_few(batch: int, heads: int, tokens: int, length: int, size: int) -> None:
    q = drawn(batch, tokens, heads, size).transpose(1, 2)
    k, v = drawn(batch, length, 2, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    bias = torch.where(torch.rand(batch, length, device="cuda") < 0.5, -1e4, 0.0)
    bias[:, 0] = 0
    found = few_keys.attend_few(q, k, v, bias, 0.2)
    wanted = few_keys.attend_few_reference(q.float(), k.float(), v.float(), bias, 0.2)
    assert error(found, wanted) < 0.01
