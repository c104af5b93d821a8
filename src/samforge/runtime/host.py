"""Runs the parts on arrays of the host, whatever their runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from samforge.core.capabilities import BOXES, DETECTOR, TEXT, TEXT_ENCODER, VISION
from samforge.core.detections import Detections
from samforge.core.devices import is_gpu
from samforge.core.errors import ImageError
from samforge.core.images import FILES, ImageSource, ImageSpec, RgbImage
from samforge.core.reference import META
from samforge.core.session import Array, DeviceSession, Session, fixed_axis
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage, Ready, TakenImage
from samforge.runtime.executor import (
    check_sessions,
    images_in_a_call,
    joined,
    phrases_in_a_call,
)
from samforge.runtime.pending import Pending
from samforge.runtime.postprocess import RawDetections, admitted_queries, detections_from_raw
from samforge.runtime.preprocess import image_bchw_from_rgb
from samforge.runtime.question import Question
from samforge.runtime.text_cache import TextEncoder
from samforge.runtime.tokenize import PhraseTokenizer
from samforge.runtime.tracking.host_parts import HostTrackerParts, facts_from_sessions
from samforge.runtime.tracking.parts import FoundInFrame, joined_found

_MOST_IMAGES = 8
"""Of a list in one call, where a GPU runs the parts. On a processor images follow one another: a
batch of them only outgrows its caches, and each took longer than alone."""


class HostExecutor:
    """Parts behind :class:`Session`. Safe to use from several threads when they are."""

    device = "cpu"
    overlaps = False

    def __init__(  # noqa: PLR0913  # each is a choice of its own
        self,
        sessions: Mapping[str, Session],
        image: ImageSpec,
        tokenizer: PhraseTokenizer,
        read_image: Callable[[ImageSource], RgbImage],
        *,
        prompt_batch: int | None = None,
        reference: str = META,
        note: str = "",
    ) -> None:
        """Keep what runs a model.

        Args:
            sessions: By part: ``vision``, ``text``, ``detector`` and, for boxes,
                ``detector_boxes``.
            image: How the model wants its images.
            tokenizer: Of the same context length as the text part.
            read_image: Gives any source as uint8 (H, W, 3): ``samforge.media.read_image``.
            prompt_batch: Most phrases in one detector call; None keeps its masks within 512 MiB.
            reference: Whose masks: see ``postprocess.mask_limit``.
            note: Why no faster way is taken, if one is missed.

        Raises:
            SettingError: A part is missing.
            ShapeError: The vision or the text part was built for other sizes.
        """
        check_sessions(sessions, image, tokenizer)
        self._sessions = dict(sessions)
        self._image = image
        self._read_image = read_image
        self._prompt_batch = prompt_batch
        self._reference = reference
        self.processor = sessions[VISION].processor + (f" ({note})" if note else "")
        on_gpu = all(
            isinstance(one, DeviceSession) and is_gpu(one.device) for one in sessions.values()
        )
        self.most_images = images_in_a_call(sessions, _MOST_IMAGES if on_gpu else 1)
        text = sessions[TEXT_ENCODER]
        text_batch = fixed_axis(text.spec, "input_ids", 0) or prompt_batch
        self._text = TextEncoder(text, tokenizer, batch=text_batch)

    def read(self, image: Any) -> RgbImage:
        """Decode a file."""
        return self._read_image(image)

    def staged(self, rgb: RgbImage) -> RgbImage:
        """The same pixels: they are where they are needed."""
        return rgb

    def take(self, image: Any, *, own: bool, timings: Timings | None) -> TakenImage:
        """Read an image; arrays of the caller's are copied where they may be filled again."""
        with (timings or Timings()).stage("decode"):
            rgb = self._read_image(_array_of(image))
            if own and not isinstance(image, FILES):
                rgb = rgb.copy()
        return TakenImage(rgb=rgb, size_hw=(rgb.shape[0], rgb.shape[1]))

    def encode(self, image: TakenImage, timings: Timings | None) -> EncodedImage:
        """Run the vision part on one image."""
        return self.encode_images([image], timings)[0]

    def encode_images(
        self, images: Sequence[TakenImage], timings: Timings | None
    ) -> list[EncodedImage]:
        """Run the vision part on images, as many in a call as pay."""
        encoded: list[EncodedImage] = []
        for start in range(0, len(images), self.most_images):
            group = images[start : start + self.most_images]
            features = self._seen(group, timings or Timings())
            for row, image in enumerate(group):
                # Copies: a view would keep the features of the whole batch alive.
                own = {
                    name: array if len(group) == 1 else array[row : row + 1].copy()
                    for name, array in features.items()
                }
                encoded.append(
                    EncodedImage(features=own, size_hw=image.size_hw, image_size=self._image.size)
                )
        return encoded

    def encode_text(self, phrases: tuple[str, ...], timings: Timings | None) -> None:
        """Encode phrases that are not known yet."""
        self._text.features(phrases, timings or Timings())

    def forget_text(self) -> None:
        """Drop what is remembered of phrases."""
        self._text.forget()

    def start(
        self,
        images: Sequence[Ready],
        question: Question,
        timings: Timings | None,
        *,
        alone: bool = True,  # noqa: ARG002  # nothing runs beside it
    ) -> list[Detections]:
        """Take a batch of images to detections, some phrases at a time."""
        timings = timings or Timings()
        found = self._asked(images, question, timings)
        with timings.stage("post-process"):
            return [joined(parts, question.most) for parts in found]

    def begin_answers(
        self, images: Sequence[EncodedImage], question: Question, timings: Timings | None
    ) -> Pending[list[list[Detections]]]:
        """Ask every phrase of every image, some phrases at a time: nothing runs beside it."""
        return Pending.of(self._asked(images, question, timings or Timings()))

    def _asked(
        self, images: Sequence[Ready], question: Question, timings: Timings
    ) -> list[list[Detections]]:
        exemplars = question.exemplars
        detector = self._sessions[TEXT.detector if exemplars is None else BOXES.detector]
        wanted = {tensor.name for tensor in detector.spec.inputs}
        seen = self._features(images, timings)
        tensors = {name: array for name, array in seen.items() if name in wanted}
        if exemplars is not None:
            tensors |= exemplars.tensors(fixed_axis(detector.spec, "boxes_cxcywh", 2))
        features, mask = self._text.features(question.phrases, timings)
        found: list[list[Detections]] = [[] for _ in images]
        step = self._prompt_batch or phrases_in_a_call(detector, len(images))
        for start in range(0, len(question.phrases), step):
            part = slice(start, start + step)
            tensors |= {"text_features": features[part], "text_mask": mask[part]}
            with timings.stage(DETECTOR, detector.processor):
                out = detector.run(tensors)
            with timings.stage("post-process"):
                for number, image in enumerate(images):
                    found[number] += self._found(
                        out, number, image.size_hw, question.part(start, step)
                    )
        return found

    def finish(self, begun: list[Detections]) -> list[Detections]:
        """Nothing is left to do."""
        return begun

    def tracker(self, needs: Sequence[str], digest: str) -> HostTrackerParts:
        """What runs the tracker's parts."""
        facts = facts_from_sessions(
            self._sessions,
            needs,
            image_size=self._image.size,
            digest=digest,
            reference=self._reference,
        )
        return HostTrackerParts(
            self._sessions,
            facts,
            encode=lambda image: self.encode(self.take(image, own=False, timings=None), None),
            detect=self._look,
        )

    def close(self) -> None:
        """Free the parts."""
        for session in self._sessions.values():
            session.close()

    def _look(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> FoundInFrame:
        """What phrases name in an image, as the detector gives it."""
        detector = self._sessions[DETECTOR]
        wanted = {tensor.name for tensor in detector.spec.inputs}
        tensors = {name: array for name, array in encoded.features.items() if name in wanted}
        features, mask = self._text.features(phrases, Timings())
        step = self._prompt_batch or phrases_in_a_call(detector, 1)
        found: list[FoundInFrame] = []
        for start in range(0, len(phrases), step):
            part = slice(start, start + step)
            out = detector.run(
                {**tensors, "text_features": features[part], "text_mask": mask[part]}
            )
            for number, phrase in enumerate(phrases[part]):
                found.append(_looked(_raw(out, 0, number), phrase, thresholds[start + number]))
        return joined_found(found)

    def _features(self, images: Sequence[Ready], timings: Timings) -> Mapping[str, Array]:
        encoded = [image for image in images if isinstance(image, EncodedImage)]
        if not encoded:
            taken = [image for image in images if isinstance(image, TakenImage)]
            return self._seen(taken, timings)
        if len(encoded) == 1:
            return encoded[0].features
        return {
            name: np.concatenate([one.features[name] for one in encoded])
            for name in encoded[0].features
        }

    def _seen(self, images: Sequence[TakenImage], timings: Timings) -> dict[str, Array]:
        """What the vision part makes of a batch."""
        vision = self._sessions[VISION]
        with timings.stage("preprocess"):
            squashed = [image_bchw_from_rgb(image.rgb, self._image) for image in images]
            images_bchw = squashed[0] if len(squashed) == 1 else np.concatenate(squashed)
        with timings.stage(VISION, vision.processor):
            return dict(vision.run({"images": images_bchw}))

    def _found(
        self, out: Mapping[str, Array], image: int, size_hw: tuple[int, int], question: Question
    ) -> list[Detections]:
        return [
            detections_from_raw(
                _raw(out, image, number),
                label=phrase,
                size_hw=size_hw,
                thresholds=question.thresholds[number],
                reference=self._reference,
            )
            for number, phrase in enumerate(question.phrases)
        ]


def _looked(raw: RawDetections, phrase: str, threshold: float) -> FoundInFrame:
    scores, best_first = admitted_queries(raw, phrase, threshold)
    # In the order of the queries, as Meta's tracker has them: the rules go by it.
    rows = np.sort(best_first)
    return FoundInFrame.from_masks(
        masks=raw.masks[rows].astype(np.float32),
        scores=scores[rows],
        phrases=np.zeros(len(rows), np.int64),
        boxes_xyxy=raw.boxes[rows].astype(np.float32),
        best_scores={phrase: float(scores.max())},
    )


def _raw(out: Mapping[str, Array], image: int, phrase: int) -> RawDetections:
    return RawDetections(
        logits=out["pred_logits"][image, phrase],
        boxes=out["pred_boxes"][image, phrase],
        masks=out["pred_masks"][image, phrase],
        presence_logit=float(out["presence_logit"][image, phrase]),
    )


_CPU = 1  # of DLPack's kinds of devices


def _array_of(image: Any) -> Any:
    """A tensor of another library on the host is a picture as well, in its own memory."""
    if isinstance(image, np.ndarray) or not hasattr(image, "__dlpack_device__"):
        return image
    kind, number = image.__dlpack_device__()
    if int(kind) != _CPU:
        raise ImageError(
            f"The image lies on a GPU (number {int(number)}), and this segmenter takes images of "
            "the host. Bring it there first (image.cpu())."
        )
    return np.from_dlpack(image)
