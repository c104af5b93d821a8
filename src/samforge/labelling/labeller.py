"""Labels chunks of pictures, and videos, with one segmenter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from samforge.core.capabilities import BOXES, TRACK
from samforge.core.detections import Detections
from samforge.core.errors import SamforgeError, SettingError
from samforge.core.images import RgbImage
from samforge.labelling.items import MOST_FRAMES, Item, SourceError
from samforge.labelling.ontology import Ontology, spelled
from samforge.labelling.outcome import (
    ItemFailure,
    Outcome,
    body_from_picture,
    failure_of,
    picture_from_detections,
)
from samforge.labelling.reader import ItemReader
from samforge.media import VideoFrame, VideoReader, read_image
from samforge.runtime import (
    SegmentedFrame,
    Segmenter,
    TrackingSettings,
    follow_video,
    segment_video,
)
from samforge.runtime.postprocess import Thresholds
from samforge.runtime.prefetch import Prefetcher
from samforge.runtime.tracking import rules_from_reference

Staged: TypeAlias = Callable[[RgbImage], RgbImage]
"""Puts decoded pixels where they are needed."""
FRAMES_TOGETHER = 64
"""Frames of a video whose labels are handed over at once."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loaded:
    """A picture that was read, or why it could not be."""

    number: int
    """The item, by its place in the source."""
    item: Item
    """Which one."""
    rgb: RgbImage | None = None
    """(H, W, 3), uint8."""
    sha256: str = ""
    """Of its bytes."""
    failure: ItemFailure | None = None
    """Why there are no pixels."""


def fetched(reader: ItemReader, item: Item) -> bytes | ItemFailure:
    """Read the bytes of a picture, once."""
    try:
        return reader.read(item)
    except Exception as error:  # noqa: BLE001  told with its kind; the others go on
        return _named(item, error)


def decoded(staged: Staged, number: int, item: Item, content: bytes | ItemFailure) -> Loaded:
    """Hash and decode the bytes of a picture; its pixels go where ``staged`` puts them."""
    if isinstance(content, ItemFailure):
        return Loaded(number=number, item=item, failure=content)
    try:
        digest = hashlib.sha256(content).hexdigest()
        return Loaded(number=number, item=item, rgb=staged(read_image(content)), sha256=digest)
    except Exception as error:  # noqa: BLE001  as above
        return Loaded(number=number, item=item, failure=_named(item, error))


def _named(item: Item, error: Exception) -> ItemFailure:
    """A failure that names its picture: the reader knows only bytes."""
    told = failure_of(item.name, error)
    if isinstance(error, SourceError):
        return told
    if item.uri in told.message:
        return told
    return replace(told, message=f"{item.uri}: {told.message}")


