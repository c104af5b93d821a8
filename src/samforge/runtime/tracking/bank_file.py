"""Banks as one npz file: arrays and numbers only, nothing that runs when it is read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samforge.core.errors import InputError
from samforge.core.files import atomic_write_bytes
from samforge.runtime.tracking.bank import Array, Memory, MemoryBank

_VERSION = 1


def save_banks(path: Path, banks: Mapping[int, MemoryBank]) -> None:
    """Write the banks of objects, whole or not at all.

    Args:
        path: The file, replaced if it is there.
        banks: By id of the track.

    Raises:
        OutputError: The file cannot be written.
    """
    arrays: dict[str, Array] = {
        "version": np.array(_VERSION),
        "ids": np.array(list(banks), np.int64),
    }
    for number, bank in banks.items():
        # (frame, conditioning, pinned) of each memory; its arrays stand by the frame's number.
        arrays[f"{number}/frames"] = np.array(
            [[memory.frame, memory.conditioning, memory.pinned] for memory in bank], np.int64
        ).reshape(-1, 3)
        arrays[f"{number}/scores"] = np.array([memory.score for memory in bank], np.float64)
        for memory in bank:
            arrays[f"{number}/{memory.frame}/pointer"] = memory.pointer
            if memory.features is not None:
                arrays[f"{number}/{memory.frame}/features"] = memory.features
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub names one keyword only
    atomic_write_bytes(path, buffer.getvalue())


def banks_from_file(path: Path) -> dict[int, MemoryBank]:
    """Read what :func:`save_banks` wrote.

    Returns:
        Banks by id, in the order they were given.

    Raises:
        InputError: The file cannot be read, or holds no banks of this version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        _check_version(int(arrays["version"]))
        return {number: _bank(arrays, number) for number in arrays["ids"].tolist()}
    except Exception as error:  # zip, header, key and OS errors alike
        raise InputError(
            f"{path} cannot be read as memory banks: {error}. Give a file that save_banks wrote."
        ) from error


def _check_version(version: int) -> None:
    if version != _VERSION:
        raise InputError(f"it is of version {version}, and this samforge reads {_VERSION}")


def _bank(arrays: Mapping[str, Array], number: int) -> MemoryBank:
    rows = arrays[f"{number}/frames"].tolist()
    scores = arrays[f"{number}/scores"].tolist()
    return MemoryBank(
        memories=tuple(
            Memory(
                frame=frame,
                pointer=arrays[f"{number}/{frame}/pointer"],
                features=arrays.get(f"{number}/{frame}/features"),
                conditioning=bool(conditioning),
                score=score,
                pinned=bool(pinned),
            )
            for (frame, conditioning, pinned), score in zip(rows, scores, strict=True)
        )
    )
