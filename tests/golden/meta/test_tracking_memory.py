"""Which memories and pointers Meta's attention was given, in which order and with which codes.

Its keys are drawn from the number of the frame, so they tell the frame.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from tests.golden.meta.arrays import Array
from tests.golden.meta.tracking import tracking_arrays
from tools.meta_weights import normal, tensor

from samforge.runtime.tracking import (
    META,
    TRANSFORMERS,
    Attended,
    attended_frames,
    effective_score,
)

CASES = (
    *("memories_1", "memories_3", "memories_7", "memories_7_batch_2", "pointers_16"),
    *("short_video_8_frames", "conditioning_6", "reverse", "gap"),
)
BY_TIME = replace(META.memory, least_score=None)


def case(name: str) -> dict[str, Array]:
    prefix = f"attention/{name}/"
    found = {
        n.removeprefix(prefix): a for n, a in tracking_arrays().items() if n.startswith(prefix)
    }
    assert found
    return found


def attended(arrays: dict[str, Array]) -> Attended:
    return attended_frames(
        arrays["conditioning"].tolist(),
        dict.fromkeys(arrays["ordinary"].tolist(), 1.0),
        int(arrays["frame"]),
        BY_TIME,
        length=int(arrays["num_frames"]),
        reverse=bool(arrays["reverse"]),
    )


@lru_cache
def memory_key(frame: int, row: int) -> Array:
    """The first token of a memory, rounded to bfloat16 (to the nearest, ties to even)."""
    token = normal(f"input.memory.{frame}.{row}", (64, 16, 16))[:, 0, 0].astype(np.float32)
    bits = token.view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def pointer_key(frame: int, row: int) -> Array:
    """The first of four tokens of a pointer."""
    return normal(f"input.pointer.{frame}.{row}", (256,))[:64].astype(np.float32)


def pointer_code(share: float) -> Array:
    """Sine code of a distance, projected."""
    period = 10_000 ** (2 * (np.arange(128) // 2) / 128)
    code = np.concatenate([np.sin(share / period), np.cos(share / period)])
    weight = tensor("tracker.obj_ptr_tpos_proj.weight", (64, 256)).astype(np.float64)
    return weight @ code + tensor("tracker.obj_ptr_tpos_proj.bias", (64,))


@pytest.mark.parametrize("name", CASES)
def test_the_frames_are_metas_in_metas_order(name: str) -> None:
    arrays = case(name)
    found = attended(arrays)
    total, of_pointers = arrays["tokens"].tolist()
    assert len(found.pointers) * 4 == of_pointers
    assert len(found.memories) * 256 == total - of_pointers
    for row in range(arrays["keys"].shape[1]):
        wanted = [memory_key(frame, row) for frame, _ in found.memories]
        wanted += [pointer_key(frame, row) for frame, _ in found.pointers]
        assert np.array_equal(arrays["keys"][:, row], np.stack(wanted))


@pytest.mark.parametrize("name", CASES)
def test_the_codes_are_metas(name: str) -> None:
    arrays = case(name)
    found = attended(arrays)
    codes = tensor("tracker.maskmem_tpos_enc", (7, 1, 1, 64))[:, 0, 0]
    positions = arrays["key_positions"][:, 0]
    count = len(found.memories)
    # Conditioning frames, code 0, take the last row of the table.
    spatial = [positions[at] - codes[code - 1] for at, (_, code) in enumerate(found.memories)]
    assert np.ptp(np.stack(spatial), axis=0).max() < 1e-6
    wanted = [pointer_code(distance / found.pointer_span) for _, distance in found.pointers]
    assert np.abs(positions[count:] - np.stack(wanted)).max() < 1e-5


def test_transformers_takes_other_pointers_there() -> None:
    arrays = case("conditioning_6")
    ours = attended(arrays)
    theirs = attended_frames(
        arrays["conditioning"].tolist(),
        dict.fromkeys(arrays["ordinary"].tolist(), 1.0),
        int(arrays["frame"]),
        TRANSFORMERS.memory,
        length=40,
    )
    # Frames 0 and 4 are not selected: at Meta's only a neighbour in time would give a pointer.
    assert {frame for frame, _ in theirs.pointers} - {frame for frame, _ in ours.pointers} == {0, 4}
    assert theirs.memories == ours.memories


def test_scores_of_memory_selection_are_metas() -> None:
    arrays = tracking_arrays()
    names = [name for name in arrays if name.endswith("/eff_iou_score")]
    assert len(names) == 27
    own = []
    for name in names:
        frame = name.removesuffix("eff_iou_score")
        values = arrays[f"{frame}iou_score"], arrays[f"{frame}object_score"]
        assert effective_score(*values) == pytest.approx([float(arrays[name])] * 2, abs=1e-6)
        own.append(abs(effective_score(*values, per_object=True).mean() - arrays[name]))
    # The mean of the products is another number: Meta multiplies every object with every other.
    assert max(own) > 1e-3
