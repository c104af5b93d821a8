"""Images and videos in and out."""

from samforge.media.images import (
    MAX_PIXELS,
    list_images,
    listing_of_folder,
    read_image,
    write_png,
)
from samforge.media.video import VIDEO_SUFFIXES, VideoFrame, VideoInfo, VideoReader, VideoWriter

__all__ = [
    "MAX_PIXELS",
    "VIDEO_SUFFIXES",
    "VideoFrame",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "list_images",
    "listing_of_folder",
    "read_image",
    "write_png",
]
