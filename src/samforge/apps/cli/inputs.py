"""Which images a command reads and what it calls the files it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import samforge

OVERLAY_SUFFIX = ".overlay.png"
COCO_SUFFIX = ".coco.json"


def images_from_paths(
    paths: Sequence[Path], out: Path
) -> tuple[list[Path], list[tuple[Path, samforge.SamforgeError]]]:
    """List the images that files and folders name, each once, in order.

    Args:
        paths: Files, taken as they are, and folders, of which the images are taken.
        out: Where results go: overlays of an earlier run in it are not taken for images.

    Returns:
        The images, and the folders that could not be used with the reason.
    """
    from samforge.media import list_images

    images: list[Path] = []
    failures: list[tuple[Path, samforge.SamforgeError]] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        try:
            listed = list_images(path)
        except samforge.SamforgeError as error:
            failures.append((path, error))
            continue
        own = path.resolve() == out.resolve()
        images += [file for file in listed if not (own and file.name.endswith(OVERLAY_SUFFIX))]
    unique: dict[Path, Path] = {}
    for image in images:
        unique.setdefault(image.resolve(), image)
    return list(unique.values()), failures


def stems_for(images: Sequence[Path], out: Path) -> list[str]:
    """Choose the stem of each image's results so that no file is written over another.

    The first image of a name keeps it; ``x-2``, ``x-3`` … follow. Names that differ in case alone
    count as equal, as they are on some systems, and images themselves are never written over.
    """
    wanted = {image.stem.casefold() for image in images}
    sources = {image.resolve() for image in images}
    taken: set[str] = set()

    def is_free(stem: str) -> bool:
        results = {(out / f"{stem}{suffix}").resolve() for suffix in (OVERLAY_SUFFIX, COCO_SUFFIX)}
        return stem.casefold() not in taken and not results & sources

    stems = []
    for image in images:
        stem, number = image.stem, 2
        while not is_free(stem) or (stem != image.stem and stem.casefold() in wanted):
            stem, number = f"{image.stem}-{number}", number + 1
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
