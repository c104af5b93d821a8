import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from samforge.core.errors import ShapeError
from samforge.core.images import ImageSpec
from samforge.runtime import image_bchw_from_rgb

GREY_LEVEL = 2 / 255  # in units of the normalized tensor, with std 0.5


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size_hw", "size"),
    [
        ((480, 640), 224),
        ((96, 64), 224),
        ((1, 1), 56),
        ((1, 3000), 112),
        ((3000, 1), 112),
        ((7, 900), 112),
        ((1080, 1920), 336),
        ((223, 225), 224),
    ],
)
def test_within_a_grey_level_of_torch(size_hw: tuple[int, int], size: int) -> None:
    rgb = picture(*size_hw)
    ours = torch.from_numpy(image_bchw_from_rgb(rgb, ImageSpec(size=size)))
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    for theirs in (pixels, pixels.float()):
        resized = interpolate(theirs, size=(size, size), mode="bilinear", antialias=True)
        expected = (resized.float() / 255 - 0.5) / 0.5
        difference = (ours - expected).abs()
        assert difference.max() <= GREY_LEVEL * 1.001
        assert difference.mean() <= GREY_LEVEL * 0.4  # rounding, not another filter


def test_form() -> None:
    image = image_bchw_from_rgb(picture(5, 9), ImageSpec(size=32))
    assert image.shape == (1, 3, 32, 32)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous


def test_values_and_channels() -> None:
    rgb = np.empty((8, 8, 3), np.uint8)
    rgb[:] = (255, 0, 51)
    spec = ImageSpec(size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    image = image_bchw_from_rgb(rgb, spec)
    assert np.allclose(image[0, :, 3, 3], (1.0, -1.0, 0.1), rtol=1e-6)


def test_same_size_is_not_resampled() -> None:
    rgb = picture(16, 16)
    image = image_bchw_from_rgb(rgb, ImageSpec(size=16))
    assert np.array_equal(np.rint((image[0] + 1) * 127.5).astype(np.uint8), rgb.transpose(2, 0, 1))


def test_the_aspect_ratio_is_not_kept() -> None:
    rgb = np.zeros((10, 40, 3), np.uint8)
    rgb[:, 20:] = 255
    image = image_bchw_from_rgb(rgb, ImageSpec(size=20))
    assert (image[0, :, :, :9] == -1).all()
    assert (image[0, :, :, 11:] == 1).all()


def test_strided_arrays_are_fine() -> None:
    rgb = picture(20, 30)
    flipped = image_bchw_from_rgb(rgb[:, ::-1], ImageSpec(size=15))
    copied = image_bchw_from_rgb(rgb[:, ::-1].copy(), ImageSpec(size=15))
    assert np.array_equal(flipped, copied)


@pytest.mark.parametrize("wrong", [picture(4, 4)[..., 0], picture(4, 4) / 255, picture(4, 4)[:0]])
def test_other_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="read_image"):
        image_bchw_from_rgb(wrong, ImageSpec(size=8))
