"""Meta's small SAM 3: the checkpoint that its numbers were made with, and what runs its parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import _once
from tests.golden.meta.arrays import Arrays, Sessions, arrays_from_file, tokens
from tests.golden.meta.tracker_session import Parts, arrays_of_tracker
from tools import meta_weights

from samforge.core.images import ImageSpec
from samforge.media import read_image
from samforge.models.eager import EagerSession
from samforge.runtime import PhraseTokenizer, Segmenter, segmenter_from_sessions
from samforge.runtime.tracking import TRACKING_PARTS

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="session")
def arrays() -> Arrays:
    """What Meta's code was asked and what it answered."""
    return arrays_from_file()


@pytest.fixture(scope="session")
def layout(arrays: Arrays) -> dict[str, list[int]]:
    """Name and shape of every tensor of the checkpoint."""
    return json.loads(arrays["layout"].tobytes())


@pytest.fixture(scope="session")
def sam3_pt(arrays: Arrays, layout: dict[str, list[int]], shared_folder: Path) -> Path:
    """A ``sam3.pt`` in Meta's layout, of 4.7 million numbers, with a tokenizer beside it."""

    def write(folder: Path) -> None:
        import torch

        tensors = {name: meta_weights.tensor(name, shape) for name, shape in layout.items()}
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(tokens(arrays))))
        torch.save(
            {name: torch.from_numpy(array) for name, array in tensors.items()}, folder / "sam3.pt"
        )

    return _once(shared_folder / "meta", write) / "sam3.pt"


def tokenizer(words: dict[str, int]) -> dict[str, Any]:
    """A ``tokenizer.json`` of a few words, with the ids that CLIP's vocabulary gives them."""
    marks = {BEGIN: 49406, END: 49407}
    known = {"!": 0, **words, **marks}
    # Every other id has a word of its own: a vocabulary with gaps is refused.
    others = {f"<{number}>": number for number in range(49408)}
    for number in known.values():
        del others[f"<{number}>"]
    around = [{"SpecialToken": {"id": mark, "type_id": 0}} for mark in marks]
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
            "special_tokens": {
                mark: {"id": mark, "ids": [number], "tokens": [mark]}
                for mark, number in marks.items()
            },
        },
        "model": {"type": "WordLevel", "unk_token": END, "vocab": known | others},
    }


def _config() -> Any:
    """What the file does not tell, and of the real one is transformers' default."""
    from transformers import Sam3Config

    detr = {"hidden_size": 64, "num_attention_heads": 4}
    layers = detr | {"intermediate_size": 128, "num_layers": 2}
    return Sam3Config(
        vision_config={
            "fpn_hidden_size": 64,
            "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 64,
                "intermediate_size": 296,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 224,
                "pretrain_image_size": 112,
                "patch_size": 14,
                "window_size": 4,
                "global_attn_indexes": [1, 3],
            },
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": 49408,
            "hidden_size": 64,
            "intermediate_size": 256,
            "projection_dim": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "hidden_act": "gelu",
            "eos_token_id": 49407,
        },
        geometry_encoder_config=dict(layers),
        detr_encoder_config=dict(layers),
        detr_decoder_config=layers | {"num_queries": 20},
        mask_decoder_config=dict(detr),
    )


@pytest.fixture(scope="session")
def meta_checkpoint(one_thread: None, sam3_pt: Path) -> Callable[..., Any]:
    """The checkpoint, by reference and image size."""
    from samforge.models.sam3 import loading

    @lru_cache
    def load(reference: str = "meta", image_size: int | None = None) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "Sam3Config", _config)
            return loading.checkpoint_from_name(
                str(sam3_pt), reference=reference, image_size=image_size
            )

    return load


@pytest.fixture(scope="session")
def tracker_arrays() -> Arrays:
    """What Meta's tracker was asked and what it answered."""
    return arrays_of_tracker()


@pytest.fixture(scope="session")
def tracker_layout(tracker_arrays: Arrays) -> dict[str, list[int]]:
    """Name and shape of every tensor of the tracker."""
    return json.loads(tracker_arrays["layout"].tobytes())


@pytest.fixture(scope="session")
def tracker(
    one_thread: None, sam3_pt: Path, tracker_layout: dict[str, list[int]], shared_folder: Path
) -> Parts:
    """Parts of the tracker, from a ``sam3.pt`` that holds it beside the detector.

    The detector is 64 wide and the tracker, of Meta's real widths, 256: the neck's levels and its
    last convolutions do not meet in these numbers, and are held one by one.
    """
    import torch

    from samforge.models.sam3 import loading
    from samforge.models.sam3.parts import part_from_checkpoint

    def write(folder: Path) -> None:
        folder.mkdir()
        tensors = {name: meta_weights.tensor(name, shape) for name, shape in tracker_layout.items()}
        own = {name: torch.from_numpy(array) for name, array in tensors.items()}
        torch.save(torch.load(sam3_pt, weights_only=True) | own, folder / "sam3.pt")

    place = _once(shared_folder / "meta-tracker", write) / "sam3.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "Sam3Config", _config)
        checkpoint = loading.checkpoint_from_name(
            str(place), tracker=True, tokenizer=sam3_pt.with_name("tokenizer.json")
        )
    return lru_cache(lambda name: part_from_checkpoint(checkpoint, name))


@pytest.fixture(scope="session")
def tracker_sessions(tracker: Parts) -> dict[str, EagerSession]:
    """What a video session runs, by name."""
    return {name: EagerSession(tracker(name)) for name in TRACKING_PARTS}


@pytest.fixture(scope="session")
def eager(meta_checkpoint: Callable[..., Any]) -> Callable[..., EagerSession]:
    """A part of the checkpoint: by name, reference and image size."""
    from samforge.models.sam3.parts import part_from_checkpoint

    @lru_cache
    def make(name: str, reference: str = "meta", image_size: int | None = None) -> EagerSession:
        return EagerSession(part_from_checkpoint(meta_checkpoint(reference, image_size), name))

    return make


@pytest.fixture(scope="session")
def phrase_tokenizer(sam3_pt: Path) -> Callable[[str], PhraseTokenizer]:
    """What reads phrases, by reference."""
    place = sam3_pt.with_name("tokenizer.json")
    return lambda reference: PhraseTokenizer(place, 32, 0, reference=reference)


@pytest.fixture(scope="session")
def segmenter(phrase_tokenizer: Callable[[str], PhraseTokenizer]) -> Callable[..., Segmenter]:
    """A segmenter of sessions."""

    def make(sessions: Sessions, *, boxes: bool, reference: str = "meta") -> Segmenter:
        names = ("vision", "text", "detector", *(["detector_boxes"] if boxes else []))
        return segmenter_from_sessions(
            {name: sessions(name) for name in names},
            ImageSpec(size=224),
            phrase_tokenizer(reference),
            read_image,
            reference=reference,
        )

    return make
