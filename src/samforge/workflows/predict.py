"""Segments image files and writes overlays and COCO files: the work behind ``samforge predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.detections import Detections
from samforge.core.errors import PromptError
from samforge.core.files import atomic_write_json
from samforge.core.images import RgbImage
from samforge.core.masks import Masks
from samforge.core.native import error_of_item
from samforge.core.timing import StageTime, Timings
from samforge.core.words import relative_names
from samforge.draw import draw_clicks, draw_exemplars, overlay
from samforge.formats import coco_dataset
from samforge.media import read_image, write_png
from samforge.runtime import EncodedImage, ObjectPrompt, Segmenter, Thresholds
from samforge.workflows.inputs import COCO_SUFFIX, OVERLAY_SUFFIX, stems_for
from samforge.workflows.pointing import Box, Pointing
from samforge.workflows.thresholds import scores_of
from samforge.workflows.watching import Done, unseen

READABLE_PX = 640
"""Overlays of smaller images are enlarged to about this side, so that the tags are readable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """What to find in every image."""

    text: tuple[str, ...] = ()
    """Phrases, each looked for by itself."""
    boxes_xyxy: tuple[Box, ...] = ()
    """Exemplar boxes, pixels."""
    box_labels: tuple[int, ...] = ()
    """1 (find this) or 0 (leave this out) for each box."""
    pointing: Pointing = Pointing()  # noqa: RUF009  # frozen
    """Objects to segment or, beside phrases or exemplar boxes, clicks on the one of what they find
    that is corrected."""
    candidates: bool = False
    """Whether clicks give three masks of an object, best first."""
    hole_area: int | None = None
    """Cells of the largest hole that is filled in masks of clicks; None for what Meta's does."""
    thresholds: Thresholds
    """What counts as found."""
    own_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Phrases that detections have to score above another number for."""

    def scores(self) -> float | tuple[float, ...]:
        """What detections score above, of each phrase; of boxes alone there is one."""
        if not self.text:
            return self.thresholds.score
        return scores_of(self.text, self.own_thresholds, self.thresholds.score)

    def threshold_of(self, phrase: str) -> float:
        """What detections of a phrase score above."""
        return self.own_thresholds.get(phrase, self.thresholds.score)

    @property
    def finds(self) -> bool:
        """Whether phrases or exemplar boxes are looked for."""
        return bool(self.text or self.boxes_xyxy)

    def __post_init__(self) -> None:
        if not self.finds and not self.pointing:
            raise PromptError(
                "There is nothing to find. Give --text 'red circle', --box 'x1,y1,x2,y2' or "
                "--point 'x,y'."
            )
        if self.finds and (self.pointing.boxes_xyxy or self.candidates):
            raise PromptError(
                "With --text or --box, points correct what was found; --object-box and "
                "--candidates are for objects that nothing else finds. Leave one of them out."
            )
        if self.hole_area is not None and not self.pointing:
            raise PromptError(
                "--hole-area is of masks that clicks show. Give --point or --object-box with it, "
                "or leave it out."
            )
        if not self.finds:
            self.pointing.objects()  # refuses what shows none
        if self.boxes_xyxy and len(set(self.text)) > 1:
            raise PromptError(
                f"Boxes go with one phrase, got {len(self.text)}: {', '.join(self.text)}. "
                "Run predict once for each phrase."
            )
        if any(not phrase.strip() for phrase in self.text):
            raise PromptError("A phrase is empty. Give words, such as --text 'red circle'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedImage:
    """One image, and where its results go."""

    file: Path
    """The image."""
    name: str
    """As results call it: relative to the folder that all images share."""
    results: Path
    """Their path without its endings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """What was found in one image and where it was written."""

    image: Path
    """The image."""
    found: Mapping[str, Any]
    """As ``Detections.to_dict`` gives it: without the masks, which can be gigabytes."""
    overlay: Path
    """The picture."""
    coco: Path
    """The COCO file with the masks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An image, or a folder of images, without a result."""

    image: Path
    """Which one."""
    kind: str
    """Class of the error: ``ImageError``."""
    message: str
    """What came, what is allowed, what to do."""
    exit_code: int
    """Of the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What came of a run."""

    images: tuple[ImageResult, ...]
    """Those that were segmented and written."""
    failures: tuple[Failure, ...]
    """Those that were not."""
    stages: tuple[StageTime, ...]
    """Where the time went, summed over the images."""
    total_ms: float
    """Sum of the stages."""


def failure_from(path: Path, error: Exception) -> Failure:
    """Keep what went wrong with one image for later."""
    told = error_of_item(error)
    return Failure(
        image=path, kind=type(told).__name__, message=str(told), exit_code=told.exit_code
    )


def predict_files(
    segmenter: Segmenter,
    images: Sequence[Path],
    prompts: Prompts,
    out: Path,
    *,
    done: Done = unseen,
) -> Predictions:
    """Segment every image and write its results; one that fails does not stop the others.

    That holds for whatever goes wrong with one: no memory for its masks, a name that cannot be
    written, a bug.

    Args:
        segmenter: What finds them, with its sessions loaded.
        images: Image files.
        prompts: What to find in each image.
        out: Folder for overlays and COCO files; it has to be writable.
        done: Called after each image.

    Returns:
        The result of each image, the failures, and the times.
    """
    timings = Timings()
    results: list[ImageResult] = []
    failures: list[Failure] = []
    names, stems = relative_names(images), stems_for(images, out)
    for image, name, stem in zip(images, names, stems, strict=True):
        named = NamedImage(file=image, name=name, results=out / stem)
        try:
            results.append(_predict_file(segmenter, named, prompts, timings))
        except Exception as error:  # noqa: BLE001  told with its kind; the others go on
            failures.append(failure_from(image, error))
        done()
    return Predictions(
        images=tuple(results),
        failures=tuple(failures),
        stages=timings.stages(),
        total_ms=timings.total_ms,
    )


