"""Detections and labels as files of other tools: COCO, LVIS, SA-Co, and tracks of videos."""

from samforge.formats.coco_data import CocoData, coco_data_from_file
from samforge.formats.coco_dataset import coco_dataset
from samforge.formats.coco_stream import CocoStream
from samforge.formats.tracks import TRACK_SUFFIXES, TrackWriter
from samforge.formats.video_data import VideoData, video_data_from_file

__all__ = [
    "TRACK_SUFFIXES",
    "CocoData",
    "CocoStream",
    "TrackWriter",
    "VideoData",
    "coco_data_from_file",
    "coco_dataset",
    "video_data_from_file",
]
