"""Segments image files and writes overlays and COCO files: the work behind ``samforge predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samforge.core.detections import Detections
from samforge.core.errors import PromptError
from samforge.core.files import atomic_write_json
from samforge.core.images import RgbImage
from samforge.core.native import error_of_item
from samforge.core.timing import StageTime, Timings
from samforge.core.words import relative_names
from samforge.draw import draw_exemplars, overlay
from samforge.formats import coco_dataset
from samforge.media import read_image, write_png
from samforge.runtime import Segmenter, Thresholds
from samforge.workflows.inputs import COCO_SUFFIX, OVERLAY_SUFFIX, stems_for
from samforge.workflows.scores import scores_of
from samforge.workflows.watching import Done, unseen

READABLE_PX = 640
"""Overlays of smaller images are enlarged to about this side, so that the tags are readable."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """What to find in every image."""

    text: tuple[str, ...] = ()
    """Phrases, each looked for by itself."""
    boxes_xyxy: tuple[Box, ...] = ()
    """Exemplar boxes, pixels."""
    box_labels: tuple[int, ...] = ()
    """1 (find this) or 0 (leave this out) for each box."""
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

    def __post_init__(self) -> None:
        if not self.text and not self.boxes_xyxy:
            raise PromptError(
                "There is nothing to find. Give --text 'red circle', or --box 'x1,y1,x2,y2'."
            )
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


def box_from_text(text: str) -> Box:
    """Read a box as the command line takes it: ``10,20,90,120``.

    Raises:
        PromptError: It is not four numbers.
    """
    try:
        left, top, right, bottom = (float(word) for word in text.split(","))
    except ValueError as error:
        raise PromptError(
            f"A box is four numbers, left,top,right,bottom in pixels, got {text!r}. "
            "Write it like --box 10,20,90,120."
        ) from error
    return left, top, right, bottom


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
    inner = Timings()
    found = segmenter.predict(
        rgb,
        text=prompts.text or None,
        boxes_xyxy=prompts.boxes_xyxy or None,
        box_labels=prompts.box_labels or None,
        threshold=prompts.scores(),
        mask_threshold=prompts.thresholds.mask,
        max_detections=prompts.thresholds.max_detections,
        timings=inner,
    )
    for stage in inner.stages():
        # The image was decoded above, because the overlay needs it too.
        calls = 0 if stage.stage == "decode" else stage.calls
        timings.add(stage.stage, stage.milliseconds, stage.processor, calls)
    with timings.stage("save"):
        picture = overlay_of(rgb, found, prompts.boxes_xyxy, prompts.box_labels)
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
