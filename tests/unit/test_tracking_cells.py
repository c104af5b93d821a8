"""Overlaps and holes found around masks are those of passes over all their cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from samforge.runtime.tracking import filled_holes, mask_ious
from samforge.runtime.tracking.cells import boxes_meeting, cells_from_masks
from samforge.runtime.tracking.masks import without_holes

STACKS = st.tuples(st.integers(0, 4), st.integers(1, 19), st.integers(1, 19)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.sampled_from([-2, -1, 0, 1, 2]))
)
AREA = 3


def small_of(cells: np.ndarray, area: int) -> np.ndarray:
    labels, count = ndimage.label(cells, structure=np.ones((3, 3)))
    small = np.zeros_like(cells)
    for number in range(1, count + 1):
        component = labels == number
        if component.sum() <= area:
            small |= component
    return small


@given(STACKS)
@settings(deadline=None)
def test_cells_are_those_above_zero(stack: np.ndarray) -> None:
    cells, above = cells_from_masks(stack), stack > 0
    assert cells.areas.tolist() == above.sum(axis=(1, 2)).tolist()
    assert cells.any.tolist() == above.any(axis=(1, 2)).tolist()
    for box, mask in zip(cells.boxes.tolist(), above, strict=True):
        rows, columns = np.nonzero(mask)
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if mask.any() else 0
        assert box == wanted or (wanted == 0 and box == [0, 0, 0, 0])


@given(STACKS)
@settings(deadline=None)
def test_overlaps_are_exact(stack: np.ndarray) -> None:
    above, other = stack > 0, (stack[::-1] > 0) | (stack[::-1] == -2)
    both = (above[:, None] & other[None]).sum(axis=(2, 3))
    either = (above[:, None] | other[None]).sum(axis=(2, 3))
    assert np.array_equal(mask_ious(above, other), (both / np.maximum(either, 1)).astype("f4"))


@given(STACKS)
@settings(deadline=None)
def test_holes_are_found_around_the_mask(stack: np.ndarray) -> None:
    logits = stack.astype(np.float32)
    wanted = logits.copy()
    for mask in wanted:
        mask[small_of(mask <= 0, AREA)] = np.float32(0.1)
    assert np.array_equal(without_holes(logits, AREA, np.float32(0.1)), wanted)
    for mask in wanted:
        above = mask > 0
        mask[small_of(above, min(AREA, int(above.sum()) // 2))] = np.float32(-0.1)
    assert np.array_equal(filled_holes(logits, AREA), wanted)


@pytest.mark.parametrize(
    ("first", "second", "meets"),
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], True),
        ([0, 0, 2, 2], [2, 0, 4, 2], False),
        ([0, 0, 0, 0], [0, 0, 9, 9], False),  # an empty mask
        ([3, 3, 4, 4], [0, 0, 9, 9], True),
    ],
)
def test_boxes_meet_where_they_share_a_cell(
    first: list[int], second: list[int], meets: bool
) -> None:
    assert boxes_meeting(np.array([first]), np.array([second])).tolist() == [[meets]]
