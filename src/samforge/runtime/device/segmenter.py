"""Finds what phrases name in images, with everything between two copies on one device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.core.images import ImageSource, ImageSpec, RgbImage
from samforge.core.session import PartSpec
from samforge.runtime.device.admission import admitted_on_device
from samforge.runtime.device.graphs import Graphs
from samforge.runtime.device.masks import MasksToHost, index_on_device, masks_to_host
from samforge.runtime.device.resize import Resizer
from samforge.runtime.device.results import (
    Found,
    chosen_from_found,
    detections_from_found,
    found_from_summary,
    summary,
)
from samforge.runtime.device.transfer import Uploader, host_tensor
from samforge.runtime.postprocess import Thresholds
from samforge.runtime.prompts import phrases_from_text
from samforge.runtime.tokenize import PhraseTokenizer

_KEPT_PHRASES = 1024
_MOST_AHEAD = 16
"""Masks begun before their number is known. A wrong guess costs the copy of each (0.16 ms at 4K
over PCIe 5), a right one saves 0.13 ms: only a number that came twice in a row is a guess."""
_LEVELS = ("fpn_0", "fpn_1", "fpn_2")


class DeviceSession(Protocol):
    """A session that also takes tensors where they are, as the inductor backend's does."""

    @property
    def spec(self) -> PartSpec:
        """Interface of the part."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        ...

    def run_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the part on tensors of this device."""
        ...

    def placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move and convert tensors to how ``run_tensors`` wants them."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedOnDevice:
    """Features of one image on the device: prompt it as often as you like."""

    features: Mapping[str, Tensor]
    """``fpn_0``, ``fpn_1``, ``fpn_2``, each (1, D, h, w), finest first."""
    size_hw: tuple[int, int]
    """Height and width of the image, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pending:
    """A batch whose kernels run while the processor does something else."""

    outputs: Mapping[str, Tensor]
    scores: Tensor
    ready: torch.cuda.Event | None
    phrases: tuple[str, ...]
    sizes_hw: tuple[tuple[int, int], ...]
    thresholds: Thresholds
    begun: MasksToHost | None
    """The best masks, which did not wait for the host to read the scores."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Arriving:
    """What was found in a batch, its masks on their way to the host."""

    found: Found
    chosen: Mapping[tuple[int, int], npt.NDArray[np.intp]]
    counts: tuple[int, ...]
    masks: tuple[MasksToHost, ...]
    phrases: tuple[str, ...]
    sizes_hw: tuple[tuple[int, int], ...]


