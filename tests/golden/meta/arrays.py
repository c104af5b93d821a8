"""The arrays of ``detector.npz``: what was asked, what Meta's code answered, how far one may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.images import ImageSpec
from samforge.core.session import Session
from samforge.models.sam3.geometry import PADDING
from samforge.runtime import EncodedImage, Segmenter, image_bchw_from_rgb

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Sessions: TypeAlias = Callable[[str], Session]
"""Name of a part -> what runs it."""

FILE = Path(__file__).with_name("detector.npz")

PHRASES = {
    "text_cat": "cat",
    "text_bus": "yellow school bus",
    "text_person": "a person wearing an orange suit",
    "text_positive": "person",
    "text_mixed": "white helmet",
    "boxes_mixed": "visual",
}
"""A case in which each phrase is asked: the file keeps token ids only."""
TEXT_CASES = ("text_cat", "text_bus", "text_person", "text_cat_picture1")
BOX_CASES = (
    *("text_positive", "text_mixed", "text_mixed_picture1"),
    *("boxes_positive", "boxes_negative", "boxes_mixed", "boxes_mixed_picture1"),
    *("boxes_edge", "boxes_padded"),
)

LIMITS = {
    "pred_logits": 3e-4,
    "pred_boxes": 3e-5,
    "presence_logit": 1e-4,
    "pred_masks": 1e-3,
    "mask_mean": 1e-3,
    "mask_std": 1e-3,
    "mask_signs": 1e-4,
    "fpn_0": 5e-5,
    "fpn_1": 5e-5,
    "fpn_2": 5e-5,
    "trunk": 5e-5,
    "text_features": 1e-5,
    "geometry_tokens": 5e-5,
    "encoder": 1e-4,
    "queries": 3e-4,
    "scores": 3e-5,
    "boxes": 1e-2,
    "masks": 2e-5,
    # Of the tracker.
    "conv_s0": 5e-5,
    "conv_s1": 5e-5,
    "mask": 3e-4,
    "iou": 1e-5,
    "pointer": 5e-5,
    "object_score": 1e-4,
    "memory": 5e-5,
    "conditioned": 1e-4,
    "video_mask": 2e-5,
}
"""Largest absolute difference; of ``mask_signs`` and ``masks`` the share of cells or pixels that
differ, of ``boxes`` in pixels. What was measured, and what a fault looks like: see README.md."""


def arrays_from_file() -> Arrays:
    """Read all arrays by name."""
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def tokens(arrays: Arrays) -> dict[str, int]:
    """Token ids of all words, found in the phrases: the vocabulary that the cases need."""
    found: dict[str, int] = {}
    for case, phrase in PHRASES.items():
        words = phrase.split()
        ids = arrays[f"{case}/input_ids"].tolist()
        assert ids[0] == 49406
        assert ids[len(words) + 1 :] == [49407] + [0] * (len(ids) - len(words) - 2)
        found |= dict(zip(words, ids[1 : len(words) + 1], strict=True))
    return found


def run(session: Session, tensors: Arrays) -> dict[str, Array]:
    """Run a part on those tensors that it takes."""
    return session.run({tensor.name: tensors[tensor.name] for tensor in session.spec.inputs})


def images_of(pictures: Array) -> dict[str, Array]:
    """Normalize uint8 (B, S, S, 3) for the parts that take ``images``."""
    spec = ImageSpec(size=pictures.shape[1])
    images = np.concatenate([image_bchw_from_rgb(picture, spec) for picture in pictures])
    return {"images": images}


def ids_of(arrays: Arrays, cases: Sequence[str]) -> Array:
    """Token ids of the phrases of some cases, (P, context)."""
    return np.stack([arrays[f"{case}/input_ids"] for case in cases])


def ask(
    sessions: Sessions,
    pictures: Array,
    input_ids: Array,
    boxes: Array | None = None,
    labels: Array | None = None,
) -> dict[str, Array]:
    """Ask every picture every prompt, as a segmenter does.

    Args:
        sessions: What runs the parts.
        pictures: (B, S, S, 3), uint8.
        input_ids: (P, context).
        boxes: (B, P, K, 4), fractions; None asks part ``detector``, which takes none.
        labels: (B, P, K).

    Returns:
        The detector's outputs, (B, P, …).
    """
    tensors = run(sessions("vision"), images_of(pictures))
    tensors |= run(sessions("text"), {"input_ids": input_ids})
    if boxes is None or labels is None:
        return run(sessions("detector"), tensors)
    return run(sessions("detector_boxes"), tensors | {"boxes_cxcywh": boxes, "box_labels": labels})


def ask_case(
    sessions: Sessions, arrays: Arrays, case: str, picture: Array | None = None
) -> dict[str, Array]:
    """Ask what was asked in one case.

    Args:
        sessions: What runs the parts.
        arrays: Of the file.
        case: Prefix of its arrays.
        picture: Its picture, where the case does not tell its number.

    Returns:
        The detector's outputs for that picture and prompt, without leading axes.
    """
    if picture is None:
        picture = arrays["pictures"][int(arrays[f"{case}/picture"])]
    exemplars = exemplars_of(arrays, case)
    answer = ask(
        sessions,
        picture[None],
        arrays[f"{case}/input_ids"][None],
        *(None if part is None else part[None, None] for part in exemplars),
    )
    return pair(answer, 0, 0)


def exemplars_of(arrays: Arrays, case: str) -> tuple[Array | None, Array | None]:
    """Boxes and labels of a case with samforge's label for padding; None where there are none."""
    boxes, labels = arrays[f"{case}/boxes"], arrays[f"{case}/labels"]
    if not labels.size:
        return None, None
    padding = arrays.get(f"{case}/padding", np.zeros(labels.shape, np.bool_))
    return boxes, np.where(padding, PADDING, labels)


