"""What a segmenter asks of whatever runs the parts: on the host, or on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from samforge.core.axes import BATCH, PROMPTS
from samforge.core.capabilities import DETECTOR, TEXT, TEXT_ENCODER, VISION
from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.core.images import ImageSpec, RgbImage
from samforge.core.session import PartSpec, Session, fixed_axis, largest_of
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage, Ready, TakenImage
from samforge.runtime.pending import Pending
from samforge.runtime.question import Question
from samforge.runtime.tokenize import PhraseTokenizer
from samforge.runtime.tracking.parts import TrackerParts

_MASK_BYTES = 512 << 20  # of pred_masks in one detector call


class Executor(Protocol):
    """Takes images to detections with the parts of one bundle."""

    @property
    def device(self) -> str:
        """Where the parts' tensors lie between them: ``cpu``, ``cuda:0``."""
        ...

    @property
    def processor(self) -> str:
        """Where the parts run and by which way, in words."""
        ...

    @property
    def most_images(self) -> int:
        """Images that go in one call of the parts."""
        ...

    @property
    def overlaps(self) -> bool:
        """Whether :meth:`start` returns before the work is done."""
        ...

    def read(self, image: Any) -> RgbImage:
        """Decode a file for :meth:`take`, in whatever thread; uint8 (H, W, 3)."""
        ...

    def staged(self, rgb: RgbImage) -> RgbImage:
        """Put pixels where :meth:`take` has least to do with them, in whatever thread."""
        ...

    def take(self, image: Any, *, own: bool, timings: Timings | None) -> TakenImage:
        """Read an image.

        Args:
            image: Any source of an image.
            own: Whether the caller may fill the same memory again before the image is used.
            timings: Takes the stage ``decode``.
        """
        ...

    def encode(self, image: TakenImage, timings: Timings | None) -> EncodedImage:
        """Run the vision part on one image."""
        ...

    def encode_images(
        self, images: Sequence[TakenImage], timings: Timings | None
    ) -> list[EncodedImage]:
        """Run the vision part on images, ``most_images`` in a call."""
        ...

    def begin_answers(
        self, images: Sequence[EncodedImage], question: Question, timings: Timings | None
    ) -> Pending[list[list[Detections]]]:
        """Begin to ask every phrase of every image; the answers are kept apart.

        Args:
            images: At most ``most_images``.
            question: What each is asked. ``max_detections`` holds for each phrase by itself.
            timings: Collects the stages.

        Returns:
            By image, then by phrase. :func:`joined` makes one image's detections of them.
        """
        ...

    def encode_text(self, phrases: tuple[str, ...], timings: Timings | None) -> None:
        """Encode phrases that are not known yet, and remember them."""
        ...

    def forget_text(self) -> None:
        """Drop what is remembered of phrases."""
        ...

    def start(
        self,
        images: Sequence[Ready],
        question: Question,
        timings: Timings | None,
        *,
        alone: bool = True,
    ) -> Any:
        """Begin a batch.

        Args:
            images: At most ``most_images``, all of them encoded or none.
            question: What each is asked.
            timings: Collects the stages.
            alone: Whether nothing else is started before :meth:`finish` is called.

        Returns:
            What :meth:`finish` takes.
        """
        ...

    def finish(self, begun: Any) -> list[Detections]:
        """Wait for a batch: the detections of each image."""
        ...

    def tracker(self, needs: Sequence[str], digest: str) -> TrackerParts:
        """What runs the tracker's parts, on features that :meth:`encode` gives.

        Args:
            needs: Parts that are going to be run.
            digest: Of the bundle.

        Raises:
            SettingError: One of them is missing.
        """
        ...

    def close(self) -> None:
        """Free the parts."""
        ...


def joined(answers: Sequence[Detections], most: int | None) -> Detections:
    """Answers to the phrases of one question about one image, as one result.

    Args:
        answers: Phrase by phrase, in the question's order.
        most: Detections that are given of the image, over all phrases; None for all.
    """
    return Detections.concatenate(answers).best(most)


def check_sessions(
    sessions: Mapping[str, Session], image: ImageSpec, tokenizer: PhraseTokenizer
) -> None:
    """Make sure that sessions are a segmenter's, of these sizes.

    Raises:
        SettingError: A part is missing.
        ShapeError: The vision or the text part was built for other sizes.
    """
    missing = list(TEXT.missing(sessions))
    if missing:
        *first, last = TEXT.parts
        raise SettingError(
            f"A segmenter needs the parts {', '.join(first)} and {last}, {missing} are "
            f"missing (there are {sorted(sessions)}). Build the bundle again with them."
        )
    _check_axis(sessions[VISION].spec, "images", -1, image.size, "image size")
    _check_axis(sessions[TEXT_ENCODER].spec, "input_ids", -1, tokenizer.context, "text context")


def images_in_a_call(sessions: Mapping[str, Session], most: int) -> int:
    """Images that the parts take at a time, at most ``most``."""
    limits = [most]
    for name, tensor in ((VISION, "images"), (DETECTOR, "fpn_0")):
        limits += [
            limit
            for limit in (
                fixed_axis(sessions[name].spec, tensor, 0),
                largest_of(sessions[name], BATCH.name),
            )
            if limit is not None
        ]
    return max(1, min(limits))


def phrases_in_a_call(session: Session, images: int) -> int:
    """Phrases in one call so that ``pred_masks`` (batch, prompts, Q, h, w) stays within 512 MiB.

    As many as the part was built for, where that is fixed; one where Q, h, w are not known.
    """
    fixed = fixed_axis(session.spec, "text_features", 0)
    if fixed is not None:
        return fixed
    sizes = [fixed_axis(session.spec, "pred_masks", axis) for axis in (2, 3, 4)]
    if None in sizes:
        return 1
    one = 4 * images * int(np.prod([size for size in sizes if size is not None], dtype=np.int64))
    most = max(1, _MASK_BYTES // one)
    largest = largest_of(session, PROMPTS.name)
    return most if largest is None else min(most, largest)


def _check_axis(spec: PartSpec, name: str, axis: int, size: int, what: str) -> None:
    built = fixed_axis(spec, name, axis)
    if built not in (None, size):
        raise ShapeError(
            f"The part {spec.name} was built for a {what} of {built}, got {size}. "
            "Use the settings in the bundle's manifest."
        )
