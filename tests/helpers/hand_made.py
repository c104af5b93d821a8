"""Detections drawn by hand, and a segmenter that answers with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.masks import Masks


def drawn(text: str) -> npt.NDArray[np.bool_]:
    """A mask from lines of ``.`` and ``#``."""
    return np.array([[c == "#" for c in line.strip()] for line in text.split()], np.bool_)


def box(left: int, top: int, right: int, bottom: int, side: int = 20) -> npt.NDArray[np.bool_]:
    """A filled box in a square picture."""
    mask = np.zeros((side, side), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def detections(*rows: tuple[str, float, npt.NDArray[np.bool_]], **best: float) -> Detections:
    """Phrase, score and mask of each."""
    masks = Masks.from_dense(np.stack([mask for _, _, mask in rows]))
    return Detections(
        masks=masks,
        boxes_xyxy=masks.boxes.astype(np.float32),
        scores=np.array([score for _, score, _ in rows], np.float32),
        labels=tuple(phrase for phrase, _, _ in rows),
        size_hw=masks.size_hw,
        best_scores={phrase: score for phrase, score, _ in reversed(rows)} | best,
    )


class ScriptedSegmenter:
    """Answers by the picture's first pixel; remembers what it was asked."""

    device = "cpu"
    processor = "script"
    parts = ("detector", "detector_boxes", "text", "vision")

    def __init__(self, answers: Mapping[int, Detections | Exception]) -> None:
        self.answers = answers
        self.calls: list[dict[str, Any]] = []
        self.encoded = 0

    def encode_phrases(self, text: Sequence[str]) -> None:
        self.phrases = tuple(text)

    def staged(self, rgb: Any) -> Any:
        return rgb

    def encode(self, image: Any) -> Any:
        self.encoded += 1
        return image

    def predict(self, image: Any, **asked: Any) -> Any:
        several = image if isinstance(image, list) else [image]
        self.calls.append({"images": len(several), **asked})
        found = [self.answers[int(one[0, 0, 0])] for one in several]
        for one in found:
            if isinstance(one, Exception):
                raise one
        return found if isinstance(image, list) else found[0]

    def close(self) -> None:
        pass
