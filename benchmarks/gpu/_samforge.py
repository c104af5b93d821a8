"""samforge's contenders: SAM 3 in one precision and size each."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import torch
from _parts import (
    OnDevice,
    Order,
    SizedPart,
    compiled,
    device_name,
    family_checkpoint,
    family_inputs,
    family_spec,
    segmenter_over,
    session_device,
)
from _spans import OBJECTS, PHRASE, pictures, sources, span_name
from _timing import call_ms, kernels, synchronize, wall_ms
from _turns import Bench

from samforge.core.reference import META, TRANSFORMERS
from samforge.core.session import TensorFormat
from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.runtime import EncodedImage, PhraseTokenizer, Segmenter, question_from
from samforge.runtime.device.graphs import Captured


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one contender compiles and measures."""

    precision: str
    """Of the vision part; the detector runs in bf16."""
    batch: int = 1
    """Images in one call."""
    prompts: int = 1
    """Phrases in one call."""
    vision: bool = True
    """False: the detector alone, on random features."""
    spans: bool = False
    """Whether the whole span is measured at every kind of picture."""
    streams: bool = False
    """Whether throughput of a stream is measured."""
    small: bool = False
    """At the image size of ``--small``."""
    reference: str = META
    """Whose computation: ``transformers`` has no class token behind a phrase."""


PLANS = {
    "fp8": Plan(precision="fp8", spans=True, streams=True),
    "fp8-transformers": Plan(precision="fp8", spans=True, streams=True, reference=TRANSFORMERS),
    "bf16": Plan(precision="bf16", spans=True, streams=True),
    "batch2": Plan(precision="fp8", batch=2, streams=True),
    "batch4": Plan(precision="fp8", batch=4, streams=True),
    "batch8": Plan(precision="fp8", batch=8, streams=True),
    "prompts4": Plan(precision="bf16", prompts=4, vision=False),
    "prompts16": Plan(precision="bf16", prompts=16, vision=False),
    "prompts16-transformers": Plan(
        precision="bf16", prompts=16, vision=False, reference=TRANSFORMERS
    ),
    "small": Plan(precision="fp8", spans=True, small=True),
}
"""By name of the contender."""


