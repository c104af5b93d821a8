"""The public door: exactly these names, each documented and from a public module."""

from __future__ import annotations

import inspect

import pytest

import samforge

NAMES = {
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
}


def test_the_names() -> None:
    assert set(samforge.__all__) == NAMES
    assert len(samforge.__all__) == len(NAMES)
    assert dir(samforge) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_each_resolves_and_says_what_it_is(name: str) -> None:
    value = getattr(samforge, name)
    documentation = inspect.getdoc(value)
    assert documentation
    assert documentation.splitlines()[0].endswith((".", ":"))
    assert value is getattr(samforge, name)


def test_no_private_module_is_a_home() -> None:
    homes = samforge._HOMES
    assert set(homes) == NAMES - {"__version__"}
    assert not [home for home in homes.values() if "._" in home]


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'samforge' has no attribute 'Sam3Model'"):
        _ = samforge.Sam3Model


def test_the_version_is_a_release() -> None:
    assert samforge.__version__ == "0.1.0"
