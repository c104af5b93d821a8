"""Banks as one npz file: arrays and numbers only, nothing that runs when it is read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.errors import InputError
from samforge.core.files import atomic_write_bytes
from samforge.runtime.tracking.bank import Array, Memory, MemoryBank

_VERSION = 1


def save_banks(path: Path, banks: Mapping[int, MemoryBank]) -> None:
    """Write the banks of objects, whole or not at all, whose features are arrays of the host.

    Args:
        path: The file, replaced if it is there.
        banks: By id of the track.

    Raises:
        OutputError: The file cannot be written.
    """
    write_arrays(path, {"version": np.array(_VERSION), **arrays_from_banks(banks, np.asarray)})


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an npz file, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub names one keyword only
    atomic_write_bytes(path, buffer.getvalue())


def arrays_from_banks(
    banks: Mapping[int, MemoryBank], saved: Callable[[Any], Array]
) -> dict[str, Array]:
    """The banks of objects as named arrays.

    Args:
        banks: By id of the track.
        saved: Brings the features of one memory to the host.
    """
    arrays: dict[str, Array] = {"ids": np.array(list(banks), np.int64)}
    for number, bank in banks.items():
        # (frame, conditioning, pinned) of each memory; its arrays stand by the frame's number.
        arrays[f"{number}/frames"] = np.array(
            [[memory.frame, memory.conditioning, memory.pinned] for memory in bank], np.int64
        ).reshape(-1, 3)
        arrays[f"{number}/scores"] = np.array([memory.score for memory in bank], np.float64)
        for memory in bank:
            arrays[f"{number}/{memory.frame}/pointer"] = memory.pointer
            if memory.features is not None:
                arrays[f"{number}/{memory.frame}/features"] = saved(memory.features)
    return arrays


def banks_from_arrays(
    arrays: Mapping[str, Array], restored: Callable[[Array], Any]
) -> dict[int, MemoryBank]:
    """The banks that :func:`arrays_from_banks` wrote, by id.

    Args:
        arrays: All of a file.
        restored: Takes the features of one memory to where they are kept.

    Raises:
        KeyError: An array is missing.
    """
    return {number: _bank(arrays, number, restored) for number in arrays["ids"].tolist()}


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
        return banks_from_arrays(arrays, np.asarray)
    except Exception as error:  # zip, header, key and OS errors alike
        raise InputError(
            f"{path} cannot be read as memory banks: {error}. Give a file that save_banks wrote."
        ) from error


def _check_version(version: int) -> None:
    if version != _VERSION:
        raise InputError(f"it is of version {version}, and this samforge reads {_VERSION}")


def _bank(arrays: Mapping[str, Array], number: int, restored: Callable[[Array], Any]) -> MemoryBank:
    rows = arrays[f"{number}/frames"].tolist()
    scores = arrays[f"{number}/scores"].tolist()
    return MemoryBank(
        memories=tuple(
            Memory(
                frame=frame,
                pointer=arrays[f"{number}/{frame}/pointer"],
                features=_features(arrays.get(f"{number}/{frame}/features"), restored),
                conditioning=bool(conditioning),
                score=score,
                pinned=bool(pinned),
            )
            for (frame, conditioning, pinned), score in zip(rows, scores, strict=True)
        )
    )


def _features(array: Array | None, restored: Callable[[Array], Any]) -> Any:
    return None if array is None else restored(array)
