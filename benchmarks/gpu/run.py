"""SAM 3 on one GPU: transformers and samforge over the same span, in one run.

    python benchmarks/gpu/run.py --out DIR [--contenders fp8,bf16,batch,stock] [--limit-s 400]

Every contender has a process of its own; they compile side by side and take turns on the GPU, one
contender's measurements at a time. Weights and images are random: this is about speed alone.
Figures are medians after a warm-up; images and inputs take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")

import numpy as np
import torch
from _parts import Order, SizedPart, compiled, device_name, family_checkpoint, family_inputs
from _stock import Stock
from _timing import Results, call_ms, synchronize, wall_ms
from profile_parts import kernels, turn

from samforge.media import read_image
from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.runtime import PhraseTokenizer
from samforge.runtime.device import DeviceSegmenter, EncodedOnDevice
from samforge.runtime.device.graphs import Captured

OBJECTS = (1, 4, 16)
"""Masks that come to the host: random weights find nothing, so thresholds are set to admit these."""
PICTURES = 6


def pictures(height: int, width: int) -> list[np.ndarray]:
    """Random pictures with structure: noise upsampled, so that scores differ."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (PICTURES, height // 24, width // 24, 3), dtype=np.uint8)
    return [np.ascontiguousarray(np.kron(one, np.ones((24, 24, 1), np.uint8))) for one in coarse]


class Contender:
    """samforge in one precision: parts at the sizes asked for, and a segmenter over them."""

    def __init__(self, precision: str, options: argparse.Namespace) -> None:
        self.options, self.precision = options, precision
        self.results = Results(options.folder / f"{options.one}.result.json", options.limit_s)
        self.device = device_name()
        self.shared: dict[str, Any] = {"model": options.model, "size": options.size}
        if self.device == "cpu":
            self.shared["attention"] = "auto"
        self.checkpoint = family_checkpoint("sam3", options.model, options.size)
        tokenizer = self.checkpoint.tokenizer
        if tokenizer is None:
            tokenizer = options.folder / f"tokenizer-{options.one}.json"
            byte_tokenizer(self.checkpoint.config.text_config.vocab_size).save(str(tokenizer))
        self.tokenizer = PhraseTokenizer(tokenizer, self.checkpoint.context, 0)
        self.vision: dict[tuple[int, ...], Any] = {}
        self.detector: dict[tuple[int, ...], Any] = {}

    def part(self, name: str, **sizes: int) -> Any:
        """Compile one part at fixed sizes, and time it."""
        precision = self.precision if name == "vision" else "bf16"
        fixed = ",".join(f"{axis}={count}" for axis, count in sizes.items())
        order = Order(
            part=name,
            precision=precision,
            residual=self.options.residual,
            fixed=fixed,
            **self.shared,
        )
        made = compiled(order, self.device, self.options.eager)
        gc.collect()
        words = f"{name} " + " ".join(f"{axis} {count}" for axis, count in sizes.items())
        inputs = [
            made.placed(family_inputs(self.checkpoint, made.spec, {"prompts": 1, **sizes}, seed))
            for seed in (3, 4, 5)
        ]
        start = time.perf_counter()
        outputs = made.run_tensors(inputs[0])
        synchronize()
        self.results.add(f"{words} compile s", round(time.perf_counter() - start, 1))
        bad = [key for key, value in outputs.items() if not value.isfinite().all()]
        self.results.add(f"{words} not finite", bad)
        with turn(self.options.folder):
            if self.device == "cuda":
                graphs = [Captured(lambda i=i: made.run_tensors(i), None) for i in inputs]  # type: ignore[misc]
                state = {"next": 0}

                def call() -> None:
                    graphs[state["next"] % len(graphs)].replay()
                    state["next"] += 1

                self.results.add(f"{words} ms", call_ms(call, rounds=60))
                self.results.add(f"{words} kernels", kernels(graphs[0].replay))
            else:
                self.results.add(f"{words} ms", call_ms(lambda: made.run_tensors(inputs[0]), 3, 1))
        return made

    def segmenter(self) -> DeviceSegmenter:
        """Everything made so far, with the text part as it is: its results are remembered."""
        text = compiled(
            Order(part="text", precision="bf16", **{**self.shared, "attention": "auto"}),
            self.device,
            eager=True,
        )
        gc.collect()
        sessions = {
            "vision": SizedPart(self.vision),
            "text": text,
            "detector": SizedPart(self.detector),
        }
        return DeviceSegmenter(sessions, self.checkpoint.image, self.tokenizer, read_image)

    def span(self, words: str, segmenter: DeviceSegmenter, images: list[Any], phrases: Any) -> None:
        """Picture on the host to masks on the host."""
        many = [phrases] if isinstance(phrases, str) else list(phrases)
        for objects in OBJECTS if len(many) == 1 else (1,):
            thresholds = [admitting(segmenter, image, many, objects) for image in images]
            counts: list[int] = []

            def call(index: int) -> None:
                one = index % len(images)
                found = segmenter.predict(images[one], text=many, threshold=thresholds[one])
                counts.append(len(found))

            figures = wall_ms(call, rounds=self.options.rounds)
            self.results.add(f"{words}, {objects} masks a phrase ms", figures)
            self.results.add(f"{words}, {objects} masks a phrase found", float(np.mean(counts)))


