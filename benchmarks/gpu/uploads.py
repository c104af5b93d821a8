"""Ways of a 4K picture from pageable memory to the GPU, each timed until it has arrived.

    python benchmarks/gpu/uploads.py --out FILE
    OMP_NUM_THREADS=4 python benchmarks/gpu/uploads.py --out FILE    # fewer threads for torch

Pictures take turns, so that no cache holds the next one. ``uploader`` is what samforge does.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from _spans import pictures
from _timing import Results, synchronize, wall_ms

from samforge.runtime.device.transfer import Uploader

WRITE_COMBINED = 4
"""``cudaHostAllocWriteCombined`` of the CUDA runtime's driver_types.h."""
Way = Callable[[torch.Tensor], None]


def write_combined(count: int) -> torch.Tensor:
    """Pinned memory that the processor writes past its caches; it reads it slowly."""
    runtime = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}")
    place = ctypes.c_void_p()
    code = runtime.cudaHostAlloc(ctypes.byref(place), ctypes.c_size_t(count), WRITE_COMBINED)
    if code != 0:
        raise RuntimeError(f"cudaHostAlloc gave {code}")
    memory = (ctypes.c_uint8 * count).from_address(int(place.value or 0))
    return torch.frombuffer(memory, dtype=torch.uint8)


def in_pieces(pinned: torch.Tensor, pieces: int) -> Way:
    """Torch's copy to pinned memory, one piece while the last one goes up."""
    target = torch.empty(pinned.shape, dtype=torch.uint8, device="cuda")

    def way(source: torch.Tensor) -> None:
        triples = zip(source.chunk(pieces), pinned.chunk(pieces), target.chunk(pieces), strict=True)
        for piece, buffer, place in triples:
            buffer.copy_(piece)
            place.copy_(buffer, non_blocking=True)

    return way


def by_threads(pinned: torch.Tensor, workers: int, pieces: int) -> Way:
    """Threads that live on call ``memmove``; a piece goes up when it is there."""
    target = torch.empty(pinned.shape, dtype=torch.uint8, device="cuda")
    pool = ThreadPoolExecutor(workers)

    def move(buffer: torch.Tensor, piece: torch.Tensor) -> None:
        ctypes.memmove(buffer.data_ptr(), piece.data_ptr(), piece.numel())

    def way(source: torch.Tensor) -> None:
        buffers, places = pinned.chunk(pieces), target.chunk(pieces)
        moved = [
            pool.submit(move, buffer, piece)
            for buffer, piece in zip(buffers, source.chunk(pieces), strict=True)
        ]
        for done, buffer, place in zip(moved, buffers, places, strict=True):
            done.result()
            place.copy_(buffer, non_blocking=True)

    return way


def registered() -> Way:
    """Pin the picture's own pages for the time of the copy."""
    runtime = torch.cuda.cudart()

    def way(source: torch.Tensor) -> None:
        runtime.cudaHostRegister(source.data_ptr(), source.numel(), 0)
        target = torch.empty(source.shape, dtype=torch.uint8, device="cuda")
        target.copy_(source, non_blocking=True)
        synchronize()
        runtime.cudaHostUnregister(source.data_ptr())

    return way


def straight(source: torch.Tensor) -> None:
    """Leave it to CUDA."""
    source.cuda()


def main() -> None:
    """Time every way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results = Results(options.out, 120)
    images = [torch.from_numpy(np.ascontiguousarray(image)) for image in pictures(2160, 3840)]
    results.add("threads of torch's copy", torch.get_num_threads())
    results.add("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY"))
    flat = [image.flatten() for image in images]
    size = flat[0].numel()
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    host = torch.empty(size, dtype=torch.uint8)
    host.fill_(1)
    uploader = Uploader(torch.device("cuda"))
    ways: dict[str, Callable[[], Way]] = {
        "uploader": lambda: lambda source: (uploader(source.view(2160, 3840, 3)), None)[1],
        "copy on the host alone": lambda: lambda source: (host.copy_(source), None)[1],
        "copy to pinned alone": lambda: lambda source: (pinned.copy_(source), None)[1],
        "straight": lambda: straight,
        "registered": registered,
        **{f"{count} pieces": lambda c=count: in_pieces(pinned, c) for count in (1, 2, 4, 8, 16)},  # type: ignore[misc]
        **{
            f"{count} pieces, write-combined": lambda c=count: in_pieces(write_combined(size), c)  # type: ignore[misc]
            for count in (2, 4, 8)
        },
        **{
            f"{workers} threads, {pieces} pieces": lambda w=workers, p=pieces: by_threads(
                pinned, w, p
            )  # type: ignore[misc]
            for workers, pieces in ((2, 8), (4, 8), (4, 16), (8, 16))
        },
    }
    for words, make in ways.items():
        with results.section(words) as go:
            if go:
                way = make()
                results.add(words, wall_ms(lambda i, w=way: w(flat[i % len(flat)]), 60))  # type: ignore[misc]


if __name__ == "__main__":
    main()
