"""Images with questions that calibration sees, and others that verification asks about."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from samforge.core.errors import ImageError, SamforgeError, SamforgeWarning, SettingError
from samforge.core.images import RgbImage
from samforge.core.labelled import LabelledImage, Question
from samforge.core.native import error_of_item
from samforge.core.paths import checked_path
from samforge.media import list_images, read_image
from samforge.models import tiny
from samforge.steps.context import SMALL_IMAGE, BuildContext
from samforge.steps.phrases import knows_scenes, more_phrases, phrases_of_picture

VERIFIED_SCENES = 32
"""Held-out scenes that a bundle is verified on where no pictures are given."""
FEW_SCENES = 8
"""The same in fp32, whose answers are equal or wrong, and of a large model, whose pictures take
many seconds each."""
MORE_PHRASES = 8
"""Phrases asked of a labelled scene beyond the two that calibration asks of one."""
MOST_PICTURES = 384
"""Pictures looked at, at most, until the gates can tell."""
TRIED_IMAGES = 8
"""Images on which groups are chosen, to begin with."""
TRIED_OF_LARGE = 2
"""The same of a large model."""
MOST_TRIED = 48
"""Images on which groups are chosen, at most, until the gates can tell."""
MOST_OF_LARGE = 48
"""The same of a large model."""
ODD_SIDE = 64
"""Side in pixels of pictures that hold nothing to find."""


Images: TypeAlias = Callable[[], Iterable[LabelledImage]]
"""Gives pictures with their questions, every time anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """What verification asks about."""

    odd: Images
    """Pictures with nothing to find."""
    some: Callable[[int, int], Iterable[LabelledImage]]
    """Gives pictures from a number on, as many as asked for."""
    first: int
    """How many to begin with."""
    most: int
    """How many there are, or as many as are looked at."""


def gallery_of(context: BuildContext) -> Gallery:
    """Of a build."""
    return Gallery(
        odd=partial(odd_images, context),
        some=partial(verification_images, context),
        first=first_pictures(context),
        most=most_pictures(context),
    )


def calibration_images(context: BuildContext) -> Iterator[LabelledImage]:
    """The images that set the ranges, one at a time.

    Drawn scenes come from the training split. Of a folder or a video every second image is left
    for :func:`verification_images`, if there are enough.

    Raises:
        SettingError: There is no source, it holds no images, or they hold nothing to measure.
        ImageError: An image cannot be read.
    """
    calibration = context.recipe.calibration
    if calibration.source is None:
        if knows_scenes(context):
            yield from _scenes(context, calibration.samples, split="train")
        elif context.recipe.random_weights:
            yield from _noise(context, calibration.samples)
        else:
            raise SettingError(
                f"{context.recipe.precision} needs images to measure ranges on. Name a folder of "
                "images or a video of yours, and phrases that occur in them: "
                "--calibration DIR --prompt person."
            )
        return
    if context.model.text is not None and not calibration.prompts:
        raise SettingError(
            "calibration.prompts is empty. Name phrases that occur in the images of "
            f"{calibration.source}: the detector's ranges depend on them (--prompt person)."
        )
    flat = count = 0
    for name, image in _pictures(context, _chosen(context, even=True)):
        count += 1
        flat += int(image.min() == image.max())
        yield _asked(context, name, image)
    if flat == count:
        raise SettingError(
            f"Every image of {calibration.source} is of one colour: there is no range to measure. "
            "Give images like those that the model will see."
        )


def trial_images(context: BuildContext, first: int, count: int) -> Iterator[LabelledImage]:
    """Images on which groups are chosen: the calibration's, asked what verification asks of others.

    Args:
        context: Of the build.
        first: Number of the first one.
        count: How many.
    """
    calibration, phrases = context.recipe.calibration, more_phrases(context)
    if calibration.source is None and knows_scenes(context):
        # More scenes than calibration has: as many as it takes to tell.
        yield from tiny.labelled_scenes(
            count,
            first=calibration.seed * calibration.samples + first,
            split="train",
            more_phrases=MORE_PHRASES,
        )
        return
    own = islice(calibration_images(context), first, first + count)
    for number, image in enumerate(own, first):
        more = phrases_of_picture(phrases, number)
        yield _asked(context, image.name, image.image_rgb, more=more)


def first_tried(context: BuildContext) -> int:
    """How many images groups are chosen on, to begin with."""
    return TRIED_OF_LARGE if context.model.image.size > SMALL_IMAGE else TRIED_IMAGES


def most_tried(context: BuildContext) -> int:
    """How many images there are to choose groups on, or as many as are looked at."""
    if context.model.image.size > SMALL_IMAGE:
        return min(TRIED_OF_LARGE * 2, context.recipe.calibration.samples)
    if context.recipe.calibration.source is None:
        return MOST_TRIED
    return len(_chosen(context, even=True))


def verification_images(
    context: BuildContext, first: int = 0, count: int | None = None
) -> Iterator[LabelledImage]:
    """Images that calibration has not seen, with labels where they are known.

    A folder or video with fewer than two images for each sample has none to spare: then these are
    the calibration's own, and :func:`verified_on_others` says so.

    Args:
        context: Of the build.
        first: Number of the first one.
        count: How many; None takes :func:`first_pictures`.
    """
    last = first + (first_pictures(context) if count is None else count)
    recipe, phrases = context.recipe, more_phrases(context)
    if recipe.calibration.source is not None:
        chosen = _to_verify(context)[first:last]
        for number, (name, image) in enumerate(_pictures(context, chosen), first):
            yield _asked(context, name, image, more=phrases_of_picture(phrases, number))
    elif knows_scenes(context):
        yield from tiny.labelled_scenes(
            last - first,
            first=recipe.calibration.seed * MOST_PICTURES + first,
            split="held-out",
            more_phrases=MORE_PHRASES,
        )
    elif recipe.random_weights:
        yield from _noise(context, last - first)
    else:
        # Any model that finds things in pictures finds something in these: fp32 says what.
        for number in range(first, last):
            image = tiny.draw_scene(number, split="held-out", size=_drawn_size(context)).image
            yield _asked(
                context, f"scene {number}", image, more=phrases_of_picture(phrases, number)
            )


