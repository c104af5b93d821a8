"""The numbers that the rules of text video decide by, in two frozen sets.

``META`` is what Meta's builder of the video model sets (sam3/model_builder.py, with temporal
disambiguation), ``TRANSFORMERS`` what transformers' ``Sam3VideoConfig`` does. The thresholds are
the same; what is done with them differs in the last fields of either class.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from samforge.core import reference as references
from samforge.core.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRules:
    """Which memories and pointers a frame attends to.

    Raises:
        SettingError: A number is outside what the rules can work with.
    """

    memories: int = 7
    """Temporal codes of the model: one for conditioning frames, the others for ordinary ones."""
    pointers: int = 16
    """One more than the ordinary frames that give a pointer."""
    conditioning: int = 4
    """Most conditioning frames that are attended to, at least 2."""
    keep_first: bool = False
    """Whether the first conditioning frame is always one of them."""
    stride: int = 1
    """Frames between two ordinary memories; the previous frame is always taken."""
    least_score: float | None = 0.01
    """Memory selection: only ordinary frames above this score; None takes those nearest in time."""
    all_conditioning_pointers: bool = False
    """Whether every past conditioning frame gives a pointer, selected or not, without an end.

    Conditioning frames that were not selected then give none as ordinary ones."""

    def __post_init__(self) -> None:
        for name, least in (("memories", 2), ("pointers", 2), ("conditioning", 2), ("stride", 1)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise SettingError(f"{name} is {value}. Give a whole number from {least} up.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """When objects of text video are born, kept, corrected, hidden and removed.

    Raises:
        SettingError: A threshold is outside 0 to 1, or hot start could not see what it counts.
    """

    reference: str = references.META
    """Whose decisions: ``meta`` or ``transformers``."""
    detection_score: float = 0.5
    """Detections above this score take part."""
    nms_iou: float = 0.1
    """A detection that overlaps a better one of its phrase by more is dropped; 0 drops none."""
    match_iou: float = 0.1
    """From this overlap on, a detection matches a track: it is not new."""
    track_iou: float = 0.5
    """A track that no detection reaches by this overlap is unmatched."""
    birth_score: float = 0.7
    """A new detection becomes an object from this score on, unless there is no track at all."""
    most_tracks: int = 10_000
    """Objects that may live at once."""
    hot_start_frames: int = 15
    """Frames from birth on in which an object may be removed, and by which output is delayed."""
    hot_start_unmatched: int = 8
    """Unmatched frames, in a row or not, that remove an object in its hot start."""
    hot_start_duplicates: int = 8
    """Frames on one detection with an earlier object that remove the later one in its hot start."""
    removes: bool = True
    """Whether anything is removed or hidden at all; transformers' streaming mode does neither."""
    keep_alive_start: int = 30
    """Counter of a new object; a matched frame adds 1, an unmatched one takes 1."""
    keep_alive_most: int = 30
    """The counter's upper end."""
    keep_alive_least: int = -1
    """The counter's lower end."""
    keep_alive_counts_empty: bool = False
    """Whether a frame with an empty mask takes 1 too."""
    hides_unmatched: bool = False
    """Whether an object whose counter is at most 0 is left out of the output."""
    recondition_every: int = 16
    """Frames, counted from frame 0 of the video, between reconditionings; 0 for never."""
    recondition_score: float = 0.8
    """Score from which on a detection may recondition."""
    recondition_iou: float = 0.8
    """Overlap from which on it may."""
    recondition_logit: float = 0.8
    """A logit that the tracker's object score exceeds: a probability of 0.69, not of 0.8."""
    occlusion_iou: float = 0.7
    """Of two tracks that overlap by this much one may be suppressed; 0 for never."""
    shrink_ratio: float = 0.3
    """Share of its area that a mask must keep beside the others to be remembered as it is."""
    hole_area: int = 16
    """Cells: holes and specks up to this size are filled or removed; 0 for none."""
    conditions_siblings: bool = True
    """Whether a reconditioned track's frame conditions all that were born together with it."""
    shows_reconditioning: bool = False
    """Whether the frame shows the detection's mask in place of the reconditioned track's."""
    shifts_rows: bool = False
    """Whether masks move to the wrong ids on a frame with a removal, as in transformers."""
    memory: MemoryRules = field(default_factory=MemoryRules)
    """Which memories and pointers a frame attends to."""

    def __post_init__(self) -> None:
        if self.reference not in references.REFERENCES:
            allowed = " or ".join(references.REFERENCES)
            raise SettingError(f"reference is {self.reference!r:.40}. Give {allowed}.")
        for name in _FRACTIONS:
            # Written so that NaN fails too.
            if not 0.0 <= getattr(self, name) <= 1.0:
                value = getattr(self, name)
                raise SettingError(f"{name} is {value!r:.40}. Give a number from 0 to 1.")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise SettingError(f"{name} is {getattr(self, name)}. Give 0 or more.")
        for name in ("hot_start_unmatched", "hot_start_duplicates"):
            if 0 < self.hot_start_frames < getattr(self, name):
                raise SettingError(
                    f"{name} is {getattr(self, name)}, and hot start has {self.hot_start_frames} "
                    "frames: it would never remove anything. Lower it, or set removes=False."
                )


_FRACTIONS = tuple(
    item.name for item in fields(Rules) if item.name.endswith(("_iou", "_score", "_ratio"))
)
_COUNTS = ("most_tracks", "hot_start_frames", "recondition_every", "hole_area")

META = Rules()
"""As Meta runs text video."""
TRANSFORMERS = Rules(
    reference=references.TRANSFORMERS,
    conditions_siblings=False,
    shows_reconditioning=True,
    shifts_rows=True,
    memory=MemoryRules(least_score=None, all_conditioning_pointers=True),
)
"""As transformers' ``Sam3VideoModel`` runs it, with its optional kernels for NMS and holes."""


def rules_from_reference(reference: str) -> Rules:
    """The set of one reference.

    Raises:
        SettingError: There is no such reference.
    """
    sets = {rules.reference: rules for rules in (META, TRANSFORMERS)}
    if reference not in sets:
        raise SettingError(f"reference is {reference!r:.40}. Give {' or '.join(sets)}.")
    return sets[reference]
