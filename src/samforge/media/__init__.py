"""Images in and out."""

from samforge.media.coco_data import CocoData, coco_data_from_file
from samforge.media.images import MAX_PIXELS, list_images, read_image, write_png

__all__ = [
    "MAX_PIXELS",
    "CocoData",
    "coco_data_from_file",
    "list_images",
    "read_image",
    "write_png",
]
