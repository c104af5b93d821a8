"""A question and its answer as named arrays: what servers of tensors speak, whatever the wire.

The Open Inference Protocol and Triton's model repositories declare the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.errors import ShapeError
from samforge.core.images import RgbImage


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorForm:
    """What a tensor is like."""

    name: str
    """Of it."""
    datatype: str
    """As the Open Inference Protocol has it: ``FP32``; ``BYTES`` is an array of ``bytes``."""
    shape: tuple[int, ...]
    """Of it; -1 for any size."""


TENSORS_IN = (
    TensorForm(name="image", datatype="UINT8", shape=(-1, -1, 3)),
    TensorForm(name="image_bytes", datatype="BYTES", shape=(1,)),
    TensorForm(name="prompts", datatype="BYTES", shape=(-1,)),
    TensorForm(name="boxes", datatype="FP32", shape=(-1, 4)),
    TensorForm(name="box_labels", datatype="INT64", shape=(-1,)),
    TensorForm(name="threshold", datatype="FP32", shape=(-1,)),
    TensorForm(name="mask_threshold", datatype="FP32", shape=(1,)),
    TensorForm(name="max_detections", datatype="INT32", shape=(1,)),
)
"""Of a question: one picture, and what to find in it. Each may be left out."""
TENSORS_OUT = (
    TensorForm(name="boxes", datatype="FP32", shape=(-1, 4)),
    TensorForm(name="scores", datatype="FP32", shape=(-1,)),
    TensorForm(name="phrase", datatype="INT32", shape=(-1,)),
    TensorForm(name="rle", datatype="BYTES", shape=(-1,)),
    TensorForm(name="best_scores", datatype="FP32", shape=(-1,)),
    TensorForm(name="size_hw", datatype="INT32", shape=(2,)),
    TensorForm(name="cut_off", datatype="INT32", shape=(1,)),
)
"""Of an answer; ``phrase`` is an index into ``prompts`` and ``best_scores``."""


class PromptArguments(TypedDict):
    """What ``Segmenter.predict`` takes beside a picture."""

    text: tuple[str, ...] | None
    boxes_xyxy: npt.NDArray[Any] | None
    box_labels: list[int] | None
    threshold: float | tuple[float, ...]
    mask_threshold: float
    max_detections: int | None


def picture_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes | RgbImage:
    """The picture of a question: a file, or uint8 (H, W, 3).

    Raises:
        ShapeError: There is none, or two, or it has another shape.
    """
    given = [name for name in ("image", "image_bytes") if name in arrays]
    if len(given) != 1:
        raise ShapeError("Give one picture: image, UINT8 (H, W, 3), or image_bytes, its file.")
    array = arrays[given[0]]
    if given[0] == "image_bytes":
        if array.size != 1:
            raise ShapeError(f"image_bytes is one file, got {array.size}.")
        return bytes(array.ravel()[0])
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ShapeError(f"image is UINT8 (H, W, 3), got {list(array.shape)}.")
    return array


def prompts_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> PromptArguments:
    """What to find.

    Raises:
        ShapeError: A value is not usable.
    """

    def values(name: str) -> Any:
        return arrays[name].ravel().tolist() if name in arrays else None

    prompts = values("prompts")
    try:
        text = None if prompts is None else tuple(one.decode("utf-8") for one in prompts)
    except UnicodeDecodeError as error:
        raise ShapeError("prompts are UTF-8.") from error
    thresholds = values("threshold") or [0.5]
    return PromptArguments(
        text=text,
        boxes_xyxy=arrays.get("boxes"),
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


def arrays_from_detections(found: Detections) -> dict[str, npt.NDArray[Any]]:
    """An answer: an array for each of ``TENSORS_OUT``, in that order."""
    phrases = list(found.best_scores)
    counts = np.empty(len(found), object)
    counts[:] = [found.masks.rle(index)["counts"].encode("ascii") for index in range(len(found))]
    return {
        "boxes": found.boxes_xyxy,
        "scores": found.scores,
        "phrase": np.array([phrases.index(label) for label in found.labels], np.int32),
        "rle": counts,
        "best_scores": np.array([found.best_scores[one] for one in phrases], np.float32),
        "size_hw": np.array(found.size_hw, np.int32),
        "cut_off": np.array([found.cut_off], np.int32),
    }
