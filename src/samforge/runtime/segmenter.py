"""Finds what phrases or boxes name in images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SettingError, ShapeError
from samforge.core.images import ImageSource, ImageSpec, RgbImage
from samforge.core.reference import META
from samforge.core.session import Array, PartSpec, Session
from samforge.core.timing import Timings
from samforge.runtime.postprocess import RawDetections, Thresholds, detections_from_raw
from samforge.runtime.preprocess import image_bchw_from_rgb
from samforge.runtime.prompts import Exemplars, exemplars_from_boxes, phrases_from_text
from samforge.runtime.text_cache import TextEncoder
from samforge.runtime.tokenize import PhraseTokenizer

_MASK_BYTES = 512 << 20  # of pred_masks in one detector call


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedImage:
    """What the vision part makes of one image: prompt it as often as you like."""

    features: Mapping[str, Array]
    """Every output of the part: ``fpn_0``, ``fpn_1``, ``fpn_2``, each (1, D, h, w), finest first,
    and ``class_token`` (1, 1, D) where Meta's code is the reference."""
    size_hw: tuple[int, int]
    """Height and width of the image that was read, pixels."""
    image_size: int
    """Side of the square the image was squashed to, pixels."""


Prompted: TypeAlias = ImageSource | EncodedImage
AnyPrompted = TypeVar("AnyPrompted", bound=Prompted)  # lists are invariant: list[Path] counts too


