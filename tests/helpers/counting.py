"""A segmenter that does nothing but count, wait where it is told to, and fail where it is told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from samforge.core.detections import Detections
from samforge.core.masks import Masks
from samforge.runtime import EncodedImage, Question
from samforge.runtime.pending import Pending


class Counting:
    """Finds one thing for each phrase, everywhere; its score says which picture it is of."""

    overlaps = False
    """Whether answers are waited for where they are asked for, and not where they begin."""

    def __init__(self, device: str = "cpu", most_images: int = 1) -> None:
        self.device, self.most_images = device, most_images
        self.processor = f"counting on {device}"
        self.encodes: list[list[int]] = []
        """By call: the first value of each picture."""
        self.asks: list[tuple[list[int], tuple[str, ...]]] = []
        """By call: pictures and phrases."""
        self.stagings: list[int] = []
        """The first value of each picture."""
        self.gate = threading.Event()
        """Nothing is encoded while it is not set."""
        self.gate.set()
        self.detect_gate = threading.Event()
        self.detect_gate.set()
        self.waits = threading.Event()
        """Set when somebody came to the gate."""
        self.broken: set[str] = set()
        """Phrases that fail."""
        self.order: list[str] = []
        """What was done: ``encode``, ``begin`` and ``finish`` of answers."""
        self.closed = False

    def staged(self, rgb: Any) -> Any:
        self.stagings.append(int(rgb.flat[0]))
        return rgb

    def encode_images(self, images: Sequence[Any], **_: Any) -> list[EncodedImage]:
        self.waits.set()
        assert self.gate.wait(10)
        self.order.append("encode")
        self.encodes.append([int(image.flat[0]) for image in images])
        return [
            EncodedImage(
                features={"fpn_0": np.full((1, 1, 8, 8), int(image.flat[0]), np.float32)},
                size_hw=image.shape[:2],
                image_size=16,
                device=self.device,
            )
            for image in images
        ]

    def begin_answers(
        self, images: Sequence[EncodedImage], question: Question, **_: Any
    ) -> Pending[list[list[Detections]]]:
        self.order.append("begin")
        numbers = [int(image.features["fpn_0"].flat[0]) for image in images]
        sizes = [image.size_hw for image in images]
        pending = Pending(lambda: self._answers(numbers, sizes, question))
        if not self.overlaps:
            pending.result()
        return pending

    def _answers(
        self, numbers: list[int], sizes: list[tuple[int, int]], question: Question
    ) -> list[list[Detections]]:
        self.waits.set()
        assert self.detect_gate.wait(10)
        self.order.append("finish")
        self.asks.append((numbers, question.phrases))
        for phrase in question.phrases:
            if phrase in self.broken:
                raise ValueError(f"{phrase} is broken")
        return [
            [found(phrase, number, size_hw) for phrase in question.phrases]
            for number, size_hw in zip(numbers, sizes, strict=True)
        ]

    def close(self) -> None:
        self.closed = True


def found(phrase: str, number: int, size_hw: tuple[int, int]) -> Detections:
    """What is found of a phrase in the picture of a number."""
    mask = np.zeros((1, *size_hw), np.bool_)
    mask[0, 0, 0] = True
    return Detections(
        masks=Masks.from_dense(mask),
        boxes_xyxy=np.array([[0, 0, 1, 1]], np.float32),
        scores=np.array([number / 256], np.float32),
        labels=(phrase,),
        size_hw=size_hw,
        best_scores={phrase: number / 256},
    )
