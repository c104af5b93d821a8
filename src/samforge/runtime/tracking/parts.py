"""What a video session asks of whatever runs the parts: on the host, or on a device.

The session decides, and computes in numpy only. Features of a frame, masks and memories of objects
are opaque to it: it hands them back to the ``TrackerParts`` they came from, so that a device keeps
them where they are. What comes to the host on every frame is small: a bit for each cell of a mask,
scores and pointers. What is named ``begin`` returns before a device has done it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from samforge.core.capabilities import TEXT, TRACK
from samforge.core.errors import ShapeError
from samforge.core.masks import Masks
from samforge.core.reference import META
from samforge.runtime.encoded import EncodedImage, require_own
from samforge.runtime.pending import Pending
from samforge.runtime.postprocess import refuse_infinite_masks
from samforge.runtime.tracking.stacks import HostMasks, MaskStack, joined_masks
from samforge.runtime.tracking.state import Detected, Floats, refuse_nan_scores

Array = npt.NDArray[Any]

FRAME_FEATURES = ("tracker_features", "high_res_0", "high_res_1")
"""What the part ``vision`` of a bundle that tracks gives besides the detector's maps."""
TRACKING_PARTS = tuple(part for part in TRACK.parts if part not in TEXT.parts)
"""What a session runs, beside what encodes frames and detects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerFacts:
    """Sizes of a bundle's tracker, and which bundle it is."""

    image_size: int
    """Side of the square that frames are squashed to, pixels; points are in pixels of it."""
    mask_side: int
    """4s: side of the masks that decoders give and memory encoders take; the detector's too."""
    prompt_side: int
    """Side of the masks that part ``mask_prompt`` takes: 16s, or the image's where transformers is
    the reference."""
    memory_side: int
    """16s: side to which the memory encoders enlarge masks."""
    digest: str
    """Of the bundle. A saved session of another one is refused."""
    device: str = "cpu"
    """Where features of frames lie."""
    reference: str = META
    """Whose tracker the parts compute: it decides which rules are the default."""
    most_objects: int = 64
    """Objects in one call of a part."""
    most_memories: int | None = None
    """Memories of an object in one call; None for any number."""
    most_pointers: int | None = None
    """Pointers of an object in one call; None for any number."""
    most_points: int | None = None
    """Points of an object in one call; None for any number."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoundInFrame:
    """What the detector says of one frame, for all phrases: N detections.

    Raises:
        ShapeError: The arrays do not belong together.
        FidelityError: A score is NaN.
    """

    masks: MaskStack
    """N masks of 4s x 4s cells, where the parts run."""
    scores: Floats
    """(N,), probabilities: those of the detection times the presence of its phrase."""
    phrases: npt.NDArray[np.int64]
    """(N,), positions among the phrases that were asked."""
    boxes_xyxy: Floats
    """(N, 4), left, top, right, bottom as fractions of the frame. Objects get boxes of their masks:
    these serve whoever shows detections as they are."""
    best_scores: Mapping[str, float] = field(default_factory=dict)
    """Best score of each phrase, above its threshold or not."""

    def __post_init__(self) -> None:
        count = len(self.masks)
        shapes = (self.scores.shape, self.phrases.shape, self.boxes_xyxy.shape)
        if shapes != ((count,), (count,), (count, 4)):
            raise ShapeError(
                f"{count} detections want scores ({count},), phrases ({count},) and boxes "
                f"({count}, 4), got {shapes[0]}, {shapes[1]} and {shapes[2]}."
            )
        refuse_nan_scores(self.scores, "detection")

    @classmethod
    def from_masks(
        cls,
        *,
        masks: Floats,
        scores: Floats,
        phrases: npt.NDArray[np.int64],
        boxes_xyxy: Floats,
        best_scores: Mapping[str, float] | None = None,
    ) -> FoundInFrame:
        """The same of masks (N, 4s, 4s) on the host, logits.

        Raises:
            ShapeError: The arrays do not belong together.
            FidelityError: A score is NaN.
        """
        return cls(
            masks=HostMasks(masks),
            scores=scores,
            phrases=phrases,
            boxes_xyxy=boxes_xyxy,
            best_scores=best_scores or {},
        )

    def require_finite(self, phrases: Sequence[str]) -> None:
        """Stop where masks hold infinity or NaN, whatever becomes of them; waits for their cells.

        Args:
            phrases: That were asked.

        Raises:
            FidelityError: One does.
        """
        for row in np.flatnonzero(~self.masks.known.finite)[:1].tolist():
            refuse_infinite_masks(finite=False, label=phrases[self.phrases[row]])

    @property
    def detected(self) -> Detected:
        """What the rules take; waits for the cells of the masks."""
        return Detected(cells=self.masks.cells, scores=self.scores, phrases=self.phrases)


def joined_found(found: Sequence[FoundInFrame]) -> FoundInFrame:
    """What was found of some phrases and of those behind them, at least one of them, in order.

    Each counts its own phrases from 0, and has a best score of every one.
    """
    if len(found) == 1:
        return found[0]
    before = np.cumsum([0, *(len(one.best_scores) for one in found)]).tolist()
    phrases = [one.phrases + first for one, first in zip(found, before[:-1], strict=True)]
    return FoundInFrame(
        masks=joined_masks([one.masks for one in found]),
        scores=np.concatenate([one.scores for one in found]),
        phrases=np.concatenate(phrases).astype(np.int64),
        boxes_xyxy=np.concatenate([one.boxes_xyxy for one in found]),
        best_scores={phrase: best for one in found for phrase, best in one.best_scores.items()},
    )


def encoded_by(parts: TrackerParts, image: Any) -> EncodedImage:
    """Encode an image, unless these parts did already.

    Raises:
        ImageError: The image cannot be read.
        ShapeError: It was encoded by others: see :func:`samforge.runtime.encoded.require_own`.
    """
    if not isinstance(image, EncodedImage):
        return parts.encode(image)
    facts = parts.facts
    require_own(image, image_size=facts.image_size, device=facts.device, digest=facts.digest)
    return image


class TrackerParts(Protocol):
    """Runs the parts of one bundle for a video session.

    One session calls it from one thread at a time. Inputs may be numpy arrays and arrays that it
    gave itself, mixed in one call. Arrays that it gives are valid until they are dropped: a later
    call does not write over them.
    """

    @property
    def facts(self) -> TrackerFacts:
        """Sizes, limits, and which bundle this is."""
        ...

    def encode(self, image: Any) -> EncodedImage:
        """Run the vision part on one frame.

        Args:
            image: Any source of an image, as ``Segmenter.encode`` takes it.

        Returns:
            Its features: those of :data:`FRAME_FEATURES`, (1, D, h, w) each, and the detector's.

        Raises:
            ImageError: The image cannot be read.
        """
        ...

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        """Begin to find what all phrases name in a frame, in as few detector calls as it takes.

        Args:
            encoded: What :meth:`encode` gave.
            phrases: At least one, each of them once. Their features are remembered.
            thresholds: One for each phrase: detections that score above it are given.

        Returns:
            What is found. That scores hold NaN is said when it is asked for.

        Raises:
            PromptError: A phrase is not usable.
        """
        ...

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one of :data:`TRACKING_PARTS` for at most ``facts.most_objects`` objects.

        Args:
            part: Its name.
            inputs: By name, as the part's specification says. ``memory`` of ``memory_attention`` is
                what :meth:`recall` gave.

        Returns:
            Every output by name, where the device keeps it.
        """
        ...

    def to_host(self, array: Any) -> Array:
        """Bring an output of :meth:`run` to the host, in the type of the part's specification."""
        ...

    def begin_to_host(self, arrays: Mapping[str, Any]) -> Pending[dict[str, Array]]:
        """Begin to bring outputs of :meth:`run` to the host, all of them together."""
        ...

    def masks(self, logits: Any) -> MaskStack:
        """Masks (N, 4s, 4s) in an array of the host or an output of :meth:`run`, kept there."""
        ...

    def begin_draw(self, masks: MaskStack, size_hw: tuple[int, int]) -> Pending[Masks]:
        """Begin to draw masks at the frame's size: :func:`~.drawn.drawn_masks`.

        Args:
            masks: N masks of 4s x 4s cells.
            size_hw: Height and width of the frame, pixels.

        Raises:
            FidelityError: One is not finite.
        """
        ...

    def give(self, masks: MaskStack, size_hw: tuple[int, int]) -> tuple[Any, MaskStack]:
        """Take masks of detections as masks that are given to the tracker.

        Args:
            masks: N masks of 4s x 4s cells.
            size_hw: Height and width of the frame, pixels.

        Returns:
            What :func:`samforge.runtime.tracking.given.masks_to_give` makes of them, (N, S, S), for
            :meth:`run`, and what ``given_logits`` makes of that.
        """
        ...

    def keep(self, memory: Any) -> list[Any]:
        """Split the ``memory`` (N, L, C) of a memory encoder into N memories of single objects.

        They may be kept as bfloat16, as Meta keeps them. Each is dropped on its own and must then
        free its share: no view that holds all N alive. It tells its size as ``nbytes``.
        """
        ...

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:
        """Join memories for one call of ``memory_attention``.

        Args:
            kept: N objects of M memories each, from :meth:`keep` or :meth:`restored`.

        Returns:
            (N, M, L, C), for :meth:`run`.
        """
        ...

    def saved(self, kept: Any) -> Array:
        """One kept memory as an array of the host that an npz file holds, without loss."""
        ...

    def restored(self, array: Array) -> Any:
        """The kept memory that :meth:`saved` wrote."""
        ...
