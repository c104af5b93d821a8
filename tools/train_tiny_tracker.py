"""Train the tiny model's tracker on drawn clips: one GPU, twelve minutes.

    PYTHONPATH=src OMP_NUM_THREADS=1 python tools/train_tiny_tracker.py --minutes 12 --out out

The ViT and the detector stay as they are. Single pictures with clicks, boxes and masks come first,
then clips of two to eight frames with gradients through their memories. Batches, prompts and
initial weights depend on the options alone; the numbers of steps follow from measured time, are
logged, and ``--plan`` with ``--clips`` and ``--[no-]autocast`` repeats them. ``--state`` with
``--segment-minutes`` cuts a run into pieces that continue where the last one stopped. The result,
``out/tracker.safetensors``, belongs into ``src/samforge/models/tiny``; it is written every minute.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiny_training.clips import draw_clips, make_plans, planned_batches
from tiny_training.following import figures
from tiny_training.tracker_forward import Graded, TrackerForward, make_script
from tiny_training.tracker_model import Tracker, parts_with, save_weights, trunk
from train_tiny import parameter_groups, update_average

STAGES = ((1, 0.24), (2, 0.08), (4, 0.22), (6, 0.2), (8, 0.26))
"""Frames of a clip and share of the time."""
WARM_UP_STEPS = 300
CONSTANT_SHARE = 0.4
FINAL_RATE = 0.01
CLIP_NORM = 1.0
SAVE_SECONDS = 60.0
SEGMENT_RESERVE = 25.0
PLACE = ("step", "stage", "taken", "planned", "clips", "autocast", "began", "spent")
"""Where a run stands, besides its weights."""
BATCHES_OF_A_SEED = 100_000_000
"""Numbers of batches: another seed draws other clips, so that a second run sees new ones."""
SETTLE_STEPS, MEASURE_STEPS = 10, 30
CANDIDATES = (24, 32, 48, 64, 96)
"""Clips a batch: more of them as long as a step hardly takes longer, which is where the processor
that launches kernels is what takes the time."""
HARDLY = 1.35
"""Times the smallest batch's step."""