def admitting(segmenter: DeviceSegmenter, image: Any, phrases: list[str], objects: int) -> float:
    """Threshold at which about so many queries a phrase are admitted."""
    from samforge.runtime.postprocess import Thresholds

    with torch.inference_mode():
        pending = segmenter._launched(image, tuple(phrases), Thresholds())  # noqa: SLF001
    synchronize()
    scores = np.sort(pending.scores.numpy()[0, :, :, 0].ravel())[::-1]
    count = min(objects * len(phrases), len(scores) - 1)
    return float((scores[count - 1] + scores[count]) / 2)


def first(options: argparse.Namespace, precision: str) -> None:
    """Batch 1: stages, the whole span at both image sizes, and sixteen phrases."""
    contender = Contender(precision, options)
    contender.vision[1,] = contender.part("vision", batch=1)
    contender.detector[1, 1] = contender.part("detector", batch=1, prompts=1)
    segmenter = contender.segmenter()
    results = contender.results
    side = contender.checkpoint.image.size
    with turn(options.folder):
        if contender.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        large = pictures(*options.source)
        contender.span("whole, 4K pageable", segmenter, large, "a person")
        if contender.device == "cuda":
            pinned = [torch.from_numpy(image).pin_memory() for image in large]
            contender.span("whole, 4K pinned", segmenter, pinned, "a person")
            results.add("peak GiB allocated", round(torch.cuda.max_memory_allocated() / 2**30, 3))
            results.add("GiB reserved", round(torch.cuda.memory_reserved() / 2**30, 3))
        contender.span("whole, image at model size", segmenter, pictures(side, side), "a person")
        stream(contender, segmenter, large, 1)


def many(options: argparse.Namespace) -> None:
    """Many phrases on one encoded picture; its features are random, vision takes no part."""
    contender = Contender("bf16", options)
    count = options.many
    part = contender.detector[1, count] = contender.part("detector", batch=1, prompts=count)
    contender.vision[1,] = part  # stands in: a segmenter wants all parts, nothing here runs it
    segmenter = contender.segmenter()
    inputs = family_inputs(contender.checkpoint, part.spec, {"batch": 1, "prompts": count}, 9)
    placed = part.placed(inputs)
    features = {name: placed[name] for name in ("fpn_0", "fpn_1", "fpn_2")}
    segmenter._static["features", 1] = {k: v.clone() for k, v in features.items()}  # noqa: SLF001
    encoded = EncodedOnDevice(features=features, size_hw=tuple(options.source))
    phrases = [f"thing {index}" for index in range(count)]
    with turn(options.folder), torch.inference_mode():
        contender.span(f"{count} phrases on encoded 4K", segmenter, [encoded], phrases)