class Segmenter:
    """Finds what phrases or boxes name in images, with sessions of SAM 3's parts.

    Safe to use from several threads when its sessions are.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        image: ImageSpec,
        tokenizer: PhraseTokenizer,
        read_image: Callable[[ImageSource], RgbImage],
        prompt_batch: int | None = None,
        reference: str = META,
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

        Raises:
            SettingError: A part is missing, or ``prompt_batch`` is below 1.
            ShapeError: The vision or the text part was built for other sizes.
        """
        missing = [part for part in ("vision", "text", "detector") if part not in sessions]
        if missing:
            raise SettingError(
                f"A segmenter needs the parts vision, text and detector, {missing} are missing "
                f"(there are {sorted(sessions)}). Build the bundle again with them."
            )
        if prompt_batch is not None and prompt_batch < 1:
            raise SettingError(f"prompt_batch is {prompt_batch}. Give at least 1, or None.")
        _check_axis(sessions["vision"].spec, "images", -1, image.size, "image size")
        _check_axis(sessions["text"].spec, "input_ids", -1, tokenizer.context, "text context")
        self._sessions = dict(sessions)
        self._image = image
        self._read_image = read_image
        self._prompt_batch = prompt_batch
        self._reference = reference
        text_batch = _fixed_axis(sessions["text"].spec, "input_ids", 0) or prompt_batch
        self._text = TextEncoder(sessions["text"], tokenizer, batch=text_batch)

    def forget_phrases(self) -> None:
        """Drop the features of phrases seen so far: the next call encodes its text again."""
        self._text.forget()

    def encode(self, image: ImageSource, *, timings: Timings | None = None) -> EncodedImage:
        """Run the vision part on one image, to prompt it several times.

        Args:
            image: A path, the bytes of an image file, a Pillow image or an RGB array.
            timings: Collects the stages ``decode``, ``preprocess`` and ``vision``.

        Raises:
            ImageError: The image cannot be read.
        """
        timings = Timings() if timings is None else timings
        vision = self._sessions["vision"]
        with timings.stage("decode"):
            rgb = self._read_image(image)
        with timings.stage("preprocess"):
            image_bchw = image_bchw_from_rgb(rgb, self._image)
        with timings.stage("vision", vision.processor):
            out = vision.run({"images": image_bchw})
        return EncodedImage(
            features=dict(out),
            size_hw=(rgb.shape[0], rgb.shape[1]),
            image_size=self._image.size,
        )

    @overload
    def predict(
        self,
        image: Prompted,
        *,
        text: str | Sequence[str] | None = None,
        boxes_xyxy: npt.ArrayLike | None = None,
        box_labels: npt.ArrayLike | None = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        timings: Timings | None = None,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        image: list[AnyPrompted] | tuple[AnyPrompted, ...],
        *,
        text: str | Sequence[str] | None = None,
        boxes_xyxy: npt.ArrayLike | None = None,
        box_labels: npt.ArrayLike | None = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        timings: Timings | None = None,
    ) -> list[Detections]: ...

    def predict(  # noqa: PLR0913  the public call: every argument is one a user types
        self,
        image: Prompted | list[Any] | tuple[Any, ...],
        *,
        text: str | Sequence[str] | None = None,
        boxes_xyxy: npt.ArrayLike | None = None,
        box_labels: npt.ArrayLike | None = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        timings: Timings | None = None,
    ) -> Detections | list[Detections]:
        """Find what a phrase or boxes name in one image or in each of a list.

        Args:
            image: An image, an ``EncodedImage``, or a list of them.
            text: One or more noun phrases; each is looked for by itself, a repeated one once.
            boxes_xyxy: (K, 4), pixels of the one image: examples of what to find.
            box_labels: (K,), 1 (find this) or 0 (leave this out); None for all 1.
            threshold: Detections score above it.
            mask_threshold: Pixels of a mask have a probability above it.
            timings: Collects the time of each stage.

        Returns:
            Detections phrase by phrase, best score first; a list of them for a list of images.

        Raises:
            PromptError: There is nothing to find, or a phrase, a box or a label is not usable.
            SettingError: A threshold is outside 0 to 1, or boxes need a part that is not there.
            ImageError: An image cannot be read.
            ShapeError: An ``EncodedImage`` is of another image size.
            FidelityError: The model's output holds NaN.
        """
        timings = Timings() if timings is None else timings
        thresholds = Thresholds(score=threshold, mask=mask_threshold)
        has_boxes = boxes_xyxy is not None
        if box_labels is not None and not has_boxes:
            raise PromptError("box_labels came without boxes_xyxy. Give the boxes they belong to.")
        phrases = phrases_from_text(text, has_boxes=has_boxes)
        if has_boxes:
            self._require_boxes_part()
        if not isinstance(image, (list, tuple)):
            encoded = self._encoded(image, timings)
            exemplars = None
            if boxes_xyxy is not None:
                exemplars = exemplars_from_boxes(boxes_xyxy, box_labels, encoded.size_hw)
            return self._detections(encoded, phrases, exemplars, thresholds, timings)
        if has_boxes:
            raise PromptError(
                f"Boxes go with one image, got a list of {len(image)}. Call predict for each image."
            )
        return [
            self._detections(self._encoded(one, timings), phrases, None, thresholds, timings)
            for one in image
        ]

    def _require_boxes_part(self) -> None:
        if "detector_boxes" not in self._sessions:
            raise SettingError(
                "Boxes need the part detector_boxes, this bundle has "
                f"{', '.join(sorted(self._sessions))}. Build it again with detector_boxes among "
                "the recipe's parts, or prompt it with text."
            )

    def _encoded(self, image: Prompted, timings: Timings) -> EncodedImage:
        if not isinstance(image, EncodedImage):
            return self.encode(image, timings=timings)
        if image.image_size != self._image.size:
            raise ShapeError(
                f"This segmenter works at an image size of {self._image.size}, the image was "
                f"encoded at {image.image_size}. Encode it with this segmenter."
            )
        return image

    def _detections(
        self,
        encoded: EncodedImage,
        phrases: tuple[str, ...],
        exemplars: Exemplars | None,
        thresholds: Thresholds,
        timings: Timings,
    ) -> Detections:
        """Run the detector on one image, some phrases at a time."""
        detector = self._sessions["detector" if exemplars is None else "detector_boxes"]
        wanted = {tensor.name for tensor in detector.spec.inputs}
        tensors = {name: array for name, array in encoded.features.items() if name in wanted}
        if exemplars is not None:
            tensors |= exemplars.tensors(_fixed_axis(detector.spec, "boxes_cxcywh", 2))
        features, mask = self._text.features(phrases, timings)
        found = []
        step = self._prompt_batch or _prompts_within(detector.spec)
        for start in range(0, len(phrases), step):
            part = slice(start, start + step)
            tensors |= {"text_features": features[part], "text_mask": mask[part]}
            with timings.stage("detector", detector.processor):
                out = detector.run(tensors)
            with timings.stage("post-process"):
                for i, phrase in enumerate(phrases[part]):
                    raw = RawDetections(
                        logits=out["pred_logits"][0, i],
                        boxes=out["pred_boxes"][0, i],
                        masks=out["pred_masks"][0, i],
                        presence_logit=float(out["presence_logit"][0, i]),
                    )
                    size_hw = encoded.size_hw
                    found.append(
                        detections_from_raw(
                            raw,
                            label=phrase,
                            size_hw=size_hw,
                            thresholds=thresholds,
                            reference=self._reference,
                        )
                    )
        with timings.stage("post-process"):
            return Detections.concatenate(found)


def _axis(spec: PartSpec, name: str, axis: int) -> int | str:
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.name == name:
            return tensor.shape[axis]
    raise ShapeError(f"The part {spec.name} has no tensor {name}. Build the bundle again.")


def _fixed_axis(spec: PartSpec, name: str, axis: int) -> int | None:
    size = _axis(spec, name, axis)
    return size if isinstance(size, int) else None


def _check_axis(spec: PartSpec, name: str, axis: int, size: int, what: str) -> None:
    built = _fixed_axis(spec, name, axis)
    if built not in (None, size):
        raise ShapeError(
            f"The part {spec.name} was built for a {what} of {built}, got {size}. "
            "Use the settings in the bundle's manifest."
        )


def _prompts_within(spec: PartSpec) -> int:
    """Phrases in one call so that ``pred_masks`` (batch, prompts, Q, h, w) stays in bounds.

    As many as the part was built for, where that is fixed; one where Q, h, w are not known.
    """
    fixed = _fixed_axis(spec, "text_features", 0)
    if fixed is not None:
        return fixed
    sizes = [_fixed_axis(spec, "pred_masks", axis) for axis in (2, 3, 4)]
    if None in sizes:
        return 1
    one = 4 * int(np.prod([size for size in sizes if size is not None], dtype=np.int64))
    return max(1, _MASK_BYTES // one)