def _predict_file(
    segmenter: Segmenter, image: NamedImage, prompts: Prompts, timings: Timings
) -> ImageResult:
    base = image.results
    with timings.stage("decode"):
        rgb = read_image(image.file)
    found = _found(segmenter, rgb, prompts, timings)
    with timings.stage("save"):
        picture = overlay_of(rgb, found, prompts.boxes_xyxy, prompts.box_labels)
        if prompts.pointing:
            shown = prompts.pointing
            picture = draw_clicks(
                *(picture, shown.points_xy, shown.point_labels, shown.boxes_xyxy),
                size_hw=found.size_hw,
            )
        picture_path = write_png(base.with_name(base.name + OVERLAY_SUFFIX), picture)
        coco_path = base.with_name(base.name + COCO_SUFFIX)
        atomic_write_json(
            coco_path,
            coco_dataset(
                [(image.name, found)], categories=prompts.text, description="samforge predict"
            ),
        )
    return ImageResult(
        image=image.file, found=found.to_dict(), overlay=picture_path, coco=coco_path
    )


def _found(segmenter: Segmenter, rgb: RgbImage, prompts: Prompts, timings: Timings) -> Detections:
    """What phrases and exemplars find, corrected by clicks; or what clicks show."""
    inner = Timings()
    image: RgbImage | EncodedImage = rgb
    if prompts.pointing:  # asked twice or more: encoded once
        image = segmenter.encode(rgb, timings=inner)
    if not prompts.finds:
        with timings.stage("clicks"):
            found = segmenter.predict_objects(
                image,
                prompts.pointing.objects(),
                candidates=prompts.candidates,
                mask_threshold=prompts.thresholds.mask,
                hole_area=prompts.hole_area,
            )
    else:
        found = segmenter.predict(
            image,
            text=prompts.text or None,
            boxes_xyxy=prompts.boxes_xyxy or None,
            box_labels=prompts.box_labels or None,
            threshold=prompts.scores(),
            mask_threshold=prompts.thresholds.mask,
            max_detections=prompts.thresholds.max_detections,
            timings=inner,
        )
        if prompts.pointing:
            with timings.stage("clicks"):
                found = corrected(
                    segmenter,
                    image,
                    found,
                    ObjectPrompt(
                        points=prompts.pointing.points_xy, labels=prompts.pointing.point_labels
                    ),
                    mask_threshold=prompts.thresholds.mask,
                    hole_area=prompts.hole_area,
                )
    for stage in inner.stages():
        # The image was decoded before, because the overlay needs it too.
        calls = 0 if stage.stage == "decode" else stage.calls
        timings.add(stage.stage, stage.milliseconds, stage.processor, calls)
    return found


def corrected(
    segmenter: Segmenter,
    image: RgbImage | EncodedImage,
    found: Detections,
    prompt: ObjectPrompt,
    *,
    mask_threshold: float = 0.5,
    hole_area: int | None = None,
) -> Detections:
    """Correct one of what was found by clicks.

    It is the detection on which the first click on an object lies, the smallest of several; where
    no such click lies on any, it is the best one.

    Args:
        segmenter: What found it.
        image: The same image.
        found: What a phrase, boxes or clicks found in it, at least one.
        prompt: Points on and beside the object.
        mask_threshold: Pixels of a mask have a probability above it.
        hole_area: Of ``predict_objects``: holes of the corrected mask up to this size are filled.

    Returns:
        The same detections, where the corrected one has another mask and the box around it; label
        and score stay those of the phrase.

    Raises:
        PromptError: Nothing was found that could be corrected.
    """
    if not len(found):
        raise PromptError(
            "Nothing was found that clicks could correct. Lower --threshold, or leave the phrase "
            "out to segment what the points show."
        )
    row = _clicked_on(found, prompt)
    answer = segmenter.predict_objects(
        image, prompt, earlier=found[row], mask_threshold=mask_threshold, hole_area=hole_area
    )
    masks = [answer.masks if one == row else found.masks[[one]] for one in range(len(found))]
    boxes = found.boxes_xyxy.copy()
    boxes[row] = answer.boxes_xyxy[0]
    return replace(found, masks=Masks.concatenate(masks), boxes_xyxy=boxes)


def _clicked_on(found: Detections, prompt: ObjectPrompt) -> int:
    height, width = found.size_hw
    points = np.asarray(prompt.points, np.float64).reshape(-1, 2)
    labels = np.ones(len(points)) if prompt.labels is None else np.asarray(prompt.labels)
    for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
        if label != 1 or not (0 <= x <= width and 0 <= y <= height):
            continue
        column, line = min(int(x), width - 1), min(int(y), height - 1)
        under = np.flatnonzero(found.masks.at(line, column))
        if len(under):
            return int(under[found.areas[under].argmin()])
    return int(found.scores.argmax())


def overlay_of(
    rgb: RgbImage,
    found: Detections,
    boxes_xyxy: Sequence[Box],
    box_labels: Sequence[int],
    *,
    opacity: float = 0.5,
    min_side: int = READABLE_PX,
) -> RgbImage:
    """Draw what was found, and the exemplar boxes over it."""
    picture = overlay(rgb, found, opacity=opacity, min_side=min_side)
    if not boxes_xyxy:
        return picture
    return draw_exemplars(picture, boxes_xyxy, box_labels, size_hw=found.size_hw)
