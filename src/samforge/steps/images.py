"""Images with questions that calibration sees, and others that verification asks about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from samforge.core.errors import ImageError, SamforgeError, SamforgeWarning, SettingError
from samforge.core.images import RgbImage
from samforge.core.labelled import LabelledImage, Question
from samforge.core.native import error_of_item
from samforge.core.paths import checked_path
from samforge.media import list_images, read_image
from samforge.models import tiny
from samforge.steps.workshop import Workshop

DRAWN = ("tiny", "tiny-stressed")
"""Models that know drawn scenes: no images of the user's are needed."""
VERIFIED_SCENES = 48
"""Held-out scenes that a bundle of the tiny model is verified on."""
SHOWN_SCENES = 6
"""The same in fp32, where every tensor was compared already: enough to see and to be sure."""


def calibration_images(shop: Workshop) -> Iterator[LabelledImage]:
    """The images that set the ranges, one at a time.

    Drawn scenes come from the training split. Of a folder or a video every second image is left
    for :func:`verification_images`, if there are enough.

    Raises:
        SettingError: There is no source, it holds no images, or they hold nothing to measure.
        ImageError: An image cannot be read.
    """
    calibration = shop.recipe.calibration
    if calibration.source is None:
        if shop.recipe.model in DRAWN:
            yield from _scenes(shop, calibration.samples, split="train")
        elif shop.recipe.random_weights:
            yield from _noise(shop, calibration.samples)
        else:
            raise SettingError(
                f"{shop.recipe.precision} needs images to measure ranges on. Name a folder of "
                "images or a video of yours, and phrases that occur in them: "
                "--calibration DIR --prompt person."
            )
        return
    if shop.model.text is not None and not calibration.prompts:
        raise SettingError(
            "calibration.prompts is empty. Name phrases that occur in the images of "
            f"{calibration.source}: the detector's ranges depend on them (--prompt person)."
        )
    flat = count = 0
    for name, image in _pictures(shop, even=True):
        count += 1
        flat += int(image.min() == image.max())
        yield _asked(shop, name, image)
    if flat == count:
        raise SettingError(
            f"Every image of {calibration.source} is of one colour: there is no range to measure. "
            "Give images like those that the model will see."
        )


def verification_images(shop: Workshop) -> Iterator[LabelledImage]:
    """Images that calibration has not seen, with labels where they are known.

    A folder or video with fewer than two images for each sample has none to spare: then these are
    the calibration's own, and :func:`verified_on_others` says so.
    """
    if shop.recipe.calibration.source is not None:
        for name, image in _pictures(shop, even=False):
            yield _asked(shop, name, image)
    elif shop.recipe.model in DRAWN:
        count = SHOWN_SCENES if shop.recipe.precision == "fp32" else VERIFIED_SCENES
        yield from _scenes(shop, count, split="held-out")
    else:
        yield from _noise(shop, 1)


def verified_on_others(shop: Workshop) -> bool:
    """Whether verification has images of its own."""
    if shop.recipe.calibration.source is None:
        return True
    return not set(_chosen(shop, even=True)) & set(_chosen(shop, even=False))


def _scenes(shop: Workshop, count: int, *, split: str) -> Iterator[LabelledImage]:
    first = shop.recipe.calibration.seed * count
    return tiny.labelled_scenes(count, first=first, split=split)


def _noise(shop: Workshop, count: int) -> Iterator[LabelledImage]:
    """Random pixels for random weights: ranges of the right order, without meaning."""
    rng = np.random.default_rng(shop.recipe.calibration.seed)
    size = shop.model.image.size
    for index in range(count):
        image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        yield _asked(shop, f"noise {index}", image)


def _asked(shop: Workshop, name: str, image_rgb: RgbImage) -> LabelledImage:
    """An image without labels: every phrase, and a box over its middle for the ranges of boxes."""
    height, width = image_rgb.shape[:2]
    middle = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
    nothing = np.zeros((0, height, width), np.bool_)
    phrases = shop.recipe.calibration.prompts or ("object",)
    questions = [Question(text=phrase, masks=nothing) for phrase in phrases]
    if shop.model.text is None:
        questions = []
    box = Question(text=None, boxes_xyxy=middle, box_labels=np.array([1]), masks=nothing)
    return LabelledImage(name=name, image_rgb=image_rgb, questions=(*questions, box))


def _pictures(shop: Workshop, *, even: bool) -> Iterator[tuple[str, RgbImage]]:
    source = _source(shop)
    chosen = _chosen(shop, even=even)
    if source.is_dir():
        files = list_images(source)
        yield from _readable(source, [files[index] for index in chosen])
        return
    from samforge.media.video import VideoReader

    with VideoReader(source) as reader:
        wanted = set(chosen)
        for frame in reader.frames():
            if frame.index in wanted:
                yield f"frame {frame.index}", frame.image_rgb


def _readable(source: Path, files: list[Path]) -> Iterator[tuple[str, RgbImage]]:
    """Those that can be read; the others are named in a warning and do not end the build.

    Raises:
        ImageError: None can be read.
    """
    unread: list[SamforgeError] = []
    for path in files:
        rgb: RgbImage | None = None
        try:
            rgb = read_image(path)
        except Exception as error:  # noqa: BLE001  told below
            unread.append(error_of_item(error))
        if rgb is not None:
            yield path.name, rgb
    if not unread:
        return
    if len(unread) == len(files):
        raise ImageError(
            f"None of the {len(files)} images of {source} that were chosen can be read. The first: "
            f"{unread[0]}"
        ) from unread[0]
    warnings.warn(
        f"{len(unread)} of {len(files)} images of {source} cannot be read and are left out: "
        + " ".join(map(str, unread)),
        SamforgeWarning,
        stacklevel=2,
    )


def _chosen(shop: Workshop, *, even: bool) -> tuple[int, ...]:
    """Numbers of the images to read: evenly spaced, from a start that the seed decides."""
    calibration, total = shop.recipe.calibration, _count(shop)
    samples = min(calibration.samples, total)
    wanted = 2 * samples if total >= 2 * samples else samples
    spaced = np.linspace(0, total - 1, wanted).round().astype(int) if wanted > 1 else np.array([0])
    if wanted == samples:
        return tuple(spaced.tolist())
    first = calibration.seed % 2
    return tuple(spaced[first::2].tolist() if even else spaced[1 - first :: 2].tolist())


def _count(shop: Workshop) -> int:
    source = _source(shop)
    if source.is_dir():
        return len(list_images(source))
    from samforge.media.video import VideoReader

    with VideoReader(source) as reader:
        # What a file says of its length need not be true.
        return reader.info.frames or sum(1 for _ in reader.frames())


def _source(shop: Workshop) -> Path:
    source = shop.recipe.calibration.source
    if source is None or not checked_path(source, ImageError).exists():
        raise ImageError(f"{source} does not exist. Give a folder of images, or a video.")
    return source
