"""Detections and labels as files of other tools: COCO, LVIS, SA-Co, YOLO, tracks of videos, …"""

from samforge.formats.coco_data import CocoData, coco_data_from_file
from samforge.formats.coco_dataset import coco_dataset
from samforge.formats.coco_stream import CocoStream
from samforge.formats.label_formats import LABEL_FORMATS, label_writer
from samforge.formats.labels import DataSet, LabelledObject, LabelledPicture, LabelWriter
from samforge.formats.tracks import TRACK_SUFFIXES, TrackWriter

__all__ = [
    "LABEL_FORMATS",
    "TRACK_SUFFIXES",
    "CocoData",
    "CocoStream",
    "DataSet",
    "LabelWriter",
    "LabelledObject",
    "LabelledPicture",
    "TrackWriter",
    "coco_data_from_file",
    "coco_dataset",
    "label_writer",
]
