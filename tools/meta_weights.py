"""Weights from names: random numbers that make SAM 3's network lively, the same on every machine.

A tensor is drawn from its name as it stands in ``sam3.pt`` (``detector.…``, ``tracker.…``) and its
shape, with the raw stream of PCG64, which numpy guarantees, and exact arithmetic but for one
division and one square root. The scales are chosen so that scores lie between 0 and 1 and mask
logits have both signs: on dull weights every comparison passes. Needs numpy alone.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_TOKENS = (
    r"(token|positional)_embedding(\.weight)?$|tpos_enc$|no_mem_(embed|pos_enc)$"
    r"|no_obj_(ptr|embed_spatial)$"
)
_LEARNED = (
    r"(label_embed|cls_embed|presence_token|point_embeddings\.\d|not_a_point_embed"
    r"|no_mask_embed)\.weight$"
)
FIXED = (
    (r"trunk\.pos_embed$", 0.0, 0.03),
    (r"gaussian_matrix$|reference_points\.weight$", 0.0, 1.0),
    (r"query_embed\.weight$", 0.0, 4.0),
    (_TOKENS, 0.0, 0.5),
    (_LEARNED, 0.0, 1.0),
    (r"(iou_token|mask_tokens|obj_score_token)\.weight$", 0.0, 0.3),
    (r"gamma$", 0.5, 0.1),
    (r"bias$", 0.0, 0.05),
)
"""Pattern searched in the name, mean, deviation: the first that fits. Else norms are 1 +- 0.1."""
GAINS = (
    (r"patch_embed\.proj\.", 0.1),
    (r"bbox_embed\.layers\.2\.|boxRPB_embed_[xy]\.layers\.1\.", 1.5),
    (r"dot_prod_scoring\.(hs|prompt)_proj\.", 2.0),
    (r"(presence_token_head|mask_predictor\.mask_embed)\.layers\.\d\.", 1.5),
    (r"in_proj_weight$|attn\.qkv\.|[qk]_proj\.", 1.5),
    (r"pred_obj_score_head\.layers", 2.5),
    (r"iou_prediction_head\.layers", 1.7),
    (r"(obj_ptr_proj|output_hypernetworks_mlps\.\d)\.layers", 1.5),
)
"""Pattern searched in the name of a weight, and its gain over 1 / sqrt(fan-in): else 1."""
TRANSPOSED = re.compile(r"dconv|output_upscaling|text_projection$")
"""Weights whose fan-in is their first dimension."""
COMPUTED = re.compile(r"\.attn\.freqs_cis$")
"""Rotary tables: they stand in a state dict, and every implementation computes them."""
_PIECE = 1 << 18


def normal(name: str, shape: Sequence[int], seed: int = 0) -> npt.NDArray[np.float64]:
    """Numbers of mean 0 and variance 1, each the sum of four of 16 bits: at most 3.47.

    Args:
        name: Says which numbers.
        shape: How many.
        seed: Another draw of all tensors; 0 is the rule's own.
    """
    numbers = np.empty(math.prod(shape), np.float64)
    _fill(numbers, name, seed, mean=0.0, deviation=1.0)
    return numbers.reshape(shape)


def tensor(name: str, shape: Sequence[int], seed: int = 0) -> npt.NDArray[np.float32]:
    """One tensor of a checkpoint in Meta's layout, by its name there.

    Args:
        name: With ``detector.`` or ``tracker.`` in front.
        shape: As in the checkpoint.
        seed: Another draw of all tensors; 0 is the rule's own.
    """
    mean, deviation = _mean_and_deviation(name, shape)
    numbers = np.empty(math.prod(shape), np.float32)
    _fill(numbers, name, seed, mean=mean, deviation=deviation)
    return numbers.reshape(shape)


def _fill(
    numbers: npt.NDArray[np.floating], name: str, seed: int, *, mean: float, deviation: float
) -> None:
    """Draw in pieces that stay in the processor's cache: 840 million numbers in ten seconds."""
    stream = np.random.PCG64(zlib.crc32(name.encode(), seed))
    for start in range(0, len(numbers), _PIECE):
        piece = numbers[start : start + _PIECE]
        quarters = stream.random_raw(len(piece)).view(np.uint16).reshape(-1, 4)
        total = quarters[:, 0].astype(np.float64)
        for column in (1, 2, 3):
            total += quarters[:, column]
        total -= 131070.0
        total *= math.sqrt(3.0) / 65536.0
        total *= deviation
        total += mean
        piece[:] = total


def _mean_and_deviation(name: str, shape: Sequence[int]) -> tuple[float, float]:
    for pattern, mean, deviation in FIXED:
        if re.search(pattern, name):
            return mean, deviation
    if len(shape) == 1:
        return 1.0, 0.1
    fan_in = shape[0] if TRANSPOSED.search(name) else math.prod(shape[1:])
    gain = next((gain for pattern, gain in GAINS if re.search(pattern, name)), 1.0)
    return 0.0, gain / math.sqrt(fan_in)
