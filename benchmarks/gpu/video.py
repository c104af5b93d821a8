"""SAM 3 at its real size through a video on one GPU: a frame from 1080p pixels to masks with ids.

    python benchmarks/gpu/video.py --out FILE [--objects 1,16,64] [--limit-s 560] [--stock]
                                   [--only-compile]

Vision, detector, tracker and rules together, with one phrase; every part is a package as a bundle
holds it, all of its axes dynamic, compiled side by side and held to the float32 part as torch runs
it. Weights are random and find nothing, so what decoder and detector give is computed and then
replaced by discs: the rules meet as many objects as are asked for, matched and corrected as sure
objects are. ``--stock`` runs transformers' tracker beside it, without a detector and without rules.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _parts import (
    Order,
    build,
    compiled,
    device_name,
    family_checkpoint,
    family_inputs,
    family_part,
    segmenter_over,
    session,
)
from _spans import PHRASE, pictures
from _timing import Results, kernels, p95, synchronize

sys.path.append(str(Path(__file__).parents[1]))
from _discs import SIZE_HW, discs, found_discs
from tracking_rules import frame_ms

from samforge.core.capabilities import POINTS, TEXT, TRACK
from samforge.core.masks import Masks
from samforge.models.sam3.byte_tokenizer import byte_tokenizer
from samforge.runtime import EncodedImage, PhraseTokenizer, Segmenter, follow_video
from samforge.runtime.device.session import placed
from samforge.runtime.pending import Pending
from samforge.runtime.tracking.around import AroundParts
from samforge.runtime.tracking.parts import FoundInFrame, TrackerParts
from samforge.runtime.tracking.session import VideoSession
from samforge.runtime.tracking.stacks import MaskStack

PARTS = tuple(dict.fromkeys((*TEXT.parts, *TRACK.parts, *POINTS.parts)))
SIZES = {"batch": 1, "prompts": 1, "objects": 2, "memories": 7, "pointers": 16, "points": 2}
"""Of the call that is held to float32."""
FILLED = 70
"""Frames after which an object has all ten memories: four corrections, one each 16 frames."""
MEASURED = 48
"""Frames that are timed, three of them with a correction of every object."""
LONG = (200, 2000)
"""Frames between which memory must not grow."""
LEAST_COSINE = 0.99
AT_MOST_MS = {1: 20.0, 16: 45.0, 64: 140.0}
STOCK_FRAMES = 12


def order_of(part: str, options: argparse.Namespace) -> Order:
    """What a bundle for this GPU holds of a part."""
    cuda = device_name() == "cuda"
    return Order(
        part=part,
        precision=options.vision if part == "vision" else options.precision,
        model=options.model,
        size=options.size,
        attention="fastest" if cuda else "auto",
        residual="half",
        sums="joined" if cuda else "apart",
        tracker=True,
    )


# One part, in a process of its own


def make(part: str, options: argparse.Namespace) -> None:
    """Compile a part, and write how far it is from the float32 part."""
    torch.set_num_threads(2)
    order, device = order_of(part, options), device_name()
    found: dict[str, Any] = build(order, options.folder, device)
    gc.collect()
    checkpoint = family_checkpoint("sam3", order.model, order.size, tracker=True)
    made = session(order, options.folder)
    inputs = family_inputs(checkpoint, made.spec, SIZES, 1)
    arrays = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    answers = made.run_on_device(placed(made, arrays))
    module = family_part("sam3", checkpoint, part).module.to(device)
    with torch.inference_mode():
        wanted = module(*(arrays[tensor.name].to(device) for tensor in made.spec.inputs))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found["fidelity"] = {
        tensor.name: distance(answers[tensor.name], value)
        for tensor, value in zip(made.spec.outputs, wanted, strict=True)
    }
    (options.folder / f"{part}.json").write_text(json.dumps(found))


def distance(answer: torch.Tensor, wanted: torch.Tensor) -> dict[str, Any]:
    """Cosine, and root of the mean square of the difference over that of what is wanted.

    Where all numbers are alike, as masks of objects that random weights hold to be absent, neither
    says anything.
    """
    one, other = answer.double().flatten(), wanted.double().flatten()
    both = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    return {
        "constant": bool((other == other[0]).all()),
        "cosine": round(float(one @ other / both), 6),
        "relative": float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other)),
        "not finite": int((~answer.isfinite()).sum()),
    }


def make_all(options: argparse.Namespace, results: Results) -> bool:
    """Compile all parts side by side."""
    options.folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 2) // min(options.jobs, len(PARTS))))
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": threads, **os.environ}
    waiting = [part for part in PARTS if not (options.folder / f"{part}.json").exists()]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        if results.elapsed_s > options.limit_s - 60:
            waiting = []
            for process in running:
                process.kill()
        if waiting and len(running) < options.jobs:
            part = waiting.pop(0)
            command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
            with (options.folder / f"{part}.log").open("w") as log:
                running.append(
                    subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
                )
            continue
        time.sleep(0.3)
    results.add("compile s, side by side", round(results.elapsed_s, 1))
    for part in PARTS:
        path = options.folder / f"{part}.json"
        if path.exists():
            results.add(part, json.loads(path.read_text()))
        else:
            results.fail(part, (options.folder / f"{part}.log").read_text()[-1500:])
        judge(part, results)
    return not results.values["failed"]


def judge(part: str, results: Results) -> None:
    """Fail where a part is not finite, or further from float32 than its precision explains."""
    for name, row in results.values["figures"].get(part, {}).get("fidelity", {}).items():
        if row["not finite"] or not (row["constant"] or row["cosine"] >= LEAST_COSINE):
            results.fail(f"{part}: {name}", f"is not what float32 gives: {row}")


# The video


class DiscParts(AroundParts):
    """Parts whose objects are discs: all work is done, then its answer is replaced."""

    def __init__(self, parts: TrackerParts, count: int) -> None:
        super().__init__(parts)
        self.discs = discs(count, self.facts.mask_side)
        self.placed = torch.from_numpy(self.discs).to(device_name())[:, None]
        self.timed: dict[str, list[float]] | None = None
        self.threshold: float | None = None

    def _in(self, stage: str, call: Callable[[], Any]) -> Any:
        if self.timed is None:
            return call()
        synchronize()
        begin = time.perf_counter()
        answer = call()
        synchronize()
        self.timed.setdefault(stage, []).append(1e3 * (time.perf_counter() - begin))
        return answer

    def encode(self, image: Any) -> EncodedImage:
        """As it is."""
        return self._in("vision", lambda: self._parts.encode(image))  # type: ignore[no-any-return]

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        """As many detections as there are discs are taken out of all, and become them."""
        if self.threshold is None:
            asked = [-1.0] * len(thresholds)
            ordered = np.sort(self._parts.begin_detect(encoded, phrases, asked).result().scores)
            count = min(len(self.discs), len(ordered) - 1)
            self.threshold = float((ordered[-count] + ordered[-count - 1]) / 2)
        asked = [self.threshold] * len(thresholds)
        begun = self._in("detector", lambda: self._parts.begin_detect(encoded, phrases, asked))

        def found() -> FoundInFrame:
            self._in("detections", begun.result)
            masks = self._parts.masks(self.placed[:, 0])
            masks.begin()
            return found_discs(masks, PHRASE)

        return Pending(found)

    def begin_draw(self, masks: MaskStack, size_hw: tuple[int, int]) -> Pending[Masks]:
        """As it is."""
        return self._in("drawing", lambda: self._parts.begin_draw(masks, size_hw))  # type: ignore[no-any-return]

    def give(self, masks: MaskStack, size_hw: tuple[int, int]) -> Any:
        """As it is."""
        return self._in("correction", lambda: self._parts.give(masks, size_hw))

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The part, its masks and scores those of discs."""
        out = self._in(part, lambda: self._parts.run(part, inputs))
        if "mask_logits" in out:
            out["mask_logits"] = self.placed[: len(out["mask_logits"])]
        if "object_score" in out:
            out["object_score"] = torch.full_like(out["object_score"], 5)
        return dict(out)