class Labeller:
    """Asks a segmenter for everything that an ontology names, and resolves the answers."""

    def __init__(self, segmenter: Segmenter, ontology: Ontology) -> None:
        """Encode the phrases.

        Raises:
            PromptError: A phrase is not usable.
            SettingError: There are exemplar boxes, and the bundle takes none.
        """
        self._segmenter, self._ontology = segmenter, ontology
        self._exemplars = ontology.exemplar_pictures
        if self._exemplars and not BOXES.among(segmenter.parts):
            raise SettingError(
                f"The ontology has exemplar boxes, and the bundle has no part {BOXES.detector}. "
                "Build it again with that part, or leave the exemplars out."
            )
        self._phrases = tuple(ontology.phrases)
        self._thresholds = tuple(ontology.phrases.values())
        segmenter.encode_phrases(self._phrases)

    def staged(self, rgb: RgbImage) -> RgbImage:
        """Put a decoded picture where :meth:`pictures` has least to do with it."""
        return self._segmenter.staged(rgb)

    def pictures(self, chunk: Sequence[Loaded]) -> list[Outcome]:
        """Label pictures together; where that fails, each by itself."""
        plain = [one for one in chunk if one.rgb is not None and not self._shown(one)]
        found: dict[int, Detections | ItemFailure] = {}
        try:
            answers = self._ask([one.rgb for one in plain if one.rgb is not None])
            found |= {one.number: answer for one, answer in zip(plain, answers, strict=True)}
        except Exception as error:  # noqa: BLE001  told of each picture that it is true of
            if len(plain) == 1:
                found[plain[0].number] = _named(plain[0].item, error)
            else:
                found |= {one.number: self._alone(one) for one in plain}
        found |= {one.number: self._alone(one) for one in chunk if self._shown(one)}
        return [self._outcome(one, found.get(one.number, one.failure)) for one in chunk]

    def video(self, number: int, item: Item) -> Iterator[Outcome]:
        """Label a video, frame by frame; with a tracker its objects have numbers."""
        bodies: list[bytes] = []
        first, failure = 0, None
        try:
            for body in self._frames(item):
                bodies.append(body)
                if len(bodies) == FRAMES_TOGETHER:
                    yield Outcome(number=number, first=first, bodies=tuple(bodies), ended=False)
                    first, bodies = first + len(bodies), []
        except Exception as error:  # noqa: BLE001  told with its kind; the others go on
            failure = _named(item, error)
        # What came before it broke off is labelled all the same.
        yield Outcome(number=number, first=first, bodies=tuple(bodies), failure=failure)

    def _frames(self, item: Item) -> Iterator[bytes]:
        """Labels of the frames, until one of them cannot be labelled."""
        if item.path is None:
            raise SourceError(f"{item.uri} is a video, which is read from this machine alone.")
        with VideoReader(item.path) as reader:
            with self._followed(reader.frames()) as shots:
                for shot in shots:
                    if shot.problem is not None:
                        raise shot.problem
                    if shot.frame.index >= MOST_FRAMES:
                        raise SourceError(
                            f"{item.uri} has more than the {MOST_FRAMES:,} frames that can be "
                            "numbered. Cut it into several videos."
                        )
                    found = self._admitted(shot.detections)
                    yield self._body(found, item, frame=shot.frame.index)
            if reader.problem is not None:
                raise SourceError(reader.problem)

    def _ask(self, images: list[RgbImage]) -> list[Detections]:
        if not images:
            return []
        return self._segmenter.predict(
            images,
            text=self._phrases,
            threshold=self._thresholds,
            mask_threshold=self._ontology.mask_threshold,
            max_detections=self._ontology.max_objects,
        )

    def _shown(self, one: Loaded) -> bool:
        return one.rgb is not None and one.item.name in self._exemplars

    def _alone(self, one: Loaded) -> Detections | ItemFailure:
        assert one.rgb is not None  # noqa: S101  # asked before
        try:
            if not self._shown(one):
                return self._ask([one.rgb])[0]
            return self._with_exemplars(one.rgb, one.item.name)
        except Exception as error:  # noqa: BLE001  as above
            return _named(one.item, error)

    def _with_exemplars(self, rgb: RgbImage, name: str) -> Detections:
        """Phrases alone, and each class with boxes on this picture by its phrase and the boxes."""
        encoded = self._segmenter.encode(rgb)
        ask = partial(
            self._segmenter.predict,
            encoded,
            mask_threshold=self._ontology.mask_threshold,
            max_detections=self._ontology.max_objects,
        )
        found = [ask(text=self._phrases, threshold=self._thresholds)]
        for number, boxes in self._exemplars[name]:
            one = self._ontology.classes[number]
            found.append(
                ask(
                    text=one.sought[0],
                    boxes_xyxy=boxes.boxes_xyxy,
                    box_labels=boxes.box_labels,
                    threshold=self._ontology.threshold_of(one),
                )
            )
        return Detections.concatenate(found).best(self._ontology.max_objects)

    def _followed(self, frames: Iterator[VideoFrame]) -> Prefetcher[SegmentedFrame[VideoFrame]]:
        """The frames with what is on them: followed where the bundle has a tracker."""
        if not TRACK.among(self._segmenter.parts):
            thresholds = [
                Thresholds(
                    score=score,
                    mask=self._ontology.mask_threshold,
                    max_detections=self._ontology.max_objects,
                )
                for score in self._thresholds
            ]
            return segment_video(
                self._segmenter, frames, text=self._phrases, thresholds=thresholds, isolate=True
            )
        if self._ontology.mask_threshold != Thresholds().mask:
            raise SettingError(
                f"mask_threshold is {self._ontology.mask_threshold:g}, and the tracker's masks of "
                f"videos have a threshold of {Thresholds().mask:g}. Leave it out, or label videos "
                "with a bundle without a tracker."
            )
        rules = rules_from_reference(self._segmenter.tracker_parts().facts.reference)
        lowest = min(self._thresholds)
        settings = TrackingSettings(
            rules=replace(rules, detection_score=lowest), most_objects=self._ontology.max_objects
        )
        return follow_video(
            self._segmenter, frames, text=self._phrases, settings=settings, isolate=True
        )

    def _admitted(self, found: Detections) -> Detections:
        """Of a track the frames in which it scores above its class: the tracker has one limit."""
        limits = {spelled(phrase): score for phrase, score in self._ontology.phrases.items()}
        lowest = min(limits.values())
        own = np.array([limits[spelled(label)] for label in found.labels], np.float32)
        return found[(found.scores > own) | (own == np.float32(lowest))]

    def _outcome(self, one: Loaded, answer: Detections | ItemFailure | None) -> Outcome:
        if isinstance(answer, Detections):
            try:
                body = self._body(answer, one.item, sha256=one.sha256)
            except SamforgeError as error:
                return Outcome(number=one.number, failure=_named(one.item, error))
            return Outcome(number=one.number, bodies=(body,))
        return Outcome(number=one.number, failure=answer)

    def _body(
        self, found: Detections, item: Item, *, sha256: str = "", frame: int | None = None
    ) -> bytes:
        name = item.name if frame is None else frame_name(item.name, frame)
        return body_from_picture(
            picture_from_detections(found, self._ontology, name=name, uri=item.uri, sha256=sha256)
        )


def frame_name(video: str, frame: int) -> str:
    """Name of a frame in the data set: ``clips/a.mp4/000017.png``."""
    return f"{video}/{frame:06d}.png"
