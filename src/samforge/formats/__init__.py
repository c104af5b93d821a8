"""Detections and labels as files of other tools: COCO, LVIS, SA-Co, tracks, and maps."""

from samforge.formats.coco_data import CocoData, coco_data_from_file
from samforge.formats.coco_dataset import coco_dataset
from samforge.formats.coco_stream import CocoStream
from samforge.formats.geo_features import (
    GEO_SUFFIXES,
    GeoFeature,
    GeoLayer,
    GeoWriter,
)
from samforge.formats.geo_writer import geo_writer
from samforge.formats.tracks import TRACK_SUFFIXES, TrackWriter
from samforge.formats.video_data import VideoData, video_data_from_file

__all__ = [
    "GEO_SUFFIXES",
    "TRACK_SUFFIXES",
    "CocoData",
    "CocoStream",
    "GeoFeature",
    "GeoLayer",
    "GeoWriter",
    "TrackWriter",
    "VideoData",
    "coco_data_from_file",
    "coco_dataset",
    "geo_writer",
    "video_data_from_file",
]
