"""samforge: SAM 3 from a checkpoint to a fast bundle, with proof that it still segments.

Names load on first use, so that ``import samforge`` is quick and pulls in no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from samforge.core.version import __version__

if TYPE_CHECKING:
    from samforge.assembly import load
    from samforge.core.bundle import Bundle, open_bundle
    from samforge.core.detections import Detections
    from samforge.core.errors import SamforgeError, SamforgeWarning
    from samforge.core.masks import Masks
    from samforge.core.recipe import Gates, Recipe
    from samforge.draw import overlay
    from samforge.labelling import LabelSettings, Ontology, label
    from samforge.media import read_image
    from samforge.pipeline import build
    from samforge.rasters import RasterPlan, segment_raster
    from samforge.runtime import (
        EncodedImage,
        ObjectPrompt,
        PromptAt,
        Segmenter,
        TrackingSettings,
        VideoSession,
    )
    from samforge.workflows.bench import bench
    from samforge.workflows.compare import compare
    from samforge.workflows.compare_videos import compare_videos
    from samforge.workflows.demo import demo
    from samforge.workflows.environment import environment
    from samforge.workflows.export_triton import TritonOptions, export_triton
    from samforge.workflows.features import feature_pictures
    from samforge.workflows.inspect import inspect
    from samforge.workflows.mesh_files import compare_mesh_files
    from samforge.workflows.predict import Prompts, predict_files
    from samforge.workflows.verify import verify
    from samforge.workflows.video import segment_video_file
    from samforge.workflows.video_plan import VideoPlan

_HOMES = {
    "Bundle": "samforge.core.bundle",
    "Detections": "samforge.core.detections",
    "EncodedImage": "samforge.runtime",
    "Gates": "samforge.core.recipe",
    "LabelSettings": "samforge.labelling",
    "Masks": "samforge.core.masks",
    "ObjectPrompt": "samforge.runtime",
    "Ontology": "samforge.labelling",
    "PromptAt": "samforge.runtime",
    "Prompts": "samforge.workflows.predict",
    "RasterPlan": "samforge.rasters",
    "Recipe": "samforge.core.recipe",
    "SamforgeError": "samforge.core.errors",
    "SamforgeWarning": "samforge.core.errors",
    "Segmenter": "samforge.runtime",
    "TrackingSettings": "samforge.runtime",
    "TritonOptions": "samforge.workflows.export_triton",
    "VideoPlan": "samforge.workflows.video_plan",
    "VideoSession": "samforge.runtime",
    "bench": "samforge.workflows.bench",
    "build": "samforge.pipeline",
    "compare": "samforge.workflows.compare",
    "compare_mesh_files": "samforge.workflows.mesh_files",
    "compare_videos": "samforge.workflows.compare_videos",
    "demo": "samforge.workflows.demo",
    "environment": "samforge.workflows.environment",
    "export_triton": "samforge.workflows.export_triton",
    "feature_pictures": "samforge.workflows.features",
    "inspect": "samforge.workflows.inspect",
    "label": "samforge.labelling",
    "load": "samforge.assembly",
    "open_bundle": "samforge.core.bundle",
    "overlay": "samforge.draw",
    "predict_files": "samforge.workflows.predict",
    "read_image": "samforge.media",
    "segment_raster": "samforge.rasters",
    "segment_video_file": "samforge.workflows.video",
    "verify": "samforge.workflows.verify",
}

_EXTRAS = {"build": "build", "demo": "build"}
"""Names that need more than the base install, and the extra that brings it."""

__all__ = [
    "Bundle",
    "Detections",
    "EncodedImage",
    "Gates",
    "LabelSettings",
    "Masks",
    "ObjectPrompt",
    "Ontology",
    "PromptAt",
    "Prompts",
    "RasterPlan",
    "Recipe",
    "SamforgeError",
    "SamforgeWarning",
    "Segmenter",
    "TrackingSettings",
    "TritonOptions",
    "VideoPlan",
    "VideoSession",
    "__version__",
    "bench",
    "build",
    "compare",
    "compare_mesh_files",
    "compare_videos",
    "demo",
    "environment",
    "export_triton",
    "feature_pictures",
    "inspect",
    "label",
    "load",
    "open_bundle",
    "overlay",
    "predict_files",
    "read_image",
    "segment_raster",
    "segment_video_file",
    "verify",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'samforge' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if name not in _EXTRAS or (error.name or "").startswith("samforge"):
            raise
        from samforge.core.errors import MissingExtra

        raise MissingExtra(str(error.name), _EXTRAS[name]) from error


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
