"""Detections drawn over their image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.core.images import RgbImage
from samforge.draw.tags import PALETTE, Box, Color, Tag, draw_tags, stroke_for

_FIND, _LEAVE_OUT = (0, 158, 60), (213, 30, 30)


def overlay(  # noqa: PLR0913  the public call: every argument is one a user types
    image_rgb: RgbImage,
    detections: Detections,
    *,
    opacity: float = 0.5,
    boxes: bool = True,
    labels: bool = True,
    min_side: int = 0,
    color_by_phrase: bool = False,
) -> RgbImage:
    """Draw each detection in a colour of its own: mask, contour, box and a tag with its score.

    Args:
        image_rgb: (H, W, 3), uint8, the image the detections are of.
        detections: What was found in it.
        opacity: Of the masks, 0 (invisible) to 1 (opaque).
        boxes: Draw boxes.
        labels: Draw tags such as ``red circle 0.97``.
        min_side: Enlarge a small picture by a whole factor until its longer side is at least this
            long, so that the tags are readable; 0 keeps the size.
        color_by_phrase: Give all detections of a phrase one colour. In a video, colours then stay
            as they are, while the order of the detections changes from frame to frame. Objects
            with ids have the colour of their id, and the id in their tag, in any case.

    Returns:
        uint8 RGB, of the image's size or a multiple of it.

    Raises:
        ShapeError: The detections are of an image of another size.
        SettingError: ``opacity`` is outside 0 to 1.
    """
    _check_rgb(image_rgb)
    if image_rgb.shape[:2] != detections.size_hw:
        raise ShapeError(
            f"The detections are of an image of {detections.size_hw} (H, W), got one of "
            f"{image_rgb.shape[:2]}. Give the image they were found in."
        )
    if not 0.0 <= opacity <= 1.0:
        raise SettingError(f"opacity is {opacity}. Give a number from 0 to 1.")
    factor = max(1, -(-min_side // max(detections.size_hw)))
    canvas = _enlarged(image_rgb, factor)
    colors = [PALETTE[i % len(PALETTE)] for i in _color_numbers(detections, color_by_phrase)]
    stroke = stroke_for((canvas.shape[1], canvas.shape[0]))
    for i in np.argsort(detections.scores, kind="stable"):  # the best one ends on top
        crop, top_left = detections.masks.crop(int(i))
        _paint_mask(canvas, crop, top_left, factor, colors[i], (opacity, stroke))
    picture = Image.fromarray(canvas)
    anchors = [_pixel_box(box * factor, picture.size) for box in detections.boxes_xyxy]
    if boxes:
        pen = ImageDraw.Draw(picture)
        for (left, top, right, bottom), color in zip(anchors, colors, strict=True):
            pen.rectangle((left, top, right - 1, bottom - 1), outline=color, width=stroke)
    if labels:
        order = np.argsort(-detections.scores, kind="stable")
        draw_tags(
            picture,
            [
                Tag(
                    text=_tag_text(detections, int(i)),
                    color=colors[i],
                    anchor=anchors[i],
                )
                for i in order
            ],
        )
    return np.asarray(picture)


def draw_exemplars(
    image_rgb: RgbImage,
    boxes_xyxy: npt.ArrayLike,
    box_labels: npt.ArrayLike | None = None,
    *,
    size_hw: tuple[int, int] | None = None,
) -> RgbImage:
    """Draw prompt boxes: green with "+" for what to find, red with "-" for what to leave out.

    Args:
        image_rgb: (H, W, 3), uint8.
        boxes_xyxy: (K, 4), pixels.
        box_labels: (K,), 1 or 0; None for all 1.
        size_hw: Size of the image that the boxes are of, when the picture was enlarged since.

    Raises:
        ShapeError: Boxes and labels do not belong together.
    """
    _check_rgb(image_rgb)
    boxes = np.asarray(boxes_xyxy, np.float64)
    labels = np.ones(len(boxes)) if box_labels is None else np.asarray(box_labels)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ShapeError(f"Give boxes (K, 4) and labels (K,), got {boxes.shape}, {labels.shape}.")
    picture = Image.fromarray(image_rgb)
    height, width = size_hw or image_rgb.shape[:2]
    across, down = picture.width / width, picture.height / height
    pen = ImageDraw.Draw(picture)
    tags = []
    for box, label in zip(boxes, labels.tolist(), strict=True):
        anchor = _pixel_box(box * np.array([across, down, across, down]), picture.size)
        color = _FIND if label else _LEAVE_OUT
        left, top, right, bottom = anchor
        stroke = 1 + stroke_for(picture.size)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=color, width=stroke)
        # At the right corner: the left one is where detections have their tags.
        corner = (right - 1, top, right, bottom)
        tags.append(Tag(text="+" if label else "-", color=color, anchor=corner))
    draw_tags(picture, tags)
    return np.asarray(picture)


def draw_clicks(
    image_rgb: RgbImage,
    points_xy: npt.ArrayLike,
    point_labels: npt.ArrayLike,
    boxes_xyxy: npt.ArrayLike = (),
    *,
    size_hw: tuple[int, int] | None = None,
) -> RgbImage:
    """Draw clicks as ringed dots, green on the object and red beside it, and boxes around objects.

    Args:
        image_rgb: (H, W, 3), uint8.
        points_xy: (K, 2), pixels.
        point_labels: (K,), 1 on the object, 0 beside it.
        boxes_xyxy: (B, 4), pixels.
        size_hw: Size of the image that these are of, when the picture was enlarged since.

    Raises:
        ShapeError: Points and labels do not belong together.
    """
    _check_rgb(image_rgb)
    points = np.asarray(points_xy, np.float64).reshape(-1, 2)
    labels = np.asarray(point_labels).reshape(-1)
    if labels.shape != points.shape[:1]:
        raise ShapeError(f"Give points (K, 2) and labels (K,), got {points.shape}, {labels.shape}.")
    picture = Image.fromarray(image_rgb)
    height, width = size_hw or image_rgb.shape[:2]
    across, down = picture.width / width, picture.height / height
    pen, stroke = ImageDraw.Draw(picture), stroke_for(picture.size)
    for box in np.asarray(boxes_xyxy, np.float64).reshape(-1, 4):
        left, top, right, bottom = _pixel_box(
            box * np.array([across, down, across, down]), picture.size
        )
        pen.rectangle((left, top, right - 1, bottom - 1), outline=_FIND, width=1 + stroke)
    radius = 3 + 2 * stroke
    for (x, y), label in zip(points, labels.tolist(), strict=True):
        middle = (x * across, y * down)
        pen.circle(middle, radius + stroke, fill=(255, 255, 255))
        pen.circle(middle, radius, fill=_FIND if label else _LEAVE_OUT)
    return np.asarray(picture)


def _tag_text(detections: Detections, row: int) -> str:
    if detections.ids is not None:  # the score of a track is that of its first frame
        return f"{detections.ids[row]} {detections.labels[row]}"
    return f"{detections.labels[row]} {detections.scores[row]:.2f}"


def _color_numbers(detections: Detections, by_phrase: bool) -> list[int]:
    if detections.ids is not None:
        return [int(number) for number in detections.ids]
    if not by_phrase:
        return list(range(len(detections)))
    # Phrases without a find count too, so that a phrase has one colour in every frame.
    phrases = list(dict.fromkeys([*detections.best_scores, *detections.labels]))
    return [phrases.index(label) for label in detections.labels]


def _check_rgb(image_rgb: RgbImage) -> None:
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise ShapeError(
            f"A picture is uint8 (H, W, 3), got {image_rgb.dtype} {image_rgb.shape}. "
            "samforge.media.read_image gives that of any image."
        )


def _enlarged(image_rgb: RgbImage, factor: int) -> RgbImage:
    if factor == 1:
        return image_rgb.copy()
    height, width = image_rgb.shape[:2]
    size = (width * factor, height * factor)
    return np.array(Image.fromarray(image_rgb).resize(size, Image.Resampling.BICUBIC))


def _pixel_box(box: npt.NDArray[np.floating], size: tuple[int, int]) -> Box:
    """Round to pixels and clip to the picture; at least one pixel remains."""
    left, top, right, bottom = (round(float(v)) for v in box)
    left, top = min(max(left, 0), size[0] - 1), min(max(top, 0), size[1] - 1)
    return left, top, min(max(right, left + 1), size[0]), min(max(bottom, top + 1), size[1])


def _paint_mask(
    canvas: RgbImage,
    inside: npt.NDArray[np.bool_],
    top_left: tuple[int, int],
    factor: int,
    color: Color,
    look: tuple[float, int],
) -> None:
    """Blend the crop of one mask into the canvas, and line its contour."""
    opacity, stroke = look
    if not inside.size:
        return
    if factor > 1:
        smooth = Image.fromarray(inside.astype(np.uint8) * 255)
        size = (smooth.width * factor, smooth.height * factor)
        inside = np.asarray(smooth.resize(size, Image.Resampling.BILINEAR)) > 127
    top, left = (place * factor for place in top_left)
    view = canvas[top : top + inside.shape[0], left : left + inside.shape[1]]
    covered = view[inside]
    for channel, value in enumerate(color):  # a value has 256 cases: blend those
        table = np.rint(np.arange(256) * (1 - opacity) + value * opacity).astype(np.uint8)
        covered[:, channel] = table[covered[:, channel]]
    view[inside] = covered
    # White outside colour: one of the two stands out from any object.
    rim = inside & ~_eroded(inside, stroke)
    view[rim] = color
    if stroke > 1:
        view[inside & ~_eroded(inside, stroke // 2)] = (255, 255, 255)


def _eroded(mask: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """Take off the pixels that are within ``steps`` of the outside, the picture's edge included.

    A window of ``2 * steps + 1`` grows by doubling, so thick lines on large pictures stay cheap.
    """
    core = np.pad(mask, steps)
    for _ in range(2):  # down the columns, then, transposed, along the rows
        window = 1
        while window < 2 * steps + 1:
            shift = min(window, 2 * steps + 1 - window)
            core = core[:-shift] & core[shift:]
            window += shift
        core = core.T
    return core
