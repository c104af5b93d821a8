"""Train the tiny model from nothing on drawn scenes: one GPU, some twenty minutes.

    PYTHONPATH=src OPENBLAS_NUM_THREADS=1 python tools/train_tiny.py --minutes 20 --out out

Data, initial weights and schedule depend on the options alone, so that a run can be repeated, and
``--state`` with ``--segment-minutes`` cuts it into pieces that continue where the last one stopped.
The result, ``out/model.safetensors``, belongs into ``src/samforge/models/tiny``.
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
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from samforge.models.tiny import CONFIG_PATH, TOKENIZER_PATH
from tiny_training.alignment import Alignment
from tiny_training.data import phrase_table, training_loader
from tiny_training.evaluation import evaluate
from tiny_training.forward import TrainingForward
from tiny_training.losses import training_loss

WARM_UP_STEPS = 500
CONSTANT_SHARE = 0.45
FINAL_RATE = 0.01
EMA_DECAY = 0.999
CLIP_NORM = 1.0
# Steps before the throughput is measured (compilation, caches) and the steps it is measured over.
SETTLE_STEPS, MEASURE_STEPS = 30, 100
SAVE_SECONDS = 60.0


def new_model() -> nn.Module:
    """A stock Sam3Model of the tiny architecture, freshly initialized from seed 0."""
    from transformers import Sam3Config, Sam3Model

    torch.manual_seed(0)
    model: nn.Module = Sam3Model(Sam3Config(**json.loads(CONFIG_PATH.read_text())))
    spread_reference_boxes(model)
    return model.train()


@torch.no_grad()
def spread_reference_boxes(model: Any) -> None:
    """Start the queries on a grid over the image.

    The stock initialization starts all of them as one box in the middle, and telling them apart
    is most of what the first thousands of steps would learn.
    """
    points = model.detr_decoder.reference_points.weight
    count = len(points)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    index = torch.arange(count)
    centre_x = (index % columns + 0.5) / columns
    centre_y = (index // columns + 0.5) / rows
    extent = torch.full((count,), 0.3)
    points.copy_(torch.stack([centre_x, centre_y, extent, extent], 1).logit())


def phrase_tokens() -> tuple[Tensor, Tensor]:
    """(V, S) ids and mask of every phrase a training prompt can have.

    S is the longest phrase and not the model's 32: padding is masked and attention in the text
    encoder looks back only, so what is left out changes nothing.
    """
    tokenizer = Tokenizer.from_file(str(TOKENIZER_PATH))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    encoded = tokenizer.encode_batch(list(phrase_table()))
    return (
        torch.tensor([one.ids for one in encoded]),
        torch.tensor([one.attention_mask for one in encoded], dtype=torch.bool),
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; norms, biases and embeddings do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or id(parameter) in embeddings or "position_emb" in name
        (free if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def rate_at(step: int, planned: int | None) -> float:
    """Share of the peak learning rate: warm-up, constant, cosine down to one percent."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    if planned is None:
        return warm
    start = CONSTANT_SHARE * planned
    progress = min(max((step - start) / max(planned - start, 1), 0.0), 1.0)
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights towards the model's, faster at the start."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


