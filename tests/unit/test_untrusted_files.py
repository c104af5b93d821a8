"""Files that lie to compiled code: each ends in one error that names the place."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.core.errors import (
    CheckpointError,
    DamagedBundle,
    ImageError,
    PromptError,
    SamforgeError,
    SettingError,
    ShapeError,
)
from samforge.core.native import native_errors
from samforge.core.polygons import MOST_STEPS
from samforge.core.reference import TRANSFORMERS
from samforge.core.rle import mask_from_segmentation
from samforge.formats import coco_data_from_file
from samforge.media import read_image
from samforge.models import tiny
from samforge.models.config_values import check_values
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.runtime import PhraseTokenizer

Table = dict[str, Any]
SIZE = (5, 20)

SEGMENTATIONS: dict[str, tuple[Any, str]] = {
    "a polygon far away": ([[0, 0, 1e9, 0, 1e9, 1e9]], "Polygon 0 reaches from 0 to 1e"),
    "a polygon far below zero": ([[0, 0, -1e9, 0, 4, 4]], "Polygon 0 reaches from -1e"),
    "NaN": ([[0, 0, float("nan"), 0, 4, 4]], "Polygon 0 has a coordinate that is not finite"),
    "infinity": ([[0, 0, float("inf"), 0, 4, 4]], "not finite"),
    "an integer beyond floats": ([[0, 0, 10**400, 0, 4, 4]], "not finite"),
    "the second polygon": ([[0, 0, 4, 0, 4, 4], [0, 0, 1e18, 0, 4, 4]], "Polygon 1 reaches"),
    "two points": ([[0, 0, 4, 4]], "Polygon 0 is no list of x, y.*three points or more"),
    "no point": ([[]], "Polygon 0 is no list of x, y"),
    "no polygon": ([], "at least one polygon, got none"),
    "an odd count": ([[0, 0, 4, 0, 4, 4, 1]], "is no list of x, y"),
    "text": ([["a", "b", "c", "d", "e", "f"]], "is no list of x, y"),
    "true and false": ([[True, False, True, True, False, False]], "is no list of x, y"),
    "no number": ([[None] * 6], "is no list of x, y"),
    "nested polygons": ([[[0, 0], [4, 0], [4, 4]]], "is no list of x, y"),
    "an RLE among polygons": ([{"size": [5, 20], "counts": [100]}], "is no list of x, y"),
    "an outline without end": (
        [[0, 0, 20, 5] * (MOST_STEPS // 150)],
        "The outline of the polygons is .* pixels long, at most 3,355,443 are drawn",
    ),
    "counts that wrap around": (
        {"size": [5, 20], "counts": [2**62] * 4 + [100]},
        "add up to 18446744073709551716",
    ),
    "counts of 400 digits": ({"size": [5, 20], "counts": [10**400]}, "more than 10\\^20"),
    "a negative count": ({"size": [5, 20], "counts": [-5, 105]}, "add up to 100"),
    "counts that are floats": ({"size": [5, 20], "counts": [50.0, 50.0]}, "whole numbers"),
    "counts that are NaN": ({"size": [5, 20], "counts": [float("nan")]}, "whole numbers"),
    "counts that are true": ({"size": [5, 20], "counts": [True] * 100}, "whole numbers"),
    "nested counts": ({"size": [5, 20], "counts": [[100]]}, "whole numbers"),
    "no counts": ({"size": [5, 20], "counts": None}, "whole numbers"),
    "counts short of the image": ({"size": [5, 20], "counts": [99]}, "add up to 99"),
    "counts beyond the image": ({"size": [5, 20], "counts": [10**9]}, "add up to 1000000000"),
    "text without an end": ({"size": [5, 20], "counts": "o" * 10_000}, "cannot be read at"),
    "text cut within a number": ({"size": [5, 20], "counts": "To"}, "end within a number"),
    "text outside of its alphabet": ({"size": [5, 20], "counts": "T\x00"}, "cannot be read at"),
    "text that is not ASCII": ({"size": [5, 20], "counts": "T\udcff"}, "are ASCII text"),
    "size that is no list": ({"size": 7, "counts": [100]}, "The size of an image is"),
    "size of text": ({"size": ["5", "20"], "counts": [100]}, "The size of an image is"),
    "size of floats": ({"size": [5.0, 20.0], "counts": [100]}, "The size of an image is"),
    "size of three": ({"size": [5, 20, 1], "counts": [100]}, "The size of an image is"),
    "an enormous size": ({"size": [2**20, 2**20], "counts": [2**40]}, "more than 2,147,483,648"),
    "a size that is another": ({"size": [20, 5], "counts": [100]}, "is of an image of"),
    "a text": ("T3", "an RLE dictionary or a list of polygons"),
    "a number": (7, "an RLE dictionary or a list of polygons"),
}


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_segmentations_are_checked_before_compiled_code(name: str) -> None:
    segmentation, message = SEGMENTATIONS[name]
    with pytest.raises((SettingError, ShapeError), match=message):
        mask_from_segmentation(segmentation, SIZE)


@pytest.mark.parametrize(
    "name", [n for n in SEGMENTATIONS if "size" not in n and "another" not in n]
)
def test_a_data_set_names_the_annotation(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "x.png")
    table = {
        "images": [{"id": 1, "file_name": "x.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": SEGMENTATIONS[name][0]},
        ],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(table))
    with pytest.raises(SettingError, match=r"annotations\[0\] of .*labels\.json"):
        list(coco_data_from_file(path).images())


def test_polygons_may_leave_the_picture_a_little() -> None:
    mask = mask_from_segmentation([[-2, -2, 22, -2, 22, 7, -2, 7]], SIZE)
    assert mask.all()


def test_checks_cost_no_memory() -> None:
    """Runs in a process that has 4 GB of addresses; the counts alone would take 17."""
    code = (
        "import resource\n"
        "from samforge.core.rle import mask_from_segmentation as mask\n"
        "from pycocotools import mask as _\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "for one in ([[0,0,1e9,0,1e9,1e9]], {'size':[5,20],'counts':[2**62]*4+[100]}):\n"
        "    try:\n"
        "        mask(one, (5, 20))\n"
        "    except ValueError as error:\n"
        "        print(type(error).__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "SettingError\nSettingError\n"), run.stderr


def _set(path: str, value: Any) -> Callable[[Table], None]:
    def change(table: Table) -> None:
        *folders, last = path.split("/")
        for folder in folders:
            table = table[folder]
        table[last] = value

    return change


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
TOKENIZERS: dict[str, tuple[Callable[[Table], None], str]] = {
    "an id beyond the vocabulary": (
        _set("model/vocab/star", 10**6),
        "gives the token id 1000000",
    ),
    "a frame beyond the vocabulary": (
        _set("post_processor/special_tokens/[EOS]/ids", [77_777]),
        "gives the token id 77777",
    ),
    "an expression that is none": (
        _set("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "("}}),
        "is no tokenizer",
    ),
    "a negative id": (_set("model/vocab/star", -1), "is no tokenizer"),
    "no model": (_set("model", {"type": "none"}), "is no tokenizer"),
}


def _tokenizer(folder: Path, change: Callable[[Table], None]) -> Path:
    table = json.loads(tiny.TOKENIZER_PATH.read_text())
    change(table)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_are_checked_at_load(tmp_path: Path, name: str) -> None:
    change, message = TOKENIZERS[name]
    with pytest.raises(DamagedBundle, match=rf"tokenizer\.json .*({message})"):
        PhraseTokenizer(_tokenizer(tmp_path, change), 16, 0)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_are_checked_before_a_build(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        checkpoint_from_name("tiny", tokenizer=_tokenizer(tmp_path, TOKENIZERS[name][0]))


PANIC = _set("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "(a+)+$"}})


def test_a_panic_is_an_error_of_ours(tmp_path: Path) -> None:
    path = _tokenizer(tmp_path, PANIC)
    tokenizer = PhraseTokenizer(path, 16, 0)
    with pytest.raises(DamagedBundle, match=r"tokenizer\.json cannot read the phrase 'aaa.*retry"):
        tokenizer.encode(["a" * 40 + "b"])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer"):
        checkpoint_from_name("tiny", tokenizer=path)


def test_ids_without_tokens(tmp_path: Path) -> None:
    change = _set("post_processor/special_tokens/[EOS]/tokens", [])
    tokenizer = PhraseTokenizer(_tokenizer(tmp_path, change), 16, 0)
    with pytest.raises(DamagedBundle, match=r"tokenizer\.json gives 3 ids for 'star' and another"):
        tokenizer.encode(["star"])


def test_an_endless_padding_is_not_made(tmp_path: Path) -> None:
    padding = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    path = _tokenizer(tmp_path, _set("padding", padding))
    assert checkpoint_from_name("tiny", tokenizer=path).eos_id == 2
    assert PhraseTokenizer(path, 8, 0).encode(["red circle"]).shape == (1, 8)


def test_a_phrase_that_is_no_unicode(tmp_path: Path) -> None:
    tokenizer = PhraseTokenizer(tiny.TOKENIZER_PATH, 8, 0, reference=TRANSFORMERS)
    with pytest.raises(PromptError, match=r"The phrase 'red \\udcff' is no text"):
        tokenizer.encode(["red \udcff"])


def test_only_panics_are_taken_from_base_exceptions() -> None:
    for error in (KeyboardInterrupt(), SystemExit(3), GeneratorExit()):
        with pytest.raises(type(error)), native_errors(lambda e: SettingError(str(e))):
            raise error
    with pytest.raises(ImageError), native_errors(lambda e: SettingError(str(e))):
        raise ImageError("ours passes")


CONFIGS: dict[str, tuple[str, Any]] = {
    "no heads": ("vision_config/backbone_config/num_attention_heads", 0),
    "heads below zero": ("detr_decoder_config/num_attention_heads", -8),
    "heads that do not share": ("detr_encoder_config/num_attention_heads", 7),
    "heads of text that do not share": ("text_config/num_attention_heads", 3),
    "a million layers": ("vision_config/backbone_config/num_hidden_layers", 10**6),
    "a million decoder layers": ("detr_decoder_config/num_layers", 10**6),
    "no layers": ("vision_config/backbone_config/num_hidden_layers", 0),
    "an endless width": ("text_config/hidden_size", 10**9),
    "no width": ("detr_decoder_config/hidden_size", 0),
    "no patch": ("vision_config/backbone_config/patch_size", 0),
    "an endless picture": ("vision_config/backbone_config/image_size", 10**8),
    "an endless vocabulary": ("text_config/vocab_size", 10**12),
    "endless queries": ("detr_decoder_config/num_queries", 10**9),
    "endless labels": ("num_labels", 10**9),
    "no scales": ("vision_config/scale_factors", []),
    "a scale of zero": ("vision_config/scale_factors", [0.0, 1.0]),
    "NaN": ("vision_config/layer_norm_eps", float("nan")),
    "infinity": ("initializer_range", float("inf")),
    "an integer of 400 digits": ("vision_config/fpn_hidden_size", 10**400),
    "text for a number": ("detr_decoder_config/num_layers", "six"),
    "a part that is a number": ("text_config", 3),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_checked_before_use(tmp_path: Path, name: str) -> None:
    table = json.loads(tiny.CONFIG_PATH.read_text())
    _set(*CONFIGS[name])(table)
    (tmp_path / "config.json").write_text(json.dumps(table | {"model_type": "sam3"}))
    with pytest.raises(CheckpointError, match=r"config\.json is no configuration"):
        checkpoint_from_name(str(tmp_path), random_weights=True)


def test_a_configuration_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON"):
        checkpoint_from_name(str(tmp_path), random_weights=True)
    nested: Any = 1
    for _ in range(40):
        nested = [nested]
    with pytest.raises(CheckpointError, match="is no configuration of a model"):
        check_values({"x": nested}, "config.json")


def test_published_sizes_pass() -> None:
    from transformers import DINOv3ViTConfig, Sam3Config

    for config in (Sam3Config(), DINOv3ViTConfig(hidden_size=4096, num_hidden_layers=40)):
        check_values(config.to_dict(), "config.json")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "JPEG2000", "TIFF", "GIF", "PNG", "JPEG", "BMP"])
def test_broken_pictures_of_every_kind(tmp_path: Path, kind: str, cut: float) -> None:
    path = tmp_path / f"x.{kind.lower()}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=kind)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    flipped = bytes(data[:half]) + bytes(255 - b for b in data[half : half + 40])
    for content in (bytes(data[: int(len(data) * cut)]), flipped):
        path.write_bytes(content)
        with contextlib.suppress(ImageError):
            # Decoders may fill up what is missing; anything but an ImageError ends the test.
            assert read_image(path).shape == (40, 50, 3)


def test_whatever_a_decoder_raises_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    for error in (RuntimeError("Failed to decode"), KeyError("irot"), MemoryError()):

        def load(_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
        with pytest.raises(ImageError, match=r"x\.png"):
            read_image(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [0, 0, float("nan"), 1]}, "bbox of COCO annotation 0 is 4 finite numbers"),
        ({"bbox": [0, 0, 10**400, 1]}, "bbox of COCO annotation 0"),
        ({"bbox": "0,0,1,1"}, "bbox of COCO annotation 0"),
        ({"bbox": [0, 0, 1]}, "bbox of COCO annotation 0"),
        ({"score": "high"}, "score of COCO annotation 0"),
        ({"score": float("inf")}, "score of COCO annotation 0"),
    ],
)
def test_results_are_checked(change: Table, message: str) -> None:
    annotation = {"category_name": "cat", "segmentation": {"size": [5, 20], "counts": [100]}}
    with pytest.raises(SettingError, match=message):
        samforge.Detections.from_coco([annotation | change], SIZE)
    with pytest.raises(SamforgeError, match="COCO annotation 0 is an object"):
        samforge.Detections.from_coco([7], SIZE)  # type: ignore[list-item]
