"""Part ``grounding``: images and phrases -> objects, all of it in one graph."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from samforge.models.sam3.detector import Detector
from samforge.models.sam3.text import Text
from samforge.models.sam3.vision import Vision


class Grounding(nn.Module):
    """``vision``, ``text`` and ``detector`` behind one another."""

    def __init__(self, vision: Vision, text: Text, detector: Detector) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.detector = detector

    def forward(self, images: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect what each phrase names in each image.

        Args:
            images: (B, 3, S, S), normalized.
            input_ids: (P, context).

        Returns:
            As :meth:`Detector.forward`.
        """
        results = self.detector(*self.vision(images), *self.text(input_ids))
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], results)
