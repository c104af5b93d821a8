"""Finds what phrases name in images, with everything between two copies on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.core.images import ImageSource, ImageSpec, RgbImage
from samforge.core.reference import META
from samforge.runtime.device.graphs import Graphs
from samforge.runtime.device.phrases import PhraseFeatures
from samforge.runtime.device.reader import InFlight, Question, ResultReader
from samforge.runtime.device.resize import Resizer
from samforge.runtime.device.results import summary
from samforge.runtime.device.session import DeviceSession
from samforge.runtime.device.transfer import Uploader
from samforge.runtime.postprocess import Thresholds
from samforge.runtime.prompts import phrases_from_text
from samforge.runtime.tokenize import PhraseTokenizer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedOnDevice:
    """Features of one image on the device: prompt it as often as you like."""

    features: Mapping[str, Tensor]
    """Every output of the part, as in ``EncodedImage``."""
    size_hw: tuple[int, int]
    """Height and width of the image, pixels."""


class DeviceSegmenter:
    """Finds what phrases name in images; one thread at a time.

    Pictures go up as 8-bit values; resize, normalization, vision, detector and scores stay on the
    device; scores and boxes come down, and after them the masks of admitted queries only. On a GPU
    every combination of batch and phrase count is captured once as CUDA graphs.
    """

    def __init__(  # noqa: PLR0913  each is a choice of its own
        self,
        sessions: Mapping[str, DeviceSession],
        image: ImageSpec,
        tokenizer: PhraseTokenizer,
        read_image: Callable[[ImageSource], RgbImage],
        *,
        graphs: bool = True,
        masks_ahead: bool | None = None,
        reference: str = META,
    ) -> None:
        """Keep what runs a model.

        Args:
            sessions: By part: ``vision``, ``text`` and ``detector``, all on one device.
            image: How the model wants its images.
            tokenizer: Of the text part's context length.
            read_image: Gives any source as uint8 (H, W, 3): ``samforge.media.read_image``.
            graphs: Capture CUDA graphs; without them each kernel is launched by itself.
            masks_ahead: With one image in a call, begin its masks before the host has read the
                scores, where the last two calls with so many phrases found equally many; None does
                so on a GPU.
            reference: Whose masks: see ``postprocess.mask_limit``.

        Raises:
            SettingError: A part is missing, or the parts are on different devices.
        """
        missing = [part for part in ("vision", "text", "detector") if part not in sessions]
        if missing:
            raise SettingError(
                f"A segmenter needs the parts vision, text and detector, {missing} are missing "
                f"(there are {sorted(sessions)}). Build the bundle again with them."
            )
        devices = {str(session.device) for session in sessions.values()}
        if len(devices) > 1:
            raise SettingError(f"All parts run on one device, got {sorted(devices)}.")
        self.device = sessions["vision"].device
        self._sessions = dict(sessions)
        self._image = image
        self._text = PhraseFeatures(sessions["text"], tokenizer)
        self._read_image = read_image
        self._resize = Resizer(image, self.device)
        self._upload = Uploader(self.device)
        # Memory apart: the next pictures are encoded before masks are made of the last detector's.
        self._vision_graphs, self._detector_graphs = (Graphs(self.device, graphs) for _ in "vd")
        self._reader = ResultReader(self.device, masks_ahead, reference)
        self._static: dict[Any, dict[str, Tensor]] = {}

    @torch.inference_mode()
    def encode(self, image: ImageSource | Tensor) -> EncodedOnDevice:
        """Run the vision part on one image, to prompt it several times.

        Args:
            image: A path, the bytes of an image file, a Pillow image, an RGB array, or an uint8
                (H, W, 3) tensor on the host or the device.
        """
        rgb = self._picture(image)
        features = self._vision([rgb])
        # The graph's next replay writes into its own outputs.
        kept = {name: tensor.clone() for name, tensor in features.items()}
        self._upload.wait()  # what the caller holds may change from now on
        return EncodedOnDevice(features=kept, size_hw=(rgb.shape[0], rgb.shape[1]))

    @torch.inference_mode()
    def predict(
        self,
        image: ImageSource | Tensor | EncodedOnDevice | Sequence[ImageSource | Tensor],
        *,
        text: str | Sequence[str],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
    ) -> Detections | list[Detections]:
        """Find what phrases name in one image, or in each of a batch.

        Args:
            image: One image, an encoded one, or a list: its images run as one batch, and may be of
                different sizes.
            text: One or more noun phrases; each is looked for by itself.
            threshold: Detections score above it.
            mask_threshold: Pixels of a mask have a probability above it.

        Returns:
            Detections phrase by phrase, best score first; a list of them for a list.
        """
        thresholds = Thresholds(score=threshold, mask=mask_threshold)
        phrases = phrases_from_text(text, has_boxes=False)
        pending = self._launched(image, phrases, thresholds)
        found = list(self._reader.detections(pending))
        return found if isinstance(image, (list, tuple)) else found[0]

    def _launched(
        self,
        image: ImageSource | Tensor | EncodedOnDevice | Sequence[ImageSource | Tensor],
        phrases: tuple[str, ...],
        thresholds: Thresholds,
    ) -> InFlight:
        """Start everything up to the scores."""
        if isinstance(image, EncodedOnDevice):
            features = self._features(1)
            for name, tensor in image.features.items():
                features[name].copy_(tensor)
            sizes = (image.size_hw,)
            return self._detect(Question(phrases=phrases, sizes_hw=sizes, thresholds=thresholds))
        many = isinstance(image, (list, tuple))
        images: Sequence[Any] = image if many else [image]  # type: ignore[assignment]
        return self._start([self._picture(one) for one in images], phrases, thresholds)

    def stream(
        self,
        images: Iterable[ImageSource | Tensor],
        *,
        text: str | Sequence[str],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        batch: int = 1,
    ) -> Iterator[Detections]:
        """Find what phrases name in image after image, copying beside computing.

        While one batch is on the device the next one is read, uploaded and queued behind it, and
        its kernels run while the masks of the first come down. Images may be of different sizes.
        Other calls may come between its results, and change none of them.

        Args:
            images: Any number of images; each is read when its turn comes. An iterator may fill
                the same memory again and again, pinned or on the device: a picture is taken over
                before the next is asked for.
            text: One or more noun phrases, the same for all.
            threshold: Detections score above it.
            mask_threshold: Pixels of a mask have a probability above it.
            batch: Images in one call of the parts.

        Yields:
            The detections of each image, in order.

        Raises:
            SettingError: ``batch`` is below 1.
        """
        if batch < 1:
            raise SettingError(f"batch is {batch}. Give at least 1.")
        thresholds = Thresholds(score=threshold, mask=mask_threshold)
        phrases = phrases_from_text(text, has_boxes=False)
        running: InFlight | None = None
        for pictures in _groups(self._pictures(images), batch):
            before, running = running, self._start(pictures, phrases, thresholds, alone=False)
            if before is not None:
                yield from self._reader.detections(before)
        if running is not None:
            yield from self._reader.detections(running)

    def _pictures(self, images: Iterable[ImageSource | Tensor]) -> Iterator[Tensor]:
        """Take each picture over before the next is asked for: it may come in the same memory."""
        own = not isinstance(images, (list, tuple))
        for image in images:
            yield self._picture(image, own=own)
            if own:
                self._upload.wait()

    def _picture(self, image: ImageSource | Tensor, *, own: bool = False) -> Tensor:
        rgb = image if isinstance(image, Tensor) else self._read_image(image)
        return self._upload(rgb, own=own)

    @torch.inference_mode()
    def _start(
        self,
        pictures: Sequence[Tensor],
        phrases: tuple[str, ...],
        thresholds: Thresholds,
        *,
        alone: bool = True,
    ) -> InFlight:
        self._vision(pictures)
        sizes = tuple((int(rgb.shape[0]), int(rgb.shape[1])) for rgb in pictures)
        question = Question(phrases=phrases, sizes_hw=sizes, thresholds=thresholds)
        return self._detect(question, alone=alone)

    def _vision(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        """Encode pictures into the static features of their batch size."""
        batch, vision = len(pictures), self._sessions["vision"]
        size = self._image.size
        if batch == 0:
            raise ShapeError("predict got an empty list of images. Give at least one.")
        images = self._buffers(
            ("images", batch), vision, {"images": torch.empty(batch, 3, size, size)}
        )
        for index, rgb in enumerate(pictures):
            self._resize(rgb, images["images"][index])
        outputs = self._vision_graphs.run(batch, lambda: vision.run_tensors(images))
        # At fixed addresses: the graph's own outputs, which the detector's graph reads.
        self._static["features", batch] = dict(outputs)
        return self._static["features", batch]

    def _features(self, batch: int) -> dict[str, Tensor]:
        if ("features", batch) not in self._static:
            side = self._image.size
            self._vision([torch.zeros(side, side, 3, dtype=torch.uint8, device=self.device)])
        return self._static["features", batch]

    def _detect(self, question: Question, *, alone: bool = True) -> InFlight:
        """Run the detector on the static features; scores start on their way to the host."""
        batch, count = len(question.sizes_hw), len(question.phrases)
        detector = self._sessions["detector"]
        words, mask = self._text(question.phrases)
        key = ("text", count)
        text = self._buffers(key, detector, {"text_features": words, "text_mask": mask})
        text["text_features"].copy_(words)
        text["text_mask"].copy_(mask)
        features = self._static["features", batch]

        def call() -> dict[str, Tensor]:
            # What vision gives is mostly what the detector wants: nothing is copied then.
            outputs = detector.run_tensors({**detector.placed(features), **text})
            return {**outputs, "summary": summary(outputs)}

        where = features["fpn_0"].data_ptr()
        self._reader.make_room()
        outputs = self._detector_graphs.run((batch, count, where), call)
        return self._reader.pending(
            outputs["pred_masks"], outputs["summary"], question, alone=alone
        )

    def _buffers(
        self, key: Any, session: DeviceSession, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Inputs at fixed addresses, made at first use."""
        if key not in self._static:
            placed = session.placed(tensors)
            self._static[key] = {name: tensor.clone() for name, tensor in placed.items()}
        return self._static[key]


def _groups(images: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for image in images:
        group.append(image)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
