"""Segmenting with everything on one device between two copies. Needs torch."""

from samforge.runtime.device.resize import Resizer
from samforge.runtime.device.segmenter import DeviceSegmenter, EncodedOnDevice
from samforge.runtime.device.session import DeviceSession

__all__ = ["DeviceSegmenter", "DeviceSession", "EncodedOnDevice", "Resizer"]
