import errno
import inspect
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from samforge.core.errors import ImageError, OutputError, SettingError, ShapeError
from samforge.core.images import ImageSpec
from samforge.media import MAX_PIXELS, list_images, read_image, write_png


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_same_picture_from_every_source(tmp_path: Path) -> None:
    rgb = noise(5, 7, 3)
    path = write_png(tmp_path / "a.png", rgb)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(rgb), rgb):
        assert np.array_equal(read_image(source), rgb)


def test_an_rgb_array_is_not_copied() -> None:
    rgb = noise(5, 7, 3)
    assert np.shares_memory(read_image(rgb), rgb)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "JPEG"])
def test_formats(kind: str) -> None:
    rgb = np.full((6, 4, 3), (200, 100, 50), np.uint8)
    read = read_image(file_of(Image.fromarray(rgb), kind))
    assert read.shape == rgb.shape
    assert np.abs(read.astype(int) - rgb).max() <= 3


def test_exif_orientation_turns_file_and_pillow_image_alike() -> None:
    rgb = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    data = file_of(Image.fromarray(rgb), exif=exif)
    upright = np.rot90(rgb, k=-1)
    assert np.array_equal(read_image(data), upright)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read_image(image), upright)
        assert image.size == (6, 4)  # the caller's image stays as it is


def test_grey_palette_and_cmyk() -> None:
    grey = noise(3, 5)
    assert np.array_equal(read_image(file_of(Image.fromarray(grey))), np.dstack([grey] * 3))
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert read_image(file_of(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert read_image(file_of(cmyk, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert read_image(Image.new("1", (1, 1), 1)).tolist() == [[[255, 255, 255]]]


def test_transparency_is_laid_on_white_as_transformers_does() -> None:
    from transformers.image_transforms import convert_to_rgb

    rgba = Image.fromarray(noise(8, 8, 4))
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    if "return_numpy" in inspect.signature(convert_to_rgb).parameters:  # 5.17 still drops alpha
        assert np.array_equal(np.asarray(convert_to_rgb(rgba)), expected)
    assert np.array_equal(read_image(file_of(rgba)), expected)
    assert np.array_equal(read_image(np.asarray(rgba)), expected)
    clear = Image.new("P", (1, 1), 0)
    clear.putpalette([9, 9, 9])
    assert read_image(file_of(clear, transparency=0)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 256, 300]], np.uint16)
    read = read_image(file_of(Image.fromarray(values), kind))
    assert read[0, :, 0].tolist() == [0, 1, 128, 255, 1, 1]
    assert np.array_equal(read, read_image(values))


def test_32_bit_pillow_modes() -> None:
    assert read_image(Image.fromarray(np.array([[65535]], np.int32)))[0, 0, 0] == 255
    with pytest.raises(ImageError, match="0 to 70000"):
        read_image(Image.fromarray(np.array([[0, 70000]], np.int32)))
    assert read_image(Image.fromarray(np.array([[0.5]], np.float32)))[0, 0, 0] == 128
    with pytest.raises(ImageError, match="got 0 to 255"):
        read_image(Image.fromarray(np.array([[0, 255]], np.float32)))


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.full((2, 3), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((2, 3, 3), True), 255),
        (np.full((2, 3), 1.0, np.float16), 255),
        (np.full((2, 3, 3), 0.2, np.float64), 51),
        (np.full((2, 3, 4), 65535, np.uint16), 255),
    ],
)
def test_arrays(array: np.ndarray, value: int) -> None:
    read = read_image(array)
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert np.array_equal(read, np.full((2, 3, 3), value))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((8, 9, 2), np.uint8), r"got \(8, 9, 2\)"),
        (np.zeros((1, 8, 9, 3), np.uint8), "one by one"),
        (np.zeros((0, 9, 3), np.uint8), "no pixels"),
        (np.zeros((2, 2), np.int64), r"int64.*astype\('uint8'\)"),
        (np.full((2, 2), 255.0), "got 255 to 255"),
        (np.full((2, 2), np.nan), "got nan to nan"),
    ],
)
def test_arrays_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_image(array)


def test_files_refused(tmp_path: Path) -> None:
    png, jpeg = (
        file_of(Image.fromarray(noise(64, 64, 3))),
        file_of(Image.new("RGB", (64, 64)), "JPEG"),
    )
    for source, words in [
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is a folder"),
        (b"", "0 bytes"),
        (b"%PDF-1.7 and more", "is not an image that samforge reads"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (png[: len(png) // 2], "cannot be decoded"),
        (png[:20], "cannot be opened"),
        (jpeg[: len(jpeg) // 2], "damaged"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (7, "Cannot read an image from int"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(ImageError, match=words):
            read_image(source)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", noise(2, 2, 3))
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path)


def test_smallest_image() -> None:
    assert read_image(file_of(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


def test_100_megapixels_without_a_warning() -> None:
    data = file_of(Image.new("1", (12_000, 9_000), 1), "TIFF", compression="group4")
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    assert limit is not None
    assert limit < 12_000 * 9_000
    read = read_image(data)
    assert read.shape == (9_000, 12_000, 3)
    assert read[-1, -1].tolist() == [255, 255, 255]
    assert limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


def test_bomb_is_refused_before_decoding() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    header = file_of(Image.new("1", (1, 1)), "PPM").replace(b"1 1", f"{side} {side}".encode())
    with pytest.raises(ImageError, match=r"at most 178,000,000 are read"):
        read_image(header)


def test_write_png_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    rgb = noise(3, 4, 3)
    assert write_png(path, rgb) == path
    with Image.open(path) as image:
        assert ImageChops.difference(image, Image.fromarray(rgb)).getbbox() is None
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_write_png_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="No such file"):
        write_png(tmp_path / "no" / "out.png", noise(2, 2, 3))
    with pytest.raises(ShapeError, match=r"got uint8 \(2, 2\)"):
        write_png(tmp_path / "out.png", noise(2, 2))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write_png(tmp_path / "folder.png", noise(2, 2, 3))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        write_png(path, noise(2, 2, 3))
    assert path.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.png", "out.png"]


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.PNG"]
    with pytest.raises(ImageError, match="holds 0 files"):
        list_images(tmp_path / "c.png")
    with pytest.raises(ImageError, match="cannot be listed"):
        list_images(tmp_path / "none")


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": 8, "std": (0.5, 0, 1)}, {"size": 8, "mean": (0.5,)}],
)
def test_image_spec_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="Image"):
        ImageSpec(**wrong)  # type: ignore[arg-type]
