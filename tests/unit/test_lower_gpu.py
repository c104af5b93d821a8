"""Triton kernels on a GPU, against their meaning in plain torch."""

from __future__ import annotations

import pytest
import torch

from samforge.transform.lower import kernels

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
    found = kernels.gelu_to_e4m3(product, scale, bias, inverse)
    wanted = kernels.gelu_to_e4m3_reference(product, scale, bias, inverse)
    assert error(found.float(), wanted.float()) < 0.005
    assert found.isfinite().all()


@pytest.mark.parametrize("shape", [(5184, 4736), (3, 7), (2, 5, 11)])
def test_gelu_half(shape: tuple[int, ...]) -> None:
    value = drawn(*shape) * 2
    found, wanted = kernels.gelu_half(value), kernels.gelu_half_reference(value)
    assert error(found, wanted) < 0.003


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "size"),
    [(9, 16, 576, 64), (1, 8, 5184, 32), (2, 8, 201, 32), (1, 2, 7, 64)],
)
def test_attend(batch: int, heads: int, tokens: int, size: int) -> None:
    qkv = drawn(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    found = kernels.attend(q, k, v, 0.17)
    wanted = kernels.attend_reference(q.float(), k.float(), v.float(), 0.17)
    assert error(found, wanted) < 0.01
