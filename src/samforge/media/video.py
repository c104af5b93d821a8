"""Videos in and out, with PyAV (the extra ``video``)."""

from samforge.media._video_in import VideoFrame, VideoInfo, VideoReader
from samforge.media._video_out import VIDEO_SUFFIXES, VideoWriter

__all__ = ["VIDEO_SUFFIXES", "VideoFrame", "VideoInfo", "VideoReader", "VideoWriter"]