def first_pictures(context: BuildContext) -> int:
    """How many pictures verification begins with."""
    if context.recipe.calibration.source is not None:
        return len(_chosen(context, even=False))
    few = context.recipe.precision == "fp32" or context.model.image.size > SMALL_IMAGE
    return FEW_SCENES if few else VERIFIED_SCENES


def most_pictures(context: BuildContext) -> int:
    """How many there are for verification, or as many as it looks at."""
    most = MOST_OF_LARGE if context.model.image.size > SMALL_IMAGE else MOST_PICTURES
    if context.recipe.calibration.source is None:
        return most
    return min(most, len(_to_verify(context)))


def odd_images(context: BuildContext) -> Iterator[LabelledImage]:
    """Black, white, saturated, of one colour, noise: what cameras give and no data set holds."""
    side = min(context.model.image.size, ODD_SIDE)
    phrases = (*context.recipe.calibration.prompts[:1], *more_phrases(context)[:2])
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    colours = {"black": (0, 0, 0), "white": (255, 255, 255), "of one colour": (30, 144, 90)}
    flat = {name: np.full((side, side, 3), colour, np.uint8) for name, colour in colours.items()}
    # Every channel at its ends, in blocks: the largest steps that a picture can have.
    saturated = np.where(noise[:: side // 8, :: side // 8] > 127, 255, 0).astype(np.uint8)
    blocks = saturated.repeat(side // 8, 0).repeat(side // 8, 1)[:side, :side]
    for name, image in {**flat, "saturated": blocks, "noise": noise}.items():
        yield _asked(context, name, image, phrases=phrases)


def verified_on_others(context: BuildContext) -> bool:
    """Whether verification has images of its own."""
    if context.recipe.calibration.source is None:
        return True
    return not set(_chosen(context, even=True)) & set(_chosen(context, even=False))


def _to_verify(context: BuildContext) -> tuple[int, ...]:
    """Numbers of the images for verification: first as many as calibration has, then the others."""
    first, seen = _chosen(context, even=False), set(_chosen(context, even=True))
    others = np.setdiff1d(np.arange(_count(context)), [*first, *seen])
    np.random.default_rng(context.recipe.calibration.seed).shuffle(others)
    return (*first, *others.tolist())


def _drawn_size(context: BuildContext) -> int:
    return min(context.model.image.size, 2 * tiny.SIZE)


def _scenes(context: BuildContext, count: int, *, split: str) -> Iterator[LabelledImage]:
    first = context.recipe.calibration.seed * count
    return tiny.labelled_scenes(count, first=first, split=split)


def _noise(context: BuildContext, count: int) -> Iterator[LabelledImage]:
    """Random pixels for random weights: ranges of the right order, without meaning."""
    rng = np.random.default_rng(context.recipe.calibration.seed)
    size = context.model.image.size
    for index in range(count):
        image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        yield _asked(context, f"noise {index}", image)


def _asked(
    context: BuildContext,
    name: str,
    image_rgb: RgbImage,
    *,
    phrases: tuple[str, ...] | None = None,
    more: tuple[str, ...] = (),
) -> LabelledImage:
    """An image without labels: every phrase, and a box over its middle for the ranges of boxes."""
    height, width = image_rgb.shape[:2]
    middle = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
    nothing = np.zeros((0, height, width), np.bool_)
    if phrases is None:
        phrases = context.recipe.calibration.prompts or ("object",)
    asked = dict.fromkeys((*phrases, *more))
    questions = [Question(text=phrase, masks=nothing) for phrase in asked]
    if context.model.text is None:
        questions = []
    box = Question(text=None, boxes_xyxy=middle, box_labels=np.array([1]), masks=nothing)
    return LabelledImage(name=name, image_rgb=image_rgb, questions=(*questions, box))


def _pictures(context: BuildContext, chosen: Sequence[int]) -> Iterator[tuple[str, RgbImage]]:
    source = _source(context)
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


def _chosen(context: BuildContext, *, even: bool) -> tuple[int, ...]:
    """Numbers of the images to read: evenly spaced, from a start that the seed decides."""
    calibration, total = context.recipe.calibration, _count(context)
    samples = min(calibration.samples, total)
    wanted = 2 * samples if total >= 2 * samples else samples
    spaced = np.linspace(0, total - 1, wanted).round().astype(int) if wanted > 1 else np.array([0])
    if wanted == samples:
        return tuple(spaced.tolist())
    first = calibration.seed % 2
    return tuple(spaced[first::2].tolist() if even else spaced[1 - first :: 2].tolist())


def _count(context: BuildContext) -> int:
    source = _source(context)
    if source.is_dir():
        return len(list_images(source))
    from samforge.media.video import VideoReader

    with VideoReader(source) as reader:
        # What a file says of its length need not be true.
        return reader.info.frames or sum(1 for _ in reader.frames())


def _source(context: BuildContext) -> Path:
    source = context.recipe.calibration.source
    if source is None or not checked_path(source, ImageError).exists():
        raise ImageError(f"{source} does not exist. Give a folder of images, or a video.")
    return source