class DiscSegmenter:
    """What ``follow_video`` asks of a segmenter."""

    def __init__(self, segmenter: Segmenter, count: int) -> None:
        self.overlaps, self.processor = segmenter.overlaps, segmenter.processor
        self.encode = segmenter.encode
        self.parts = DiscParts(segmenter.tracker_parts(), count)

    def tracker_parts(self) -> Any:
        """Discs."""
        return self.parts


def loaded(options: argparse.Namespace) -> Segmenter:
    """All packages behind one executor."""
    checkpoint = family_checkpoint("sam3", options.model, options.size, tracker=True)
    sessions: dict[str, Any] = {}
    for part in PARTS:
        order = order_of(part, options)
        if options.eager:
            sessions[part] = compiled(order, device_name(), eager=True)
        else:
            sessions[part] = session(order, options.folder)
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        tokenizer = options.folder / "tokenizer.json"
        byte_tokenizer(checkpoint.config.text_config.vocab_size).save(str(tokenizer))
    return segmenter_over(sessions, checkpoint, PhraseTokenizer(tokenizer, checkpoint.context, 0))


def stream(segmenter: Segmenter, count: int, results: Results) -> None:
    """Time a frame of a stream, as ``samforge video`` runs it: the next one is begun ahead."""
    frames, measured = pictures(*SIZE_HW), FILLED + MEASURED
    turns = [frames[number % len(frames)] for number in range(measured + 16)]
    discs_of: Any = DiscSegmenter(segmenter, count)
    moments = []
    for found in follow_video(discs_of, turns, text=PHRASE):
        moments.append(time.perf_counter())
        if len(found.detections) != count:
            raise RuntimeError(f"{len(found.detections)} objects, {count} are drawn")
    whole = 1e3 * (moments[measured - 1] - moments[FILLED - 1]) / MEASURED
    at_most = AT_MOST_MS.get(count)
    results.add(f"{count} objects, stream", {"ms a frame": round(whole, 2), "at most": at_most})


