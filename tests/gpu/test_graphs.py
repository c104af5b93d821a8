"""CUDA graphs beside other threads and other GPUs."""

from __future__ import annotations

import threading

import pytest
import torch

from samforge.runtime.device.graphs import Graphs
from samforge.runtime.device.transfer import begin_to_host

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS = 500
"""Kernels of a call: another thread does something meanwhile."""


def counted(source: torch.Tensor) -> dict[str, torch.Tensor]:
    value = source
    for _ in range(STEPS):
        value = value + 1
    return {"value": value}


def test_other_threads_wait_and_allocate_while_calls_are_captured() -> None:
    graphs, source = Graphs(torch.device("cuda"), enabled=True), torch.zeros(3, device="cuda")
    failed: list[Exception] = []
    ended = threading.Event()

    def work() -> None:
        size = 1
        try:
            while not ended.is_set():
                size = size % 64 + 1  # of pinned memory, too
                begin_to_host([torch.ones(size << 12, device="cuda")]).result()
        except Exception as error:  # noqa: BLE001  # told below
            failed.append(error)

    other = threading.Thread(target=work)
    other.start()
    try:
        found = [graphs.run(key, lambda: counted(source))["value"].tolist() for key in range(8)]
    finally:
        ended.set()
        other.join()
    assert not failed
    assert found == [[STEPS] * 3] * 8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_gpu_has_graphs_of_its_own() -> None:
    for number in range(2):
        device = torch.device("cuda", number)
        with torch.cuda.device(device):
            graphs, source = Graphs(device, enabled=True), torch.ones(3, device=device)
            value = graphs.run("one", lambda source=source: counted(source))["value"]  # type: ignore[misc]
        assert value.device == device
        assert value.tolist() == [STEPS + 1] * 3
