"""Weights drawn from the names of the tensors: the same numbers wherever they are drawn.

Whoever runs another implementation on these weights needs this file and the list of names and
shapes, and no download. The raw stream of PCG64 is what numpy guarantees for good (its
distributions may change); behind it comes exact arithmetic, but for one square root and one
multiplication a number.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Shape = Sequence[int]

OF_KIND: tuple[tuple[str, float, float], ...] = (
    (r"trunk\.pos_embed$", 0, 0.03),
    (r"gaussian_matrix$|reference_points\.weight$", 0, 1),
    (r"query_embed\.weight$", 0, 4),
    (r"(token|positional)_embedding(\.weight)?$", 0, 0.5),
    (r"tpos_enc$|no_mem_(embed|pos_enc)$|no_obj_(ptr|embed_spatial)$", 0, 0.5),
    (r"(label_embed|cls_embed|presence_token|not_a_point_embed|no_mask_embed)\.weight$", 0, 1),
    (r"point_embeddings\.\d\.weight$", 0, 1),
    (r"(iou_token|mask_tokens|obj_score_token)\.weight$", 0, 0.3),
    (r"gamma$", 0.5, 0.1),
    (r"bias$", 0, 0.05),
)
"""What is no ordinary weight: a pattern searched in the name, mean and scale. The first counts."""

GAINS: tuple[tuple[str, float], ...] = (
    # Small patches, as in trained ViTs: a wrong epsilon of the norms then shows.
    (r"patch_embed\.proj\.", 0.1),
    (r"bbox_embed\.layers\.2\.|boxRPB_embed_[xy]\.layers\.1\.", 1.5),
    (r"dot_prod_scoring\.(hs|prompt)_proj\.", 2),
    (r"(presence_token_head|mask_predictor\.mask_embed)\.layers\.\d\.", 1.5),
    (r"in_proj_weight$|attn\.qkv\.|[qk]_proj\.", 1.5),
    (r"pred_obj_score_head\.layers", 2.5),
    (r"iou_prediction_head\.layers", 1.7),
    (r"(obj_ptr_proj|output_hypernetworks_mlps\.\d)\.layers", 1.5),
)
"""Factors of ordinary weights, so that scores and masks are lively. The first counts, else 1."""

INPUTS_FIRST = re.compile(r"dconv|output_upscaling|text_projection$")
"""Transposed convolutions and a matrix that is multiplied from the right: (in, out, …)."""


def normal(name: str, shape: Shape) -> npt.NDArray[np.float64]:
    """Draw nearly normal numbers of mean 0 and variance 1, at most 3.47: sums of four uniform ones.

    Args:
        name: Seeds the stream.
        shape: Of the array.
    """
    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    quarters = ((words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    total = sum(quarters, start=np.zeros((), np.uint64)).astype(np.float64)
    return ((total - 131070.0) * (math.sqrt(3.0) / 65536.0)).reshape(shape)


def tensor(name: str, shape: Shape) -> npt.NDArray[np.float32]:
    """Draw a tensor of the checkpoint.

    Args:
        name: As in ``sam3.pt``: ``detector.…`` or ``tracker.…``.
        shape: As there.
    """
    mean, scale = _mean_and_scale(name, shape)
    return (mean + scale * normal(name, shape)).astype(np.float32)


def _mean_and_scale(name: str, shape: Shape) -> tuple[float, float]:
    for pattern, mean, scale in OF_KIND:
        if re.search(pattern, name):
            return mean, scale
    if len(shape) == 1:
        return 1, 0.1  # of norms
    gain = next((gain for pattern, gain in GAINS if re.search(pattern, name)), 1)
    inputs = shape[0] if INPUTS_FIRST.search(name) else math.prod(shape[1:])
    return 0, gain / math.sqrt(inputs)


def digest(tensors: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """SHA-256 over the bytes of all tensors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].astype("<f4").tobytes())
    return found.hexdigest()