class Run:
    """One training run, possibly a later segment of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.device = torch.device(options.device)
        self.model = new_model()
        if options.init is not None:
            weights = {name: weight.float() for name, weight in load_file(options.init).items()}
            self.model.load_state_dict(weights)
        self.model.to(self.device)
        self.average = copy.deepcopy(self.model).eval()
        ids, mask = phrase_tokens()
        self.forward = TrainingForward(self.model, ids, mask).to(self.device)
        self.alignment = Alignment(self.model.config.detr_encoder_config.hidden_size)
        self.alignment.to(self.device)
        self.average_forward = TrainingForward(self.average, ids, mask).to(self.device)
        self.optimizer = torch.optim.AdamW(
            [
                *parameter_groups(self.model, options.weight_decay),
                {"params": list(self.alignment.parameters()), "weight_decay": 0.0},
            ],
            lr=options.rate,
            betas=(0.9, 0.98),
            fused=self.device.type == "cuda",
        )
        self.step = 0
        self.planned: int | None = options.steps
        self.spent = 0.0
        options.out.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def elapsed(self) -> float:
        """Seconds of this segment."""
        return time.monotonic() - self.started

    def _resume(self) -> None:
        state_path = self.options.state
        if state_path is None or not state_path.exists():
            return
        state = torch.load(state_path, map_location=self.device, weights_only=True)
        if state["batch"] != self.options.batch:
            raise SystemExit(
                f"{state_path} was made with --batch {state['batch']}, got {self.options.batch}. "
                "Use the same options for every segment."
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.alignment.load_state_dict(state["alignment"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.planned, self.spent = state["step"], state["planned"], state["spent"]
        self.log(event="resumed", planned=self.planned)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        path = self.options.state
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "alignment": self.alignment.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "planned": self.planned,
            "spent": self.spent + self.elapsed,
            "batch": self.options.batch,
        }
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(path)

    def export(self) -> None:
        """Write the averaged weights in float16."""
        weights = {k: v.half().contiguous().cpu() for k, v in self.average.state_dict().items()}
        bad = [name for name, weight in weights.items() if not weight.isfinite().all()]
        if bad:
            raise SystemExit(f"Weights are not finite in float16: {bad[:5]}.")
        path = self.options.out / "model.safetensors"
        temporary = path.with_suffix(".part")
        save_file(weights, temporary, metadata={"format": "pt", "step": str(self.step)})
        temporary.replace(path)

    def log(self, **values: Any) -> None:
        """One line of JSON to the screen and to ``log.jsonl``."""
        rounded = {k: round(v, 7) if isinstance(v, float) else v for k, v in values.items()}
        line = json.dumps(
            {"step": self.step, "seconds": round(self.spent + self.elapsed, 1), **rounded}
        )
        print(line, flush=True)
        with (self.options.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def plan(self, seconds_a_step: float) -> None:
        """Fix the number of steps from the measured time of one."""
        options = self.options
        segments = 1
        if options.segment_minutes:
            segments = math.ceil(options.minutes / options.segment_minutes)
        # Later segments start and compile once more; evaluation and saving take their share.
        overhead = 75.0 * (segments - 1) + 25.0
        left = options.minutes * 60 - self.spent - self.elapsed - overhead
        self.planned = self.step + max(int(0.95 * left / seconds_a_step), 1)
        self.log(event="planned", planned=self.planned, seconds_a_step=seconds_a_step)

    def train(self, *, until: int | None = None) -> None:
        """Run to the planned end, to the end of this segment, or to step ``until``."""
        options = self.options
        call = torch.compile(self.forward, dynamic=False) if options.compile else self.forward
        loader = training_loader(
            self.step, options.batch, workers=options.workers, pin=self.device.type == "cuda"
        )
        batches = iter(loader)
        first, mark, waited = self.step, time.monotonic(), 0.0
        saved = time.monotonic()
        while self.step != until and (self.planned is None or self.step < self.planned):
            if options.segment_minutes and self.elapsed > options.segment_minutes * 60 - 12:
                break
            asked_at = time.monotonic()
            batch = next(batches).to(self.device)
            waited += time.monotonic() - asked_at
            losses = self._one_step(call, batch)
            done = self.step - first
            if done == SETTLE_STEPS:
                mark, waited = time.monotonic(), 0.0
            if self.planned is None and done == SETTLE_STEPS + MEASURE_STEPS:
                self.plan((time.monotonic() - mark) / MEASURE_STEPS)
            if self.step % options.log_every == 0 or self.step == self.planned or done == 1:
                self._report(losses, done, mark, waited)
            if self.step % options.evaluate_every == 0:
                self.log(event="evaluation", **evaluate(self.average_forward, 128))
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        del batches, loader  # stops the workers
        self.save()
        self.export()
        finished = self.step == self.planned
        scenes = options.final_scenes if finished else min(options.final_scenes, 128)
        self.log(
            event="finished" if finished else "segment",
            scenes=scenes,
            **evaluate(self.average_forward, scenes),
        )

    def _one_step(self, call: Any, batch: Any) -> dict[str, Tensor]:
        rate = self.options.rate * rate_at(self.step, self.planned)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        half = torch.autocast(self.device.type, dtype=torch.bfloat16)
        with half if self.options.autocast else contextlib.nullcontext():
            phrases = self.forward.encode_phrases()
            outputs = call(phrases, batch.images, batch.asked, batch.boxes, batch.labels)
        alignment = self.alignment(outputs.coarse, phrases, self.forward.phrase_mask, batch)
        losses = training_loss(
            outputs, batch, alignment, positive_weight=self.options.positive_weight
        )
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.step += 1
        update_average(self.average, self.model, self.step)
        return losses

    def _report(self, losses: dict[str, Tensor], done: int, mark: float, waited: float) -> None:
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if not math.isfinite(values["total"]):
            raise SystemExit(f"The loss is {values['total']} at step {self.step}: {values}")
        measured = max(done - SETTLE_STEPS, 0)
        pace = {}
        if measured:
            pace = {
                "ms_a_step": 1e3 * (time.monotonic() - mark) / measured,
                "ms_waiting_for_data": 1e3 * waited / measured,
            }
        self.log(rate=self.optimizer.param_groups[0]["lr"], **values, **pace)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="train for this many steps")
    length.add_argument("--minutes", type=float, help="plan steps for this long, all told")
    length.add_argument("--check", action="store_true", help="compare with the stock model only")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of weights and log")
    parser.add_argument("--init", type=Path, help="weights to start from (model.safetensors)")
    parser.add_argument("--state", type=Path, help="file to resume from and to save to")
    parser.add_argument("--segment-minutes", type=float, help="stop this run after so long")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--rate", type=float, default=6e-4, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument(
        "--positive-weight", type=float, default=0.5, help="of right queries in the class loss"
    )
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 1) - 2, 0))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--evaluate-every", type=int, default=2000)
    parser.add_argument("--final-scenes", type=int, default=1024, help="scenes of the last figures")
    options = parser.parse_args(arguments)
    on_gpu = options.device.startswith("cuda")
    options.compile = on_gpu if options.compile is None else options.compile
    options.autocast = on_gpu if options.autocast is None else options.autocast
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train, or check the training forward."""
    options = parsed(arguments)
    if options.check:
        from tiny_training.parity import check

        check(new_model(), *phrase_tokens())
        return
    Run(options).train()


if __name__ == "__main__":
    main()
