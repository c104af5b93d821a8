"""Labelled images from a COCO file: any data set with masks becomes questions and answers.

Category names become phrases, each asked of the images that hold it. As many phrases that are *not*
in an image are asked of it too, at least one, because presence can only be told where both occur:
LVIS files say which categories were looked for in vain (``neg_category_ids``); other files label
their images throughout, so those phrases are drawn from the categories that an image lacks. SA-Co
files hold one phrase an entry (``text_input``), present or absent, and are asked as they stand.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from samforge.core.errors import ImageError, SamforgeError, SettingError
from samforge.core.labelled import LabelledImage, Question
from samforge.core.native import Report, isolated
from samforge.core.paths import is_file
from samforge.core.rle import mask_from_segmentation
from samforge.formats.coco_file import CocoAnnotation, CocoFile, CocoImage, coco_file
from samforge.media import read_image

Asks = dict[str, tuple[CocoAnnotation, ...]]
"""What is asked of one picture: phrases and the annotations that answer them, none if absent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoData:
    """Labelled pictures of a COCO file, read when they are needed."""

    path: Path
    """The file."""
    folder: Path
    """Folder of the pictures."""
    pictures: Mapping[str, tuple[tuple[int, int] | None, Asks]]
    """By file name: the size that the file states, and what is asked."""

    @property
    def phrases(self) -> frozenset[str]:
        """Everything that is asked."""
        return frozenset(phrase for _, asks in self.pictures.values() for phrase in asks)

    def images(self, *, report: Report | None = None) -> Iterator[LabelledImage]:
        """Read the pictures one by one, in the order of the file.

        Args:
            report: Takes every picture that cannot be used, which is left out, and every phrase
                whose masks are damaged, which is not asked. None raises at the first.

        Raises:
            ImageError: A picture cannot be read, or is of another size than the file states.
            SettingError: A segmentation is damaged.
        """
        for name, (stated, asks) in self.pictures.items():
            labelled = None
            with isolated(report, str(self.folder / name)):
                labelled = self._labelled(name, stated, asks, report)
            if labelled is not None:
                yield labelled

    def _labelled(
        self, name: str, stated: tuple[int, int] | None, asks: Asks, report: Report | None
    ) -> LabelledImage:
        rgb = read_image(self.folder / name)
        size_hw = (rgb.shape[0], rgb.shape[1])
        if stated not in (None, size_hw):
            raise ImageError(
                f"{self.folder / name} is {size_hw} (H, W) when it is turned upright, "
                f"{self.path} says {stated}. Give the pictures that were labelled."
            )
        questions = tuple(_questions(asks, size_hw, report))
        return LabelledImage(name=name, image_rgb=rgb, questions=questions)


def coco_data_from_file(
    path: Path,
    *,
    folder: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    report: Report | None = None,
) -> CocoData:
    """Read what a COCO file asks, and make sure that its pictures are there.

    Args:
        path: The file: COCO, LVIS or SA-Co, with masks as polygons or RLE.
        folder: Where the pictures are; None looks next to the file.
        seed: Changes which absent phrases are drawn.
        limit: Use the first pictures only.
        report: Takes what is not usable - records, names, pictures that are not there - while the
            others are used. None raises at the first.

    Raises:
        SettingError: The file is not usable, or nothing is left to ask.
        ImageError: Pictures are missing.
    """
    place = path.parent if folder is None else folder
    told: list[Exception] = []
    if report is not None:
        report = _remembering(report, told)
    file = coco_file(path, report=report)
    by_name: dict[str, list[tuple[CocoImage, tuple[CocoAnnotation, ...]]]] = {}
    for identity, image in file.images.items():
        found = file.annotations.get(identity, ())
        by_name.setdefault(_located(image, place), []).append((image, found))
    used = frozenset(
        file.phrases[one.category] for all_ in file.annotations.values() for one in all_
    )
    federated = any(image.negative is not None for image in file.images.values())
    pictures = {}
    for name, entries in by_name.items():
        asks: Asks = {}
        for image, found in entries:
            if image.phrase is not None:
                asks |= {image.phrase: found} if image.exhaustive else {}
                continue
            asks |= _asks(image, found, file)
            absent = _negative(image, file) if federated else used
            # A category of which only a part or a crowd is labelled is neither there nor absent.
            held = {file.phrases[one.category] for one in found}
            held |= {file.phrases[one] for one in image.partial if one in file.phrases}
            asks |= dict.fromkeys(drawn_phrases(absent - held, len(asks), name, seed), ())
        with isolated(report, name):
            check_name(name, path)
            if asks:
                pictures[name] = (entries[0][0].size_hw, asks)
    if not pictures and told:
        raise told[0]
    if not pictures:
        raise SettingError(f"{path} asks nothing: no image has a phrase, present or absent.")
    chosen = dict(list(pictures.items())[:limit])
    return CocoData(path=path, folder=place, pictures=_found(chosen, place, path, report))


