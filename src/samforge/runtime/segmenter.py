"""Finds what phrases or boxes name in images, on whatever runs the parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, overload

import numpy.typing as npt

from samforge.core.capabilities import BOXES
from samforge.core.closing import Closing
from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SettingError, ShapeError
from samforge.core.images import ImageSource, RgbImage
from samforge.core.timing import Timings
from samforge.runtime.batches import batched, decoded_ahead, numbered, pipelined
from samforge.runtime.encoded import EncodedImage, Prompted, Ready, TakenImage, require_own
from samforge.runtime.executor import Executor
from samforge.runtime.pending import Pending
from samforge.runtime.prefetch import Prefetcher
from samforge.runtime.prompts import exemplars_from_boxes, phrases_from_text
from samforge.runtime.question import Question, Scores, question_from
from samforge.runtime.tracking.parts import TrackerParts
from samforge.runtime.tracking.verbs import TrackerVerbs

AnyPrompted = TypeVar("AnyPrompted", bound=Prompted)  # lists are invariant: list[Path] counts too


class Segmenter(TrackerVerbs, Closing):
    """Finds what phrases or boxes name in images.

    Its calls, errors and results are the same on the processor and on a GPU. Safe to use from
    several threads: on the processor they run side by side when the sessions can, on a GPU calls
    follow one another.
    """

    def __init__(
        self, executor: Executor, *, image_size: int, parts: Iterable[str], digest: str = ""
    ) -> None:
        """Use what runs the parts; ``samforge.load`` makes both.

        Args:
            executor: Takes images to detections.
            image_size: Side of the square that images are squashed to, pixels.
            parts: What it runs; boxes need ``detector_boxes``, clicks ``point_decoder``.
            digest: Of the bundle, where it is one: sessions of videos are bound to it.
        """
        self._executor = executor
        self._image_size = image_size
        self._parts = tuple(sorted(parts))
        self._digest = digest
        self._closed = False

    @property
    def parts(self) -> tuple[str, ...]:
        """What it runs, by name: a bundle with a tracker can follow objects."""
        return self._parts

    @property
    def image_size(self) -> int:
        """Side of the square that images are squashed to, pixels."""
        return self._image_size

    @property
    def digest(self) -> str:
        """Of the bundle, where it is one: says which model gave an answer."""
        return self._digest

    @property
    def device(self) -> str:
        """Where everything between a picture and its masks runs: ``cpu``, ``cuda:0``.

        ``cpu`` as well where a GPU runs the parts and arrays of the host go in and out.
        """
        return self._executor.device

    @property
    def processor(self) -> str:
        """Where the parts run and by which way, in words."""
        return self._executor.processor

    def forget_phrases(self) -> None:
        """Drop the features of phrases seen so far: the next call encodes its text again."""
        self._executor.forget_text()

    def encode_phrases(self, text: str | Sequence[str], *, timings: Timings | None = None) -> None:
        """Encode phrases ahead of the first image that they are asked of.

        Raises:
            PromptError: A phrase is not usable.
        """
        self._require_open()
        self._executor.encode_text(phrases_from_text(text, has_boxes=False), timings)

    def encode(self, image: ImageSource, *, timings: Timings | None = None) -> EncodedImage:
        """Run the vision part on one image, to prompt it several times.

        Args:
            image: A path, the bytes of an image file, a Pillow image, an RGB array (H, W, 3), or
                an uint8 tensor of that shape on the host or on :attr:`device`.
            timings: Collects the stages ``decode``, ``preprocess`` and ``vision``.

        Raises:
            ImageError: The image cannot be read.
            OutOfMemory: The GPU has no room for it.
        """
        self._require_open()
        taken = self._executor.take(image, own=False, timings=timings)
        return self._own(self._executor.encode(taken, timings))

    @overload
    def predict(
        self,
        image: Prompted,
        *,
        text: str | Sequence[str] | None = None,
        boxes_xyxy: npt.ArrayLike | None = None,
        box_labels: npt.ArrayLike | None = None,
        threshold: Scores = 0.5,
        mask_threshold: float = 0.5,
        max_detections: int | None = None,
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
        threshold: Scores = 0.5,
        mask_threshold: float = 0.5,
        max_detections: int | None = None,
        timings: Timings | None = None,
    ) -> list[Detections]: ...

    def predict(  # noqa: PLR0913  the public call: every argument is one a user types
        self,
        image: Prompted | list[Any] | tuple[Any, ...],
        *,
        text: str | Sequence[str] | None = None,
        boxes_xyxy: npt.ArrayLike | None = None,
        box_labels: npt.ArrayLike | None = None,
        threshold: Scores = 0.5,
        mask_threshold: float = 0.5,
        max_detections: int | None = None,
        timings: Timings | None = None,
    ) -> Detections | list[Detections]:
        """Find what a phrase or boxes name in one image or in each of a list.

        Images of a list run as batches on a GPU, and one after the other on a processor.

        Args:
            image: An image, an ``EncodedImage``, or a list of them, which may differ in size.
            text: One or more noun phrases; each is looked for by itself, a repeated one once.
            boxes_xyxy: (K, 4), pixels of the one image: examples of what to find.
            box_labels: (K,), 1 (find this) or 0 (leave this out); None for all 1.
            threshold: Detections score above it; one number, or one for each phrase.
            mask_threshold: Pixels of a mask have a probability above it.
            max_detections: Those with the best scores, over all phrases of an image;
                ``Detections.cut_off`` counts the others. None gives all.
            timings: Collects the time of each stage.

        Returns:
            Detections phrase by phrase, best score first; a list of them for a list of images.

        Raises:
            PromptError: There is nothing to find, or a phrase, a box or a label is not usable.
            SettingError: A threshold is outside 0 to 1, or boxes need a part that is not there.
            ImageError: An image cannot be read; of a list, its position is named.
            ShapeError: An ``EncodedImage`` is of another bundle, image size or device.
            FidelityError: The model's output holds NaN.
            OutOfMemory: The GPU has no room for the batch.
        """
        self._require_open()
        has_boxes = boxes_xyxy is not None
        if box_labels is not None and not has_boxes:
            raise PromptError("box_labels came without boxes_xyxy. Give the boxes they belong to.")
        question = question_from(
            text, threshold, mask_threshold, max_detections, has_boxes=has_boxes
        )
        if has_boxes and not BOXES.among(self._parts):
            raise SettingError(
                f"Boxes need the part {BOXES.detector}, this bundle has {', '.join(self._parts)}. "
                f"Build it again with {BOXES.detector} among the recipe's parts, or prompt it "
                "with text."
            )
        if isinstance(image, (list, tuple)):
            if has_boxes:
                raise PromptError(
                    f"Boxes go with one image, got a list of {len(image)}. "
                    "Call predict for each image."
                )
            return self._listed(image, question, timings)
        ready = self._ready(image, timings)
        if boxes_xyxy is not None:
            question = Question(
                phrases=question.phrases,
                thresholds=question.thresholds,
                exemplars=exemplars_from_boxes(boxes_xyxy, box_labels, ready.size_hw),
            )
        return self.result(self.launch(ready, question, timings))

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        text: str | Sequence[str],
        threshold: Scores = 0.5,
        mask_threshold: float = 0.5,
        max_detections: int | None = None,
        batch: int = 1,
    ) -> Iterator[Detections]:
        """Find what phrases name in image after image, reading ahead.

        The next images are read while one is segmented; on a GPU they are uploaded and queued
        behind it, and their kernels run while its masks come down. Images may be of different
        sizes. Other calls may come between its results, and change none of them.

        Args:
            images: Any number of images; each is read when its turn comes. An iterator may fill
                the same memory again and again, pinned or on the device: an image is taken over
                before the next is asked for.
            text: One or more noun phrases, the same for all.
            threshold: Detections score above it; one number, or one for each phrase.
            mask_threshold: Pixels of a mask have a probability above it.
            max_detections: Those with the best scores, over all phrases of an image;
                ``Detections.cut_off`` counts the others. None gives all.
            batch: Images in one call of the parts.

        Yields:
            The detections of each image, in order.

        Raises:
            PromptError: There is nothing to find.
            SettingError: ``batch`` is below 1, or a threshold is outside 0 to 1.
            ShapeError: The parts were built for fewer images in a call.
        """
        self._require_open()
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise SettingError(f"batch is {batch!r:.40}. Give at least 1.")
        question = question_from(text, threshold, mask_threshold, max_detections)
        return self._streamed(images, question, batch)

    def launch(
        self,
        image: Ready,
        question: Question,
        timings: Timings | None = None,
        *,
        alone: bool = True,
    ) -> Any:
        """Begin with one image, for whoever does something else meanwhile.

        Args:
            image: What :meth:`take` or :meth:`encode` gave.
            question: See :func:`question_from`.
            timings: Collects the stages.
            alone: Whether nothing else is launched before its result is asked for.

        Returns:
            What :meth:`result` takes.
        """
        self._require_open()
        return self._executor.start([image], question, timings, alone=alone)

    def result(self, launched: Any) -> Detections:
        """Wait for what was launched."""
        return self._executor.finish(launched)[0]

    @property
    def most_images(self) -> int:
        """Images that go in one call of the parts."""
        return self._executor.most_images

    def encode_images(
        self, images: Sequence[ImageSource], *, timings: Timings | None = None
    ) -> list[EncodedImage]:
        """Run the vision part on several images, ``most_images`` in a call.

        Raises:
            ImageError: One cannot be read; its position is named.
            OutOfMemory: The GPU has no room for them.
        """
        self._require_open()
        take = self._executor.take
        taken = numbered(images, lambda one: take(one, own=False, timings=timings), "list")
        return [self._own(one) for one in self._executor.encode_images(list(taken), timings)]

    def answers(
        self,
        images: Sequence[EncodedImage],
        question: Question,
        *,
        timings: Timings | None = None,
    ) -> list[list[Detections]]:
        """Ask every phrase of every image in as few calls as the parts allow.

        For whoever gathers what several callers ask: each phrase has its own thresholds, one may
        come twice, and the answers are kept apart. :func:`joined` makes of one caller's answers
        what :meth:`predict` would have given.

        Args:
            images: Encoded by this segmenter, at most :attr:`most_images`.
            question: Phrases, or one phrase with boxes; ``max_detections`` holds for each phrase.
            timings: Collects the stages.

        Returns:
            By image, then by phrase.

        Raises:
            ShapeError: An image is of another bundle, image size or device.
            FidelityError: The model's output holds NaN.
            OutOfMemory: The GPU has no room for the batch.
        """
        return self.begin_answers(images, question, timings=timings).result()

    def begin_answers(
        self,
        images: Sequence[EncodedImage],
        question: Question,
        *,
        timings: Timings | None = None,
    ) -> Pending[list[list[Detections]]]:
        """Begin with what :meth:`answers` does, for whoever begins something else meanwhile.

        Args:
            images: See :meth:`answers`.
            question: Likewise.
            timings: Likewise.

        Returns:
            The answers; where :attr:`overlaps` is false, they are there when this returns.
        """
        self._require_open()
        for image in images:
            self._ready(image, timings)
        return self._executor.begin_answers(images, question, timings)

    def take(
        self, image: ImageSource, *, own: bool = False, timings: Timings | None = None
    ) -> TakenImage:
        """Read an image for :meth:`launch`.

        Args:
            image: Any source of an image.
            own: Whether its memory may be filled again before it is launched.
            timings: Takes the stage ``decode``.
        """
        self._require_open()
        return self._executor.take(image, own=own, timings=timings)

    def staged(self, rgb: RgbImage) -> RgbImage:
        """Put a decoded picture where a call has least to do with it, in whatever thread.

        For whoever decodes in threads of its own: a GPU takes it from pinned memory at once.

        Args:
            rgb: (H, W, 3), uint8.

        Returns:
            The same pixels.
        """
        return self._executor.staged(rgb)

    @property
    def overlaps(self) -> bool:
        """Whether what is launched runs beside the caller."""
        return self._executor.overlaps

    def close(self) -> None:
        """Free the parts. Results that were given stay; no further call is possible."""
        if not self._closed:
            self._closed = True
            self._executor.close()

    def _tracker(self, needs: Sequence[str]) -> TrackerParts:
        self._require_open()
        return self._executor.tracker(needs, self._digest)

    def _require_open(self) -> None:
        if self._closed:
            raise ShapeError("The segmenter is closed. Load the bundle again.")

    def _ready(self, image: Any, timings: Timings | None) -> Ready:
        if not isinstance(image, EncodedImage):
            return self._executor.take(image, own=False, timings=timings)
        require_own(image, image_size=self._image_size, device=self.device, digest=self._digest)
        return image

    def _own(self, image: EncodedImage) -> EncodedImage:
        return replace(image, digest=self._digest)

    def _while_open(self, groups: Iterable[list[Ready]]) -> Iterator[list[Ready]]:
        for group in groups:
            self._require_open()
            yield group

    def _listed(
        self, images: Sequence[Any], question: Question, timings: Timings | None
    ) -> list[Detections]:
        ready = numbered(images, lambda image: self._ready(image, timings), "list")
        groups = self._while_open(batched(ready, self._executor.most_images))
        return list(pipelined(self._executor, groups, question, timings))

    def _streamed(
        self, images: Iterable[ImageSource], question: Question, batch: int
    ) -> Iterator[Detections]:
        own = not isinstance(images, (list, tuple))
        take = partial(self._executor.take, timings=None)
        if self._executor.overlaps:
            decoded = decoded_ahead(images, self._executor.read)
            taken = numbered(decoded, lambda one: take(one[0](), own=own and not one[1]), "stream")
            groups = self._while_open(batched(taken, batch))
            yield from pipelined(self._executor, groups, question, None)
            return
        taken = numbered(images, partial(take, own=own), "stream")
        with Prefetcher(batched(taken, batch), ahead=1, name="read") as ahead:
            yield from pipelined(self._executor, self._while_open(ahead), question, None)