class DeviceSegmenter:
    """Finds what phrases name in images; one thread at a time.

    Pictures go up as 8-bit values; resize, normalization, vision, detector and scores stay on the
    device; scores and boxes come down, and after them the masks of admitted queries only. On a GPU
    every combination of batch and phrase count is captured once as CUDA graphs.
    """

    def __init__(
        self,
        sessions: Mapping[str, DeviceSession],
        image: ImageSpec,
        tokenizer: PhraseTokenizer,
        read_image: Callable[[ImageSource], RgbImage],
        *,
        graphs: bool = True,
        masks_ahead: bool | None = None,
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
        self._tokenizer = tokenizer
        self._read_image = read_image
        self._resize = Resizer(image, self.device)
        self._upload = Uploader(self.device)
        self._graphs = Graphs(self.device, graphs)
        self._static: dict[Any, dict[str, Tensor]] = {}
        self._known: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        cuda = self.device.type == "cuda"
        self._copies = torch.cuda.Stream() if cuda else None  # type: ignore[no-untyped-call]
        self._ahead = cuda if masks_ahead is None else masks_ahead
        self._counts: dict[int, tuple[int, int]] = {}  # of the last two calls, by phrases

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
        kept = {name: features[name].clone() for name in _LEVELS}
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
        found = self._finish(self._launched(image, phrases, thresholds))
        return found if isinstance(image, (list, tuple)) else found[0]

    def _launched(
        self,
        image: ImageSource | Tensor | EncodedOnDevice | Sequence[ImageSource | Tensor],
        phrases: tuple[str, ...],
        thresholds: Thresholds,
    ) -> _Pending:
        """Start everything up to the scores."""
        if isinstance(image, EncodedOnDevice):
            features = self._features(1)
            for name in _LEVELS:
                features[name].copy_(image.features[name])
            return self._detect(phrases, (image.size_hw,), thresholds)
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

        While one batch is on the device the next one is read and uploaded, and its kernels start
        before the masks of the first have come down. Images may be of different sizes.

        Args:
            images: Any number of images; each is read when its turn comes.
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
        running: _Pending | None = None
        for group in _groups(images, batch):
            pictures = [self._picture(one) for one in group]
            if running is not None:
                arriving = self._masks(running)
                running = self._start(pictures, phrases, thresholds)
                yield from self._collected(arriving)
            else:
                running = self._start(pictures, phrases, thresholds)
        if running is not None:
            yield from self._finish(running)

    def _picture(self, image: ImageSource | Tensor) -> Tensor:
        rgb = image if isinstance(image, Tensor) else self._read_image(image)
        return self._upload(rgb)

    @torch.inference_mode()
    def _start(
        self, pictures: Sequence[Tensor], phrases: tuple[str, ...], thresholds: Thresholds
    ) -> _Pending:
        self._vision(pictures)
        sizes = tuple((int(rgb.shape[0]), int(rgb.shape[1])) for rgb in pictures)
        return self._detect(phrases, sizes, thresholds)

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
        outputs = self._graphs.run(("vision", batch), lambda: vision.run_tensors(images))
        # At fixed addresses: the graph's own outputs, which the detector's graph reads.
        self._static["features", batch] = {name: outputs[name] for name in _LEVELS}
        return self._static["features", batch]

    def _features(self, batch: int) -> dict[str, Tensor]:
        if ("features", batch) not in self._static:
            side = self._image.size
            self._vision([torch.zeros(side, side, 3, dtype=torch.uint8, device=self.device)])
        return self._static["features", batch]

    def _detect(
        self,
        phrases: tuple[str, ...],
        sizes_hw: tuple[tuple[int, int], ...],
        thresholds: Thresholds,
    ) -> _Pending:
        """Run the detector on the static features; scores start on their way to the host."""
        batch, detector = len(sizes_hw), self._sessions["detector"]
        features, mask = self._text(phrases)
        key = ("text", len(phrases))
        text = self._buffers(key, detector, {"text_features": features, "text_mask": mask})
        text["text_features"].copy_(features)
        text["text_mask"].copy_(mask)
        inputs = {**self._static["features", batch], **text}

        def call() -> dict[str, Tensor]:
            outputs = detector.run_tensors(inputs)
            return {**outputs, "summary": summary(outputs)}

        where = inputs["fpn_0"].data_ptr()
        outputs = self._graphs.run(("detector", batch, len(phrases), where), call)
        scores = host_tensor(tuple(outputs["summary"].shape), torch.float32, self.device)
        scores.copy_(outputs["summary"], non_blocking=True)
        ready = None
        if self.device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return _Pending(
            outputs=outputs,
            scores=scores,
            ready=ready,
            phrases=phrases,
            sizes_hw=sizes_hw,
            thresholds=thresholds,
            begun=self._begun(outputs, len(phrases), sizes_hw, thresholds),
        )

    def _begun(
        self,
        outputs: Mapping[str, Tensor],
        phrases: int,
        sizes_hw: tuple[tuple[int, int], ...],
        thresholds: Thresholds,
    ) -> MasksToHost | None:
        """Start on the masks of one image where their number is as good as known."""
        count, before = self._counts.get(phrases, (0, 0))
        steady = count == before and 0 < count <= _MOST_AHEAD
        if not (self._ahead and steady and len(sizes_hw) == 1):
            return None
        index = admitted_on_device(outputs["summary"][0, :, :, 0], thresholds.score, count)
        masks = outputs["pred_masks"][0]
        return masks_to_host(masks, index, sizes_hw[0], thresholds.mask, self._copies)

    def _finish(self, pending: _Pending) -> list[Detections]:
        return list(self._collected(self._masks(pending)))

    @torch.inference_mode()
    def _masks(self, pending: _Pending) -> _Arriving:
        """Wait for the scores, then start what admitted masks are not under way to the host."""
        if pending.ready is not None:
            pending.ready.synchronize()
        found = found_from_summary(pending.scores)
        chosen = chosen_from_found(found, pending.thresholds)
        phrases = range(len(pending.phrases))
        counts, arriving = [], []
        for image, size_hw in enumerate(pending.sizes_hw):
            wanted = [(phrase, int(query)) for phrase in phrases for query in chosen[image, phrase]]
            counts.append(len(wanted))
            # Not where they would keep twice the memory of what was found.
            begun = pending.begun
            if begun is not None and len(wanted) <= len(begun.masks) <= 2 * len(wanted):
                arriving.append(begun)
                continue
            logits = pending.outputs["pred_masks"][image]
            index = index_on_device(wanted, self.device)
            threshold = pending.thresholds.mask
            arriving.append(masks_to_host(logits, index, size_hw, threshold, self._copies))
        if len(counts) == 1:
            self._counts[len(phrases)] = (counts[0], self._counts.get(len(phrases), (0, 0))[0])
        return _Arriving(
            found=found,
            chosen=chosen,
            counts=tuple(counts),
            masks=tuple(arriving),
            phrases=pending.phrases,
            sizes_hw=pending.sizes_hw,
        )

    def _collected(self, arriving: _Arriving) -> Iterator[Detections]:
        for image, size_hw in enumerate(arriving.sizes_hw):
            count, masks = arriving.counts[image], arriving.masks[image]
            # Everything else is put together while the masks are under way.
            detections = detections_from_found(
                arriving.found,
                masks.masks[:count].numpy(),
                arriving.chosen,
                image=image,
                labels=arriving.phrases,
                size_hw=size_hw,
            )
            masks.wait(count)
            yield detections

    def _buffers(
        self, key: Any, session: DeviceSession, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Inputs at fixed addresses, made at first use."""
        if key not in self._static:
            placed = session.placed(tensors)
            self._static[key] = {name: tensor.clone() for name, tensor in placed.items()}
        return self._static[key]

    def _text(self, phrases: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Features (P, L, D) and mask (P, L) of phrases, encoded once each."""
        missing = [phrase for phrase in phrases if phrase not in self._known]
        if missing:
            session = self._sessions["text"]
            ids = torch.from_numpy(self._tokenizer.encode(missing))
            outputs = session.run_tensors(session.placed({"input_ids": ids}))
            for index, phrase in enumerate(missing):
                self._known[phrase] = (
                    outputs["text_features"][index].clone(),
                    outputs["text_mask"][index].clone(),
                )
        for phrase in phrases:
            self._known.move_to_end(phrase)
        features, mask = zip(*(self._known[phrase] for phrase in phrases), strict=True)
        while len(self._known) > _KEPT_PHRASES:
            self._known.popitem(last=False)
        return torch.stack(features), torch.stack(mask)


def _groups(images: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for image in images:
        group.append(image)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