def _remembering(report: Report, told: list[Exception]) -> Report:
    def both(item: str, error: Exception) -> None:
        told.append(error)
        report(item, error)

    return both


def _located(image: CocoImage, folder: Path) -> str:
    """Under which of its names the picture is there; the first when it is not."""
    names = (image.file_name, *image.other_names)
    return next((name for name in names if is_file(folder / name)), names[0])


def _asks(image: CocoImage, found: tuple[CocoAnnotation, ...], file: CocoFile) -> Asks:
    """Phrases of what an image holds; those with crowds or unlabelled instances are left out."""
    partial = {file.phrases[one] for one in image.partial if one in file.phrases}
    asks: Asks = {}
    for annotation in found:
        phrase = file.phrases[annotation.category]
        asks[phrase] = (*asks.get(phrase, ()), annotation)
    return {
        phrase: annotations
        for phrase, annotations in asks.items()
        if phrase not in partial and not any(one.crowd for one in annotations)
    }


def _negative(image: CocoImage, file: CocoFile) -> frozenset[str]:
    return frozenset(file.phrases[one] for one in image.negative or () if one in file.phrases)


def drawn_phrases(phrases: frozenset[str], present: int, name: str, seed: int) -> list[str]:
    """Draw as many as are present, at least one: the same for a picture or video in every run."""
    ordered = sorted(phrases)
    generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
    count = min(len(ordered), max(1, present))
    return [ordered[i] for i in sorted(generator.permutation(len(ordered))[:count])]


def check_name(name: str, path: Path, option: str = "--images") -> None:
    """Make sure that a file that a record names lies in the folder of all.

    Raises:
        SettingError: It leaves it.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise SettingError(
            f"{path} names the picture {name!r}, which leaves the folder of the pictures. "
            f"Make the names relative to one folder, and give it with {option}."
        )


Pictures = dict[str, tuple[tuple[int, int] | None, Asks]]


def _found(pictures: Pictures, folder: Path, path: Path, report: Report | None) -> Pictures:
    """Those that are there; the others are told, and it ends where none is."""
    missing = [name for name in pictures if not is_file(folder / name)]
    if missing and (report is None or len(missing) == len(pictures)):
        raise ImageError(
            f"{len(missing)} of the {len(pictures)} pictures of {path} are not in {folder}, the "
            f"first is {missing[0]}. Say where they are: --images FOLDER."
        )
    for name in missing:
        with isolated(report, str(folder / name)):
            raise ImageError(f"{folder / name} does not exist. Say where it is: --images FOLDER.")
    return {name: picture for name, picture in pictures.items() if name not in missing}


def _questions(asks: Asks, size_hw: tuple[int, int], report: Report | None) -> Iterator[Question]:
    """Every phrase, then one box: around the largest instance of what there is most of."""
    best: npt.NDArray[np.bool_] | None = None
    for phrase, answer in asks.items():
        masks = None
        with isolated(report, answer[0].place if answer else phrase):
            masks = _masks(answer, size_hw)
        if masks is None:
            continue  # damaged: neither there nor absent
        if answer and not len(masks):
            continue  # polygons thinner than a pixel: neither there nor absent
        if len(masks) > (0 if best is None else len(best)):
            best = masks
        yield Question(text=phrase, masks=masks)
    if best is not None:
        largest = best[int(best.sum((1, 2)).argmax())]
        yield Question(
            text=None,
            boxes_xyxy=_box(largest),
            box_labels=np.ones(1, np.int64),
            masks=best,
        )


def _masks(
    annotations: tuple[CocoAnnotation, ...], size_hw: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    masks = np.zeros((len(annotations), *size_hw), np.bool_)
    for mask, annotation in zip(masks, annotations, strict=True):
        try:
            mask[:] = mask_from_segmentation(annotation.segmentation, size_hw)
        except SamforgeError as error:
            raise SettingError(f"{annotation.place} is not usable: {error}") from error
    return masks[masks.any((1, 2))]


def _box(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return np.array([corners], np.float32)
