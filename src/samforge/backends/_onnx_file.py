"""Notes that an ``.onnx`` file carries, read without a protobuf library.

A flavour of a graph may need settings of the runtime. They travel in the file's
``metadata_props``, and a session must know them before it loads the file: ONNX Runtime shows them
only afterwards, and the package ``onnx`` is not there where bundles run.

Source: ``ModelProto`` and ``StringStringEntryProto`` in onnx/onnx.proto; wire format of protobuf.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

METADATA_FIELD = 14
"""``ModelProto.metadata_props``."""
LENGTH_DELIMITED = 2
"""The wire type of strings and messages."""
SKIPPED = {1: 8, 5: 4}
"""Bytes of the wire types of fixed size."""
LARGEST_NOTE = 2**20
"""Longest entry that is read, in bytes."""


def notes_from_onnx(path: Path) -> dict[str, str]:
    """Read ``metadata_props``; weights are skipped, so it takes no time at any size.

    Returns:
        Nothing for a file that is no ONNX file: the runtime says so with a better message.
    """
    try:
        with path.open("rb") as file:
            return dict(_entry(content) for content in _entries(file, path.stat().st_size))
    except (OSError, EOFError, ValueError, KeyError):
        return {}


def _entries(file: BinaryIO, size: int) -> Iterator[bytes]:
    while file.tell() < size:
        field, content = _field(file, wanted=METADATA_FIELD)
        if field == METADATA_FIELD:
            yield content


def _field(file: BinaryIO, wanted: int | None = None) -> tuple[int, bytes]:
    """Read one field; the content of others than the wanted is skipped."""
    key = _varint(file)
    field, wire = key >> 3, key & 7
    if wire == LENGTH_DELIMITED:
        length = _varint(file)
        if wanted in (None, field):
            if length > LARGEST_NOTE:
                raise ValueError(f"a note of {length} bytes")
            return field, file.read(length)
        file.seek(length, 1)
    elif wire == 0:
        _varint(file)
    else:
        file.seek(SKIPPED[wire], 1)
    return field, b""


def _varint(file: BinaryIO) -> int:
    number = shift = 0
    while True:
        byte = file.read(1)
        if not byte:
            raise EOFError
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _entry(content: bytes) -> tuple[str, str]:
    """Key (field 1) and value (field 2) of one entry."""
    stream, parts = io.BytesIO(content), {1: b"", 2: b""}
    while stream.tell() < len(content):
        field, value = _field(stream)
        parts[field] = value
    return parts[1].decode(), parts[2].decode()
