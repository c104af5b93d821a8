"""The square crop of a person that SAM 3D Body's backbone sees, and the photo's camera.

Own code after the conventions of upstream's transforms (``GetBBoxCenterScale`` and
``TopdownAffine`` of github.com/facebookresearch/sam-3d-body): a box grows by 1.25 about its centre,
to the aspect ratio 3:4, then to a square; the square is warped bilinearly, black outside the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import PromptError, ShapeError
from samforge.core.images import ImageSpec, RgbImage

Floats = npt.NDArray[np.float64]

PADDING = 1.25
"""How much larger the crop is than the box."""
ASPECT = 0.75
"""Width over height that the box grows to before it becomes square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonCrop:
    """Where a square crop lies in its image."""

    centre_xy: tuple[float, float]
    """Of the box, pixels of the image."""
    side_px: float
    """Side of the square, pixels of the image."""
    size: int
    """Side of the crop, pixels."""

    @property
    def matrix(self) -> Floats:
        """(2, 3): from pixels of the image to pixels of the crop, upstream's ``affine_trans``."""
        scale = self.size / self.side_px
        x, y = self.centre_xy
        half = self.size / 2
        return np.array([[scale, 0.0, half - scale * x], [0.0, scale, half - scale * y]])


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoCamera:
    """The pinhole camera that upstream assumes where nobody knows better."""

    focal_px: float
    """Focal length, pixels: the picture's diagonal."""
    centre_xy: tuple[float, float]
    """Middle of the picture, pixels."""

    @property
    def matrix(self) -> Floats:
        """(3, 3): upstream's ``cam_int``."""
        x, y = self.centre_xy
        return np.array([[self.focal_px, 0.0, x], [0.0, self.focal_px, y], [0.0, 0.0, 1.0]])


def default_camera(size_hw: tuple[int, int]) -> PhotoCamera:
    """Camera of a photo of which only the size is known."""
    height, width = size_hw
    return PhotoCamera(focal_px=float(np.hypot(height, width)), centre_xy=(width / 2, height / 2))


def crop_from_box(
    box_xyxy: npt.ArrayLike, size_hw: tuple[int, int], *, size: int = 512
) -> PersonCrop:
    """Find the square crop around a person's box.

    Args:
        box_xyxy: Left, top, right, bottom, pixels; it may reach over the image's edge.
        size_hw: Height and width of the image.
        size: Side of the crop, pixels.

    Raises:
        PromptError: The box is not four finite numbers, has no area, or lies outside the image.
    """
    box = np.asarray(box_xyxy, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise PromptError(
            f"A person's box is four finite numbers, left, top, right, bottom, got {box_xyxy!r}."
        )
    left, top, right, bottom = (float(edge) for edge in box)
    height, width = size_hw
    if right <= left or bottom <= top:
        raise PromptError(
            f"The box ({left:g}, {top:g}, {right:g}, {bottom:g}) has no area: right must exceed "
            "left and bottom exceed top. Boxes are left, top, right, bottom, not width and height."
        )
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise PromptError(
            f"The box ({left:g}, {top:g}, {right:g}, {bottom:g}) lies outside the image of "
            f"{width} x {height} pixels: the crop would be black. Give a box that is in it."
        )
    across, down = (right - left) * PADDING, (bottom - top) * PADDING
    return PersonCrop(
        centre_xy=((left + right) / 2, (top + bottom) / 2),
        side_px=max(down, across / ASPECT),
        size=size,
    )


def warp(rgb: RgbImage, crop: PersonCrop) -> RgbImage:
    """Cut a crop out of an image, as ``cv2.warpAffine`` with bilinear interpolation does.

    Pixel (i, j) of the crop is the image's value where the inverse of ``crop.matrix`` sends it;
    outside the image everything is black. OpenCV rounds positions to 1/32 pixel, this does not.

    Returns:
        (size, size, 3), uint8.

    Raises:
        ShapeError: ``rgb`` has another type or shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ShapeError(f"A crop is cut out of uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}.")
    offset = (np.arange(crop.size) - crop.size / 2) * (crop.side_px / crop.size)
    rows = _taps(offset + crop.centre_xy[1], rgb.shape[0])
    columns = _taps(offset + crop.centre_xy[0], rgb.shape[1])
    # The warp is upright, so it is a mix of two rows, then of two columns.
    mixed = _mixed(rgb.astype(np.float32), rows, axis=0)
    mixed = _mixed(mixed, columns, axis=1)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def crops_bchw(
    rgb: RgbImage, boxes_xyxy: Sequence[npt.ArrayLike] | npt.NDArray[np.floating], spec: ImageSpec
) -> npt.NDArray[np.float32]:
    """Crops of several persons as the backbone's input.

    Args:
        rgb: (H, W, 3), uint8.
        boxes_xyxy: (P, 4), one a person, pixels.
        spec: The model's size, mean and deviation: a bundle's ``manifest.image``.

    Returns:
        (P, 3, size, size), float32, normalized.

    Raises:
        PromptError: There is no box, or one is not usable.
    """
    if len(boxes_xyxy) == 0:
        raise PromptError("There is no box. Give one box for each person.")
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    size_hw = (rgb.shape[0], rgb.shape[1])
    crops = []
    for box in boxes_xyxy:
        crop = warp(rgb, crop_from_box(box, size_hw, size=spec.size))
        crops.append(((crop / np.float32(255) - mean) / std).transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(crops), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taps:
    """The two neighbours of each position along one axis."""

    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    before_weight: npt.NDArray[np.float32]
    after_weight: npt.NDArray[np.float32]


def _taps(position: npt.NDArray[np.floating], length: int) -> _Taps:
    before = np.floor(position).astype(np.int64)
    after = before + 1
    share = (position - before).astype(np.float32)
    return _Taps(
        before=before.clip(0, length - 1),
        after=after.clip(0, length - 1),
        # A neighbour outside the image is black: it has no weight.
        before_weight=np.where((before >= 0) & (before < length), 1 - share, np.float32(0)),
        after_weight=np.where((after >= 0) & (after < length), share, np.float32(0)),
    )


def _mixed(values: npt.NDArray[np.float32], taps: _Taps, *, axis: int) -> npt.NDArray[np.float32]:
    shape = [1, 1, 1]
    shape[axis] = -1
    before = np.take(values, taps.before, axis=axis) * taps.before_weight.reshape(shape)
    after = np.take(values, taps.after, axis=axis) * taps.after_weight.reshape(shape)
    mixed: npt.NDArray[np.float32] = before + after
    return mixed
