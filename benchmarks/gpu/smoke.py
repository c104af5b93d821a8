# ruff: noqa: D102
"""Compile single operators and the tiny model's parts, each in a process of its own.

    python benchmarks/gpu/smoke.py --out FILE

A crash of compiled code ends its process without a word: this says which one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _parts import Order, build, device_name, family_checkpoint, family_inputs, session
from _timing import Results, call_ms
from torch import nn

from samforge.backends.inductor.backend import InductorSession, package_from_exported
from samforge.core.session import PartSpec, TensorSpec
from samforge.runtime.device.graphs import Captured
from samforge.transform.lower import gelu_kernels
from samforge.transform.lower.attention import Attention
from samforge.transform.lower.linear import Fp8Linear

BF16 = torch.bfloat16


class OneAttention(nn.Module):
    """Attention from one product, as in a ViT layer."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.attention = Attention(BF16, kernel, None, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.unflatten(-1, (3, 4, 64)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.attention(q * 1.5, k + 0.5, v).transpose(1, 2).flatten(2) * 2.0


class OneFp8(nn.Module):
    """A quantized linear, and GELU with quantization behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Fp8Linear(torch.randn(128, 768) / 28, torch.randn(128), 0.01, BF16, "channel")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        scale, bias = (torch.full((128,), n, device=x.device) for n in (1.0, 0.0))
        inverse = torch.full((1,), 20.0, device=x.device)
        z = gelu_kernels.gelu_to_e4m3(y.flatten(0, 1), scale, bias, inverse)
        return y + z.to(BF16).view(y.shape)


ONE = {
    "attention-cudnn": lambda: OneAttention("cudnn"),
    "attention-flash": lambda: OneAttention("flash"),
    "attention-auto": lambda: OneAttention("auto"),
    "fp8": OneFp8,
}


def one(name: str, folder: Path, device: str) -> None:
    """Compile and run one small module."""
    tensor = TensorSpec(name="x", dtype="float32", shape=("batch", 256, 768))
    spec = PartSpec(name=name, inputs=(tensor,), outputs=(tensor,))
    module = ONE[name]().to(device).eval()
    example = torch.randn(2, 256, 768, device=device).to(BF16)
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(batch,), strict=False)
        wanted = module(example)
    path = folder / f"{name}.aoti.pt2"
    package_from_exported(program, spec, path, precision="bf16")
    print("compiled", flush=True)
    loaded = InductorSession.__new__(InductorSession)
    from torch._inductor import aoti_load_package

    run: Any = aoti_load_package(str(path), run_single_threaded=True)
    del loaded
    print("loaded", flush=True)
    with torch.inference_mode():
        found = run(example)
    print("error", float((found - wanted).abs().max()), float(wanted.abs().max()), flush=True)
    if device == "cuda":
        captured = Captured(lambda: {"x": run(example)}, None)
        replayed = captured.replay()["x"]
        torch.cuda.synchronize()
        print("replay error", float((replayed - wanted).abs().max()), flush=True)


def tiny(order: Order, folder: Path, device: str) -> None:
    """Build, load, run and time one part of the tiny model."""
    print(build(order, folder, device), flush=True)
    checkpoint = family_checkpoint(order.family, order.model, order.size)
    start = time.perf_counter()
    loaded = session(order, folder)
    print("loaded", time.perf_counter() - start, flush=True)
    for count in (1, 2):
        raw = family_inputs(checkpoint, loaded.spec, {"batch": count, "prompts": count}, 3)
        inputs = loaded.placed(raw)
        outputs = loaded.run_tensors(inputs)
        print("ran", {n: bool(t.isfinite().all()) for n, t in outputs.items()}, flush=True)
        if device == "cuda":
            captured = Captured(lambda i=inputs: loaded.run_tensors(i), None)  # type: ignore[misc]
            print("graph ms", call_ms(captured.replay), flush=True)


def cases(device: str) -> dict[str, Order | None]:
    """Everything to try."""
    found: dict[str, Order | None] = dict.fromkeys(ONE)
    kernel = "cudnn" if device == "cuda" else "auto"
    for part, precision, attention in (
        ("vision", "fp8", kernel),
        ("vision", "bf16", "auto"),
        ("detector", "bf16", kernel),
        ("text", "bf16", kernel),
    ):
        found[f"tiny-{part}-{precision}-{attention}"] = Order(
            part=part, precision=precision, attention=attention, model="tiny"
        )
    return found


def main() -> None:
    """Start every case, then collect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case")
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/smoke"))
    parser.add_argument("--limit-s", type=float, default=150)
    options = parser.parse_args()
    device = device_name()
    options.folder.mkdir(parents=True, exist_ok=True)
    known = cases(device)
    if options.case:
        order = known[options.case]
        if order is None:
            one(options.case, options.folder, device)
        else:
            tiny(order, options.folder, device)
        return
    results = Results(options.out, options.limit_s)
    running = {}
    for name in known:
        if options.only and options.only not in name:
            continue
        command = [sys.executable, "-X", "faulthandler", __file__, "--case", name]
        log = (options.folder / f"{name}.log").open("w")
        running[name] = subprocess.Popen(
            [*command, "--folder", str(options.folder)], stdout=log, stderr=subprocess.STDOUT
        )
    for name, process in running.items():
        try:
            code: Any = process.wait(timeout=max(1.0, options.limit_s - results.elapsed_s))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "out of time"
        text = (options.folder / f"{name}.log").read_text()
        lines = [
            line for line in text.splitlines() if "arning" not in line and "frame #" not in line
        ]
        results.add(name, {"code": code, "log": lines[-14:]})


if __name__ == "__main__":
    main()
