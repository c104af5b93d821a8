"""Tensors of the Open Inference Protocol: JSON, or Triton's binary extension.

https://github.com/kserve/open-inference-protocol and
https://github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.apps.serve.arriving import whole_number
from samforge.core.errors import ShapeError, TooLarge

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""Names of the protocol that are spoken here; BYTES is a list of strings of bytes."""
BYTES = "BYTES"
_MOST_DIMENSIONS = 8
_MOST_VALUES = 8_000_000
"""Of a request's JSON: each takes about 30 bytes while it is read."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tensor:
    """One named tensor."""

    name: str
    datatype: str
    """A key of ``DTYPES``, or ``BYTES``."""
    array: npt.NDArray[Any]
    """Of objects, which are bytes, where it is ``BYTES``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InferRequest:
    """What a client sent."""

    id: str
    tensors: Mapping[str, Tensor]
    outputs: Mapping[str, bool] | None
    """Wanted outputs, and whether each is to come as binary; None for all."""
    binary: bool
    """Whether outputs come as binary that do not say."""
    parameters: Mapping[str, Any]


def request_from_body(body: bytes, header_length: str | None) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, and behind it the binary tensors one after the other.
        header_length: ``Inference-Header-Content-Length``: bytes of the JSON; None for all.

    Raises:
        ShapeError: It is none, or a tensor does not have the bytes that its shape says.
    """
    length = len(body)
    if header_length is not None:
        said = whole_number(header_length)
        if said is None or said > length:
            raise ShapeError(
                f"Inference-Header-Content-Length is {header_length[:40]!r}, and the body has "
                f"{length} bytes. Give the bytes of its JSON."
            )
        length = said
    table = _table(body[:length])
    blobs = memoryview(body)[length:]
    parameters = _mapping(table.get("parameters", {}), "parameters")
    tensors: dict[str, Tensor] = {}
    for one in _listed(table.get("inputs"), "inputs"):
        tensor, used = _tensor(one, blobs)
        blobs = blobs[used:]
        if tensor.name in tensors:
            raise ShapeError(f"The input {tensor.name[:40]!r} comes twice.")
        tensors[tensor.name] = tensor
    if len(blobs):
        raise ShapeError(
            f"{len(blobs)} bytes are left behind the last tensor. Say binary_data_size of each."
        )
    binary = parameters.get("binary_data_output") is True
    outputs = None
    if table.get("outputs") is not None:
        wanted = [_mapping(one, "an output") for one in _listed(table["outputs"], "outputs")]
        outputs = {
            str(one.get("name")): _mapping(one.get("parameters", {}), "parameters").get(
                "binary_data", binary
            )
            is True
            for one in wanted
        }
    number = table.get("id", "")
    return InferRequest(
        id=number[:128] if isinstance(number, str) else "",
        tensors=tensors,
        outputs=outputs,
        binary=binary,
        parameters=parameters,
    )


def body_from_tensors(
    head: Mapping[str, Any], tensors: Sequence[tuple[Tensor, bool]]
) -> tuple[bytes, int | None]:
    """Write an answer.

    Args:
        head: Its first keys.
        tensors: Outputs, and whether each is to be binary.

    Returns:
        The body, and the bytes of its JSON where binary tensors follow.
    """
    outputs, blobs = [], []
    for tensor, binary in tensors:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.array.shape),
        }
        if binary:
            blobs.append(_blob(tensor))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif tensor.datatype == BYTES:
            entry["data"] = [bytes(one).decode("utf-8") for one in tensor.array.ravel()]
        else:
            entry["data"] = tensor.array.ravel().tolist()
        outputs.append(entry)
    text = json.dumps({**head, "outputs": outputs}, separators=(",", ":")).encode()
    return b"".join([text, *blobs]), len(text) if blobs else None


def _table(text: bytes) -> Mapping[str, Any]:
    if text.count(b",") > _MOST_VALUES:
        raise TooLarge(f"The JSON has more than {_MOST_VALUES:,} values. Send tensors as binary.")
    try:
        return _mapping(json.loads(text), "the request")
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"The request is not JSON: {str(error)[:100]}.") from error


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ShapeError(f"{what} is an object, got {value!r:.60}.")
    return value


def _listed(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ShapeError(f"{what} is a list, got {value!r:.60}.")
    return value


def _tensor(entry: Any, blobs: memoryview) -> tuple[Tensor, int]:
    """A tensor, and how many bytes of the binary part are its own."""
    table = _mapping(entry, "an input")
    name, datatype = table.get("name"), table.get("datatype")
    shape: Any = table.get("shape")
    if not isinstance(name, str):
        raise ShapeError(f"An input has no name: {table!r:.80}.")
    if datatype != BYTES and datatype not in DTYPES:
        known = ", ".join([*DTYPES, BYTES])
        raise ShapeError(f"The input {name[:40]!r} is {datatype!r:.20}. Give one of {known}.")
    is_shape = isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS
    if not is_shape or not all(type(one) is int and 0 <= one < 1 << 31 for one in shape):
        raise ShapeError(f"The shape of {name[:40]!r} is {shape!r:.60}. Give whole numbers.")
    size = _mapping(table.get("parameters", {}), "parameters").get("binary_data_size")
    if size is None:
        return _from_json(name, datatype, tuple(shape), table.get("data")), 0
    if type(size) is not int or not 0 <= size <= len(blobs):
        raise ShapeError(
            f"binary_data_size of {name[:40]!r} is {size!r:.20}, and {len(blobs)} bytes are left."
        )
    return _from_binary(name, datatype, tuple(shape), blobs[:size]), size


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Tensor:
    flat = _flat(_listed(data, f"data of {name[:40]!r}"))
    _check_count(name, len(flat), shape)
    if datatype == BYTES:
        if not all(isinstance(one, str) for one in flat):
            raise ShapeError(f"data of {name[:40]!r} is text, as BYTES in JSON are.")
        try:
            return _of_bytes(name, [one.encode() for one in flat], shape)
        except UnicodeEncodeError as error:  # JSON can write half a pair
            raise ShapeError(f"data of {name[:40]!r} is no Unicode text.") from error
    array: npt.NDArray[Any]
    try:
        array = np.array(flat, DTYPES[datatype])
    except (TypeError, ValueError, OverflowError) as error:
        raise ShapeError(f"data of {name[:40]!r} is not {datatype}: {error}.") from error
    return _shaped(name, datatype, array, shape)


def _shaped(name: str, datatype: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> Tensor:
    """A tensor of a shape whose count was checked.

    Raises:
        ShapeError: The shape is empty, and beyond what an array can be.
    """
    try:
        return Tensor(name=name, datatype=datatype, array=array.reshape(shape))
    except ValueError as error:
        raise ShapeError(f"The shape of {name[:40]!r} is {list(shape)}: {error}.") from error


def _flat(data: list[Any]) -> list[Any]:
    """Values row by row: the protocol allows nested lists as well as flat ones."""
    while data and isinstance(data[0], list):
        if not all(isinstance(one, list) for one in data):
            raise ShapeError("data is nested in different ways. Give a flat list.")
        data = [value for row in data for value in row]
    return data


def _from_binary(name: str, datatype: str, shape: tuple[int, ...], blob: memoryview) -> Tensor:
    if datatype == BYTES:
        values = _strings(name, blob)
        _check_count(name, len(values), shape)
        return _of_bytes(name, values, shape)
    dtype = np.dtype(DTYPES[datatype])
    _check_count(name, len(blob) / dtype.itemsize, shape)
    array = np.frombuffer(blob, dtype.newbyteorder("<")).astype(dtype, copy=False)
    return _shaped(name, datatype, array, shape)


def _strings(name: str, blob: memoryview) -> list[bytes]:
    values, place = [], 0
    while place < len(blob):
        if place + 4 > len(blob):
            raise ShapeError(f"{name[:40]!r} ends within a length.")
        (length,) = struct.unpack_from("<I", blob, place)
        place += 4
        if place + length > len(blob):
            raise ShapeError(f"{name[:40]!r} ends within a string of {length} bytes.")
        values.append(bytes(blob[place : place + length]))
        place += length
    return values


def _check_count(name: str, count: float, shape: tuple[int, ...]) -> None:
    if count != math.prod(shape):
        raise ShapeError(
            f"{name[:40]!r} has {count:g} values, and its shape {list(shape)} says "
            f"{math.prod(shape)}."
        )


def _of_bytes(name: str, values: list[bytes], shape: tuple[int, ...]) -> Tensor:
    array = np.empty(len(values), object)
    array[:] = values
    return _shaped(name, BYTES, array, shape)


def _blob(tensor: Tensor) -> bytes:
    if tensor.datatype == BYTES:
        values = [bytes(one) for one in tensor.array.ravel()]
        return b"".join(struct.pack("<I", len(one)) + one for one in values)
    array = np.ascontiguousarray(tensor.array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
