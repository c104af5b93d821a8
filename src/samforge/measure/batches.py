"""What a benchmark repeats: batches of images through sessions, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from samforge.core.errors import SettingError
from samforge.core.images import ImageSpec, RgbImage
from samforge.core.reference import META
from samforge.core.session import Array, PartSpec, Session
from samforge.core.timing import Timings
from samforge.runtime import (
    PhraseTokenizer,
    RawDetections,
    Thresholds,
    detections_from_raw,
    image_bchw_from_rgb,
)

PIPELINE = ("vision", "text", "detector")
"""Parts that together find what phrases name in images."""


class SegmentingBatch:
    """A batch of images and some phrases, from pixels to masks.

    The sessions get the whole batch in one call; ``Segmenter`` takes one image at a time. Phrases
    are encoded once, as in use: their time is measured apart.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        image: ImageSpec,
        tokenizer: PhraseTokenizer,
        *,
        images: Sequence[RgbImage],
        phrases: Sequence[str],
        reference: str = META,
    ) -> None:
        """Keep what is repeated, and encode the phrases.

        Args:
            sessions: Of the parts in ``PIPELINE``.
            image: How the model wants its images.
            tokenizer: Of the text part's context length.
            images: The batch.
            phrases: Asked of every image.
            reference: Whose masks: see ``detections_from_raw``.

        Raises:
            ShapeError: The text part was built for another number of phrases.
        """
        self._sessions, self._image, self._tokenizer = sessions, image, tokenizer
        self._images, self._phrases, self._reference = images, phrases, reference
        self._text = self._encoded(Timings())

    def segment(self, timings: Timings) -> None:
        """Take the images to masks; stages ``preprocess`` to ``post-process``.

        Raises:
            ShapeError: A part was built for another batch or number of phrases.
        """
        vision, detector = self._sessions["vision"], self._sessions["detector"]
        with timings.stage("preprocess"):
            images_bchw = np.concatenate(
                [image_bchw_from_rgb(rgb, self._image) for rgb in self._images]
            )
        with timings.stage("vision", vision.processor):
            features = vision.run({"images": images_bchw})
        wanted = {tensor.name for tensor in detector.spec.inputs}
        with timings.stage("detector", detector.processor):
            out = detector.run(
                {name: array for name, array in features.items() if name in wanted} | self._text
            )
        with timings.stage("post-process"):
            self._finish(out)

    def encode_text(self, timings: Timings) -> None:
        """Encode the phrases, as for their first image; stage ``text``."""
        self._encoded(timings)

    def _encoded(self, timings: Timings) -> dict[str, Array]:
        text = self._sessions["text"]
        with timings.stage("text", text.processor):
            return dict(text.run({"input_ids": self._tokenizer.encode(self._phrases)}))

    def _finish(self, out: Mapping[str, Array]) -> None:
        for i, rgb in enumerate(self._images):
            for j, phrase in enumerate(self._phrases):
                raw = RawDetections(
                    logits=out["pred_logits"][i, j],
                    boxes=out["pred_boxes"][i, j],
                    masks=out["pred_masks"][i, j],
                    presence_logit=float(out["presence_logit"][i, j]),
                )
                detections_from_raw(
                    raw,
                    label=phrase,
                    size_hw=rgb.shape[:2],
                    thresholds=Thresholds(),
                    reference=self._reference,
                )


class PartsAlone:
    """Parts on made-up inputs, for bundles that are no whole segmenter."""

    def __init__(
        self, sessions: Mapping[str, Session], *, batch: int, prompts: int, boxes: int = 1
    ) -> None:
        """Make the inputs.

        Args:
            sessions: By part.
            batch: Size of the axis ``batch``.
            prompts: Size of the axis ``prompts``.
            boxes: Size of the axis ``boxes``.
        """
        self._sessions = sessions
        sizes = {"batch": batch, "prompts": prompts, "boxes": boxes}
        self._inputs = {
            name: made_up_inputs(session.spec, sizes) for name, session in sessions.items()
        }

    def run(self, timings: Timings) -> None:
        """Run every part; each is a stage."""
        for name, session in self._sessions.items():
            with timings.stage(name, session.processor):
                session.run(self._inputs[name])


def made_up_inputs(spec: PartSpec, sizes: Mapping[str, int], *, seed: int = 0) -> dict[str, Array]:
    """Make inputs of a part that are good for timing: normal numbers, ones, and all true.

    Raises:
        SettingError: An axis has no size.
    """
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for tensor in spec.inputs:
        unknown = [a for a in tensor.shape if isinstance(a, str) and a not in sizes]
        if unknown:
            raise SettingError(
                f"{spec.name} has the axis {unknown[0]!r}, sizes are known of {', '.join(sizes)}."
            )
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        if np.issubdtype(np.dtype(tensor.dtype), np.floating):
            inputs[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
        else:
            inputs[tensor.name] = np.ones(shape, tensor.dtype)
    return inputs