def video(segmenter: Segmenter, count: int, results: Results) -> None:
    """Time a frame with so many objects, one after the other."""
    words, frames = f"{count} objects", pictures(*SIZE_HW)
    watched = DiscParts(segmenter.tracker_parts(), count)
    watching = VideoSession(watched, text=PHRASE)

    def step(number: int) -> float:
        begin = time.perf_counter()
        found = watching.step(frames[number % len(frames)])
        if found and len(found[-1].detections) != count:
            raise RuntimeError(f"{len(found[-1].detections)} objects, {count} are drawn")
        return 1e3 * (time.perf_counter() - begin)

    for number in range(FILLED):
        step(number)
    synchronize()
    begin = time.perf_counter()
    times = sorted(step(FILLED + number) for number in range(MEASURED))
    synchronize()
    whole = 1e3 * (time.perf_counter() - begin) / MEASURED
    results.add(
        f"{words}, ms a frame",
        {
            "mean": round(whole, 2),
            "median": round(statistics.median(times), 2),
            "p95": round(p95(times), 2),
            "min": round(times[0], 2),
        },
    )
    results.add(f"{words}, state MB", round(watching.size_bytes / 1e6, 1))
    watched.timed = {}
    whole_of = [step(FILLED + MEASURED + number) for number in range(16)]
    stages = {name: round(sum(spent) / 16, 2) for name, spent in watched.timed.items()}
    # Holes, cells and joined memories are no stage of their own: the host waits for them.
    stages["host, and all else"] = round(sum(whole_of) / 16 - sum(stages.values()), 2)
    results.add(f"{words}, ms a stage, each waited for", stages)
    bank = next(iter(watching.banks.values()))
    results.add(f"{words}, memories", sum(one.features is not None for one in bank))
    if device_name() == "cuda":
        watched.timed = None
        begin = FILLED + MEASURED + 16  # a multiple of 16 behind a correction and two frames
        seen = kernels(partial(stepped, step, begin), 1)
        results.add(f"{words}, kernels of 4 frames", seen)
        results.add(f"{words}, ms of all kernels a frame", sum(one["ms"] for one in seen) / 4)
    results.add(f"{words}, ms a frame of the host alone", frame_ms(count, 12, on_device=True))


def stepped(step: Callable[[int], float], begin: int) -> None:
    """Four frames without a correction."""
    for number in range(begin, begin + 4):
        step(number)


def long_video(segmenter: Segmenter, count: int, results: Results) -> None:
    """Memory of the GPU and of the process after many frames, each begun ahead."""
    frames = pictures(*SIZE_HW)
    watching = VideoSession(DiscParts(segmenter.tracker_parts(), count), text=PHRASE)
    coming = segmenter.encode(frames[0])

    def begin_next(number: int) -> EncodedImage:
        nonlocal coming
        coming = segmenter.encode(frames[number % len(frames)])
        return coming

    for number in range(LONG[1] + 1):
        watching.step(coming, ahead=partial(begin_next, number + 1))
        if number in LONG:
            synchronize()
            gc.collect()
            allocated = torch.cuda.memory_allocated() if device_name() == "cuda" else 0
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
            results.add(
                f"{count} objects, MB after frame {number}",
                {"GPU": round(allocated / 1e6, 1), "host": round(resident / 1e6, 1)},
            )


