"""What either side answers, as arrays in files: numpy alone, for it runs in both environments."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What one side says of one picture and one prompt: Q queries, N of them admitted."""

    threshold: np.float32
    """Objects score above it."""
    input_ids: npt.NDArray[np.int64]
    """(S,), tokens of the phrase; 0 behind the token that ends it."""
    text_features: Floats
    """(S, D), of the phrase's tokens alone: 0 behind them."""
    logits: Floats
    """(Q,), before the sigmoid, without presence."""
    boxes: Floats
    """(Q, 4), left, top, right, bottom as fractions of the picture."""
    presence_logit: Floats
    """(), before the sigmoid."""
    masks: Floats
    """(Q, h, w), logits on every ``step``-th row and column of the network's masks."""
    signs: npt.NDArray[np.uint8]
    """(Q, ...), which of all the network's mask logits are above 0, packed."""
    admitted: npt.NDArray[np.int64]
    """(N,), queries that score above the threshold, ascending."""
    found_scores: Floats
    """(N,), of the admitted."""
    found_boxes: Floats
    """(N, 4), of the admitted, pixels of the picture."""
    found_masks: npt.NDArray[np.uint8]
    """(N, ...), of the admitted, at the picture's size, packed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Features:
    """What one side's vision makes of one picture: where a difference may begin."""

    pixels: npt.NDArray[np.uint8]
    """(H, W, 3), the picture as the network gets it, before it is normalized."""
    fpn_0: Floats
    """(D, h, w), the finest level, as many cells of it as the coarsest has."""
    fpn_1: Floats
    """(D, h, w), likewise."""
    fpn_2: Floats
    """(D, h, w), the level that the detector reads."""


def thinned(level: npt.NDArray[Any], cells: int) -> Floats:
    """Every so many-th cell of a feature map (D, h, w), ``cells`` by ``cells`` of them."""
    step = level.shape[-1] // cells
    return np.ascontiguousarray(level[:, ::step, ::step], np.float32)


def packed(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Masks (N, H, W) as bits, (N, H * W / 8)."""
    rows = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    bits: npt.NDArray[np.uint8] = np.packbits(rows, axis=1)
    return bits


def tokens_alone(
    ids: npt.NDArray[np.int64], features: npt.NDArray[Any], end: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Put zeros behind a phrase's end: what pads a row must not matter, and differs.

    Args:
        ids: (S,).
        features: (S, D), of the tokens.
        end: Token that ends a phrase.
    """
    ends = np.flatnonzero(ids == end)
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    kept_ids, kept = np.zeros_like(ids), np.zeros(features.shape, np.float32)
    kept_ids[:length], kept[:length] = ids[:length], features[:length]
    return kept_ids, kept


def write(path: Path, arrays: Answer | Features) -> None:
    """Write an answer or features; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {field.name: getattr(arrays, field.name) for field in dataclasses.fields(arrays)}
    np.savez(path, **named)


def read_answer(path: Path) -> Answer:
    """Read what :func:`write` wrote."""
    with np.load(path) as arrays:
        return Answer(**{name: arrays[name] for name in arrays.files})


def read_features(path: Path) -> Features:
    """Read what :func:`write` wrote."""
    with np.load(path) as arrays:
        return Features(**{name: arrays[name] for name in arrays.files})


def answer_path(folder: Path, picture: int, prompt: int) -> Path:
    """Where the answer to a prompt on a picture lies in a run's folder."""
    return folder / f"answer-{picture:04d}-{prompt:04d}.npz"


def features_path(folder: Path, picture: int) -> Path:
    """Where a picture's features lie in a run's folder."""
    return folder / f"features-{picture:04d}.npz"
