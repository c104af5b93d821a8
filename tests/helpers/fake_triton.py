"""``triton_python_backend_utils`` as far as a model asks it, and the text of ``config.pbtxt`` read.

tests/unit/test_every_way.py runs the same model in a real tritonserver, where there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, np.asarray(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError(Exception):
    """What went wrong with a request, and Triton's word for its kind."""

    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "internal", "invalid", "unavailable", "gone"

    def __init__(self, message: str, code: str = "unknown") -> None:
        super().__init__(message)
        self.message, self.code = message, code


class InferenceResponse:
    """An answer."""

    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self.arrays = {one.name(): one.as_numpy() for one in output_tensors}
        self.error = error


class Request:
    """A question."""

    def __init__(
        self,
        arrays: dict[str, Any],
        *,
        outputs: Iterable[str] = ("boxes", "scores", "phrase", "rle", "best_scores", "size_hw"),
        timeout: int = 0,
        cancelled: bool = False,
    ) -> None:
        self.tensors = {name: Tensor(name, array) for name, array in arrays.items()}
        self._outputs, self._timeout, self._cancelled = list(outputs), timeout, cancelled

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def timeout(self) -> int:
        return self._timeout

    def is_cancelled(self) -> bool:
        return self._cancelled


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return request.tensors.get(name)


def texts(*values: str) -> Any:
    """BYTES, as Triton gives them."""
    array = np.empty(len(values), object)
    array[:] = [one.encode() for one in values]
    return array


def arguments_of(model: Path, kind: str = "CPU", device: int = 0) -> dict[str, str]:
    """What ``initialize`` gets for the folder of a model."""
    config = config_of(model / "config.pbtxt")
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": kind,
        "model_instance_name": f"{model.name}_0_0",
        "model_instance_device_id": str(device),
        "model_repository": str(model),
        "model_version": "1",
        "model_name": model.name,
    }


_TOKEN = re.compile(r'#[^\n]*|"(?:[^"\\]|\\.)*"|[A-Za-z_][A-Za-z0-9_]*|-?[0-9]+|[{}\[\]:,]|\S')


def config_of(path: Path) -> dict[str, Any]:
    """The message of a ``config.pbtxt``; ``input``, ``output`` and the like are lists."""
    tokens = [one for one in _TOKEN.findall(path.read_text("utf-8")) if not one.startswith("#")]
    table = _message(tokens)
    assert not tokens, tokens
    table["parameters"] = {one["key"]: one["value"] for one in table["parameters"]}
    return table


def _message(tokens: list[str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    while tokens and tokens[0] != "}":
        key = tokens.pop(0)
        assert key.isidentifier(), key
        if tokens[0] == "{":
            tokens.pop(0)
            value: Any = _message(tokens)
            assert tokens.pop(0) == "}"
            if key in ("input", "output", "instance_group", "parameters"):
                table.setdefault(key, []).append(value)
                continue
        else:
            assert tokens.pop(0) == ":"
            value = _value(tokens)
        assert key not in table, key
        table[key] = value
    return table


def _value(tokens: list[str]) -> Any:
    one = tokens.pop(0)
    if one == "{":
        value = _message(tokens)
        assert tokens.pop(0) == "}"
        return value
    if one == "[":
        found = []
        while (item := tokens.pop(0)) != "]":
            if item != ",":
                found.append(int(item))
        return found
    if one.startswith('"'):
        return json.loads(one)
    return {"true": True, "false": False}.get(one, int(one) if one.lstrip("-").isdigit() else one)
