"""A server without a wire: bundles proven here, pictures encoded once, questions in turns."""

from samforge.serving.asking import Ask, check_at_most
from samforge.serving.bounded import Place
from samforge.serving.cache import EncodingCache
from samforge.serving.jobs import Job, Picture, Spent, Ticket
from samforge.serving.kept import KeptAnswer
from samforge.serving.limits import Limits
from samforge.serving.model import Model, Served, State
from samforge.serving.packing import FORMATS, MaskFormat, packed
from samforge.serving.scheduler import Scheduler
from samforge.serving.service import Service, Settings, named
from samforge.serving.shadow import Drift, DriftWatcher, Shadowing, drift_between
from samforge.serving.videos import FrameFound, VideoAsk, VideoRun
from samforge.serving.watching import Load, Unwatched, Watcher

__all__ = [
    "FORMATS",
    "Ask",
    "Drift",
    "DriftWatcher",
    "EncodingCache",
    "FrameFound",
    "Job",
    "KeptAnswer",
    "Limits",
    "Load",
    "MaskFormat",
    "Model",
    "Picture",
    "Place",
    "Scheduler",
    "Served",
    "Service",
    "Settings",
    "Shadowing",
    "Spent",
    "State",
    "Ticket",
    "Unwatched",
    "VideoAsk",
    "VideoRun",
    "Watcher",
    "check_at_most",
    "drift_between",
    "named",
    "packed",
]