def videos(options: argparse.Namespace, results: Results) -> None:
    """Load what was compiled, and run every video that there is time for."""
    segmenter = loaded(options)
    for count in options.counts:
        for words, timed in (("objects", video), ("objects as a stream", stream)):
            with results.section(f"{count} {words}", needs_s=15) as go:
                if go:
                    timed(segmenter, count, results)
    if options.long:
        with results.section("long video", needs_s=60) as go:
            if go:
                long_video(segmenter, options.long, results)


# transformers


def stock(options: argparse.Namespace, results: Results) -> None:
    """The tracker of transformers: vision and memory, no detector, no rules, no way to the host."""
    from transformers import Sam3TrackerVideoConfig, Sam3TrackerVideoModel
    from transformers.models.sam3_tracker_video import modeling_sam3_tracker_video as stocked

    device = device_name()
    torch.manual_seed(0)
    with torch.device(device):
        model = Sam3TrackerVideoModel(Sam3TrackerVideoConfig()).eval().requires_grad_(False)
    side = model.config.image_size
    cast = torch.autocast(device, torch.bfloat16) if device == "cuda" else nullcontext()
    picture = torch.randn(1, 3, side, side, device=device)
    for count in options.counts:
        words = f"transformers' tracker, {count} objects"
        with results.section(words, needs_s=30 if count < 32 else 45) as go:
            if not go:
                continue
            state = stocked.Sam3TrackerVideoInferenceSession(
                video_height=SIZE_HW[0],
                video_width=SIZE_HW[1],
                inference_device=device,
                inference_state_device=device,
                video_storage_device=device,
                dtype=torch.float32,
            )
            for number in range(count):
                row = state.obj_id_to_idx(number)
                place = torch.tensor([[[[20.0 + 15 * number, 500.0]]]])
                state.add_point_inputs(
                    row,
                    0,
                    {"point_coords": place, "point_labels": torch.ones(1, 1, 1, dtype=torch.int32)},
                )
                state.obj_with_new_inputs.append(number)
            times = []
            for _ in range(STOCK_FRAMES):
                synchronize()
                begin = time.perf_counter()
                with torch.inference_mode(), cast:
                    model(inference_session=state, frame=picture[0])
                synchronize()
                times.append(1e3 * (time.perf_counter() - begin))
            results.add(f"{words}, ms a frame", round(statistics.median(times[8:]), 1))


def main() -> int:
    """1 where a part does not compile, is not finite, or a frame takes longer than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objects", default="1,16,64", help="numbers with commas between them")
    parser.add_argument("--limit-s", type=float, default=560)
    parser.add_argument("--model", default="facebook/sam3")
    parser.add_argument("--size", type=int)
    parser.add_argument("--vision", default="fp8", help="precision of the vision part")
    parser.add_argument("--precision", default="bf16", help="of all others")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/video"))
    parser.add_argument("--jobs", type=int, default=len(PARTS), help="parts compiled at a time")
    parser.add_argument("--eager", action="store_true", help="compile nothing: a dry run")
    parser.add_argument("--only-compile", action="store_true", help="measure in another call")
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--long", type=int, default=0, help="objects of the long video")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.counts = [int(count) for count in options.objects.split(",")]
    if options.part:
        make(options.part, options)
        return 0
    results = Results(options.out, options.limit_s)
    made = options.eager or make_all(options, results)
    if options.only_compile:
        return int(not made)
    if made:
        videos(options, results)
    if options.stock:
        with results.section("transformers", needs_s=40) as go:
            if go:
                stock(options, results)
    figures = results.values["figures"]
    slow = [
        count
        for count in options.counts
        if figures.get(f"{count} objects, stream", {}).get("ms a frame", np.inf)
        > AT_MOST_MS.get(count, np.inf)
    ]
    return int(bool(slow or results.values["failed"]))


if __name__ == "__main__":
    sys.exit(main())
