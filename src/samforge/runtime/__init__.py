"""From sessions to detections: preprocessing, prompting, post-processing. No torch."""

from samforge.runtime.choose import segmenter_from_sessions
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.executor import joined
from samforge.runtime.features import FeatureExtractor, Features, FeatureStatistics
from samforge.runtime.follow import follow_video
from samforge.runtime.postprocess import RawDetections, Thresholds, detections_from_raw
from samforge.runtime.preprocess import image_bchw_from_rgb
from samforge.runtime.question import Question, question_from
from samforge.runtime.segmenter import Segmenter
from samforge.runtime.stream import SegmentedFrame, segment_video
from samforge.runtime.tokenize import PhraseTokenizer
from samforge.runtime.tracking import ObjectPrompt, PromptAt, TrackingSettings, VideoSession

__all__ = [
    "EncodedImage",
    "FeatureExtractor",
    "FeatureStatistics",
    "Features",
    "ObjectPrompt",
    "PhraseTokenizer",
    "PromptAt",
    "Question",
    "RawDetections",
    "SegmentedFrame",
    "Segmenter",
    "Thresholds",
    "TrackingSettings",
    "VideoSession",
    "detections_from_raw",
    "follow_video",
    "image_bchw_from_rgb",
    "joined",
    "question_from",
    "segment_video",
    "segmenter_from_sessions",
]
