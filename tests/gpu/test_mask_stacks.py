"""Masks that stay on a GPU: what the host of a processor does with them, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from samforge.runtime.device.stacks import DeviceMasks, Ground
from samforge.runtime.device.transfer import begin_to_host, to_device
from samforge.runtime.tracking.stacks import HostMasks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SIDE = 288


@contextmanager
def here() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def ground() -> Ground:
    beside = torch.cuda.Stream(priority=-1)
    return Ground(device=torch.device("cuda"), here=here, beside=beside)


def logits(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.normal(size=(count, SIDE // 16, SIDE // 16)), np.ones((1, 16, 16)))
    return (coarse + 0.7 * rng.normal(size=(count, SIDE, SIDE))).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_holes_and_cells(ground: Ground, count: int) -> None:
    masks = logits(count)
    host, device = HostMasks(masks), DeviceMasks(torch.from_numpy(masks).cuda(), ground)
    one, other = host.filled(16), device.filled(16)
    assert np.array_equal(one.host(), other.host())
    assert np.array_equal(one.cells.bits, other.cells.bits)
    assert np.array_equal(one.cells.boxes, other.cells.boxes)
    assert other.known.finite.all()
    rows = np.arange(count)[::-2]
    for name in ("taken", "emptied", "clamped"):
        changed = getattr(other, name)(rows)
        assert np.array_equal(changed.host(), getattr(one, name)(rows).host())
        assert np.array_equal(changed.cells.bits, getattr(one, name)(rows).cells.bits)


def busy() -> torch.Tensor:
    """Work of about two seconds, begun: float32 products on the cores that are no tensor cores."""
    square = torch.randn(8192, 8192, device="cuda")
    for _ in range(100):
        square = square @ square / 8192
    return square


def test_windows_and_copies_do_not_wait_for_later_work(ground: Ground) -> None:
    masks = logits(9)
    device = DeviceMasks(torch.from_numpy(masks).cuda(), ground)
    device.begin()
    assert device.known.finite.all()
    box = (5, 7, 90, 33)
    # Handles, workspaces, kernels and pinned memory are made in first calls, which may wait.
    busy()
    to_device(torch.arange(9), ground.device)
    device.taken([3, 1]).window([0, 1], box)
    small = begin_to_host([device.values[0]])
    torch.cuda.synchronize()
    busy()
    behind = torch.cuda.Event()
    behind.record()
    up = to_device(torch.arange(9), ground.device)
    assert np.array_equal(small.result()[0].numpy(), masks[0])
    taken = device.taken([3, 1])
    assert np.array_equal(taken.window([0, 1], box), masks[[3, 1], 7:33, 5:90])
    assert not behind.query()
    torch.cuda.synchronize()
    assert up.tolist() == list(range(9))
