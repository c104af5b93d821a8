"""Objects through a video: the rules that decide, and what is remembered. No model, no torch."""

from samforge.runtime.pending import Pending
from samforge.runtime.tracking.asking import Answer
from samforge.runtime.tracking.association import (
    Association,
    associate,
    kept_detections,
    mask_ious,
)
from samforge.runtime.tracking.bank import (
    Gathered,
    Memory,
    MemoryBank,
    forget,
    gather,
    remember,
)
from samforge.runtime.tracking.bank_file import banks_from_file, save_banks
from samforge.runtime.tracking.constants import (
    META,
    TRANSFORMERS,
    MemoryRules,
    Rules,
    rules_from_reference,
)
from samforge.runtime.tracking.drawn import VideoFrame
from samforge.runtime.tracking.host_parts import HostTrackerParts, facts_from_sessions
from samforge.runtime.tracking.hot_start import HotStart, hot_start, in_hot_start
from samforge.runtime.tracking.masks import (
    filled_holes,
    scores_from_areas,
    suppressed_masks,
    without_overlaps,
    without_shrunk,
)
from samforge.runtime.tracking.memory import (
    Attended,
    Needed,
    attended_frames,
    effective_score,
    nearest_conditioning,
    needed_frames,
)
from samforge.runtime.tracking.output import Held, Release, drain, held_from_decisions, release
from samforge.runtime.tracking.parts import (
    TRACKING_PARTS,
    FoundInFrame,
    TrackerFacts,
    TrackerParts,
)
from samforge.runtime.tracking.prompts import ObjectPrompt
from samforge.runtime.tracking.rules import (
    births_from_new,
    conditioning_tracks,
    decide,
    reconditioned_tracks,
    shown_masks,
    suppress_recently_occluded,
)
from samforge.runtime.tracking.session import VideoSession
from samforge.runtime.tracking.settings import TrackingSettings
from samforge.runtime.tracking.stacks import HostMasks, MaskStack
from samforge.runtime.tracking.state import (
    Birth,
    Decisions,
    Detected,
    Removal,
    Shown,
    Track,
    Tracked,
    TrackingState,
)
from samforge.runtime.tracking.video import PromptAt, track_video

__all__ = [
    "META",
    "TRACKING_PARTS",
    "TRANSFORMERS",
    "Answer",
    "Association",
    "Attended",
    "Birth",
    "Decisions",
    "Detected",
    "FoundInFrame",
    "Gathered",
    "Held",
    "HostMasks",
    "HostTrackerParts",
    "HotStart",
    "MaskStack",
    "Memory",
    "MemoryBank",
    "MemoryRules",
    "Needed",
    "ObjectPrompt",
    "Pending",
    "PromptAt",
    "Release",
    "Removal",
    "Rules",
    "Shown",
    "Track",
    "Tracked",
    "TrackerFacts",
    "TrackerParts",
    "TrackingSettings",
    "TrackingState",
    "VideoFrame",
    "VideoSession",
    "associate",
    "attended_frames",
    "banks_from_file",
    "births_from_new",
    "conditioning_tracks",
    "decide",
    "drain",
    "effective_score",
    "facts_from_sessions",
    "filled_holes",
    "forget",
    "gather",
    "held_from_decisions",
    "hot_start",
    "in_hot_start",
    "kept_detections",
    "mask_ious",
    "nearest_conditioning",
    "needed_frames",
    "reconditioned_tracks",
    "release",
    "remember",
    "rules_from_reference",
    "save_banks",
    "scores_from_areas",
    "shown_masks",
    "suppress_recently_occluded",
    "suppressed_masks",
    "track_video",
    "without_overlaps",
    "without_shrunk",
]
