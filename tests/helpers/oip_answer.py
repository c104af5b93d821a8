"""Answers of the Open Inference Protocol, read without our own code."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import numpy as np

HEADER = "Inference-Header-Content-Length"


def tensors_of(answer: httpx.Response) -> dict[str, Any]:
    """Outputs by name, binary and JSON alike."""
    length = int(answer.headers.get(HEADER, len(answer.content)))
    rest = answer.content[length:]
    found: dict[str, Any] = {}
    for one in json.loads(answer.content[:length])["outputs"]:
        size = one.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = one["data"]
        elif one["datatype"] == "BYTES":
            blob, values = rest[:size], []
            while blob:
                (count,) = struct.unpack_from("<I", blob)
                values.append(blob[4 : 4 + count].decode())
                blob = blob[4 + count :]
        else:
            kind = {"FP32": "<f4", "INT32": "<i4"}[one["datatype"]]
            values = np.frombuffer(rest[:size], kind).tolist()
        rest = rest[size or 0 :]
        assert len(values) == np.prod(one["shape"])
        found[one["name"]] = values
    assert rest == b""
    return found
