# ruff: noqa: B023, C901, PLR0912, PLR0915
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
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")

import numpy as np
import torch
from _parts import (
    Order,
    SizedPart,
    build,
    compiled,
    device_name,
    family_checkpoint,
    family_inputs,
    family_part,
    session,
)
from _stock import Stock
from _timing import Results, call_ms, synchronize, wall_ms
from profile_parts import kernels, turn, wait_for_all

from samforge.media import read_image
from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.runtime import PhraseTokenizer
from samforge.runtime.device import DeviceSegmenter, EncodedOnDevice
from samforge.runtime.device.graphs import Captured

OBJECTS = (1, 4, 16)
"""Masks that come to the host: random weights find nothing, so thresholds admit these."""
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
        self.waiting: list[Any] = []

    def part(self, name: str, **sizes: int) -> Any:
        """Compile one part at fixed sizes."""
        precision = self.precision if name == "vision" else "bf16"
        fixed = ",".join(f"{axis}={count}" for axis, count in sizes.items())
        order = Order(
            part=name,
            precision=precision,
            residual=self.options.residual,
            position_bias="sdpa"
            if sizes.get("batch", 1) * sizes.get("prompts", 1) >= 4
            else "explicit",
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
        self.waiting.append((words, made, inputs))
        return made

    def stages(self) -> None:
        """Time every part that was compiled, alone; call it once nothing compiles any more."""
        for words, made, inputs in self.waiting:
            if self.device == "cpu":
                self.results.add(f"{words} ms", call_ms(lambda: made.run_tensors(inputs[0]), 3, 1))
                continue
            graphs = [Captured(lambda i=i: made.run_tensors(i), None) for i in inputs]  # type: ignore[misc]
            turns = cycle(graphs)
            self.results.add(f"{words} ms", call_ms(lambda: next(turns).replay(), rounds=60))
            self.results.add(f"{words} kernels", kernels(graphs[0].replay))
        self.waiting.clear()

    def ready(self) -> None:
        """Wait until no contender compiles."""
        names = self.options.contenders.split(",")
        left = self.options.limit_s - self.results.elapsed_s - 60
        wait_for_all(self.options.folder, self.options.one, names, left)

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
    contender.ready()
    with turn(options.folder):
        contender.stages()
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
    contender.ready()
    with turn(options.folder), torch.inference_mode():
        contender.stages()
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
    contender.ready()
    with turn(options.folder):
        contender.stages()
        stream(contender, segmenter, pictures(*options.source), options.batch)


def stock(options: argparse.Namespace) -> None:
    """The model of transformers itself: eager, then through torch.compile."""
    results = Results(options.folder / f"{options.one}.result.json", options.limit_s)
    model = Stock(options.model, options.size, device_name())
    large = pictures(*options.source)
    made = {}
    for mode in ("eager",) if options.eager else ("eager", "default"):
        with results.section(mode) as go:
            if go:
                start = time.perf_counter()
                model.compile(mode)
                made[mode] = model.spans(large)
                made[mode][0](0)
                made[mode][1]["vision"]()
                synchronize()
                results.add(f"{mode} compile s", round(time.perf_counter() - start, 1))
    left = options.limit_s - results.elapsed_s - 60
    wait_for_all(options.folder, options.one, options.contenders.split(","), left)
    with turn(options.folder):
        for mode, (call, stages) in made.items():
            with results.section(f"{mode} measured") as go:
                if go:
                    for name, stage in stages.items():
                        results.add(f"{mode} {name} ms", call_ms(stage, rounds=options.rounds))
                    figures = wall_ms(call, rounds=options.rounds)
                    results.add(f"{mode} whole, 4K pageable, 4 masks a phrase ms", figures)


def package(options: argparse.Namespace) -> None:
    """An AOTInductor package of the detector: build, load, compare and time it."""
    results = Results(options.folder / f"{options.one}.result.json", options.limit_s)
    device = device_name()
    order = Order(part="detector", precision="bf16", model=options.model, size=options.size)
    if device == "cpu":
        order = replace(order, attention="auto")
    results.add("build", build(order, options.folder, device))
    checkpoint = family_checkpoint("sam3", options.model, options.size)
    start = time.perf_counter()
    loaded = session(order, options.folder)
    results.add("load s", round(time.perf_counter() - start, 2))
    left = options.limit_s - results.elapsed_s - 60
    wait_for_all(options.folder, options.one, options.contenders.split(","), left)
    with turn(options.folder):
        for count in (1, 4, 16):
            raw = family_inputs(checkpoint, loaded.spec, {"batch": 1, "prompts": count}, 3)
            inputs = loaded.placed(raw)
            graph = Captured(lambda i=inputs: loaded.run_tensors(i), None)  # type: ignore[misc]
            results.add(f"detector prompts {count} ms", call_ms(graph.replay))


def backbone(options: argparse.Namespace) -> None:
    """A DINOv3 backbone: bf16 and fp8 against transformers under torch.compile."""
    results = Results(options.folder / f"{options.one}.result.json", options.limit_s)
    checkpoint = family_checkpoint("dinov3", options.backbone, options.backbone_size)
    name = checkpoint.default_parts[0]
    made: dict[str, Any] = {}
    for precision in ("bf16", "fp8"):
        for count in (1, 3):
            with results.section(f"{precision} batch {count}") as go:
                if go:
                    order = Order(
                        family="dinov3",
                        part=name,
                        precision=precision,
                        model=options.backbone,
                        size=options.backbone_size,
                        residual=options.residual,
                        fixed=f"batch={count}",
                        attention="fastest" if device_name() == "cuda" else "auto",
                    )
                    part = compiled(order, device_name(), options.eager)
                    inputs = part.placed(checkpoint.inputs(name, {"batch": count}, 3))
                    part.run_tensors(inputs)
                    made[f"{precision} batch {count}"] = lambda p=part, i=inputs: p.run_tensors(i)
    stock_part = family_part("dinov3", checkpoint, name).module.to(device_name())
    for count in (1, 3):
        image = next(iter(checkpoint.inputs(name, {"batch": count}, 3).values())).to(device_name())
        call = stock_part if options.eager else torch.compile(stock_part)

        def run(c: Any = call, i: Any = image) -> Any:
            with torch.no_grad(), torch.autocast(device_name(), torch.bfloat16):
                return c(i)

        run()
        made[f"transformers' layers, compiled, batch {count}"] = run
    left = options.limit_s - results.elapsed_s - 60
    wait_for_all(options.folder, options.one, options.contenders.split(","), left)
    with turn(options.folder):
        for words, call in made.items():
            with results.section(words) as go:
                if go and torch.cuda.is_available() and "transformers" not in words:
                    graph = Captured(call, None)
                    results.add(f"{words} ms", call_ms(graph.replay))
                    results.add(f"{words} kernels", kernels(graph.replay))
                elif go:
                    results.add(f"{words} ms", call_ms(call, rounds=options.rounds))


CONTENDERS = {
    "fp8": lambda options: first(options, "fp8"),
    "bf16": lambda options: first(options, "bf16"),
    "batch": batched,
    "many": many,
    "stock": stock,
    "package": package,
    "dinov3": backbone,
}


def main() -> None:
    """Start every contender, then collect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=tuple(CONTENDERS))
    parser.add_argument("--contenders", default="fp8,bf16,batch,many,stock,package")
    parser.add_argument("--family", choices=("sam3", "dinov3"), default="sam3")
    parser.add_argument("--backbone", default="facebook/sam-3d-body-dinov3")
    parser.add_argument("--backbone-size", type=int)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/contenders"))
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
    if options.family == "dinov3":
        options.contenders = "dinov3"
    if options.one:
        CONTENDERS[options.one](options)
        return
    results = Results(options.out / "run.json", options.limit_s)
    running = {}
    for name in options.contenders.split(","):
        (options.folder / f"{name}.ready").unlink(missing_ok=True)
        command = [sys.executable, "-X", "faulthandler", __file__, "--one", name, *sys.argv[1:]]
        log = (options.folder / f"{name}.log").open("w")
        running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    while results.elapsed_s < options.limit_s and any(p.poll() is None for p in running.values()):
        for name, process in running.items():
            if process.poll() is not None:
                # One that failed must not keep the others waiting.
                (options.folder / f"{name}.ready").touch()
        time.sleep(0.5)
    for name, process in running.items():
        code: Any = process.poll()
        if code is None:
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
