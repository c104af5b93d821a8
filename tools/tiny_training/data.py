"""Batches by index: batch i of a split is the same whatever the number of workers or restarts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from samforge.models.tiny.prompts import (
    MOST_BOXES,
    VISUAL,
    ScenePrompt,
    box_prompt,
    mixed_prompt,
    prompt_rng,
    text_prompt,
)
from samforge.models.tiny.scenes import (
    COLOURS,
    MOST_INSTANCES,
    SHAPES,
    SIZE,
    Scene,
    draw_scene,
    vocabulary,
)

SHARED_MEMORY = Path("/dev/shm")
UNKNOWN = "unknown"
"""Any word outside the vocabulary: taught to match nothing."""
TEXT_PROMPTS = 3
"""Prompts of text alone on each image; they come first."""
BOX_PROMPTS = 1
"""Prompts with exemplar boxes on each image."""


@lru_cache(maxsize=1)
def phrase_table() -> tuple[str, ...]:
    """Every text a training prompt can have; a prompt carries its index."""
    return (*vocabulary(), VISUAL, UNKNOWN, *(f"{colour} {UNKNOWN}" for colour in COLOURS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B scenes with P prompts each, the last G of which have up to K exemplar boxes."""

    images: Tensor
    """(B, H, W, 3) uint8."""
    instances: Tensor
    """(B, H, W) uint8, 0 for the ground."""
    kinds: Tensor
    """(B, T) int64, shape and colour of each instance as one number, -1 for none."""
    asked: Tensor
    """(B, P) int64, index into the phrase table."""
    boxes: Tensor
    """(B, G, K, 4) float32, centre and size, 0 to 1."""
    labels: Tensor
    """(B, G, K) int64, 1, 0 or -10 for padding."""
    target_numbers: Tensor
    """(B, P, T) int64, value in ``instances`` of each target, 0 for none."""
    target_boxes: Tensor
    """(B, P, T, 4) float32, corners, 0 to 1."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, copied without waiting where memory is pinned."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """Called by the loader's pinning thread."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


def make_batch(index: int, size: int, *, split: str) -> Batch:
    """Draw batch ``index``: scenes ``index * size`` up to the next batch's first."""
    examples = [_example(seed, split) for seed in range(index * size, (index + 1) * size)]
    stacked = {
        name: torch.from_numpy(np.stack([example[name] for example in examples]))
        for name in examples[0]
    }
    return Batch(**stacked)


def _example(seed: int, split: str) -> dict[str, npt.NDArray[np.generic]]:
    """One scene and its prompts as arrays of fixed shape."""
    scene = draw_scene(seed, split=split)
    prompts = scene_prompts(scene, seed, split=split)
    size = scene.image.shape[0]
    count = len(prompts)
    boxes = np.zeros((BOX_PROMPTS, MOST_BOXES, 4), np.float32)
    # Padding boxes are real boxes: nothing is pooled from a box of no size.
    boxes[...] = (0.5, 0.5, 0.5, 0.5)
    labels = np.full((BOX_PROMPTS, MOST_BOXES), -10, np.int64)
    numbers = np.zeros((count, MOST_INSTANCES), np.int64)
    target_boxes = np.zeros((count, MOST_INSTANCES, 4), np.float32)
    for row, prompt in enumerate(prompts):
        hits = len(prompt.targets)
        numbers[row, :hits] = prompt.targets + 1
        target_boxes[row, :hits] = scene.boxes_xyxy[prompt.targets] / size
        if row >= TEXT_PROMPTS:
            own = len(prompt.box_labels)
            low, high = prompt.boxes_xyxy[:, :2] / size, prompt.boxes_xyxy[:, 2:] / size
            group = row - TEXT_PROMPTS
            boxes[group, :own] = np.concatenate([(low + high) / 2, high - low], 1)
            labels[group, :own] = prompt.box_labels
    kinds = np.full(MOST_INSTANCES, -1, np.int64)
    for index, (shape, colour) in enumerate(zip(scene.shapes, scene.colours, strict=True)):
        kinds[index] = SHAPES.index(shape) * len(COLOURS) + COLOURS.index(colour)
    table = phrase_table()
    return {
        "images": scene.image,
        "instances": scene.instances,
        "kinds": kinds,
        "asked": np.array([table.index(prompt.text) for prompt in prompts]),
        "boxes": boxes,
        "labels": labels,
        "target_numbers": numbers,
        "target_boxes": target_boxes,
    }


def scene_prompts(scene: Scene, seed: int, *, split: str) -> tuple[ScenePrompt, ...]:
    """Three phrases, then boxes alone or with a phrase."""
    rng = prompt_rng(seed, split=split)
    training = split == "train"
    jitter = 3.0 if training else 0.0
    texts = [text_prompt(scene, rng) for _ in range(TEXT_PROMPTS)]
    if training and rng.random() < 0.05:
        texts[-1] = _unknown_prompt(rng)
    with_boxes = box_prompt if rng.random() < 0.6 else mixed_prompt
    return (*texts, with_boxes(scene, rng, jitter_px=jitter))


def _unknown_prompt(rng: np.random.Generator) -> ScenePrompt:
    """A phrase with a word that means nothing: matches nothing."""
    colour = str(rng.choice(COLOURS))
    return ScenePrompt(
        text=UNKNOWN if rng.random() < 0.5 else f"{colour} {UNKNOWN}",
        boxes_xyxy=np.zeros((0, 4), np.float32),
        box_labels=np.zeros(0, np.int64),
        targets=np.zeros(0, np.int64),
    )


class TrainingBatches(IterableDataset[Batch]):
    """Training batches ``first``, ``first + 1``, … without end."""

    def __init__(self, first: int, size: int) -> None:
        super().__init__()
        self.first = first
        self.size = size

    def __iter__(self) -> Iterator[Batch]:
        """Worker w of W makes every W-th batch; the loader takes them in turn, hence in order."""
        worker = get_worker_info()
        index, stride = (self.first, 1)
        if worker is not None:
            index, stride = self.first + worker.id, worker.num_workers
        while True:
            yield make_batch(index, self.size, split="train")
            index += stride


def training_loader(first: int, size: int, *, workers: int, pin: bool) -> DataLoader[Batch]:
    """Loader of whole batches drawn in worker processes.

    Batches travel through shared memory, of which containers may have little: each worker keeps
    three batches ahead where that fits, else fewer.

    Raises:
        SystemExit: Not even one batch a worker fits.
    """
    prefetch = 3
    if workers and SHARED_MEMORY.exists():
        batch_bytes = size * SIZE * SIZE * 4
        fits = int(0.8 * shutil.disk_usage(SHARED_MEMORY).free // (batch_bytes * workers)) - 1
        prefetch = min(prefetch, fits)
        if prefetch < 1:
            raise SystemExit(
                f"{SHARED_MEMORY} is too small for {workers} workers with batches of {size}. "
                "Use fewer --workers or a smaller --batch."
            )
    return DataLoader(
        TrainingBatches(first, size),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=prefetch if workers else None,
    )
