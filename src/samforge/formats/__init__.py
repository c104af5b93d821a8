"""Detections and labels as files of other tools: COCO, LVIS, SA-Co, YOLO, tracks, maps, …"""

from samforge.formats.brush import brush_rle
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
from samforge.formats.label_formats import LABEL_FORMATS, checked_formats, label_writer
from samforge.formats.labels import (
    MOST_ID,
    MOST_OBJECTS,
    DataSet,
    LabelledObject,
    LabelledPicture,
    LabelWriter,
    VideoFrameOf,
)
from samforge.formats.rings import pixel_rings_from_crop, rings_from_crop
from samforge.formats.tensors import (
    TENSORS_IN,
    TENSORS_OUT,
    PromptArguments,
    TensorForm,
    arrays_from_detections,
    picture_from_arrays,
    prompts_from_arrays,
)
from samforge.formats.tracks import TRACK_SUFFIXES, TrackWriter
from samforge.formats.video_data import VideoData, video_data_from_file

__all__ = [
    "GEO_SUFFIXES",
    "LABEL_FORMATS",
    "MOST_ID",
    "MOST_OBJECTS",
    "TENSORS_IN",
    "TENSORS_OUT",
    "TRACK_SUFFIXES",
    "CocoData",
    "CocoStream",
    "DataSet",
    "GeoFeature",
    "GeoLayer",
    "GeoWriter",
    "LabelWriter",
    "LabelledObject",
    "LabelledPicture",
    "PromptArguments",
    "TensorForm",
    "TrackWriter",
    "VideoData",
    "VideoFrameOf",
    "arrays_from_detections",
    "brush_rle",
    "checked_formats",
    "coco_data_from_file",
    "coco_dataset",
    "geo_writer",
    "label_writer",
    "picture_from_arrays",
    "pixel_rings_from_crop",
    "prompts_from_arrays",
    "rings_from_crop",
    "video_data_from_file",
]
