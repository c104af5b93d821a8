"""Which images a command reads and what it calls the files it makes of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from samforge.core.errors import SamforgeError
from samforge.core.paths import is_folder

OVERLAY_SUFFIX = ".overlay.png"
COCO_SUFFIX = ".coco.json"


def images_from_paths(
    paths: Sequence[Path], out: Path, *, recursive: bool = False
) -> tuple[list[Path], list[tuple[Path, SamforgeError]]]:
    """List the images that files and folders name, each once, in order.

    Two links to one picture are two images: each gets its result.

    Args:
        paths: Files, taken as they are, and folders, of which the images are taken.
        out: Where results go: overlays of an earlier run in it are not taken for images.
        recursive: Whether to look into the folders of the folders as well.

    Returns:
        The images, and the folders that could not be used with the reason.
    """
    from samforge.media import list_images

    images: list[Path] = []
    failures: list[tuple[Path, SamforgeError]] = []
    own = resolved(out)
    for path in paths:
        if not is_folder(path):
            images.append(path)
            continue
        try:
            listed = list_images(path, recursive=recursive)
        except SamforgeError as error:
            failures.append((path, error))
            continue
        ours = {folder: resolved(folder) == own for folder in {file.parent for file in listed}}
        images += [
            file
            for file in listed
            if not (ours[file.parent] and file.name.endswith(OVERLAY_SUFFIX))
        ]
    unique: dict[str, Path] = {}
    for image in images:
        unique.setdefault(os.path.abspath(image), image)  # noqa: PTH100  as named: links are kept
    return list(unique.values()), failures


def left_out(paths: Sequence[Path], out: Path, *, recursive: bool = False) -> list[str]:
    """Say what of the folders is not among the images: folders in them, and files of other kinds.

    Args:
        paths: As for :func:`images_from_paths`.
        out: Where results go: what an earlier run left there is not worth a word.
        recursive: As there.
    """
    from samforge.media import listing_of_folder

    notes = []
    for path in paths:
        if not is_folder(path):
            continue
        try:
            listing = listing_of_folder(path, recursive=recursive)
        except SamforgeError:
            continue  # told as a failure
        own = resolved(out)
        folders = [folder for folder in listing.folders if resolved(folder) != own]
        others = [
            file
            for file in listing.others
            if not (file.name.endswith(COCO_SUFFIX) and resolved(file.parent) == own)
        ]
        if folders:
            way = "They are links or cannot be listed." if recursive else "--recursive does."
            notes.append(
                f"{path}: {_counted(folders, 'folder')} not looked into ({_few(folders)}). {way}"
            )
        if others:
            notes.append(
                f"{path}: {_counted(others, 'file')} no image by name and left out "
                f"({_few(others)})."
            )
    return notes


def resolved(path: Path) -> Path:
    """Where a path leads; the path itself where its links lead nowhere."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links, before 3.13
        return path.absolute()


def _counted(paths: Sequence[Path], what: str) -> str:
    return f"1 {what} in it was" if len(paths) == 1 else f"{len(paths)} {what}s in it were"


def _few(paths: Sequence[Path], most: int = 3) -> str:
    names = ", ".join(path.name for path in paths[:most])
    return f"{names}, …" if len(paths) > most else names


def stems_for(images: Sequence[Path], out: Path) -> list[str]:
    """Choose the stem of each image's results so that no file is written over another.

    The first image of a name keeps it; ``x-2``, ``x-3`` … follow. Names that differ in case alone
    count as equal, as they are on some systems, and images themselves are never written over.
    Takes time in proportion to the number of images, however many share a name.
    """
    wanted = {image.stem.casefold() for image in images}
    folder = resolved(out)
    # Results have these endings, so no other image can be in their way.
    endings = (OVERLAY_SUFFIX, COCO_SUFFIX)
    sources = {resolved(image) for image in images if image.name.endswith(endings)}
    sources |= {image.absolute() for image in images if image.name.endswith(endings)}
    taken: set[str] = set()
    numbers: dict[str, int] = {}

    def is_free(stem: str) -> bool:
        if stem.casefold() in taken:
            return False
        return not any(folder / f"{stem}{ending}" in sources for ending in endings)

    stems = []
    for image in images:
        stem = image.stem
        key = stem.casefold()
        while not is_free(stem) or (stem != image.stem and stem.casefold() in wanted):
            number = numbers.get(key, 2)
            stem, numbers[key] = f"{image.stem}-{number}", number + 1
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def results_for(images: Sequence[Path], out: Path) -> list[Path]:
    """Every file that the results of these images go to."""
    return [
        out / f"{stem}{suffix}"
        for stem in stems_for(images, out)
        for suffix in (OVERLAY_SUFFIX, COCO_SUFFIX)
    ]
