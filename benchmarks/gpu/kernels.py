"""Kernels that a lowering can choose between, each alone at SAM 3's shapes.

    python benchmarks/gpu/kernels.py --out FILE [--small]

What is faster here is a candidate; whether it stays is decided on whole parts (run.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _timing import Results, call_ms, kernel_ms, wall_ms
from torch.nn.attention import SDPBackend, sdpa_kernel

from samforge.core.images import ImageSpec
from samforge.core.reference import META
from samforge.runtime.device import Resizer
from samforge.runtime.device.masks import masks_to_host
from samforge.runtime.device.places import places_from_reach
from samforge.runtime.device.reach import reach
from samforge.runtime.device.transfer import Uploader
from samforge.runtime.postprocess import mask_limit
from samforge.transform.lower.activation import FastGelu
from samforge.transform.lower.linear import Fp8Linear, quantized
from samforge.transform.lower.streamed_attention import attend

BF16 = torch.bfloat16
SETS = 3  # inputs that take turns


class Bench:
    """Shapes, device and where figures go."""

    def __init__(self, out: Path, small: bool, limit_s: float) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.results = Results(out, limit_s)
        self.side, self.window, self.width, self.hidden = (
            (12, 4, 64, 96) if small else (72, 24, 1024, 4736)
        )
        self.tokens = self.side**2
        self.heads = 2 if small else 16
        self.detr, self.queries = (32, 11) if small else (256, 201)

    def random(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        """Normal values on the device."""
        return torch.randn(*shape, device=self.device).to(dtype)

    def kernel(self, name: str, make: Callable[[], Callable[[], Any]]) -> None:
        """Time what ``make`` gives, on several inputs."""
        with self.results.section(name) as go:
            if go:
                self.results.add(name, kernel_ms([make() for _ in range(SETS)]))


def attention(bench: Bench) -> None:
    """Windows, all tokens, and the detector's."""
    kinds = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    windows = (bench.side // bench.window) ** 2
    shapes = {
        "window": (windows, bench.window**2, bench.heads, 64),
        "global": (1, bench.tokens, bench.heads, 64),
        "detector self": (1, bench.tokens, 8, bench.detr // 8),
        "detector self x4": (4, bench.tokens, 8, bench.detr // 8),
    }
    for words, (batch, tokens, heads, size) in shapes.items():
        for kind, backend in kinds.items():

            def make(b=batch, t=tokens, h=heads, d=size, k=backend) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
                q, k_, v = bench.random(b, t, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)

                def call() -> torch.Tensor:
                    with sdpa_kernel(k):
                        return F.scaled_dot_product_attention(q, k_, v)

                return call

            bench.kernel(f"attention {words} {kind}", make)
        own_attention(bench, f"attention {words} samforge", (batch, tokens, heads, size))
    for count in (1, 4):
        q = bench.random(count, bench.queries, 8, bench.detr // 8).transpose(1, 2)
        k, v = (bench.random(count, bench.tokens, 8, bench.detr // 8).transpose(1, 2) for _ in "kv")
        down = bench.random(count, 8, bench.queries, bench.side, dtype=torch.float32)
        across = bench.random(count, 8, bench.queries, bench.side, dtype=torch.float32)

        def biased(q=q, k=k, v=v, down=down, across=across) -> torch.Tensor:  # type: ignore[no-untyped-def]
            bias = (down[..., None] + across[..., None, :]).flatten(3)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(BF16))

        def explicit(q=q, k=k, v=v, down=down, across=across) -> torch.Tensor:  # type: ignore[no-untyped-def]
            bias = (down[..., None] + across[..., None, :]).flatten(3)
            scores = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5 + bias
            return scores.softmax(-1).to(BF16) @ v

        for words, call in (("sdpa", biased), ("explicit", explicit)):
            compiled = torch.compile(call)
            bench.kernel(f"attention with position bias x{count} {words}", lambda c=compiled: c)  # type: ignore[misc]


def own_attention(bench: Bench, words: str, shape: tuple[int, int, int, int]) -> None:
    """Our kernel over (batch, tokens, heads, size): plain, and with what it takes over."""
    batch, tokens, heads, size = shape
    turn = [bench.random(tokens, size // 2, dtype=torch.float32) for _ in ("cos", "sin")]
    inverse = torch.full((1,), 20.0, device=bench.device)
    for more, given in (
        ("", ()),
        (", queries turned", (*turn,)),
        (", queries turned, to e4m3", (*turn, inverse)),
    ):

        def make(given=given) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
            q, k, v = bench.random(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
            return lambda: attend(q, k, v, size**-0.5, *given)

        bench.kernel(words + more, make)


def products(bench: Bench) -> None:
    """The four linears of a ViT layer in bf16 and E4M3."""
    width, hidden = bench.width, bench.hidden
    for words, inner, outer in (
        ("qkv", width, 3 * width),
        ("o", width, width),
        ("fc1", width, hidden),
        ("fc2", hidden, width),
    ):

        def half(i=inner, o=outer) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
            x, w, b = bench.random(bench.tokens, i), bench.random(o, i), bench.random(o)
            return lambda: F.linear(x, w, b)

        bench.kernel(f"product {words} bf16", half)
        for kind in ("tensor", "row"):

            def fp8(i=inner, o=outer, k=kind) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
                x = quantized(bench.random(bench.tokens, i), 1.0)
                w = quantized(bench.random(o, i), 1.0)
                rows, columns = ((bench.tokens, 1), (1, o)) if k == "row" else ((), ())
                one, other = (torch.ones(size, device=bench.device) for size in (rows, columns))
                return lambda: torch._scaled_mm(  # noqa: SLF001
                    x, w.t(), scale_a=one, scale_b=other, out_dtype=BF16, use_fast_accum=True
                )

            bench.kernel(f"product {words} e4m3 {kind}", fp8)

    def activated() -> Callable[[], Any]:
        x, w = bench.random(bench.tokens, width), bench.random(width, hidden)
        b = bench.random(hidden)
        return lambda: torch._addmm_activation(b, x, w, use_gelu=True)  # noqa: SLF001

    bench.kernel("product fc1 bf16 with tanh GELU in cuBLAS", activated)


def elementwise(bench: Bench) -> None:
    """What stands between the products, as Inductor compiles it."""
    fast = FastGelu(BF16)
    norm = torch.nn.LayerNorm(bench.width, device=bench.device).requires_grad_(False)
    scale = bench.random(bench.hidden, dtype=torch.float32)
    bias = bench.random(bench.hidden, dtype=torch.float32)
    cos, sin = (bench.random(bench.window**2, 64, dtype=torch.float32) for _ in "cs")
    windows = (bench.side // bench.window) ** 2

    def rope(qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = qkv.view(windows, bench.window**2, 3, -1, 64).permute(2, 0, 3, 1, 4).unbind(0)

        def turned(x: torch.Tensor) -> torch.Tensor:
            y = x.float()
            pairs = torch.stack((-y[..., 1::2], y[..., ::2]), -1).flatten(-2)
            return (y * cos + pairs * sin).to(BF16)

        return turned(q), turned(k), v

    def add_norm(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + y
        return total, norm(total.float())

    def add_norm_fp8(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = add_norm(x, y)
        return total, quantized(normed, 20.0)

    def add_norm_half(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = add_norm(x, y)
        return total, normed.to(BF16)

    wide = lambda: bench.random(bench.tokens, bench.hidden)  # noqa: E731
    narrow = lambda dtype: bench.random(bench.tokens, bench.width, dtype=dtype)  # noqa: E731
    cases: dict[str, tuple[Callable[..., Any], Callable[[], tuple[torch.Tensor, ...]]]] = {
        "gelu exact": (F.gelu, lambda: (wide(),)),
        "gelu fast": (fast, lambda: (wide(),)),
        "gelu exact to e4m3": (lambda x: quantized(F.gelu(x.float()), 20.0), lambda: (wide(),)),
        "gelu fast to e4m3": (lambda x: quantized(fast(x), 20.0), lambda: (wide(),)),
        "gelu fast with channel scale to e4m3": (
            lambda x: quantized(fast((x.float() * scale + bias).to(BF16)), 20.0),
            lambda: (wide(),),
        ),
        "add and norm, float32 to bf16": (
            add_norm_half,
            lambda: (narrow(torch.float32), narrow(BF16)),
        ),
        "add and norm, float32 to e4m3": (
            add_norm_fp8,
            lambda: (narrow(torch.float32), narrow(BF16)),
        ),
        "add and norm, bf16 to bf16": (add_norm_half, lambda: (narrow(BF16), narrow(BF16))),
        "add and norm, bf16 to e4m3": (add_norm_fp8, lambda: (narrow(BF16), narrow(BF16))),
        "rope of q and k": (rope, lambda: (bench.random(bench.tokens, 3 * bench.width),)),
    }
    for words, (function, inputs) in cases.items():
        for tuned in (False, True):
            options = {"coordinate_descent_tuning": True} if tuned else {}
            compiled = torch.compile(function, options=options)

            def make(c=compiled, i=inputs) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
                arguments = i()
                return lambda: c(*arguments)

            bench.kernel(f"{words}{', tuned' if tuned else ''}", make)


def convolutions(bench: Bench) -> None:
    """Neck and mask head."""
    detr = bench.detr
    last = torch.channels_last
    for times in (2, 4):
        side = bench.side * times
        weight = bench.random(detr, detr, 3, 3)

        def plain(s=side, w=weight, f=torch.contiguous_format) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
            x = bench.random(1, detr, s, s).contiguous(memory_format=f)
            return lambda: F.conv2d(x, w.contiguous(memory_format=f), None, padding=1)

        bench.kernel(f"conv 3x3 at {times}x NCHW", plain)
        bench.kernel(f"conv 3x3 at {times}x NHWC", lambda p=plain: p(f=last))  # type: ignore[misc]
        spread = bench.random(detr, detr, 4, 4).contiguous(memory_format=last)
        phases = bench.random(4 * detr, detr, 3, 3).contiguous(memory_format=last)

        def up(s=side, w=spread) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
            x = bench.random(1, detr, s // 2, s // 2).contiguous(memory_format=last)
            return lambda: F.conv_transpose2d(x, w, stride=2, padding=1)

        def up_phases(s=side, w=phases) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
            x = bench.random(1, detr, s // 2, s // 2).contiguous(memory_format=last)
            return lambda: F.pixel_shuffle(F.conv2d(x, w, padding=1), 2)

        def up_nearest(s=side, w=weight) -> Callable[[], Any]:  # type: ignore[no-untyped-def]
            x = bench.random(1, detr, s // 2, s // 2).contiguous(memory_format=last)
            w = w.contiguous(memory_format=last)
            return lambda: F.conv2d(F.interpolate(x, scale_factor=2), w, padding=1)

        bench.kernel(f"upsample to {times}x transposed 4x4", up)
        bench.kernel(f"upsample to {times}x 3x3 to four phases", up_phases)
        bench.kernel(f"upsample to {times}x nearest and 3x3", up_nearest)

    def masks() -> Callable[[], Any]:
        pixels = bench.random(1, (4 * bench.side) ** 2, detr).transpose(1, 2)
        queries = bench.random(1, bench.queries - 1, detr)
        return lambda: queries @ pixels

    bench.kernel("mask product", masks)


def transfers(bench: Bench) -> None:
    """Between host and device, resize, and masks of admitted queries."""
    height, width = (216, 384) if bench.width == 64 else (2160, 3840)
    picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    device = torch.device(bench.device)
    upload = Uploader(device)
    bench.results.add("upload 4K pageable ms", wall_ms(lambda _: upload(picture), rounds=20))
    if bench.device == "cuda":
        pinned = picture.pin_memory()
        bench.results.add("upload 4K pinned ms", wall_ms(lambda _: upload(pinned), rounds=20))
    resize = Resizer(ImageSpec(size=bench.side * 14), device)
    placed = picture.to(device)
    limit = mask_limit(0.5, META)
    bench.results.add("resize 4K ms", call_ms(lambda: resize(placed)))
    for count in (1, 4, 16):
        # Noise is above the limit everywhere: bits of whole pictures. masks.py has real ones.
        logits = bench.random(count, 4 * bench.side, 4 * bench.side)[None]
        scores = torch.ones(1, 1, count, device=device)
        ends = reach(logits[None], scores, 0.5, limit)[0, 0].cpu().numpy()
        index = np.stack([np.zeros(count, int), np.arange(count)], axis=1)
        cells_hw = (4 * bench.side, 4 * bench.side)
        places = places_from_reach(index, ends, cells_hw, (height, width))
        call = lambda _, x=logits, p=places: masks_to_host(x, p, limit).wait()  # noqa: E731
        bench.results.add(f"masks of {count} to 4K on the host ms", wall_ms(call, rounds=20))


def fp8_linear_with_gelu(bench: Bench) -> None:
    """Whether Triton's product with GELU and quantization in it beats cuBLAS and a kernel."""
    first = Fp8Linear(
        bench.random(bench.hidden, bench.width, dtype=torch.float32) / 32,
        bench.random(bench.hidden, dtype=torch.float32),
        0.01,
        BF16,
        "channel",
    )
    fast = FastGelu(BF16)
    x8 = bench.random(bench.tokens, bench.width)

    def both(x: torch.Tensor) -> torch.Tensor:
        return quantized(fast(first(x)), 20.0)

    for words, options in (
        ("cuBLAS", {}),
        ("autotuned", {"max_autotune": True, "max_autotune_gemm_backends": "ATEN,TRITON"}),
    ):
        compiled = torch.compile(both, options=options)
        bench.kernel(
            f"quantize, fc1 e4m3, gelu, quantize: {words}", lambda c=compiled: lambda: c(x8)
        )  # type: ignore[misc]


def main() -> None:
    """Measure every group."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="small shapes: a dry run")
    parser.add_argument("--limit-s", type=float, default=240)
    options = parser.parse_args()
    bench = Bench(options.out, options.small, options.limit_s)
    torch.manual_seed(0)  # a benchmark's own process
    with torch.inference_mode():
        for group, needs_s in (
            (products, 5),
            (attention, 10),
            (transfers, 5),
            (convolutions, 10),
            (elementwise, 40),
            (fp8_linear_with_gelu, 60),
        ):
            with bench.results.section(group.__name__, needs_s) as go:
                if go:
                    group(bench)


if __name__ == "__main__":
    main()
