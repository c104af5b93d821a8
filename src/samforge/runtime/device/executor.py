"""Runs the parts with everything between two copies on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from samforge.core.capabilities import BOXES, DETECTOR, TEXT, VISION
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.forks import OfOneProcess
from samforge.core.images import ImageSource, ImageSpec, RgbImage
from samforge.core.reference import META
from samforge.core.session import DeviceSession
from samforge.core.timing import Timings
from samforge.runtime.device.looking import Looking
from samforge.runtime.device.marks import Marks
from samforge.runtime.device.network import Network
from samforge.runtime.device.reader import Asked, InFlight, ResultReader
from samforge.runtime.device.stacks import Ground
from samforge.runtime.device.tracker import DeviceTrackerParts
from samforge.runtime.device.transfer import Uploader, on_default_stream, staged
from samforge.runtime.encoded import EncodedImage, Ready, TakenImage
from samforge.runtime.executor import (
    check_sessions,
    images_in_a_call,
    joined,
    phrases_in_a_call,
)
from samforge.runtime.pending import Pending
from samforge.runtime.question import Question, question_from
from samforge.runtime.tokenize import PhraseTokenizer
from samforge.runtime.tracking.host_parts import facts_from_sessions
from samforge.runtime.tracking.parts import FoundInFrame, joined_found

_MOST_IMAGES = 8
"""Of a list in one call: larger batches gain nothing on a GPU, and masks take their memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Begun:
    """A batch whose phrases go through the detector some at a time."""

    parts: tuple[InFlight, ...]
    """All but the last are waited for before the next begins."""
    done: tuple[tuple[Detections, ...], ...]
    """Of the parts that were waited for, by image."""
    marks: Marks
    """When its stages ended."""


