"""Requests and answers of the Open Inference Protocol as the values of a service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.responses import Response

from samforge.apps.serve.tensors import BYTES, InferRequest, Tensor, body_from_tensors
from samforge.core.detections import Detections
from samforge.core.errors import ShapeError
from samforge.serving import Ask, Model, Picture

HEADER = "Inference-Header-Content-Length"
"""Says how many bytes of a body are its JSON: binary tensors follow."""
_INPUTS: tuple[tuple[str, str, list[int]], ...] = (
    ("image", "UINT8", [-1, -1, 3]),
    ("image_bytes", BYTES, [1]),
    ("prompts", BYTES, [-1]),
    ("boxes", "FP32", [-1, 4]),
    ("box_labels", "INT64", [-1]),
    ("threshold", "FP32", [-1]),
    ("mask_threshold", "FP32", [1]),
    ("max_detections", "INT32", [1]),
)
_OUTPUTS: tuple[tuple[str, str, list[int]], ...] = (
    ("boxes", "FP32", [-1, 4]),
    ("scores", "FP32", [-1]),
    ("phrase", "INT32", [-1]),
    ("rle", BYTES, [-1]),
    ("best_scores", "FP32", [-1]),
    ("size_hw", "INT32", [2]),
    ("cut_off", "INT32", [1]),
)


def metadata_of(model: Model) -> dict[str, Any]:
    """Inputs and outputs of a bundle, as the protocol tells them."""
    return {
        "name": model.name,
        "versions": ["1"],
        "platform": f"samforge_{model.bundle.manifest.target}",
        "inputs": [
            {"name": name, "datatype": kind, "shape": shape} for name, kind, shape in _INPUTS
        ],
        "outputs": [
            {"name": name, "datatype": kind, "shape": shape} for name, kind, shape in _OUTPUTS
        ],
        "parameters": {"digest": model.digest},
    }


def picture_from_request(asked: InferRequest) -> Picture:
    """The picture of a request.

    Raises:
        ShapeError: There is none, or two, or an input is unknown or of another type.
    """
    known = {name: kind for name, kind, _ in _INPUTS}
    for name, tensor in asked.tensors.items():
        if known.get(name) != tensor.datatype and not _whole(known.get(name), tensor.datatype):
            raise ShapeError(
                f"There is no input {name[:40]!r} of {tensor.datatype}. Give "
                f"{', '.join(f'{one} {kind}' for one, kind in known.items())}."
            )
    given = [name for name in ("image", "image_bytes") if name in asked.tensors]
    if len(given) != 1:
        raise ShapeError("Give one picture: image, UINT8 (H, W, 3), or image_bytes, its file.")
    array = asked.tensors[given[0]].array
    if given[0] == "image_bytes":
        if array.size != 1:
            raise ShapeError(f"image_bytes is one file, got {array.size}.")
        return Picture.of(bytes(array.ravel()[0]))
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ShapeError(f"image is UINT8 (H, W, 3), got {list(array.shape)}.")
    return Picture.of(array)


def _whole(one: str | None, other: str) -> bool:
    """Whether both are whole numbers, whatever their bits."""
    return {one, other} <= {"INT32", "INT64"}


def ask_from_request(asked: InferRequest) -> Ask:
    """The question of a request.

    Raises:
        ShapeError: A value is not usable.
    """
    tensors = asked.tensors

    def values(name: str) -> Any:
        return tensors[name].array.ravel().tolist() if name in tensors else None

    prompts = values("prompts")
    try:
        text = None if prompts is None else tuple(one.decode("utf-8") for one in prompts)
    except UnicodeDecodeError as error:
        raise ShapeError("prompts are UTF-8.") from error
    thresholds = values("threshold") or [0.5]
    return Ask(
        text=text,
        boxes_xyxy=tensors["boxes"].array if "boxes" in tensors else None,
        box_labels=values("box_labels"),
        threshold=thresholds[0] if len(thresholds) == 1 else tuple(thresholds),
        mask_threshold=_single(values("mask_threshold"), "mask_threshold", 0.5),
        max_detections=_single(values("max_detections"), "max_detections", None),
    )


def _single(values: Any, name: str, otherwise: Any) -> Any:
    if values is None:
        return otherwise
    if len(values) != 1:
        raise ShapeError(f"{name} is one number, got {len(values)}.")
    return values[0]


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
    phrases = list(found.best_scores)
    rles = [found.masks.rle(index)["counts"].encode("ascii") for index in range(len(found))]
    counts = np.empty(len(rles), object)
    counts[:] = rles
    arrays: dict[str, Any] = {
        "boxes": found.boxes_xyxy,
        "scores": found.scores,
        "phrase": np.array([phrases.index(label) for label in found.labels], np.int32),
        "rle": counts,
        "best_scores": np.array([found.best_scores[one] for one in phrases], np.float32),
        "size_hw": np.array(found.size_hw, np.int32),
        "cut_off": np.array([found.cut_off], np.int32),
    }
    kinds = {name: kind for name, kind, _ in _OUTPUTS}
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
