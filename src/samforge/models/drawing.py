"""Random values of one input each: the right kind, without meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from samforge.core.session import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenIds:
    """Which ids a model reads; a model that reads no phrases has none of them."""

    vocabulary: int = 0
    """Ids are drawn below it."""
    eos_id: int = 0
    """Closes every row of ids, so that a text mask has something to find."""


Draw: TypeAlias = Callable[[np.random.Generator, tuple[int, ...], TokenIds], Array]
"""Draws an array of a shape; the same generator gives the same values."""


def normal(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """Normal numbers in float32, as features and normalized pixels are."""
    return rng.standard_normal(shape, dtype=np.float32)


def token_rows(rng: np.random.Generator, shape: tuple[int, ...], tokens: TokenIds) -> Array:
    """Rows of ids in int64: some words, then the end to the last place.

    Args:
        rng: Source of randomness.
        shape: (P, context).
        tokens: Which ids there are.
    """
    ids = rng.integers(0, max(1, tokens.vocabulary - 2), shape)
    ids[ids == tokens.eos_id] = 0
    for row in ids:
        length = int(rng.integers(2, shape[1]))
        row[length - 1 :] = tokens.eos_id
    return ids


def token_mask(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """(P, context) in bool: true at the first tokens of each phrase, two or more."""
    lengths = rng.integers(2, shape[1], shape[0])
    return np.asarray(np.arange(shape[1])[None] < lengths[:, None])


def boxes_in_image(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """(…, 4) in float32: centre and size of boxes that lie in the image, in its widths."""
    size = rng.uniform(0.05, 0.5, (*shape[:-1], 2))
    centre = rng.uniform(size / 2, 1 - size / 2)
    return np.concatenate([centre, size], -1).astype(np.float32)


def box_signs(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """(…, boxes) in int64: 1 like this, 0 unlike this, -10 no box; the first is always a 1."""
    labels = rng.integers(0, 2, shape)
    labels[..., 0] = 1
    if shape[-1] > 1:
        labels[..., -1][rng.random(shape[:-1]) < 0.5] = -10
    return labels


def wide(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """Normal numbers times 4 in float32, as logits of masks are."""
    return np.float32(4) * rng.standard_normal(shape, dtype=np.float32)


def rectangles(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """(N, 1, h, w) in float32: logits of a rectangle each, at a level of its own.

    Behind them stand decisions, above 0 or not and which of several is the highest. Of noise some
    cell always lies within rounding of one, and two right programs would differ there.
    """
    count, _one, height, width = shape
    levels = 4 + np.arange(count, dtype=np.float32) / 8
    logits = np.empty(shape, np.float32)
    for number, level in enumerate(levels):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        bottom, right = rng.integers(height // 2, height) + 1, rng.integers(width // 2, width) + 1
        # Not as far below 0 as above: halfway between two cells lies no 0, nor at any other step.
        logits[number] = -0.618 * level
        logits[number, 0, top:bottom, left:right] = level
    return logits


def coin(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """True and false in equal shares."""
    return rng.random(shape) < 0.5


def zero_or_one(rng: np.random.Generator, shape: tuple[int, ...], _: TokenIds) -> Array:
    """0 and 1 in float32, in equal shares, as pixels of a mask are."""
    return (rng.random(shape) < 0.5).astype(np.float32)


def between(low: float, high: float) -> Draw:
    """Draws numbers in float32 from ``low`` to below ``high``, each as likely as the others."""
    return lambda rng, shape, _: rng.uniform(low, high, shape).astype(np.float32)


def integers(low: int, high: int) -> Draw:
    """Draws whole numbers in int64 from ``low`` to below ``high``."""
    return lambda rng, shape, _: rng.integers(low, high, shape)