class DeviceExecutor(OfOneProcess):
    """Parts behind :class:`DeviceSession`, all on one device.

    Pictures go up as 8-bit values; resize, normalization, vision, detector and scores stay on the
    device; scores and boxes come down, and after them the masks of admitted queries only. Calls of
    several threads follow one another.
    """

    overlaps = True

    def __init__(  # noqa: PLR0913  # each is a choice of its own
        self,
        sessions: Mapping[str, DeviceSession],
        image: ImageSpec,
        tokenizer: PhraseTokenizer,
        read_image: Callable[[ImageSource], RgbImage],
        *,
        prompt_batch: int | None = None,
        graphs: bool = True,
        masks_ahead: bool | None = None,
        reference: str = META,
    ) -> None:
        """Keep what runs a model.

        Args:
            sessions: By part: ``vision``, ``text``, ``detector`` and, for boxes,
                ``detector_boxes``, all on one device.
            image: How the model wants its images.
            tokenizer: Of the same context length as the text part.
            read_image: Gives any source on the host as uint8 (H, W, 3).
            prompt_batch: Most phrases in one detector call; None keeps its masks within 512 MiB.
            graphs: Whether calls are captured as CUDA graphs where sessions allow it.
            masks_ahead: Whether masks are begun before their number is known to the host, where it
                was the same in the last two calls; None does so on a GPU.
            reference: Whose masks: see ``postprocess.mask_limit``.

        Raises:
            SettingError: A part is missing, or they are on several devices.
            ShapeError: The vision or the text part was built for other sizes.
        """
        check_sessions(sessions, image, tokenizer)
        devices = {session.device for session in sessions.values()}
        if len(devices) > 1:
            raise SettingError(f"All parts run on one device, got {sorted(devices)}.")
        self.device = devices.pop()
        self.processor = f"{sessions[VISION].processor}, pictures to masks"
        self.most_images = images_in_a_call(sessions, _MOST_IMAGES)
        self._device = torch.device(self.device)
        self._sessions = dict(sessions)
        self._image = image
        self._read_image = read_image
        self._prompt_batch = prompt_batch
        self._reference = reference
        self._lock = RLock()
        with self._here():
            self._network = Network(self._sessions, image, tokenizer, self._device, graphs=graphs)
            self._upload = Uploader(self._device)
            self._reader = ResultReader(self._device, masks_ahead, reference)
        self._looking: Looking | None = None
        self.hold()

    def read(self, image: Any) -> RgbImage:
        """Decode a file into memory that goes up by itself."""
        return self.staged(self._read_image(image))

    def staged(self, rgb: RgbImage) -> RgbImage:
        """Put pixels into pinned memory."""
        return staged(rgb, self._device)

    def take(self, image: Any, *, own: bool, timings: Timings | None) -> TakenImage:
        """Read an image and start it on its way up; where it may be filled again, wait for that."""
        if isinstance(image, Tensor) or timings is None:
            source = image if isinstance(image, Tensor) else self._read_image(image)
        else:
            with timings.stage("decode"):
                source = self._read_image(image)
        with self._here():
            rgb = self._upload(source, own=own)
            if own:
                self._upload.wait()
        return TakenImage(rgb=rgb, size_hw=(int(rgb.shape[0]), int(rgb.shape[1])))

    def encode(self, image: TakenImage, timings: Timings | None) -> EncodedImage:
        """Run the vision part on one image."""
        return self.encode_images([image], timings)[0]

    def encode_images(
        self, images: Sequence[TakenImage], timings: Timings | None
    ) -> list[EncodedImage]:
        """Run the vision part on images, as many in a call as pay."""
        marks = self._marks(timings)
        encoded: list[EncodedImage] = []
        with self._here():
            for start in range(0, len(images), self.most_images):
                group = images[start : start + self.most_images]
                features = self._network.vision([image.rgb for image in group], marks)
                # The graph's next replay writes into its own outputs.
                kept = {key: _rows_of(one) for key, one in features.items()}
                for row, image in enumerate(group):
                    encoded.append(
                        EncodedImage(
                            features={key: rows[row] for key, rows in kept.items()},
                            size_hw=image.size_hw,
                            image_size=self._image.size,
                            device=self.device,
                        )
                    )
            self._upload.wait()  # what the caller holds may change from now on
            marks.add()
        return encoded

    def begin_answers(
        self, images: Sequence[EncodedImage], question: Question, timings: Timings | None
    ) -> Pending[list[list[Detections]]]:
        """Begin to ask every phrase of every image; of too many for a call, the last ones."""
        marks = self._marks(timings)
        name = (TEXT if question.exemplars is None else BOXES).detector
        sizes = tuple(image.size_hw for image in images)
        found: list[list[Detections]] = [[] for _ in images]
        with self._here():
            self._network.fill([image.features for image in images])
            marks.begin()
            step = self._prompt_batch or phrases_in_a_call(self._sessions[name], len(images))
            pending = None
            for start in range(0, len(question.phrases), step):
                if pending is not None:
                    self._add_apart(found, pending)
                part = question.part(start, step)
                asked = Asked(question=part, sizes_hw=sizes, apart=True)
                pending = self._detect(name, asked, marks, alone=True)
        assert pending is not None  # noqa: S101  # there is at least one phrase
        return Pending(partial(self._answered, found, pending, marks))

    def _answered(
        self, found: list[list[Detections]], last: InFlight, marks: Marks
    ) -> list[list[Detections]]:
        with self._here():
            self._add_apart(found, last)
            marks.end("post-process")
            marks.add()
        return found

    def _add_apart(self, found: list[list[Detections]], pending: InFlight) -> None:
        for image, phrases in enumerate(self._reader.apart(pending)):
            found[image] += phrases

    def encode_text(self, phrases: tuple[str, ...], timings: Timings | None) -> None:
        """Encode phrases that are not known yet."""
        marks = self._marks(timings)
        with self._here():
            self._network.words(phrases, marks)
            marks.add()

    def forget_text(self) -> None:
        """Drop what is remembered of phrases."""
        with self._lock:
            self._network.forget_text()

    def start(
        self,
        images: Sequence[Ready],
        question: Question,
        timings: Timings | None,
        *,
        alone: bool = True,
    ) -> Begun:
        """Start everything up to the scores of a batch, and maybe the masks."""
        marks = self._marks(timings)
        with self._here():
            encoded = [image.features for image in images if isinstance(image, EncodedImage)]
            if encoded:
                self._network.fill(encoded)
                marks.begin()
            else:
                self._network.vision(
                    [image.rgb for image in images if isinstance(image, TakenImage)], marks
                )
            sizes = tuple(image.size_hw for image in images)
            count = len(question.phrases)
            name = (TEXT if question.exemplars is None else BOXES).detector
            step = self._prompt_batch or phrases_in_a_call(self._sessions[name], len(images))
            if count <= step:
                pending = self._detect(name, Asked(question=question, sizes_hw=sizes), marks, alone)
                return Begun(parts=(pending,), done=(), marks=marks)
            return self._some_at_a_time(name, question, sizes, step, marks)

    def finish(self, begun: Begun) -> list[Detections]:
        """Detections of each image, when their masks are there."""
        with self._here():
            last = list(self._reader.detections(begun.parts[-1]))
            begun.marks.end("post-process")
            begun.marks.add()
            if not begun.done:
                return last
            parts = [*begun.done, last]
            most = begun.parts[-1].asked.question.most
            return [joined([part[image] for part in parts], most) for image in range(len(last))]

    def tracker(self, needs: Sequence[str], digest: str) -> DeviceTrackerParts:
        """What runs the tracker's parts."""
        facts = facts_from_sessions(
            self._sessions,
            needs,
            image_size=self._image.size,
            digest=digest,
            device=self.device,
            reference=self._reference,
        )
        return DeviceTrackerParts(
            self._sessions,
            facts,
            here=self._here,
            encode=lambda image: self.encode(self.take(image, own=False, timings=None), None),
            detect=self._begin_look,
        )

    def close(self) -> None:
        """Free the parts and every graph."""
        with self._lock:
            if not self.is_inherited:
                if self._device.type == "cuda":  # a video may have begun its next frame
                    torch.cuda.default_stream(self._device).synchronize()
                self._network.clear()
                self._looking = None
            for session in self._sessions.values():
                session.close()

    def _begin_look(
        self,
        encoded: EncodedImage,
        phrases: tuple[str, ...],
        thresholds: Sequence[float],
        ground: Ground,
    ) -> Pending[FoundInFrame]:
        """Begin to find what phrases name in an image, as the detector gives it."""
        detector = self._sessions[DETECTOR]
        step = self._prompt_batch or phrases_in_a_call(detector, 1)
        begun: list[Looking] = []
        with self._here():
            self._network.fill([encoded.features])
            for start in range(0, len(phrases), step):
                asked = Asked(
                    question=question_from(phrases[start : start + step]),
                    sizes_hw=(encoded.size_hw,),
                )
                outputs = self._detected(DETECTOR, asked, self._marks(None))
                part = slice(start, start + step)
                self._looking = Looking(
                    outputs["pred_masks"][0],
                    outputs["summary"],
                    phrases[part],
                    thresholds[part],
                    ground,
                )
                begun.append(self._looking)
        return Pending(lambda: joined_found([one.found() for one in begun]))

    def _some_at_a_time(
        self,
        name: str,
        question: Question,
        sizes: tuple[tuple[int, int], ...],
        step: int,
        marks: Marks,
    ) -> Begun:
        """More phrases than one call takes: its masks would fill the memory."""
        pending, done = None, []
        for start in range(0, len(question.phrases), step):
            if pending is not None:
                done.append(tuple(self._reader.detections(pending)))
            asked = Asked(question=question.part(start, step), sizes_hw=sizes)
            pending = self._detect(name, asked, marks, alone=True)
        assert pending is not None  # noqa: S101  # there is at least one phrase
        return Begun(parts=(pending,), done=tuple(done), marks=marks)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """One thread at a time, on this device and its default stream, without autograd."""
        self.require_own("The segmenter")
        with self._lock, torch.inference_mode(), on_default_stream(self._device):
            yield

    def _marks(self, timings: Timings | None) -> Marks:
        return Marks(timings=timings, device=self._device, processor=self.processor)

    def _detect(self, name: str, asked: Asked, marks: Marks, alone: bool) -> InFlight:
        """Run a detector on the static features; scores start on their way to the host."""
        outputs = self._detected(name, asked, marks)
        return self._reader.pending(outputs["pred_masks"], outputs["summary"], asked, alone=alone)

    def _detected(self, name: str, asked: Asked, marks: Marks) -> dict[str, Tensor]:
        """Run a detector on the network's features."""
        batch = len(asked.sizes_hw)
        return self._network.detect(name, asked.question, batch, marks, self._make_room)

    def _make_room(self) -> None:
        """Take what is wanted of the detector's last answer out of it."""
        self._reader.make_room()
        if self._looking is not None:
            looking, self._looking = self._looking, None  # even if it fails
            looking.take()


def _rows_of(batch: Tensor) -> tuple[Tensor, ...]:
    """Copies of the rows of a batch, (B, …) -> B times (1, …).

    In one call: each call of torch lets other threads run first, and a server has many of both.
    """
    if len(batch) == 1:  # it keeps the order of its memory, as the tracker's parts want it
        return (batch.clone(),)
    rows: Any = torch.split_copy(batch, 1)  # type: ignore[func-returns-value]  # which it does
    return tuple(rows)
