"""DINOv3 contenders: transformers' DINOv3ViTModel, and samforge's part in bf16 and in fp8."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from _parts import Order, compiled, device_name, family_checkpoint
from _timing import Results, call_times, p95, synchronize
from _turns import Bench
from torch import nn
from transformers import DINOv3ViTModel

from samforge.runtime.device.graphs import Captured

BATCHES = (1, 4, 16)
TURNS = 3
"""Inputs that take turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One model at one batch size, ready to be measured."""

    name: str
    """Of the figure."""
    batch: int
    """Images in one call."""
    calls: tuple[Callable[[], Any], ...]
    """The same on different inputs."""
    weights_mib: float
    """Size of the weights in this format."""
    graphs: bool
    """Whether calls are captured as CUDA graphs, as samforge's runtime does."""

    def measure(self, bench: Bench, results: Results) -> None:
        """Add one row: mean, 95th percentile, throughput and size."""
        calls = self.calls
        if self.graphs and torch.cuda.is_available():
            calls = tuple(Captured(call, None).replay for call in calls)
        turns = cycle(calls)
        times = call_times(lambda: next(turns)(), bench.rounds)  # noqa: PLW0108  # a turn a call
        mean = statistics.mean(times)
        row = {
            "mean_ms": round(mean, 3),
            "median_ms": round(statistics.median(times), 3),
            "p95_ms": round(p95(times), 3),
            "images_s": round(self.batch * 1e3 / mean, 1),
            "weights_mib": self.weights_mib,
        }
        results.add(self.name, row)


def weights_mib(module: nn.Module) -> float:
    """Size of everything that a module holds, each tensor once."""
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return round(sum(t.nbytes for t in tensors.values()) / 2**20, 1)


def pixels(checkpoint: Any, batch: int, kind: torch.dtype) -> list[torch.Tensor]:
    """Random images that take turns, on the device."""
    part = checkpoint.default_parts[0]
    many = (checkpoint.inputs(part, {"batch": batch}, seed)["images"] for seed in range(TURNS))
    return [images.to(device_name(), kind) for images in many]


def ours(bench: Bench, precision: str, checkpoint: Any, batch: int) -> list[Made]:
    """The part of samforge, compiled at one batch size."""
    name = checkpoint.default_parts[0]
    order = Order(
        family="dinov3",
        part=name,
        precision=precision,
        model=bench.backbone,
        size=bench.backbone_size,
        residual=bench.residual,
        fixed=f"batch={batch}",
        attention="fastest" if device_name() == "cuda" else "auto",
    )
    part = compiled(order, device_name(), bench.eager)
    inputs = [part.placed({"images": one}) for one in pixels(checkpoint, batch, torch.float32)]
    part.run_on_device(inputs[0])
    return [
        Made(
            name=f"{precision} batch {batch}",
            batch=batch,
            calls=tuple(lambda i=i: part.run_on_device(i) for i in inputs),  # type: ignore[misc]
            weights_mib=weights_mib(part.plain),
            graphs=True,
        )
    ]


FORMATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def stock_models(checkpoint: Any) -> dict[str, nn.Module]:
    """The model of transformers in each format, on the device."""
    torch.manual_seed(0)
    with torch.device(device_name()):
        model = DINOv3ViTModel(checkpoint.config).eval().requires_grad_(False)
    return {words: copy.deepcopy(model).to(kind) for words, kind in FORMATS.items()}


def theirs(bench: Bench, models: dict[str, nn.Module], checkpoint: Any, batch: int) -> list[Made]:
    """The model of transformers: eager in every format, and through torch.compile in bf16."""
    made = []

    def add(words: str, form: str, call: Any, graphs: bool = False) -> None:
        def once(images: torch.Tensor) -> Any:
            with torch.inference_mode():
                return call(images)

        inputs = pixels(checkpoint, batch, FORMATS[form])
        once(inputs[0])
        made.append(
            Made(
                name=f"{words} batch {batch}",
                batch=batch,
                calls=tuple(lambda i=i: once(i) for i in inputs),  # type: ignore[misc]
                weights_mib=weights_mib(models[form]),
                graphs=graphs,
            )
        )

    for form, model in models.items():
        add(f"eager {form}", form, model)
    if not bench.eager:
        call = torch.compile(models["bf16"], dynamic=False)
        add("compile bf16", "bf16", call)
        # Not in the table, but fairer at batch 1: the same without gaps between launches.
        add("compile bf16 in CUDA graphs", "bf16", call, graphs=True)
    return made


def backbone(bench: Bench, name: str) -> None:
    """Compile one batch size after another as long as there is time, then measure."""
    results = bench.results(name)
    checkpoint = family_checkpoint("dinov3", bench.backbone, bench.backbone_size)
    precision = name.removeprefix("dinov3-")
    models = stock_models(checkpoint) if precision == "stock" else {}
    made: list[Made] = []
    # Batch 4 first: a claim is about it.
    for batch in sorted(BATCHES, key=lambda count: count != 4):
        with results.section(f"batch {batch} compile", until=bench.compile_until) as go:
            if go:
                start = time.perf_counter()
                if models:
                    made += theirs(bench, models, checkpoint, batch)
                else:
                    made += ours(bench, precision, checkpoint, batch)
                synchronize()
                seconds = round(time.perf_counter() - start, 1)
                results.add(f"batch {batch} compile s", seconds)
    with bench.measuring(name):
        for one in made:
            with results.section(one.name) as go:
                if go:
                    one.measure(bench, results)
