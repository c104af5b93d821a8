"""Latency, fidelity and accuracy of sessions and segmenters."""

from samforge.measure.accuracy import Accuracy
from samforge.measure.segmentation import SegmenterAccuracy, measure_segmenter

__all__ = ["Accuracy", "SegmenterAccuracy", "measure_segmenter"]
