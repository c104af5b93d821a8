"""RoIAlign as matrix products gives what torchvision's loops give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samforge.models.sam3.roi_align import roi_align

Reference = Callable[..., Any]


def pooled(feature: Any, box: list[float], bins: int) -> Any:
    """Pool one box of a single-channel map."""
    return roi_align(feature[None, None], torch.tensor([[box]], dtype=feature.dtype), bins)[0, 0, 0]


def test_a_cell_is_sampled_in_its_middle() -> None:
    # The map is 10 * row + column. A box of one cell has one sample a bin, half a cell from its
    # corner; without torchvision's alignment that lies between four cells.
    feature = torch.arange(4.0)[:, None] * 10 + torch.arange(4.0)
    assert pooled(feature, [1, 2, 2, 3], 1).item() == 2.5 * 10 + 1.5


def test_bins_average_their_own_samples() -> None:
    # 4 cells over 2 bins: two samples a bin along each axis, at 0.5 and 1.5, then 2.5 and 3.5;
    # 3.5 is beyond the middle of the last cell and takes its value, 3.
    feature = torch.arange(4.0).expand(4, 4)
    columns = [(0.5 + 1.5) / 2, (2.5 + 3.0) / 2]
    assert pooled(feature, [0, 0, 4, 4], 2).tolist() == [columns, columns]
    assert pooled(feature.T, [0, 0, 4, 4], 2).tolist() == [[columns[0]] * 2, [columns[1]] * 2]


def test_a_small_box_counts_as_one_cell() -> None:
    feature = torch.arange(6.0).expand(6, 6)
    # 0.2 wide at 2.0 becomes 1 wide: two bins of half a cell, sampled at 2.25 and 2.75.
    assert pooled(feature, [2.0, 2.0, 2.2, 2.2], 2)[0].tolist() == [2.25, 2.75]


def test_every_bin_has_the_same_grid() -> None:
    # 5 cells over 2 bins of 2.5: ceil(2.5) = 3 samples each, 5/6 apart.
    feature = torch.arange(8.0).expand(8, 8)
    first = torch.tensor([0.5, 1.5, 2.5]) * 5 / 6
    expected = torch.stack([first.mean(), (first + 2.5).mean()])
    assert torch.allclose(pooled(feature, [0, 0, 5, 5], 2)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 9, 7],
        [0, 0, 0.5, 0.5],
        [8.5, 6.5, 9, 7],
        [8.999, 6.999, 9, 7],
        [0, 3, 9, 3.01],
        [4, 0, 4, 7],
    ],
    ids=["all of it", "first corner", "last corner", "a point", "flat", "no width"],
)
@pytest.mark.parametrize("bins", [1, 3, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_boxes_at_the_borders(
    roi_align_by_definition: Reference, box: list[float], bins: int, dtype: Any, tolerance: float
) -> None:
    feature = torch.randn(1, 3, 7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    boxes = torch.tensor([[box]], dtype=dtype)
    expected = roi_align_by_definition(feature, boxes.unbind(0), bins)
    assert (roi_align(feature, boxes, bins)[0] - expected).abs().max() <= tolerance


fraction = st.floats(0, 1, width=32)


@settings(deadline=None, max_examples=60)
@given(
    boxes=st.lists(st.tuples(fraction, fraction, fraction, fraction), min_size=1, max_size=3),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    bins=st.integers(1, 7),
)
def test_any_box_inside_the_map(
    roi_align_by_definition: Reference,
    boxes: list[tuple[float, float, float, float]],
    height: int,
    width: int,
    bins: int,
) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)
    feature = torch.randn(2, 2, height, width, generator=generator, dtype=torch.float64)
    # Both images have all boxes, the second one in reverse, so a mix-up of images would show.
    corners = torch.tensor(boxes, dtype=torch.float64).view(-1, 2, 2).sort(1).values
    one = (corners * torch.tensor([width, height])).flatten(1)
    both = torch.stack([one, one.flip(0)])
    found = roi_align(feature, both, bins)
    assert found.shape == (2, len(boxes), 2, bins, bins)
    expected = roi_align_by_definition(feature, both.unbind(0), bins)
    assert (found.flatten(0, 1) - expected).abs().max() <= 1e-12
