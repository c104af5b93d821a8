"""What a segmenter does with single objects, where its bundle has the tracker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from samforge.core.capabilities import POINTS, TRACKER_PARTS
from samforge.core.detections import Detections
from samforge.core.errors import PromptError
from samforge.runtime.clicks import clicked
from samforge.runtime.encoded import Prompted
from samforge.runtime.postprocess import Thresholds
from samforge.runtime.tracking.drawn import VideoFrame
from samforge.runtime.tracking.parts import TrackerParts, encoded_by
from samforge.runtime.tracking.prompts import ObjectPrompt
from samforge.runtime.tracking.session import VideoSession
from samforge.runtime.tracking.settings import TrackingSettings
from samforge.runtime.tracking.video import Direction, PromptAt, track_video


class TrackerVerbs(ABC):
    """Objects that are shown in an image, and objects that are followed through a video."""

    @abstractmethod
    def _tracker(self, needs: Sequence[str]) -> TrackerParts:
        """What runs the tracker's parts.

        Args:
            needs: Parts that are going to be run.

        Raises:
            SettingError: One of them is missing.
            ShapeError: The segmenter is closed.
        """

    def predict_objects(
        self,
        image: Prompted,
        prompts: ObjectPrompt | Sequence[ObjectPrompt],
        *,
        earlier: Detections | None = None,
        candidates: bool = False,
        mask_threshold: float = 0.5,
        hole_area: int | None = None,
    ) -> Detections:
        """Segment the one object that each prompt shows: by points, a box, or a rough mask.

        Args:
            image: An image, or an ``EncodedImage``, which answers click after click at once.
            prompts: One for each object; all of them go in one call.
            earlier: What is known of these objects in this image, a row for each prompt: found by
                a phrase, by boxes or by earlier clicks. The prompts correct it.
            candidates: Give three masks for each object, best first: a thing, a part of it, or what
                it is a part of. Else the best one, and the single mask of a prompt that is clear.
            mask_threshold: Pixels of a mask have a probability above it.
            hole_area: Holes of up to so many cells of the model's mask are filled; 0 keeps them
                all. None is what Meta's predictor does, 256 of SAM 3's 288 x 288 and the same share
                of masks of other sizes, or nothing where transformers is the reference.

        Returns:
            A row for each prompt, in order, or three of them. ``scores`` are the IoU that the
            model expects of a mask; ``logits`` make the answer one that can be refined.

        Raises:
            PromptError: There is no prompt, one does not fit the image, or ``earlier`` is of other
                objects.
            SettingError: The bundle has no ``point_decoder``, the threshold is outside 0 to 1, or
                the area is no whole number from 0.
            ImageError: The image cannot be read.
            FidelityError: The model's output holds NaN.
        """
        Thresholds(mask=mask_threshold)
        parts = self._tracker((POINTS.detector,))
        encoded = encoded_by(parts, image)
        return clicked(
            parts,
            encoded.features,
            [prompts] if isinstance(prompts, ObjectPrompt) else list(prompts),
            encoded.size_hw,
            earlier=earlier,
            candidates=candidates,
            mask_threshold=mask_threshold,
            hole_area=hole_area,
        )

    def track(
        self,
        *,
        text: str | Sequence[str] | None = None,
        frames: Sequence[Any] | None = None,
        settings: TrackingSettings | None = None,
    ) -> VideoSession:
        """Begin to follow objects through a video: frames go in one by one, objects keep their ids.

        Args:
            text: Noun phrases that are looked for on every frame; None where objects are shown by
                points, boxes or masks: ``VideoSession.add``.
            frames: The frames by number, where they can be read again: then earlier ones can be
                prompted, too.
            settings: Delay, how often phrases are looked for, how many objects may live.

        Raises:
            PromptError: A phrase is not usable.
            SettingError: The bundle has no tracker, or cannot do what is set.
        """
        return VideoSession(self.tracker_parts(), text=text, settings=settings, frames=frames)

    def resume(self, path: str | Path, *, frames: Sequence[Any] | None = None) -> VideoSession:
        """Go on with a session that was saved: the next frame gives what it would have given.

        Raises:
            InputError: The file is no session, or one of another bundle.
            SettingError: The bundle has no tracker.
        """
        return VideoSession.from_file(Path(path), self.tracker_parts(), frames=frames)

    def track_video(
        self,
        frames: Iterable[Any],
        *,
        text: str | Sequence[str] | None = None,
        prompts: Sequence[PromptAt] = (),
        direction: Direction = "forward",
        start: int | None = None,
        settings: TrackingSettings | None = None,
    ) -> Iterator[VideoFrame]:
        """Follow objects through a whole video: see :func:`samforge.runtime.tracking.track_video`.

        Raises:
            PromptError: There is nothing to follow, or a prompt is on no frame of the video.
            SettingError: The bundle has no tracker, or a stream is asked to go backwards.
        """
        if text is None and not prompts:
            raise PromptError(
                "There is nothing to follow. Give text='person', or prompts=[PromptAt(…)]."
            )
        return track_video(
            self.tracker_parts(),
            frames,
            text=text,
            prompts=prompts,
            direction=direction,
            start=start,
            settings=settings,
        )

    def tracker_parts(self) -> TrackerParts:
        """What runs the tracker's parts, for whoever makes sessions of their own.

        Raises:
            SettingError: The bundle has no tracker.
        """
        return self._tracker(TRACKER_PARTS)
