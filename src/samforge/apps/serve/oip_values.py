"""Requests and answers of the Open Inference Protocol as the values of a service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from samforge.apps.serve.tensors import InferRequest, Tensor, body_from_tensors
from samforge.core.detections import Detections
from samforge.core.errors import ShapeError
from samforge.formats import (
    TENSORS_IN,
    TENSORS_OUT,
    arrays_from_detections,
    picture_from_arrays,
    prompts_from_arrays,
)
from samforge.serving import Ask, Model, Picture

HEADER = "Inference-Header-Content-Length"
"""Says how many bytes of a body are its JSON: binary tensors follow."""


def metadata_of(model: Model) -> dict[str, Any]:
    """Inputs and outputs of a bundle, as the protocol tells them."""
    return {
        "name": model.name,
        "versions": ["1"],
        "platform": f"samforge_{model.bundle.manifest.target}",
        "inputs": [
            {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
            for one in TENSORS_IN
        ],
        "outputs": [
            {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
            for one in TENSORS_OUT
        ],
        "parameters": {"digest": model.digest},
    }


def picture_from_request(asked: InferRequest) -> Picture:
    """The picture of a request.

    Raises:
        ShapeError: There is none, or two, or an input is unknown or of another type.
    """
    known = {one.name: one.datatype for one in TENSORS_IN}
    for name, tensor in asked.tensors.items():
        if known.get(name) != tensor.datatype and not _whole(known.get(name), tensor.datatype):
            raise ShapeError(
                f"There is no input {name[:40]!r} of {tensor.datatype}. Give "
                f"{', '.join(f'{one} {kind}' for one, kind in known.items())}."
            )
    return Picture.of(picture_from_arrays(_arrays(asked)))


def _whole(one: str | None, other: str) -> bool:
    """Whether both are whole numbers, whatever their bits."""
    return {one, other} <= {"INT32", "INT64"}


def ask_from_request(asked: InferRequest) -> Ask:
    """The question of a request.

    Raises:
        ShapeError: A value is not usable.
    """
    return Ask(**prompts_from_arrays(_arrays(asked)))


def _arrays(asked: InferRequest) -> dict[str, Any]:
    return {name: tensor.array for name, tensor in asked.tensors.items()}


def seconds_from_request(parameters: Mapping[str, Any]) -> float | None:
    """Triton's timeout of a request, from microseconds.

    Raises:
        ShapeError: It is no number above 0.
    """
    given = parameters.get("timeout")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ShapeError(f"timeout is microseconds, got {given!r:.40}.")
    try:
        seconds = float(given) / 1e6
    except (ValueError, OverflowError) as error:
        raise ShapeError(f"timeout is microseconds, got {given!r:.40}.") from error
    if not (math.isfinite(seconds) and seconds > 0):
        raise ShapeError(f"timeout is microseconds above 0, got {given!r:.40}.")
    return seconds


def answer_from_detections(asked: InferRequest, model: Model, found: Detections) -> Response:
    """What was found, as tensors.

    Raises:
        ShapeError: An output is asked for that there is not.
    """
    arrays = arrays_from_detections(found)
    kinds = {one.name: one.datatype for one in TENSORS_OUT}
    wanted = asked.outputs
    if wanted is None:
        wanted = dict.fromkeys(arrays, asked.binary)
    unknown = sorted(set(wanted) - set(arrays))
    if unknown:
        raise ShapeError(f"There is no output {unknown[0][:40]!r}. Ask for {', '.join(arrays)}.")
    tensors = [
        (Tensor(name=name, datatype=kinds[name], array=arrays[name]), binary)
        for name, binary in wanted.items()
    ]
    head = {"id": asked.id} if asked.id else {}
    head |= {"model_name": model.name, "model_version": "1"}
    body, length = body_from_tensors(head, tensors)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={HEADER: str(length)})
