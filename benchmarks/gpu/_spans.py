"""The whole span that transformers and samforge are measured over: its pictures and its names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

OBJECTS = (1, 4, 16)
"""Masks a phrase that come to the host: random weights find nothing, so thresholds admit these."""
PICTURES = 6
PHRASE = "a person"


def pictures(height: int, width: int) -> list[np.ndarray]:
    """Random pictures with structure: noise upsampled, so that scores differ."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (PICTURES, -(-height // 24), -(-width // 24), 3), dtype=np.uint8)
    return [
        np.ascontiguousarray(np.kron(one, np.ones((24, 24, 1), np.uint8))[:height, :width])
        for one in coarse
    ]


def sources(source: tuple[int, int]) -> dict[str, list[Any]]:
    """Large pictures on the host by the memory they are in; pinned where there is a GPU."""
    large = pictures(*source)
    found: dict[str, list[Any]] = {"4K pageable": large}
    if torch.cuda.is_available():
        found["4K pinned"] = [torch.from_numpy(image).pin_memory() for image in large]
    return found


def span_name(source: str, objects: int) -> str:
    """Name of a figure of the whole span, the same for every contender."""
    return f"whole, {source}, {objects} masks a phrase"