def rate_at(step: int, progress: float) -> float:
    """Share of the peak learning rate: warm-up, constant, cosine down to one percent."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    falling = min(max((progress - CONSTANT_SHARE) / (1 - CONSTANT_SHARE), 0.0), 1.0)
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * falling)))


class Run:
    """One training run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.device = torch.device(options.device)
        self.trunk = trunk().to(self.device)
        self.tracker = Tracker(options.seed, options.init)
        self.tracker.to(self.device).train()
        self.average: Any = copy.deepcopy(self.tracker.weights)
        self.forward = TrackerForward(self.tracker, options.objects)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.tracker.weights, options.weight_decay),
            lr=options.rate,
            betas=(0.9, 0.98),
            fused=self.device.type == "cuda",
        )
        self.generator = torch.Generator(self.device)
        self.clips: int = options.clips
        self.autocast: bool = bool(options.autocast)
        self.step, self.saved, self.spent, self.began = 0, time.monotonic(), 0.0, 0.0
        self.stage, self.taken = 0, 0
        self.planned: int | None = None
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        options.out.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, of earlier segments, too."""
        return self.spent + time.monotonic() - self.started

    @property
    def segment_over(self) -> bool:
        """Whether this segment's time is used up; the rest is for saving and for a look."""
        minutes = self.options.segment_minutes
        return bool(minutes) and time.monotonic() - self.started > minutes * 60 - SEGMENT_RESERVE

    def _resume(self) -> None:
        path = self.options.state
        if path is None or not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.tracker.weights.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in PLACE:
            setattr(self, name, state[name])
        self.log(event="resumed", stage=self.stage, taken=self.taken, planned=self.planned)

    def save(self) -> None:
        """Write the averaged weights, and the state to continue from, each whole or not at all."""
        self.saved = time.monotonic()
        save_weights(self.average, self.options.out, step=str(self.step))
        path = self.options.state
        if path is None:
            return
        state = {
            "weights": self.tracker.weights.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in PLACE},
            "spent": self.elapsed,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(path)

    def log(self, **values: Any) -> None:
        """One line of JSON to the screen and to ``log.jsonl``."""
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        line = json.dumps({"step": self.step, "seconds": round(self.elapsed, 1), **rounded})
        print(line, flush=True)
        with (self.options.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def graded(self, plans: Any, index: int, generator: torch.Generator) -> Graded:
        """Draw a batch and grade the tracker's answers."""
        half = torch.autocast(self.device.type, dtype=torch.bfloat16)
        images, instances = draw_clips(plans.to(self.device), generator)
        # The ViT is frozen, and nothing is lost on it in bfloat16.
        with half if self.device.type == "cuda" else contextlib.nullcontext():
            tokens = self.trunk(images.flatten(0, 1))
        script = make_script(index, instances.shape[1])
        with half if self.autocast else contextlib.nullcontext():
            return self.forward(tokens.float(), instances, script, generator)  # type: ignore[no-any-return]

    def seconds_a_step(self, clips: int, frames: int, steps: int = 4) -> float:
        """Time of a step without an update; its first ones are not counted."""
        generator = torch.Generator(self.device).manual_seed(0)
        plans = make_plans(0, clips, frames)
        mark = time.monotonic()
        for number in range(steps + 2):
            if number == 2:
                self._wait()
                mark = time.monotonic()
            loss = self.graded(plans, number, generator).mean()["total"]
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return (time.monotonic() - mark) / steps

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def choose(self) -> None:
        """Measure where the options leave a choice: autocast or not, clips a batch."""
        if self.options.autocast is None and self.device.type == "cuda":
            times = {}
            for autocast in (False, True):
                self.autocast = autocast
                times[autocast] = self.seconds_a_step(32, 4)
            self.autocast = times[True] < times[False]
            self.log(event="autocast", with_it=times[True], without=times[False])
        shortest = math.inf
        for clips in () if self.clips else CANDIDATES:
            try:
                seconds = self.seconds_a_step(clips, 4)
                longest = self.seconds_a_step(clips, STAGES[-1][0], steps=1)
            except torch.OutOfMemoryError:
                self.log(event="clips", clips=clips, out_of_memory=True)
                break
            self.log(event="clips", clips=clips, seconds_a_step=seconds, longest=longest)
            shortest = min(shortest, seconds)
            if seconds > HARDLY * shortest:
                break
            self.clips = clips
        if not self.clips:
            raise SystemExit("No batch fits into the device's memory. Give a smaller --clips.")
        if self.device.type == "cuda":
            gib = torch.cuda.max_memory_allocated() / 2**30
            self.log(event="chosen", clips=self.clips, autocast=self.autocast, peak_gib=gib)

    def train(self) -> None:
        """Run all stages."""
        if not self.step:
            self.log(event="start", seed=self.options.seed, stages=STAGES)
            self.choose()
            self.began = self.elapsed
        while self.stage < len(STAGES):
            self._stage()
            if self.segment_over:
                break
            self.log(event="stage", frames=STAGES[self.stage][0], steps=self.taken)
            self.stage, self.taken, self.planned = self.stage + 1, 0, None
            if self.options.stage_clips:
                self.evaluate("looked", self.options.stage_clips, frames=16)
        self.save()
        if self.stage == len(STAGES):
            self.evaluate("finished", self.options.final_clips)
        else:
            self.evaluate("segment", self.options.stage_clips, frames=16)

    def _stage(self) -> None:
        """Run a stage: to its planned number of steps, or as many as fit into its time."""
        options, (frames, share) = self.options, STAGES[self.stage]
        done = sum(share for _, share in STAGES[: self.stage])
        end = options.minutes * 60 - options.reserve
        until = self.began + (done + share) * (end - self.began)
        if options.plan:
            self.planned = options.plan[self.stage]
        clips = self.clips * (2 if frames == 1 else 1)
        first = self.options.seed * BATCHES_OF_A_SEED + self.stage * 1_000_000
        batches = planned_batches(first + self.taken, clips, frames, workers=options.workers)
        mark, counted = time.monotonic(), 0
        while self.planned is None or self.taken < self.planned:
            if counted == SETTLE_STEPS + MEASURE_STEPS and self.planned is None:
                self._wait()
                pace = (time.monotonic() - mark) / MEASURE_STEPS
                self.planned = self.taken + max(int((until - self.elapsed) / pace), 1)
                self.log(
                    event="planned", frames=frames, clips=clips, planned=self.planned, pace=pace
                )
            if counted == SETTLE_STEPS:
                self._wait()
                mark = time.monotonic()
            progress = done + share * (self.taken / self.planned if self.planned else 0.0)
            self._one_step(next(batches), first + self.taken, progress)
            self.taken, counted = self.taken + 1, counted + 1
            if self.step % options.log_every == 0 or self.step == 1:
                self._report(frames, (time.monotonic() - mark) / max(counted - SETTLE_STEPS, 1))
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self.save()
            late = not options.plan and self.elapsed > until + 3 and counted > SETTLE_STEPS
            if late or self.segment_over:
                self.log(event="late" if late else "cut", frames=frames, taken=self.taken)
                break
        self._report(frames, (time.monotonic() - mark) / max(counted - SETTLE_STEPS, 1))

    def _one_step(self, plans: Any, index: int, progress: float) -> None:
        rate = self.options.rate * rate_at(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # A step is the same whatever was before it, so that segments continue a run.
        self.generator.manual_seed(index)
        graded = self.graded(plans, index, self.generator)
        losses = graded.mean()
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.tracker.weights.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.step += 1
        update_average(self.average, self.tracker.weights, self.step)
        ious = {f"iou_{name}": torch.stack(values).mean() for name, values in graded.ious.items()}
        for name, value in (losses | ious | {"norm": norm}).items():
            before = self.sums.get(name)
            self.sums[name] = value.detach() if before is None else before + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def _report(self, frames: int, pace: float) -> None:
        """Means since the last report."""
        if not self.sums:
            return
        values = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        if not math.isfinite(values["total"]):
            raise SystemExit(f"The loss is {values['total']} at step {self.step}: {values}")
        rate = self.optimizer.param_groups[0]["lr"]
        self.log(frames=frames, rate=rate, ms_a_step=1e3 * pace, **values)

    def evaluate(self, event: str, clips: int, **settings: Any) -> None:
        """Figures of the averaged weights in the parts that run, on held-out clips."""
        path = save_weights(self.average, self.options.out, step=str(self.step))
        parts = parts_with(path, self.device)
        controls = max(clips // 4, 1) if event == "finished" else 0
        found = figures(parts, self.device, clips, controls=controls, **settings)
        self.log(event=event, clips=clips, **found)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="for everything, all told")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of weights and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--init", type=Path, help="weights to start from (tracker.safetensors)")
    parser.add_argument("--state", type=Path, help="file to resume from and to save to")
    parser.add_argument("--segment-minutes", type=float, help="stop this run after so long")
    parser.add_argument("--clips", type=int, default=0, help="a batch; 0 measures")
    parser.add_argument("--objects", type=int, default=4, help="followed in each clip")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--workers", type=int, default=min(max((os.cpu_count() or 1) - 2, 0), 10))
    parser.add_argument("--plan", type=_numbers, help="steps of each stage: 900,200,…")
    parser.add_argument("--reserve", type=float, default=75.0, help="seconds for the last figures")
    parser.add_argument("--stage-clips", type=int, default=4, help="evaluated after each stage")
    parser.add_argument("--final-clips", type=int, default=40)
    parser.add_argument("--log-every", type=int, default=50)
    options = parser.parse_args(arguments)
    if options.plan and len(options.plan) != len(STAGES):
        parser.error(f"--plan has {len(STAGES)} numbers, got {len(options.plan)}")
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main(arguments: list[str] | None = None) -> None:
    """Train, then print figures of held-out clips."""
    options = parsed(arguments)
    if options.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    Run(options).train()


if __name__ == "__main__":
    main()
