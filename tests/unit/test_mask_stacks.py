"""Masks that stay on a device are those of the host, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from samforge.runtime.device.holes import filled_masks
from samforge.runtime.device.stacks import DeviceMasks, Ground
from samforge.runtime.pending import Pending
from samforge.runtime.tracking import filled_holes
from samforge.runtime.tracking.cells import Cells
from samforge.runtime.tracking.stacks import HostMasks, MaskStack, joined_masks

STACKS = st.tuples(st.integers(0, 4), st.integers(1, 19), st.integers(1, 19)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.sampled_from([-2, -1, 0, 1, 2]))
)


@contextmanager
def here() -> Iterator[None]:
    with torch.inference_mode():
        yield


GROUND = Ground(device=torch.device("cpu"), here=here, beside=None)


def both(logits: np.ndarray) -> tuple[MaskStack, MaskStack]:
    masks = logits.astype(np.float32)
    return HostMasks(masks), DeviceMasks(torch.from_numpy(masks), GROUND)


def alike(one: Cells, other: Cells) -> bool:
    return (
        one.size_hw == other.size_hw
        and np.array_equal(one.bits, other.bits)
        and np.array_equal(one.boxes, other.boxes)
    )


def noise(rng: np.random.Generator, density: float, count: int) -> np.ndarray:
    """Logits of which a share is above 0; every other mask is smooth and has large parts."""
    rough = rng.normal(size=(count, 29, 34))
    smooth = ndimage.gaussian_filter(rough, (0, 1.2, 1.2))
    rough[::2] = (smooth / smooth.std())[::2]
    limits = np.quantile(rough, 1 - density, axis=(1, 2))
    return (rough - limits[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
def test_holes_are_filled_as_on_the_host(density: float) -> None:
    logits = noise(np.random.default_rng(int(100 * density)), density, 300)
    for area in (1, 5, 16):
        wanted = filled_holes(logits, area)
        found = filled_masks(torch.from_numpy(logits), area).numpy()
        assert np.array_equal(found.view(np.int32), wanted.view(np.int32))
        assert (wanted != logits).any() or density in {0.02, 0.98}


@given(STACKS, st.integers(0, 20))
@settings(deadline=None, max_examples=150)
def test_holes_of_small_masks(stack: np.ndarray, area: int) -> None:
    host, device = both(stack)
    assert np.array_equal(host.filled(area).host(), device.filled(area).host())


def line(length: int) -> np.ndarray:
    """A line of so many cells, the longest way through a component."""
    mask = np.full((9, 20), -1, np.float32)
    mask[4, 1 : 1 + length] = 1
    return mask


def test_holes_at_the_edges() -> None:
    """No cell, all cells, lines as long as they may be, and what is not a number."""
    lines = [line(length) for length in (15, 16, 17)]
    odd = np.full((9, 20), 3, np.float32)
    odd[0, 0], odd[4, 4], odd[8, 8] = np.nan, np.inf, -np.inf
    plain = [np.full((9, 20), -1), np.full((9, 20), 1)]
    host, device = both(np.stack([*plain, *lines, *(-one for one in lines), odd]))
    for area in (0, 1, 15, 16, 17, 40, 180):
        wanted, found = host.filled(area).host(), device.filled(area).host()
        assert np.array_equal(wanted, found, equal_nan=True)
    assert (host.filled(16).host()[5:8] > 0).all(axis=(1, 2)).tolist() == [True, True, False]


@given(STACKS, st.data())
@settings(deadline=None, max_examples=150)
def test_a_device_does_what_the_host_does(stack: np.ndarray, data: st.DataObject) -> None:
    host, device = both(stack)
    if data.draw(st.booleans()):
        device.begin()
        host.begin()
    for _ in range(data.draw(st.integers(0, 3))):
        if not len(host):
            break
        rows = data.draw(st.lists(st.integers(0, len(host) - 1), max_size=4, unique=True))
        name = data.draw(st.sampled_from(["taken", "emptied", "clamped", "filled", "joined"]))
        one, other = (changed(stack, name, rows) for stack in (host, device))
        host, device = one, other
    assert np.array_equal(host.host(), device.host())
    assert alike(host.outline.cells, host.cells)
    assert alike(host.cells, device.cells)
    assert alike(host.cells, HostMasks(host.host()).cells)
    assert host.known.finite.all()
    assert device.known.finite.all()
    if len(host):
        height, width = host.size_hw
        box = (width // 3, height // 3, width // 3 + 1, height)
        rows = data.draw(st.lists(st.integers(0, len(host) - 1), min_size=1, max_size=4))
        assert np.array_equal(host.window(rows, box), device.window(rows, box))


def changed(stack: MaskStack, name: str, rows: Sequence[int]) -> MaskStack:
    if name == "joined":
        return joined_masks([stack, stack.taken(rows)])
    if name == "filled":
        return stack.filled(3, rows)
    done: MaskStack = getattr(stack, name)(rows)
    return done


def test_what_is_not_a_number_is_told() -> None:
    logits = np.ones((4, 5, 11), np.float32)
    logits[1, 2, 3], logits[2, 0, 0], logits[3, 4, 10] = np.nan, np.inf, -np.inf
    for stack in both(logits):
        assert stack.known.has_nan.tolist() == [False, True, False, False]
        assert stack.known.finite.tolist() == [True, False, False, False]
        assert stack.taken([2, 1]).known.has_nan.tolist() == [False, True]
        assert stack.filled(16).known.has_nan.tolist() == [False, True, False, False]


def test_a_wider_outline_does_not_wait() -> None:
    """Where holes were filled since, boxes hold all cells without another way to the host."""
    logits = np.full((2, 12, 12), -1, np.float32)
    logits[0, 3:9, 3:9], logits[0, 5, 5] = 1, -1
    _, device = both(logits)
    filled = device.filled(4)
    assert filled.outline.cells.boxes.tolist() == [[3, 3, 9, 9], [0, 0, 0, 0]]
    device.begin()
    filled = device.filled(4)
    assert filled.outline.cells.boxes.tolist() == [[0, 0, 12, 12], [0, 0, 0, 0]]
    assert filled.cells.boxes.tolist() == [[3, 3, 9, 9], [0, 0, 0, 0]]
    assert filled.cells.areas.tolist() == [36, 0]


@given(STACKS)
@settings(deadline=None)
def test_squares_of_four_cells(stack: np.ndarray) -> None:
    above = stack > 0
    square = above[:, 1:, 1:] & above[:, :-1, 1:] & above[:, 1:, :-1] & above[:, :-1, :-1]
    found = HostMasks(stack.astype(np.float32)).cells.has_square
    assert found.tolist() == square.any(axis=(1, 2)).tolist()


def test_a_pending_answer_is_asked_for_once() -> None:
    asked: list[int] = []

    def finish() -> int:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("not yet")
        return 7

    pending = Pending(finish)
    twice = pending.then(lambda value: 2 * value)
    with pytest.raises(RuntimeError):
        twice.result()
    assert [twice.result(), twice.result(), pending.result()] == [14, 14, 7]
    assert len(asked) == 2
    assert Pending.of("there").result() == "there"


@pytest.mark.parametrize("name", ["taken", "emptied", "clamped"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_rows_may_count_down(name: str, count: int) -> None:
    one, other = both(noise(np.random.default_rng(0), 0.3, count))
    rows = np.arange(count)[::-2]  # of one or two masks a single row, whose step is below 0, too
    changed, wanted = (getattr(stack, name)(rows) for stack in (other, one))
    assert np.array_equal(changed.host(), wanted.host())
    assert alike(changed.cells, wanted.cells)
