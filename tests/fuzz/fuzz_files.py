"""Damaged files: every one is read, or refused with an error of samforge's own."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import samforge
from samforge.core.errors import SamforgeError
from samforge.core.rle import mask_from_segmentation
from samforge.core.words import escaped, json_text
from samforge.formats import coco_data_from_file
from samforge.media import read_image
from samforge.models import tiny
from samforge.runtime import PhraseTokenizer

Repeat = Callable[[Callable[[], None]], None]
Remember = Callable[[object], None]

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 10**400, -(2**63)]),
    st.floats(),
    st.sampled_from([1e9, 1e18, 1e308, 0.5, -0.0]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
SIZE = (5, 20)
POLYGONS = st.lists(st.lists(NUMBERS, max_size=14), max_size=4)
RLE = st.fixed_dictionaries(
    {
        "size": st.one_of(st.just(list(SIZE)), st.lists(NUMBERS, max_size=3), VALUES),
        "counts": st.one_of(
            st.lists(NUMBERS, max_size=8),
            st.text(max_size=20),
            st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=40),
            VALUES,
        ),
    }
)
SEGMENTATIONS = st.one_of(POLYGONS, RLE, VALUES)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested table."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(found for key, item in inner for found in _paths(item, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, table: Any, most: int = 3, special: Any = None) -> Any:
    """A table with some places replaced, removed or doubled."""
    table = json.loads(json.dumps(table))
    values = VALUES if special is None else st.one_of(VALUES, special)
    for _ in range(draw(st.integers(1, most))):
        *folders, last = draw(st.sampled_from(_paths(table)[1:] or [("x",)]))
        place = table
        for key in folders:
            place = place[key]
        if draw(st.integers(0, 5)):
            place[last] = copy.deepcopy(draw(values))  # strategies give one list twice
        else:
            del place[last]
        if not isinstance(table, dict | list) or not table:
            break
    return table


@st.composite
def flipped(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file with bytes changed, cut or doubled."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 8))):
        if not data:
            break
        place = draw(st.integers(0, min(len(data) - 1, 4000)))
        match draw(st.integers(0, 4)):
            case 0:
                del data[place:]
            case 1:
                data[place:place] = draw(st.binary(max_size=16))
            case 2:
                data[place : place + 4] = draw(
                    st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
                )
            case 3:
                data += data[place : place + 64]
            case _:
                data[place] = draw(st.integers(0, 255))
    return bytes(data)


def test_segmentations(repeat: Repeat, remember: Remember) -> None:
    @given(SEGMENTATIONS)
    def run(segmentation: Any) -> None:
        remember(segmentation)
        with contextlib.suppress(SamforgeError):
            assert mask_from_segmentation(segmentation, SIZE).shape == SIZE
        with contextlib.suppress(SamforgeError):
            samforge.Detections.from_coco(
                [{"category_id": 1, "segmentation": segmentation, "bbox": segmentation}], SIZE
            )

    repeat(run)


def test_coco_files(repeat: Repeat, remember: Remember, tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / name)
    size = {"height": SIZE[0], "width": SIZE[1]}
    table = {
        "images": [
            {"id": 0, "file_name": "0.png", **size, "neg_category_ids": [2]},
            {"id": 1, "coco_url": "http://x/y/1.png", "text_input": "cat"},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "guide_dog"}],
        "annotations": [
            {"image_id": 0, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "iscrowd": 0},
            {
                "image_id": 0,
                "category_id": 2,
                "segmentation": {"size": list(SIZE), "counts": [50, 50]},
            },
        ],
    }
    path = tmp_path / "labels.json"

    def isolated(item: str, error: Exception) -> None:
        assert isinstance(error, SamforgeError), repr(error)
        escaped(item)

    @given(damaged(table, special=SEGMENTATIONS), st.booleans())
    def run(table: Any, isolate: bool) -> None:
        remember(table)
        path.write_text(json.dumps(table), encoding="utf-8", errors="surrogatepass")
        report = isolated if isolate else None
        with contextlib.suppress(SamforgeError):
            data = coco_data_from_file(path, report=report)
            for image in data.images(report=report):
                assert image.image_rgb.shape[:2] == SIZE

    repeat(run)


def test_coco_bytes(repeat: Repeat, remember: Remember, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    files = [b'{"images": [], "annotations": [], "categories": []}', b"\xef\xbb\xbf{}", b"[" * 99]

    @given(st.one_of(flipped(files), st.binary(max_size=64)))
    def run(data: bytes) -> None:
        remember(data)
        path.write_bytes(data)
        with contextlib.suppress(SamforgeError):
            coco_data_from_file(path)

    repeat(run)


def _as_toml(table: dict[str, Any]) -> str:
    """A table as TOML, as far as TOML has such values."""
    lines = []
    for key, value in table.items():
        text = json_text(value, indent=None, ascii_only=True)
        lines.append(f"{json.dumps(key)} = {text}")
    return "\n".join(lines)


def test_recipes(repeat: Repeat, remember: Remember, tmp_path: Path) -> None:
    usual = samforge.Recipe().to_dict()
    path = tmp_path / "r.toml"
    texts = [
        b'model = "tiny"\nprecision = "int8"\nimage_size = 224\n[gates]\nmask_iou = 0.9\n',
        b"\xef\xbb\xbfmodel = 'tiny'\n[calibration]\nsamples = 4\nprompts = ['x']\n",
    ]

    @given(damaged(usual), st.one_of(flipped(texts), st.binary(max_size=80)))
    def run(table: Any, data: bytes) -> None:
        remember((table, data))
        if isinstance(table, dict):
            with contextlib.suppress(SamforgeError):
                recipe = samforge.Recipe.from_dict(table)
                assert samforge.Recipe.from_dict(recipe.to_dict()) == recipe or "nan" in str(table)
            with contextlib.suppress(SamforgeError, tomllib.TOMLDecodeError):
                path.write_text(_as_toml(table), encoding="utf-8")
                samforge.Recipe.from_toml(path)
        path.write_bytes(data)
        with contextlib.suppress(SamforgeError):
            samforge.Recipe.from_toml(path)

    repeat(run)


def _pictures() -> list[bytes]:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    kinds: list[tuple[str, dict[str, Any]]] = [
        *(
            ("PNG", {}),
            ("JPEG", {"exif": exif}),
            ("WEBP", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
        ),
        *(("TIFF", {}), ("BMP", {}), ("GIF", {}), ("PPM", {}), ("JPEG2000", {}), ("AVIF", {})),
        *(("PNG", {"exif": exif}), ("WEBP", {"lossless": True})),
    ]
    for kind, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        found.append(buffer.getvalue())
    for mode in ("P", "LA", "CMYK", "I;16", "1"):
        buffer = io.BytesIO()
        image.convert("L").convert(mode).save(buffer, format="TIFF")
        found.append(buffer.getvalue())
    return [*found, b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(64)]


def test_pictures(repeat: Repeat, remember: Remember) -> None:
    @given(flipped(_pictures()))
    def run(data: bytes) -> None:
        remember(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
            with contextlib.suppress(SamforgeError):
                rgb = read_image(data)
                assert rgb.dtype == np.uint8
                assert rgb.ndim == 3
                assert rgb.shape[2] == 3

    repeat(run)


def test_tokenizers(repeat: Repeat, remember: Remember, tmp_path: Path) -> None:
    table = json.loads(tiny.TOKENIZER_PATH.read_text())
    path = tmp_path / "tokenizer.json"
    patterns = st.sampled_from(["(a+)+$", "(", "(?<!a*)b", "", ".*", "\\p{L}+", "(a|b|ab)*c"])
    special = st.one_of(
        patterns,
        st.builds(lambda one: {"Regex": one}, patterns),
        st.builds(
            lambda one: {
                "type": "Split",
                "pattern": {"Regex": one},
                "behavior": "Isolated",
                "invert": False,
            },
            patterns,
        ),
        st.sampled_from([10**6, 2**32 - 1, 2**32]),
    )
    phrases = st.lists(
        st.one_of(st.text(max_size=30), st.sampled_from(["a" * 40 + "b", "red circle"])), max_size=3
    )

    @given(damaged(table, special=special), phrases)
    def run(table: Any, phrases: list[str]) -> None:
        remember((table, phrases))
        path.write_text(json.dumps(table), encoding="utf-8", errors="surrogatepass")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(SamforgeError):
                tokenizer = PhraseTokenizer(path, 16, 0)
                ids = tokenizer.encode(phrases)
                assert ids.shape == (len(phrases), 16)
                assert ids.min() >= 0

    repeat(run)


def test_configurations(repeat: Repeat, remember: Remember, tmp_path: Path) -> None:
    from samforge.models.sam3.loading import checkpoint_from_name

    table = json.loads(tiny.CONFIG_PATH.read_text()) | {"model_type": "sam3"}
    path = tmp_path / "config.json"

    @given(damaged(table, special=NUMBERS))
    def run(table: Any) -> None:
        remember(table)
        path.write_text(json.dumps(table), encoding="utf-8", errors="surrogatepass")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(SamforgeError):
                checkpoint_from_name(str(tmp_path), random_weights=True)

    repeat(run)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_videos(repeat: Repeat, remember: Remember, tmp_path: Path, suffix: str) -> None:
    from fractions import Fraction

    import av

    from samforge.media.video import VideoReader

    source = tmp_path / f"source{suffix}"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), number * 40, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = tmp_path / f"x{suffix}"

    @given(flipped([source.read_bytes()]))
    def run(data: bytes) -> None:
        remember(data)
        path.write_bytes(data)
        with contextlib.suppress(SamforgeError), VideoReader(path) as reader:
            for frame in reader.frames(at_most=8):
                assert frame.image_rgb.dtype == np.uint8

    repeat(run)