def pair(answer: Arrays, picture: int, prompt: int) -> dict[str, Array]:
    """The answer to one of the pictures and one of the prompts."""
    return {name: array[picture, prompt] for name, array in answer.items()}


def kept(answer: Arrays) -> dict[str, Array]:
    """What the file keeps of an answer to one picture and prompt."""
    masks = answer["pred_masks"]
    return {
        "pred_logits": answer["pred_logits"],
        "pred_boxes": answer["pred_boxes"],
        "presence_logit": np.reshape(answer["presence_logit"], 1),
        "pred_masks": masks[::5, ::2, ::2],
        "mask_mean": masks.mean((1, 2), np.float64),
        "mask_std": masks.std((1, 2), np.float64, ddof=1),
        "mask_signs": masks > 0,
    }


def kept_features(features: Arrays) -> dict[str, Array]:
    """What the file keeps of the feature maps of part ``vision``, (B, D, h, w)."""
    return {
        f"fpn_{level}": features[f"fpn_{level}"][:, ::4, ::step, ::step]
        for level, step in enumerate((4, 2, 1))
    }


def wanted(arrays: Arrays, case: str, names: Mapping[str, Any], row: int | None = None) -> Arrays:
    """Meta's arrays of a case: those of the given names, and of one row of a batch."""
    found = {name: arrays[f"{case}/{name}"] for name in names}
    if row is not None:
        found = {name: array[row] for name, array in found.items()}
    if "mask_signs" in found:
        found["mask_signs"] = np.unpackbits(found["mask_signs"], axis=-1).astype(np.bool_)
    return found


def differences(found: Arrays, reference: Arrays) -> dict[str, float]:
    """How far arrays are from Meta's, by name: absolute, and of booleans the share that differs."""
    assert found.keys() == reference.keys()
    result = {}
    for name, array in found.items():
        other = reference[name]
        assert array.shape == other.shape, (name, array.shape, other.shape)
        if other.dtype == np.bool_:
            result[name] = float((array != other).mean())
        else:
            result[name] = float(np.abs(array.astype(np.float64) - other).max())
    return result


def beyond(found: Arrays, reference: Arrays) -> dict[str, float]:
    """Differences that are not within :data:`LIMITS`: nothing where all is well, and NaN is not."""
    return {
        name: difference
        for name, difference in differences(found, reference).items()
        if not difference <= LIMITS[name]
    }


def beyond_case(answer: Arrays, arrays: Arrays, case: str, row: int | None = None) -> Arrays:
    """Compare the answer to one picture and prompt with a case, or with a row of one."""
    found = kept(answer)
    return beyond(found, wanted(arrays, case, found, row))


def picture_of(segmenter: Segmenter, arrays: Arrays) -> EncodedImage:
    """The picture of the processor's cases, 300 wide and 200 high, behind its own resize.

    Its resize is torch's, of which Pillow's differs by one grey level in 0.2 % of the values.
    """
    encoded = segmenter.encode(arrays["processor/resized"])
    height, width = arrays["processor/picture"].shape[:2]
    return replace(encoded, size_hw=(height, width))


def boxes_in_pixels(arrays: Arrays) -> Array:
    """Exemplars of the case ``processor/boxes``, (3, 4), left, top, right, bottom: 1, 0, 1."""
    height, width = arrays["processor/picture"].shape[:2]
    centre, size = np.split(arrays["text_mixed/boxes"].astype(np.float64), 2, axis=1)
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return corners * np.array([width, height, width, height])


def beyond_detections(found: Detections, arrays: Arrays, case: str) -> dict[str, float]:
    """Compare detections with those of Meta's processor."""
    return beyond(kept_detections(found), wanted_detections(arrays, case))


def kept_detections(found: Detections) -> dict[str, Array]:
    """What the file keeps of detections."""
    return {"scores": found.scores, "boxes": found.boxes_xyxy, "masks": found.masks.dense()}


def wanted_detections(arrays: Arrays, case: str) -> Arrays:
    """What Meta's processor found, best score first as in samforge: there by number of query."""
    order = np.argsort(-arrays[f"{case}/scores"], kind="stable")
    masks = np.unpackbits(arrays[f"{case}/masks"], axis=-1).astype(np.bool_)
    width = arrays["processor/picture"].shape[1]
    return {
        "scores": arrays[f"{case}/scores"][order],
        # Meta's may leave the picture, which is 300 wide and 200 high.
        "boxes": arrays[f"{case}/boxes"][order].clip(0, [300, 200, 300, 200]),
        "masks": masks[order, :, :width],
    }
