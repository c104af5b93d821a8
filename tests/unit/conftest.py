"""A small bundle that runs at once: real graphs, real types, made-up numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
from made_up import made_up_onnx, reseal, stamp
from tests.conftest import _enliven, _once, small_manifest

import samforge
from samforge.core.detections import Detections
from samforge.core.images import ImageSpec
from samforge.core.labelled import LabelledImage, Question
from samforge.core.manifest import PICTURES_NAME, Manifest, PartEntry, TextSpec
from samforge.core.masks import Masks
from samforge.core.session import PartSpec, TensorSpec
from samforge.measure.proof_pictures import write_proof_pictures
from samforge.models import tiny

CONTEXT, WIDTH, QUERIES = 32, 4, 3

_PYRAMID = tuple(
    TensorSpec(name=f"fpn_{i}", dtype="float32", shape=("batch", WIDTH, side, side))
    for i, side in enumerate((8, 4, 2))
)
_TEXT = (
    TensorSpec(name="text_features", dtype="float32", shape=("prompts", CONTEXT, WIDTH)),
    TensorSpec(name="text_mask", dtype="bool", shape=("prompts", CONTEXT)),
)
_PREDICTIONS = (
    TensorSpec(name="pred_logits", dtype="float32", shape=("batch", "prompts", QUERIES)),
    TensorSpec(name="pred_boxes", dtype="float32", shape=("batch", "prompts", QUERIES, 4)),
    TensorSpec(name="pred_masks", dtype="float32", shape=("batch", "prompts", QUERIES, 8, 8)),
    TensorSpec(name="presence_logit", dtype="float32", shape=("batch", "prompts")),
)
_IMAGES = (TensorSpec(name="images", dtype="float32", shape=("batch", 3, 28, 28)),)
_IDS = (TensorSpec(name="input_ids", dtype="int64", shape=("prompts", CONTEXT)),)
FAKE_PARTS = (
    PartSpec(name="vision", inputs=_IMAGES, outputs=_PYRAMID),
    PartSpec(name="text", inputs=_IDS, outputs=_TEXT),
    PartSpec(name="detector", inputs=(*_PYRAMID, *_TEXT), outputs=_PREDICTIONS),
)
"""The parts of a segmenter, of the smallest sizes."""


@pytest.fixture
def fake_bundle(manifest: Manifest, tmp_path: Path) -> Callable[..., samforge.Bundle]:
    """Makes a bundle of small ONNX graphs, whose answers depend on their inputs alone."""
    return partial(_fake_bundle, manifest, tmp_path)


def _fake_bundle(  # each is a choice of its own
    manifest: Manifest,
    folder: Path,
    name: str = "fake",
    *,
    precision: str = "fp32",
    parts: tuple[PartSpec, ...] = FAKE_PARTS,
    text: bool = True,
) -> samforge.Bundle:
    root = folder / name
    (root / "tokenizer").mkdir(parents=True)
    shutil.copy(tiny.TOKENIZER_PATH, root / "tokenizer" / "tokenizer.json")
    own = replace(
        manifest,
        recipe={"model": "tiny", "precision": precision},
        image=ImageSpec(size=28),
        text=TextSpec(
            context=CONTEXT, pad_id=0, tokenizer="tokenizer/tokenizer.json", synthetic=False
        )
        if text
        else None,
        parts={
            part.name: PartEntry(spec=part, artifact=f"parts/{part.name}/{part.name}.onnx")
            for part in parts
        },
    )
    for part in parts:
        file = root / own.parts[part.name].artifact
        file.parent.mkdir(parents=True)
        file.write_bytes(made_up_onnx(part))
        stamp(file, own, part.name)
    reseal(root, own)
    return samforge.open_bundle(root)


_EXAMPLES = (
    TensorSpec(name="boxes_cxcywh", dtype="float32", shape=("batch", "prompts", "boxes", 4)),
    TensorSpec(name="box_labels", dtype="int64", shape=("batch", "prompts", "boxes")),
)


@pytest.fixture(scope="session")
def proven_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes such a bundle that takes boxes too, and carries what its segmenter found as proof."""

    def make(name: str = "fake", *, broken: bool = False, precision: str = "fp32") -> Path:
        folder = tmp_path_factory.mktemp("proven")  # tests may give the same name
        boxes = PartSpec(
            name="detector_boxes", inputs=(*_PYRAMID, *_TEXT, *_EXAMPLES), outputs=_PREDICTIONS
        )
        parts = (*FAKE_PARTS, boxes)
        bundle = _fake_bundle(small_manifest(), folder, name, precision=precision, parts=parts)
        pictures = [tiny.draw_scene(number, split="demo").image for number in range(2)]
        asked = Question(text="star", masks=Masks.empty(pictures[0].shape[:2]))
        images = [
            LabelledImage(name=str(number), image_rgb=picture, questions=(asked,))
            for number, picture in enumerate(pictures)
        ]
        with samforge.load(bundle) as segmenter:
            found = [segmenter.predict(one, text="star") for one in pictures]
        if broken:
            found = [Detections.empty(one.size_hw, {"star": 0.1}) for one in found]
        write_proof_pictures(
            bundle.root / PICTURES_NAME, images, {(i, 0): one for i, one in enumerate(found)}
        )
        reseal(bundle.root, bundle.manifest)
        return bundle.root

    return make


@pytest.fixture(scope="session")
def video_folder(one_thread: None, small_config: Callable[..., Any], shared_folder: Path) -> Path:
    """A checkpoint of detector and tracker as transformers saves it: read only."""
    import torch
    from tracker_model import save_video_model, video_model

    def write(folder: Path) -> None:
        folder.mkdir()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of the matrix of positions, which is no parameter
            model = video_model(small_config)
        _enliven(model)
        save_video_model(model, folder)

    return _once(shared_folder / "video", write)


@pytest.fixture(scope="session")
def video_stock(video_folder: Path) -> Any:
    """transformers' own model of it."""
    from tracker_model import stock_from_folder

    return stock_from_folder(video_folder)


@pytest.fixture(scope="session")
def tracker_checkpoint(video_folder: Path) -> Callable[[str], Any]:
    """The checkpoint with its tracker, by reference."""
    from samforge.models.sam3.loading import checkpoint_from_name

    return lru_cache(
        lambda reference: checkpoint_from_name(str(video_folder), reference=reference, tracker=True)
    )


@pytest.fixture(scope="session")
def tracker_part(tracker_checkpoint: Callable[[str], Any]) -> Callable[..., Any]:
    """A part of its tracker, by name and reference."""
    from samforge.models.sam3.parts import part_from_checkpoint

    return lru_cache(
        lambda name, reference="meta": part_from_checkpoint(tracker_checkpoint(reference), name)
    )
