"""Images to detections with everything between two copies on one device: the only torch here."""

from samforge.runtime.device.executor import DeviceExecutor
from samforge.runtime.device.resize import Resizer

__all__ = ["DeviceExecutor", "Resizer"]
