"""The tiny model: a really trained, seven-million-parameter SAM 3 that knows six drawn shapes.

It has the architecture of facebook/sam3 at a hundredth of its size, ships inside the package and
is the default of every command, so that the whole path from checkpoint to proof runs anywhere.
``tools/train_tiny.py`` trains it on the scenes of :mod:`samforge.models.tiny.scenes`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from samforge.models.tiny.crossing import draw_crossing
from samforge.models.tiny.held_out import labelled_scenes
from samforge.models.tiny.moving import draw_clip
from samforge.models.tiny.scenes import SIZE, Scene, draw_scene, knows_scenes, vocabulary

__all__ = [
    "CONFIG_PATH",
    "LICENSE_NOTICE",
    "NAME",
    "NAMES",
    "SIZE",
    "STRESSED",
    "TOKENIZER_PATH",
    "TRACKER_CONFIG_PATH",
    "TRACKER_WEIGHTS_PATH",
    "WEIGHTS_PATH",
    "Scene",
    "draw_clip",
    "draw_crossing",
    "draw_scene",
    "knows_scenes",
    "labelled_scenes",
    "vocabulary",
    "weights_digest",
]

NAME = "tiny"
"""Of the model, where a model is named."""
STRESSED = "tiny-stressed"
"""The same model with outlier channels and the same function: as hard to quantize as real ViTs."""
NAMES = (NAME, STRESSED)
"""Of the models that come with samforge."""

_FOLDER = Path(__file__).resolve().parent

CONFIG_PATH = _FOLDER / "config.json"
"""A ``transformers.Sam3Config`` as JSON."""
TOKENIZER_PATH = _FOLDER / "tokenizer.json"
"""A ``tokenizers.Tokenizer``: lower case, no articles, one token a word, begin and end added."""
WEIGHTS_PATH = _FOLDER / "model.safetensors"
"""Weights of ``transformers.Sam3Model`` in float16."""
TRACKER_CONFIG_PATH = _FOLDER / "tracker_config.json"
"""A ``transformers.Sam3TrackerVideoConfig`` as JSON; image and map sizes are the detector's."""
TRACKER_WEIGHTS_PATH = _FOLDER / "tracker.safetensors"
"""Weights of the tracker and its neck in float16, in a file of their own: the detector's hash does
not depend on them."""
LICENSE_NOTICE = (
    "The weights of samforge's tiny model are licensed like samforge: Apache-2.0.\n"
    "They were trained by the samforge authors on scenes drawn by samforge itself.\n"
)
"""Licence of the weights; no SAM Materials are in them."""


def weights_digest(*, tracker: bool = False) -> str | None:
    """Identify the trained weights as manifests do, without torch; None when they are not there.

    Args:
        tracker: Of the model that was loaded with its tracker.
    """
    files = (WEIGHTS_PATH, TRACKER_WEIGHTS_PATH) if tracker else (WEIGHTS_PATH,)
    # A checkpoint is a set of files, and its hash is one of hashes: models/sources.py.
    digest = hashlib.sha256()
    for path in files:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