def stream(contender: Contender, segmenter: DeviceSegmenter, images: list[Any], batch: int) -> None:
    """Images a second over a stream, copies beside kernels."""
    count = max(batch * 3, 24) if contender.device == "cuda" else batch * 2
    probe = images[0] if batch == 1 else images[:1] * batch
    threshold = admitting(segmenter, probe, ["a person"], 1)
    for name, source in (
        ("4K", images),
        ("model size", pictures(*[contender.checkpoint.image.size] * 2)),
    ):
        feed = [source[index % len(source)] for index in range(count)]
        list(segmenter.stream(feed[: 2 * batch], text="a person", threshold=threshold, batch=batch))
        synchronize()
        start = time.perf_counter()
        found = list(segmenter.stream(feed, text="a person", threshold=threshold, batch=batch))
        synchronize()
        rate = len(found) / (time.perf_counter() - start)
        contender.results.add(f"stream of {name}, batch {batch}, images a second", round(rate, 1))


def batched(options: argparse.Namespace) -> None:
    """Batch 8: stages and throughput."""
    contender = Contender("fp8", options)
    contender.vision[options.batch,] = contender.part("vision", batch=options.batch)
    contender.detector[options.batch, 1] = contender.part(
        "detector", batch=options.batch, prompts=1
    )
    segmenter = contender.segmenter()
    with turn(options.folder):
        stream(contender, segmenter, pictures(*options.source), options.batch)


def stock(options: argparse.Namespace) -> None:
    """transformers' own model."""
    results = Results(options.folder / f"{options.one}.result.json", options.limit_s)
    model = Stock(options.model, options.size, device_name())
    large = pictures(*options.source)
    modes = ("eager",) if options.eager else ("eager", "default", "reduce-overhead")
    for mode in modes:
        with results.section(mode) as go:
            if not go:
                continue
            start = time.perf_counter()
            model.compile(mode)
            call, stages = model.spans(large)
            call(0)
            synchronize()
            results.add(f"{mode} compile s", round(time.perf_counter() - start, 1))
            with turn(options.folder):
                for name, stage in stages.items():
                    results.add(f"{mode} {name} ms", call_ms(stage, rounds=options.rounds))
                figures = wall_ms(call, rounds=options.rounds)
                results.add(f"{mode} whole, 4K pageable, 4 masks a phrase ms", figures)


CONTENDERS = {
    "fp8": lambda options: first(options, "fp8"),
    "bf16": lambda options: first(options, "bf16"),
    "batch": batched,
    "many": many,
    "stock": stock,
}


def main() -> None:
    """Start every contender, then collect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=tuple(CONTENDERS))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/contenders"))  # noqa: S108
    parser.add_argument("--model", default="facebook/sam3")
    parser.add_argument("--size", type=int)
    parser.add_argument("--source", type=int, nargs=2, default=(2160, 3840))
    parser.add_argument("--residual", default="half")
    parser.add_argument("--many", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--eager", action="store_true", help="compile nothing: a dry run")
    parser.add_argument("--limit-s", type=float, default=400)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        CONTENDERS[options.one](options)
        return
    results = Results(options.out / "run.json", options.limit_s)
    running = {}
    for name in options.contenders.split(","):
        command = [sys.executable, "-X", "faulthandler", __file__, "--one", name, *sys.argv[1:]]
        log = (options.folder / f"{name}.log").open("w")
        running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    for name, process in running.items():
        try:
            code: Any = process.wait(timeout=max(1.0, options.limit_s - results.elapsed_s))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "out of time"
        found = options.folder / f"{name}.result.json"
        if found.exists():
            kept = json.loads(found.read_text())
            results.values["figures"][name] = kept["figures"]
            results.values["failed"].update({f"{name} {k}": v for k, v in kept["failed"].items()})
        results.add(f"{name} exit", code)
        if code != 0:
            lines = (options.folder / f"{name}.log").read_text().splitlines()
            print("\n".join(line for line in lines if "frame #" not in line)[-1500:])
    for name, figures in results.values["figures"].items():
        for key, value in figures.items() if isinstance(figures, dict) else ():
            if key.endswith("kernels"):
                print(
                    name, key, [(row["ms"], row["calls"], row["kernel"][:44]) for row in value[:10]]
                )
            else:
                print(name, key, value)


if __name__ == "__main__":
    main()
