"""Videos in and out, with PyAV (the extra ``video``)."""

from samforge.media._video_in import VideoFrame, VideoInfo, VideoReader
from samforge.media._video_out import SUFFIXES, VideoWriter

__all__ = ["SUFFIXES", "VideoFrame", "VideoInfo", "VideoReader", "VideoWriter"]
