# ruff: noqa: PLR0913, PLR0917
"""Triton kernels that might pay, against what a lowering uses now. One file, throw-away results.

python benchmarks/gpu/candidates.py --out FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from _timing import Results, kernel_ms

from samforge.transform.lower import gelu_kernels


@triton.jit
def _rope(qkv, scale, bias, cos, sin, out, tokens, period, width: tl.constexpr, rows: tl.constexpr):  # type: ignore[no-untyped-def]
    """Turn q and k of (tokens, 3 * width); out is (tokens, 2 * width)."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    head = tl.program_id(1) * 64
    column = tl.arange(0, 64)
    mask = (row < tokens)[:, None]
    place = row[:, None] * (3 * width) + head + column[None, :]
    value = tl.load(qkv + place, mask=mask, other=0.0).to(tl.float32)
    value = value * tl.load(scale + head + column)[None, :] + tl.load(bias + head + column)[None, :]
    angle = (row % period)[:, None] * 64 + column[None, :]
    c, s = tl.load(cos + angle), tl.load(sin + angle)
    even, odd = tl.split(tl.reshape(value, (rows, 32, 2)))
    turned = tl.reshape(tl.join(-odd, even), (rows, 64))
    tl.store(
        out + row[:, None] * (2 * width) + head + column[None, :],
        (value * c + turned * s).to(tl.bfloat16),
        mask=mask,
    )


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, o_ptr, tokens, heads, q_row, v_row, scale,
    size: tl.constexpr, bm: tl.constexpr, bn: tl.constexpr, even_n: tl.constexpr,
):  # fmt: skip
    """Attention of (batch, tokens, heads, size), rows of q and k ``q_row`` apart, v ``v_row``."""
    block, group = tl.program_id(0), tl.program_id(1)
    batch, head = group // heads, group % heads
    row = block * bm + tl.arange(0, bm)
    column = tl.arange(0, size)
    first = batch.to(tl.int64) * tokens
    q = tl.load(
        q_ptr + (first + row)[:, None] * q_row + head * size + column[None, :],
        mask=(row < tokens)[:, None], other=0.0,
    )  # fmt: skip
    q = (q.to(tl.float32) * (scale * 1.44269504)).to(tl.bfloat16)
    most = tl.full((bm,), -1e30, tl.float32)
    total = tl.zeros((bm,), tl.float32)
    result = tl.zeros((bm, size), tl.float32)
    for start in range(0, tokens, bn):
        key = start + tl.arange(0, bn)
        at = (first + key)[:, None]
        if even_n:
            k = tl.load(k_ptr + at * q_row + head * size + column[None, :])
            v = tl.load(v_ptr + at * v_row + head * size + column[None, :])
            scores = tl.dot(q, k.T)
        else:
            inside = (key < tokens)[:, None]
            k = tl.load(k_ptr + at * q_row + head * size + column[None, :], mask=inside, other=0.0)
            v = tl.load(v_ptr + at * v_row + head * size + column[None, :], mask=inside, other=0.0)
            scores = tl.where((key < tokens)[None, :], tl.dot(q, k.T), -1e30)
        peak = tl.maximum(most, tl.max(scores, 1))
        share = tl.exp2(scores - peak[:, None])
        shrink = tl.exp2(most - peak)
        total = total * shrink + tl.sum(share, 1)
        result = result * shrink[:, None]
        result = tl.dot(share.to(tl.bfloat16), v, result)
        most = peak
    result = result / total[:, None]
    tl.store(
        o_ptr + (first + row)[:, None] * (heads * size) + head * size + column[None, :],
        result.to(tl.bfloat16), mask=(row < tokens)[:, None],
    )  # fmt: skip


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative difference in the 2-norm."""
    wanted = wanted.double()
    return round(float((found.double() - wanted).norm() / wanted.norm()), 6)


def gelu(results: Results, device: str, rows: int, columns: int) -> None:
    """GELU and quantization after fc1."""
    scale = torch.rand(columns, device=device) + 0.5
    bias = torch.randn(columns, device=device)
    inverse = torch.tensor([20.0], device=device)
    xs = [torch.randn(rows, columns, device=device).bfloat16() for _ in range(3)]
    wanted = gelu_kernels.gelu_to_e4m3_reference(xs[0], scale, bias, inverse)
    compiled = torch.compile(gelu_kernels.gelu_to_e4m3_reference)
    for name, call in (("Triton", gelu_kernels.gelu_to_e4m3), ("Inductor", compiled)):
        with results.section(f"gelu to e4m3 {name}") as go:
            if go:
                found = call(xs[0], scale, bias, inverse)
                results.add(f"gelu to e4m3 {name} error", error(found.float(), wanted.float()))
                calls = [lambda x=x, c=call: c(x, scale, bias, inverse) for x in xs]  # type: ignore[misc]
                results.add(f"gelu to e4m3 {name}", kernel_ms(calls))


def rope(results: Results, device: str, tokens: int, period: int, width: int) -> None:
    """RoPE of q and k with the channel scales of an FP8 product."""
    scale = torch.rand(3 * width, device=device) + 0.5
    bias = torch.randn(3 * width, device=device)
    angle = (torch.rand(period, 32, device=device) * 6).repeat_interleave(2, -1)
    cos, sin = angle.cos().contiguous(), angle.sin().contiguous()
    xs = [torch.randn(tokens, 3 * width, device=device).bfloat16() for _ in range(3)]
    y = (xs[0].float() * scale + bias)[:, : 2 * width].view(tokens // period, period, -1, 64)
    pairs = torch.stack((-y[..., 1::2], y[..., ::2]), -1).flatten(-2)
    wanted = (y * cos[:, None] + pairs * sin[:, None]).reshape(tokens, -1)
    for rows, warps in ((32, 2), (64, 4), (128, 4), (64, 2), (16, 1)):
        name = f"rope triton {rows} rows {warps} warps"
        with results.section(name) as go:
            if not go:
                continue

            def call(x: torch.Tensor, rows=rows, w=warps) -> Any:  # type: ignore[no-untyped-def]
                out = torch.empty(tokens, 2 * width, device=device, dtype=torch.bfloat16)
                _rope[(triton.cdiv(tokens, rows), 2 * width // 64)](
                    x, scale, bias, cos, sin, out, tokens, period, width, rows, num_warps=w
                )
                return out

            results.add(f"{name} error", error(call(xs[0]), wanted))
            results.add(name, kernel_ms([lambda x=x: call(x) for x in xs]))  # type: ignore[misc]


def attention(
    results: Results, device: str, words: str, batch: int, tokens: int, heads: int, size: int
) -> None:
    """Attention over windows or all tokens, v read from the product of q, k and v."""
    width = heads * size
    sets = [
        (
            torch.randn(batch * tokens, 2 * width, device=device).bfloat16(),
            torch.randn(batch * tokens, 3 * width, device=device).bfloat16(),
        )
        for _ in range(3)
    ]
    qk, qkv = sets[0]
    q, k = (t.view(batch, tokens, heads, size).transpose(1, 2) for t in qk.split(width, 1))
    v = qkv[:, 2 * width :].view(batch, tokens, heads, size).transpose(1, 2)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    wanted = wanted.reshape(batch * tokens, width)
    shapes = ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2))
    shapes += ((64, 128, 4, 2), (64, 32, 4, 3), (128, 64, 8, 2))
    for bm, bn, warps, stages in shapes:
        name = f"attention {words} triton {bm}x{bn} {warps} warps {stages} stages"
        with results.section(name) as go:
            if not go:
                continue

            def call(pair: Any, bm=bm, bn=bn, w=warps, s=stages) -> Any:  # type: ignore[no-untyped-def]
                qk, qkv = pair
                out = torch.empty(batch * tokens, width, device=device, dtype=torch.bfloat16)
                _attend[(triton.cdiv(tokens, bm), batch * heads)](
                    qk, qk[:, width:], qkv[:, 2 * width :], out, tokens, heads, 2 * width,
                    3 * width, size**-0.5, size, bm, bn, tokens % bn == 0,
                    num_warps=w, num_stages=s,
                )  # fmt: skip
                return out

            results.add(f"{name} error", error(call(sets[0]), wanted))
            results.add(name, kernel_ms([lambda p=p: call(p) for p in sets]))  # type: ignore[misc]


def main() -> None:
    """Check every kernel against torch, then time it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--limit-s", type=float, default=120)
    options = parser.parse_args()
    results = Results(options.out, options.limit_s)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.small:
        gelu(results, device, 70, 200)
        rope(results, device, 128, 64, 128)
        attention(results, device, "small", 2, 80, 2, 64)
        return
    gelu(results, device, 5184, 4736)
    rope(results, device, 5184, 576, 1024)
    attention(results, device, "window", 9, 576, 16, 64)
    attention(results, device, "global", 1, 5184, 16, 64)
    attention(results, device, "detector", 1, 5184, 8, 32)


if __name__ == "__main__":
    main()
