"""transformers' own Sam3Model over the same span, prepared as its processor would on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from _parts import device_name
from _spans import OBJECTS, sources, span_name
from _timing import call_ms, synchronize, wall_ms
from _turns import Bench
from transformers import Sam3Config, Sam3Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run transformers' model."""

    words: str
    """First words of its figures."""
    mode: str | None = None
    """Of torch.compile, or None for eager."""


VARIANTS = {
    "stock": (
        Variant(words="eager"),
        Variant(words="default", mode="default"),
        Variant(words="reduce-overhead", mode="reduce-overhead"),  # with CUDA graphs
    ),
    # With CUDA graphs, too. Tuning tries every matrix product in Triton: what it found is kept in
    # Inductor's cache, so a run that was too short helps the next one on the same machine.
    "stock-max": (Variant(words="max-autotune", mode="max-autotune"),),
}
"""By name of the contender."""


class Stock:
    """Resize and post-processing on the device, text encoded once; float32 weights under autocast.

    With weights in bf16 the model of transformers 5.17 stops at its first MLP, which reads float32.
    """

    def __init__(self, variant: Variant, model: str, size: int | None, device: str) -> None:
        if model == "tiny":
            from samforge.models.sam3.loading import checkpoint_from_name

            config = checkpoint_from_name("tiny").config
        else:
            config = Sam3Config()
        if size is not None:
            config.image_size = size
        torch.manual_seed(0)
        with torch.device(device):
            stock = Sam3Model(config).eval().requires_grad_(False)
        self.device = device
        self.size: int = config.vision_config.image_size
        self.model: Any = stock
        self.vision: Any = stock.vision_encoder
        if variant.mode is not None:
            self.model = torch.compile(stock, mode=variant.mode)
            self.vision = torch.compile(stock.vision_encoder, mode=variant.mode)
        context = config.text_config.max_position_embeddings
        ids = torch.zeros(1, context, dtype=torch.int64, device=device)
        ids[0, :3] = torch.tensor([1, 2, 3])
        mask = torch.zeros(1, context, dtype=torch.int64, device=device)
        mask[0, :4] = 1
        with torch.no_grad(), self._cast():
            embeds = stock.get_text_features(input_ids=ids, attention_mask=mask)
        self.text = {"text_embeds": embeds, "attention_mask": mask}

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16)

    def prepared(self, picture: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Pixels as the model wants them, (1, 3, S, S)."""
        host = picture if isinstance(picture, torch.Tensor) else torch.from_numpy(picture)
        rgb = host.to(self.device, non_blocking=True)
        values = rgb.permute(2, 0, 1)[None].float()
        square = F.interpolate(
            values, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )
        return (square.round() / 255 - 0.5) / 0.5

    def detect(self, pixels: torch.Tensor) -> Any:
        """The model's outputs, its text known."""
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.no_grad(), self._cast():
            return self.model(pixel_values=pixels, **self.text)

    def encode(self, pixels: torch.Tensor) -> Any:
        """The vision encoder's outputs."""
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.no_grad(), self._cast():
            return self.vision(pixels)

    def whole(self, images: list[Any], objects: int) -> Callable[[int], int]:
        """The whole span by image number; gives how many masks came to the host."""
        thresholds = []
        for image in images:
            ordered = scores(self.detect(self.prepared(image))).sort(descending=True).values
            count = min(objects, len(ordered) - 1)
            thresholds.append(float((ordered[count - 1] + ordered[count]) / 2))

        def call(index: int) -> int:
            one = index % len(images)
            outputs = self.detect(self.prepared(images[one]))
            keep = scores(outputs) > thresholds[one]
            masks = outputs.pred_masks[0][keep].float().sigmoid()
            wide = F.interpolate(
                masks[:, None], images[one].shape[:2], mode="bilinear", align_corners=False
            )
            found = (wide[:, 0] > 0.5).cpu()
            outputs.pred_boxes[0][keep].float().cpu()
            return len(found)

        return call


def scores(outputs: Any) -> torch.Tensor:
    """Scores of all queries of one image, in float32."""
    presence: torch.Tensor = outputs.presence_logits.float().sigmoid().reshape(-1, 1)
    found = outputs.pred_logits.float().sigmoid().reshape(len(presence), -1) * presence
    return cast(torch.Tensor, found[0])


def stock(bench: Bench, name: str) -> None:
    """Compile each variant as long as there is time, then measure what was made."""
    results = bench.results(name)
    made: dict[str, tuple[Stock, list[str]]] = {}
    for variant in VARIANTS[name]:
        words = variant.words
        if variant.mode is not None and bench.eager:
            results.fail(words, "skipped: --eager compiles nothing")
            continue
        with results.section(f"{words} compile", until=bench.compile_until) as go:
            if go:
                model = Stock(variant, bench.model, bench.size, device_name())
                made[words] = model, []
                # The whole model first: it is what the claims are about.
                for stage, call in (("model", model.detect), ("vision", model.encode)):
                    start = time.perf_counter()
                    for _ in range(3):
                        call(model.prepared(np.zeros((*bench.source, 3), np.uint8)))
                    synchronize()
                    made[words][1].append(stage)
                    results.add(f"{words} {stage} compile s", round(time.perf_counter() - start, 1))
    with bench.measuring(name):
        for words, (model, stages) in made.items():
            with results.section(f"{words} measured") as go:
                if go:
                    measure(bench, results, words, model, stages)


def measure(bench: Bench, results: Any, words: str, model: Stock, stages: list[str]) -> None:
    """Time the stages that were made, and the whole span where the model is one of them."""
    by_source = sources(bench.source)
    turns = cycle([model.prepared(image) for image in by_source["4K pageable"][:3]])
    calls = {"model": model.detect, "vision": model.encode}
    for stage in stages:
        ms = call_ms(lambda s=stage: calls[s](next(turns)), bench.rounds)  # type: ignore[misc]
        results.add(f"{words} {stage} ms", ms)
    if "model" not in stages:
        return
    for source, images in by_source.items():
        for objects in OBJECTS[:2]:
            counts: list[int] = []
            call = model.whole(images, objects)
            figures = wall_ms(lambda i, c=call, n=counts: n.append(c(i)), bench.rounds)  # type: ignore[misc]
            results.add(f"{words} {span_name(source, objects)} ms", figures)
            results.add(f"{words} {span_name(source, objects)} found", float(np.mean(counts)))
