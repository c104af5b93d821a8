"""Masks enlarged, made smaller and remembered as torch and Meta's rules have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from samforge.runtime.tracking import META, TRANSFORMERS, without_shrunk
from samforge.runtime.tracking.given import given_logits, masks_to_give
from samforge.runtime.tracking.host_parts import bfloat16_bits, floats_from_bfloat16
from samforge.runtime.tracking.parts import TrackerFacts
from samforge.runtime.tracking.remembered import remembered, remembered_scores
from samforge.runtime.tracking.resize import enlarged, resampled
from samforge.runtime.tracking.stacks import HostMasks

RNG = np.random.default_rng(3)


def by_torch(masks: np.ndarray, size: tuple[int, int], *, antialias: bool) -> np.ndarray:
    whole = torch.from_numpy(masks)[None]
    return interpolate(whole, size=size, mode="bilinear", antialias=antialias)[0].numpy()


@pytest.mark.parametrize("size", [(96, 96), (33, 77), (24, 31), (25, 500)])
def test_enlarged_as_torch(size: tuple[int, int]) -> None:
    masks = RNG.normal(0, 20, (2, 24, 31)).astype(np.float32)
    assert np.abs(enlarged(masks, size) - by_torch(masks, size, antialias=False)).max() < 2e-5


@pytest.mark.parametrize("size", [(64, 64), (24, 31), (150, 10), (7, 300), (149, 199), (1, 1)])
def test_resampled_as_torch(size: tuple[int, int]) -> None:
    masks = RNG.normal(0, 20, (2, 150, 200)).astype(np.float32)
    found = resampled(masks, size)
    assert found.shape == (2, *size)
    assert np.abs(found - by_torch(masks, size, antialias=True)).max() < 5e-5


def blobs(count: int, rng: np.random.Generator = RNG) -> np.ndarray:
    """Smooth logits whose masks overlap here and there."""
    rows, columns = np.mgrid[:16, :16]
    places = rng.uniform(0, 16, (count, 2))
    radii = rng.uniform(0.5, 5, count)
    distances = np.hypot(rows - places[:, :1, None], columns - places[:, 1:, None])
    return ((radii[:, None, None] - distances) * 2).astype(np.float32)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_remembered_is_decided_at_the_encoders_size(seed: int) -> None:
    masks, phrases = blobs(7, np.random.default_rng(seed)), np.arange(7) % 2
    found, told = remembered(HostMasks(masks), phrases, META, 64)
    logits = found.host()
    large = by_torch(masks, (64, 64), antialias=False)
    kept = without_shrunk(large, phrases, META.shrink_ratio)
    emptied = (large != kept).any(axis=(1, 2)) | ~(kept > 0).any(axis=(1, 2))
    was_small = np.array([np.array_equal(one, two) for one, two in zip(logits, masks, strict=True)])
    changed = (large != kept).any(axis=(1, 2))
    assert (was_small == ~changed).all()
    assert (logits[changed] <= -10).all()
    scores = remembered_scores(found, META, 64)
    assert told.tolist() == scores.tolist()
    assert scores.tolist() == np.where(emptied, -10, 10).tolist()


def test_a_mask_between_two_cells_counts_as_it_is_drawn() -> None:
    speck = np.full((1, 16, 16), -50, np.float32)
    speck[0, 4, 4] = 1
    # Enlarged, nothing of it is above 0.
    assert remembered_scores(HostMasks(speck), META, 64).tolist() == [-10]
    assert remembered_scores(HostMasks(speck), TRANSFORMERS, 64).tolist() == [10]


def test_transformers_decides_at_the_masks_size() -> None:
    masks, phrases = blobs(7), np.zeros(7)
    found = remembered(HostMasks(masks), phrases, TRANSFORMERS, 64)[0].host()
    assert np.array_equal(found, without_shrunk(masks, phrases, TRANSFORMERS.shrink_ratio))


def test_masks_that_are_given() -> None:
    facts = {"image_size": 56, "mask_side": 16, "memory_side": 64, "digest": ""}
    meta = TrackerFacts(prompt_side=64, **facts)
    other = TrackerFacts(prompt_side=56, reference="transformers", **facts)
    logits = blobs(3)
    given = masks_to_give(logits, meta)
    assert np.array_equal(given > 0, by_torch(logits, (64, 64), antialias=False) > 0)
    assert set(np.unique(given)) == {0, 1}
    soft = masks_to_give(logits, other)
    hard = (logits >= 0.5).astype(np.float32)
    assert np.abs(soft - by_torch(hard, (56, 56), antialias=False)).max() < 1e-6
    at_frame = by_torch(given, (40, 70), antialias=True) > 0.5
    wanted = by_torch(np.where(at_frame, 1024, -1024).astype(np.float32), (16, 16), antialias=True)
    assert np.abs(given_logits(given, meta, (40, 70)) - wanted).max() < 1e-3
    assert np.abs(given_logits(soft, other, (40, 70))).max() <= 10


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    bits = RNG.integers(0, 2**32, 10_000, dtype=np.uint32)
    floats = np.concatenate(
        [
            bits.view(np.float32),
            np.array([0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32),
        ]
    )
    wanted = torch.from_numpy(floats).to(torch.bfloat16).float().numpy()
    found = floats_from_bfloat16(bfloat16_bits(floats))
    assert np.array_equal(found, wanted, equal_nan=True)
