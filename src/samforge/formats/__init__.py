"""Detections and labels as files of other tools: COCO, LVIS and SA-Co."""

from samforge.formats.coco_data import CocoData, coco_data_from_file
from samforge.formats.coco_dataset import coco_dataset
from samforge.formats.coco_stream import CocoStream

__all__ = ["CocoData", "CocoStream", "coco_data_from_file", "coco_dataset"]
