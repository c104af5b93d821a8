"""Label Studio's packing of runs, read bit by bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def unpacked(data: list[int], size_hw: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The mask: where all four values of a pixel are 255."""
    bits = "".join(f"{one:08b}" for one in data)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        alike = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if alike else [read(word) for _ in range(length)]
    pixels = np.array(values, np.uint8).reshape(*size_hw, 4)
    assert (pixels == pixels[..., :1]).all()
    assert set(np.unique(pixels).tolist()) <= {0, 255}
    return pixels[..., 3] > 0