class GivenFeatures(OnDevice):
    """Stands in for the vision part where only the detector is measured."""

    def __init__(self, checkpoint: Any, features: dict[str, torch.Tensor]) -> None:
        self.spec = family_spec("sam3", checkpoint, "vision")
        self.features = features
        self.device = self.processor = session_device(next(iter(features.values())).device)
        self.formats = {one.name: TensorFormat(dtype=one.dtype) for one in self.spec.inputs}

    def run_on_device(self, tensors: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002  # a session's door
        """Give the features, whatever the image."""
        return {name: tensor.clone() for name, tensor in self.features.items()}


class Contender:
    """samforge in one precision: parts at the sizes of its plan, and a segmenter over them."""

    def __init__(self, bench: Bench, name: str) -> None:
        plan = PLANS[name]
        self.bench, self.results = bench, bench.results(name)
        self.plan = replace(
            plan, batch=min(plan.batch, bench.batch), prompts=min(plan.prompts, bench.many)
        )
        self.device = device_name()
        self.shared: dict[str, Any] = {
            "model": bench.model,
            "size": bench.small if plan.small else bench.size,
            "reference": plan.reference,
        }
        if self.device == "cpu":
            self.shared["attention"] = "auto"
        self.checkpoint = family_checkpoint(
            "sam3", bench.model, self.shared["size"], plan.reference
        )
        tokenizer = self.checkpoint.tokenizer
        if tokenizer is None:
            tokenizer = bench.folder / f"tokenizer-{name}.json"
            byte_tokenizer(self.checkpoint.config.text_config.vocab_size).save(str(tokenizer))
        self.tokenizer = PhraseTokenizer(
            tokenizer, self.checkpoint.context, 0, reference=plan.reference
        )
        self.parts: dict[str, Any] = {}
        self.waiting: list[tuple[str, Any, list[Any]]] = []

    def compile(self) -> None:
        """Compile the plan's parts, each as long as there is time for it."""
        plan = self.plan
        orders = {"vision": {"batch": plan.batch}} if plan.vision else {}
        orders["detector"] = {"batch": plan.batch, "prompts": plan.prompts}
        for name, sizes in orders.items():
            words = f"{name} " + " ".join(f"{axis} {count}" for axis, count in sizes.items())
            with self.results.section(words, until=self.bench.compile_until) as go:
                if go:
                    self.parts[name] = self.part(name, words, sizes)

    def part(self, name: str, words: str, sizes: dict[str, int]) -> Any:
        """Compile one part at fixed sizes."""
        order = Order(
            part=name,
            precision=self.plan.precision if name == "vision" else "bf16",
            residual=self.bench.residual,
            fixed=",".join(f"{axis}={count}" for axis, count in sizes.items()),
            **self.shared,
        )
        start = time.perf_counter()
        made = compiled(order, self.device, self.bench.eager)
        gc.collect()
        inputs = [
            made.placed(family_inputs(self.checkpoint, made.spec, {"prompts": 1, **sizes}, seed))
            for seed in (3, 4, 5)
        ]
        outputs = made.run_on_device(inputs[0])
        synchronize()
        self.results.add(f"{words} compile s", round(time.perf_counter() - start, 1))
        bad = [key for key, value in outputs.items() if not value.isfinite().all()]
        self.results.add(f"{words} not finite", bad)
        self.waiting.append((words, made, inputs))
        return made

    def segmenter(self) -> Segmenter:
        """The parts, with the text part as it is: its results are remembered."""
        text = compiled(
            Order(part="text", precision="bf16", **{**self.shared, "attention": "auto"}),
            self.device,
            eager=True,
        )
        gc.collect()
        detector = self.parts["detector"]
        if self.plan.vision:
            vision = self.parts["vision"]
        else:
            _, _, inputs = self.waiting[-1]
            given = {
                tensor.name for tensor in family_spec("sam3", self.checkpoint, "vision").outputs
            }
            features = {key: value for key, value in inputs[0].items() if key in given}
            vision = GivenFeatures(self.checkpoint, features)
        sizes = (self.plan.batch,), (self.plan.batch, self.plan.prompts)
        sessions = {
            "vision": SizedPart({sizes[0]: vision}) if self.plan.vision else vision,
            "text": text,
            "detector": SizedPart({sizes[1]: detector}),
        }
        return segmenter_over(sessions, self.checkpoint, self.tokenizer, self.plan.reference)

    def stages(self) -> None:
        """Time every part that was compiled, alone."""
        for words, made, inputs in self.waiting:
            with self.results.section(f"{words} alone") as go:
                if go:
                    self.stage(words, made, inputs)
        self.waiting.clear()

    def stage(self, words: str, made: Any, inputs: list[Any]) -> None:
        """Time one part: in CUDA graphs, its inputs taking turns."""
        rounds = self.bench.rounds
        if self.device == "cpu":
            turns = cycle(inputs)
            ms = call_ms(lambda: made.run_on_device(next(turns)), rounds, 1)
            self.results.add(f"{words} ms", ms)
            return
        graphs = [Captured(lambda i=i: made.run_on_device(i), None) for i in inputs]  # type: ignore[misc]
        replays = cycle(graphs)
        self.results.add(f"{words} ms", call_ms(lambda: next(replays).replay(), rounds))
        self.results.add(f"{words} kernels", kernels(graphs[0].replay))

    def spans(self, segmenter: Segmenter) -> None:
        """Picture on the host to masks on the host, and the memory that this takes."""
        cuda = self.device == "cuda"
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        side = self.checkpoint.image.size
        by_source = sources(self.bench.source) | {"image at model size": pictures(side, side)}
        for source, images in by_source.items():
            for objects in OBJECTS:
                self.span(span_name(source, objects), segmenter, images, [PHRASE], objects)
        if cuda:
            self.results.add("peak GB", round(torch.cuda.max_memory_allocated() / 1e9, 3))
            self.results.add("reserved GB", round(torch.cuda.memory_reserved() / 1e9, 3))

    def span(
        self,
        words: str,
        segmenter: Segmenter,
        images: list[Any],
        phrases: list[str],
        objects: int,
    ) -> None:
        """Time one span, with thresholds that admit so many objects a phrase."""
        thresholds = [admitting(segmenter, image, phrases, objects) for image in images]
        counts: list[int] = []

        def call(index: int) -> None:
            one = index % len(images)
            found = segmenter.predict(images[one], text=phrases, threshold=thresholds[one])
            counts.append(len(found))

        self.results.add(f"{words} ms", wall_ms(call, self.bench.rounds))
        self.results.add(f"{words} found", statistics.mean(counts))

    def prompted(self, segmenter: Segmenter) -> None:
        """Many phrases on one encoded picture, with a mask for each on average."""
        phrases = [f"thing {index}" for index in range(self.plan.prompts)]
        encoded = segmenter.encode(pictures(*self.bench.source)[0])
        words = f"{len(phrases)} phrases on encoded 4K with masks"
        self.span(words, segmenter, [encoded], phrases, 1)

    def streams(self, segmenter: Segmenter) -> None:
        """Images a second over a stream, copies beside kernels."""
        batch = self.plan.batch
        count = max(batch * 6, 48) if self.device == "cuda" else batch * 2
        side = self.checkpoint.image.size
        for name, images in (
            ("4K", pictures(*self.bench.source)),
            ("model size", pictures(side, side)),
        ):
            settings: dict[str, Any] = {"text": PHRASE, "batch": batch}
            settings["threshold"] = admitting_one(segmenter, images, batch)
            feed = [images[index % len(images)] for index in range(count)]
            for _ in segmenter.stream(feed[: 2 * batch], **settings):
                pass
            synchronize()
            start = time.perf_counter()
            # Results are dropped as they come, as a consumer would: 4K masks fill memory.
            masks = [len(found) for found in segmenter.stream(feed, **settings)]
            synchronize()
            rate = len(masks) / (time.perf_counter() - start)
            words = f"stream of {name}, batch {batch}"
            self.results.add(f"{words}, images a second", round(rate, 1))
            self.results.add(f"{words}, masks an image found", statistics.mean(masks))


def admitting(segmenter: Segmenter, image: Any, phrases: list[str], objects: int) -> float:
    """Threshold at which about so many queries a phrase are admitted."""
    return between(scores_of(segmenter, image, phrases), objects * len(phrases))


def admitting_one(segmenter: Segmenter, images: list[Any], batch: int) -> float:
    """Threshold at which one query an image is admitted on average."""
    found = [scores_of(segmenter, [image] * batch, [PHRASE]) for image in images]
    return between(np.concatenate(found), len(images))


def scores_of(segmenter: Segmenter, image: Any, phrases: list[str]) -> np.ndarray:
    """Scores of all queries of an image, or of the first of a list."""
    images = image if isinstance(image, list) else [image]
    taken = [one if isinstance(one, EncodedImage) else segmenter.take(one) for one in images]
    begun = segmenter._executor.start(taken, question_from(phrases), None)  # noqa: SLF001
    synchronize()
    return begun.parts[-1].scores.numpy()[0, :, :, 0].ravel().copy()


def between(scores: np.ndarray, count: int) -> float:
    """A threshold that so many scores exceed."""
    ordered = np.sort(scores)[::-1]
    count = min(count, len(ordered) - 1)
    return float((ordered[count - 1] + ordered[count]) / 2)


def segment(bench: Bench, name: str) -> None:
    """Compile one contender's parts, then measure them alone and together."""
    contender = Contender(bench, name)
    contender.compile()
    plan, results, segmenter = contender.plan, contender.results, None
    with results.section("segmenter", until=bench.compile_until) as go:
        if go:
            segmenter = contender.segmenter()
    steps = {
        "whole": contender.spans if plan.spans else None,
        "prompted": None if plan.vision else contender.prompted,
        "stream": contender.streams if plan.streams else None,
    }
    with bench.measuring(name):
        contender.stages()
        for words, step in steps.items():
            if step is not None and segmenter is not None:
                with results.section(words) as go:
                    if go:
                        step(segmenter)
